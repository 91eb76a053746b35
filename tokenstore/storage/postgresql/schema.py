"""The schema of a PostgreSQL database that holds the store: created, migrated, looked at."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import text

from tokenstore.errors import SchemaOutdatedError, StorageError
from tokenstore.storage.migrations import too_new, upgrade_to_head
from tokenstore.storage.postgresql.connections import BUSY_TIMEOUT
from tokenstore.storage.postgresql.errors import (
    ERRORS,
    foreign_schema_error,
    postgresql_error,
    sqlstate,
    translated,
)
from tokenstore.storage.postgresql.locks import key_of
from tokenstore.storage.tables import REVISION, VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, RootTransaction

    from tokenstore.storage.postgresql.connections import Connections

_TIMEOUT = 120.0  # seconds to wait for another process that creates or migrates


class SchemaManager:
    """The store's own schema inside a database that others may use, too.

    Args:
        name: What to call the database.
        schema: The schema.
        connections: Connections to the database.
        upgrade: Migrate an older one in place of refusing it.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        connections: Connections,
        *,
        upgrade: bool,
    ) -> None:
        self.name = name
        self._schema = schema
        self._connections = connections
        self._upgrade = upgrade
        there, version_table = f"to_regnamespace('{schema}')", f"'{schema}.{VERSION_TABLE}'"
        something = f"EXISTS (SELECT FROM pg_class WHERE relnamespace = {there})"
        self._identity = f"SELECT to_regclass({version_table})::oid::bigint"
        self._is_foreign = f"SELECT {something} AND to_regclass({version_table}) IS NULL"

    def find(self, *, create: bool) -> bool:
        """Tell whether there is a store, of the schema that this code knows.

        Raises:
            SchemaOutdatedError: It is older than this code.
            SchemaTooNewError: It is newer.
            InsecureStorageError: The schema is in use for something else.
        """
        revision = self._stored_revision()
        if revision is None:
            if not create:
                return False
            self._bring_to_head()
        elif revision > REVISION:
            raise too_new(self.name, revision)
        elif revision != REVISION:
            if not self._upgrade:
                raise SchemaOutdatedError(
                    f"{self.name} has schema {revision}, this tokenstore needs {REVISION}; "
                    f"run: tokenstore --database '{self.name}' db upgrade",
                    self.name,
                )
            self._bring_to_head()
        return True

    def identity(self, driver: psycopg.Connection[Any]) -> int | None:
        """Return what tells this store from another in its place, None if there is none."""
        try:
            row = driver.execute(self._identity.encode()).fetchone()
        except ERRORS as error:
            raise postgresql_error(self.name, error) from None
        return None if row is None else row[0]

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        """Yield a connection inside one transaction, the only one of all that migrate this store.

        The schema is created if it is missing. If nothing is put into it, it is not.
        """
        with self._transaction() as (connection, transaction):
            self._be_alone(connection)
            is_new = not _exists(connection, self._schema)
            if is_new:
                connection.exec_driver_sql(f"CREATE SCHEMA {self._schema}")
            elif connection.exec_driver_sql(self._is_foreign).scalar():
                raise foreign_schema_error(self.name, self._schema)
            self._work_in_schema(connection)
            yield connection
            if is_new and self.revision_of(_driver_of(connection)) is None:
                transaction.rollback()

    @contextmanager
    def inspection(self) -> Iterator[Connection]:
        """Yield a connection for migration commands that only look; it creates nothing."""
        with self._transaction() as (connection, transaction):
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            self._work_in_schema(connection)
            yield connection
            transaction.rollback()

    @contextmanager
    def _transaction(self) -> Iterator[tuple[Connection, RootTransaction]]:
        with (
            self._connections.migrating() as connection,
            translated(self.name),
            connection.begin() as transaction,
        ):
            yield connection, transaction

    def _stored_revision(self) -> str | None:
        """Return the revision of the store, None if there is none."""
        with self._connections.lent() as driver:
            encoding = driver.info.parameter_status("server_encoding")
            if encoding != "UTF8":
                raise StorageError(
                    f"{self.name}: the database's encoding is {encoding}, in which not every "
                    "account name can be stored; create one with ENCODING 'UTF8'",
                    self.name,
                )
            return self.revision_of(driver)

    def revision_of(self, driver: psycopg.Connection[Any]) -> str | None:
        """Return the newest migration that a store has had, None if there is no store.

        Raises:
            InsecureStorageError: The schema is in use for something else.
            StorageError: It cannot be read.
        """
        try:
            if self.identity(driver) is None:
                if driver.execute(self._is_foreign.encode()).fetchone() == (True,):
                    raise foreign_schema_error(self.name, self._schema)
                return None
            query = f"SELECT version_num FROM {self._schema}.{VERSION_TABLE}"  # noqa: S608 - names
            row = driver.execute(query.encode()).fetchone()
        except ERRORS as error:
            raise postgresql_error(self.name, error) from None
        return None if row is None else str(row[0])

    def _bring_to_head(self) -> None:
        with self.migration() as connection:
            if self.revision_of(_driver_of(connection)) != REVISION:  # no other process was faster
                upgrade_to_head(self.name, connection)

    def _be_alone(self, connection: Connection) -> None:
        key = key_of(f"{self._schema} is migrated")
        milliseconds = round(_TIMEOUT * 1000)
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}")
        try:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({key})")
        except ERRORS as error:
            raise StorageError(
                f"{self.name} is being created or migrated by another process for more than "
                f"{_TIMEOUT:.0f} s; find out which and try again ({sqlstate(error)})",
                self.name,
                errno=errno.EBUSY,
            ) from None
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(BUSY_TIMEOUT * 1000)}")

    def _work_in_schema(self, connection: Connection) -> None:
        connection.exec_driver_sql(f"SET LOCAL search_path = {self._schema}")
        # Where SQLAlchemy looks for tables that name no schema.
        connection.dialect.default_schema_name = self._schema


def _driver_of(connection: Connection) -> psycopg.Connection[Any]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101 - for the type checker
    return driver


def _exists(connection: Connection, schema: str) -> bool:
    # Not to_regnamespace(), which may answer from before the wait for others.
    query = text("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :schema)")
    return bool(connection.scalar(query, {"schema": schema}))
