"""Creates the tables of a database and migrates them, completely or not at all."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import text

from tokenstore.errors import StorageError
from tokenstore.storage.location import quoted
from tokenstore.storage.migrations import (
    has_tables,
    outdated_error,
    stamp_error,
    too_new_error,
    upgrade_to_head,
)
from tokenstore.storage.postgresql.connections import BUSY_TIMEOUT
from tokenstore.storage.postgresql.errors import (
    ERRORS,
    LOCK_NOT_AVAILABLE,
    foreign_owner_error,
    foreign_schema_error,
    postgresql_error,
    sqlstate,
    translated,
)
from tokenstore.storage.postgresql.locks import key_of
from tokenstore.storage.tables import REVISION, VERSION_TABLE, metadata

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, RootTransaction

    from tokenstore.storage.postgresql.connections import Connections

_TIMEOUT = 120.0  # seconds to wait for another process that creates or migrates the database


_IS = "OPERATOR(pg_catalog.=)"
_TABLES = [*metadata.tables, VERSION_TABLE]
_FOREIGN_OWNER = f"""
    SELECT role.rolname
    FROM pg_catalog.pg_namespace schema
    LEFT JOIN pg_catalog.pg_class class
        ON class.relnamespace {_IS} schema.oid
        AND class.relname {_IS} ANY (%(tables)s::pg_catalog.name[])
    JOIN pg_catalog.pg_roles role ON role.oid {_IS} ANY (ARRAY[schema.nspowner, class.relowner])
    WHERE
        schema.nspname {_IS} %(schema)s::pg_catalog.name
        AND NOT role.rolsuper
        AND NOT pg_catalog.pg_has_role(role.oid, 'MEMBER')
        AND NOT role.oid {_IS} (
            SELECT datdba FROM pg_catalog.pg_database
            WHERE datname {_IS} pg_catalog.current_database()
        )
        AND NOT COALESCE(role.rolname {_IS} %(owner)s::pg_catalog.name, false)
    LIMIT 1
"""  # noqa: S608 - constants


class SchemaManager:
    """Creates and migrates the tables in one schema, under a lock that excludes other processes.

    Args:
        name: The name of the database in messages.
        schema: The schema. Other schemas of the database may belong to other applications.
        connections: Connections to the database.
        owner: A role that may own the schema and the tables, besides those that are trusted.
        upgrade: Migrate an older database instead of refusing it.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        connections: Connections,
        *,
        owner: str | None = None,
        upgrade: bool,
    ) -> None:
        self._name = name
        self._schema = schema
        self._connections = connections
        self._upgrade = upgrade
        self._owner = owner
        # As everywhere, no operator or function without a schema (see `qualified`).
        version_table = f"pg_catalog.to_regclass('{quoted(schema)}.{VERSION_TABLE}')"
        self._identity = f"SELECT {version_table}::pg_catalog.oid::bigint"
        self._is_foreign = f"""
            SELECT {version_table} IS NULL AND EXISTS (
                SELECT FROM pg_catalog.pg_class
                WHERE relnamespace {_IS} pg_catalog.to_regnamespace('{quoted(schema)}')
            )
        """  # noqa: S608 - names

    def find(self, *, create: bool) -> bool:
        """Return whether the tables exist, at the newest revision.

        Args:
            create: Whether to create missing tables.

        Raises:
            SchemaOutdatedError: They are older than this code.
            SchemaTooNewError: They are newer.
            InsecureStorageError: The schema belongs to another application or role.
        """
        revision = self.stored_revision()
        if revision is None:
            if not create:
                return False
            self._upgrade_to_head()
        elif revision > REVISION:
            raise too_new_error(self._name, revision)
        elif revision != REVISION:
            if not self._upgrade:
                raise outdated_error(self._name, revision)
            self._upgrade_to_head()
        return True

    def identity(self, driver: psycopg.Connection[Any]) -> int | None:
        """Return the object id of the version table, or None if there is none."""
        try:
            row = driver.execute(self._identity.encode()).fetchone()
        except ERRORS as error:
            raise postgresql_error(self._name, error) from None
        return None if row is None else row[0]

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        """Yield a connection for migrations (see `Database.migration`).

        A missing schema is created, unless the caller creates no tables in it.
        """
        with self._transaction() as (connection, transaction):
            self._lock(connection)
            is_new = not _exists(connection, self._schema)
            if is_new:
                connection.exec_driver_sql(f"CREATE SCHEMA {quoted(self._schema)}")
            else:
                self._require_trusted_owner(_driver_of(connection))
            if connection.exec_driver_sql(self._is_foreign).scalar():
                raise foreign_schema_error(self._name, self._schema)
            self._set_search_path(connection)
            yield connection
            revision = self.revision_of(_driver_of(connection))
            if revision is not None and not has_tables(connection):
                raise StorageError(
                    f"{self._name}: there are no tables, so it cannot have schema {revision}; "
                    "upgrade it instead, which creates them",
                    self._name,
                )
            if is_new and revision is None:
                transaction.rollback()

    @contextmanager
    def inspection(self) -> Iterator[Connection]:
        """Yield a connection in a read-only transaction."""
        with self._transaction() as (connection, transaction):
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            self._require_trusted_owner(_driver_of(connection))
            self._set_search_path(connection)
            yield connection
            transaction.rollback()

    @contextmanager
    def _transaction(self) -> Iterator[tuple[Connection, RootTransaction]]:
        with (
            self._connections.sqlalchemy_connection() as connection,
            translated(self._name),
            connection.begin() as transaction,
        ):
            connection.exec_driver_sql("SET LOCAL search_path = pg_catalog")
            yield connection, transaction

    def stored_revision(self) -> str | None:
        """Return the schema revision, or None if there are no tables of ours."""
        with self._connections.connection() as driver:
            encoding = driver.info.parameter_status("server_encoding")
            if encoding != "UTF8":
                raise StorageError(
                    f"{self._name}: the database's encoding {encoding} cannot store every account "
                    "name; create a database with ENCODING 'UTF8'",
                    self._name,
                )
            self._require_trusted_owner(driver)
            revision = self.revision_of(driver)
            if revision is None and self._has_accounts(driver):
                raise stamp_error(self._name, None, None)
            return revision

    def _has_accounts(self, driver: psycopg.Connection[Any]) -> bool:
        """Return whether the tables exist, whatever revision is recorded."""
        try:
            query = f"SELECT pg_catalog.to_regclass('{quoted(self._schema)}.accounts') IS NOT NULL"
            row = driver.execute(query.encode()).fetchone()
        except ERRORS as error:
            raise postgresql_error(self._name, error) from None
        return row == (True,)

    def revision_of(self, driver: psycopg.Connection[Any]) -> str | None:
        """Return the schema revision, or None if there are no tables of ours.

        Raises:
            InsecureStorageError: The schema belongs to another application.
            StorageError: The revision cannot be read.
        """
        try:
            if self.identity(driver) is None:
                if driver.execute(self._is_foreign.encode()).fetchone() == (True,):
                    raise foreign_schema_error(self._name, self._schema)
                return None
            query = f"SELECT version_num FROM {quoted(self._schema)}.{VERSION_TABLE}"  # noqa: S608 - names
            row = driver.execute(query.encode()).fetchone()
        except ERRORS as error:
            raise postgresql_error(self._name, error) from None
        return None if row is None else str(row[0])

    def _require_trusted_owner(self, driver: psycopg.Connection[Any]) -> None:
        """Refuse a schema or tables of another role, which could read and change every token.

        Trusted are this role and those that it is a member of, superusers and the owner of the
        database, who have other ways to do so, and the role that the URL names.
        """
        try:
            values = {"schema": self._schema, "tables": _TABLES, "owner": self._owner}
            row = driver.execute(_FOREIGN_OWNER.encode(), values).fetchone()
        except ERRORS as error:
            raise postgresql_error(self._name, error) from None
        if row is not None:
            raise foreign_owner_error(self._name, self._schema, str(row[0]))

    def _upgrade_to_head(self) -> None:
        with self.migration() as connection:
            if self.revision_of(_driver_of(connection)) != REVISION:  # no other process was faster
                upgrade_to_head(self._name, connection)

    def _lock(self, connection: Connection) -> None:
        """Acquire the lock under which a process creates or migrates the tables."""
        key = key_of(f"{self._schema} is migrated")
        milliseconds = round(_TIMEOUT * 1000)
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}")
        try:
            connection.exec_driver_sql(f"SELECT pg_catalog.pg_advisory_xact_lock({key})")
        except ERRORS as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE:
                raise postgresql_error(self._name, error) from None
            raise StorageError(
                f"{self._name}: another process has been creating or migrating it for more "
                f"than {_TIMEOUT:.0f} s; find that process and try again ({sqlstate(error)})",
                self._name,
                errno=errno.EBUSY,
            ) from None
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(BUSY_TIMEOUT * 1000)}")

    def _set_search_path(self, connection: Connection) -> None:
        connection.exec_driver_sql(f"SET LOCAL search_path = {quoted(self._schema)}")
        # SQLAlchemy looks there for tables without a schema.
        connection.dialect.default_schema_name = self._schema


def _driver_of(connection: Connection) -> psycopg.Connection[Any]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101 - for the type checker
    return driver


def _exists(connection: Connection, schema: str) -> bool:
    # Not to_regnamespace(), whose result may be older than the wait for the lock.
    query = text("SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = :schema)")
    return bool(connection.scalar(query, {"schema": schema}))
