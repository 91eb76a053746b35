"""Check a store in a PostgreSQL database."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tokenstore.doctor.findings import Finding
from tokenstore.doctor.integrity import RowChecks
from tokenstore.doctor.privileges import PrivilegeChecks
from tokenstore.doctor.schema import compare_schema
from tokenstore.doctor.server import ServerChecks
from tokenstore.storage.factory import database_for
from tokenstore.storage.location import quoted, schema_of
from tokenstore.storage.query import CompiledStatement
from tokenstore.storage.tables import REVISION, VERSION_TABLE, metadata

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    from sqlalchemy.engine import URL
    from sqlalchemy.sql import ClauseElement

    from tokenstore.doctor.integrity import UnansweredRefresh
    from tokenstore.storage.query import Row

_PAGE = 500  # rows per fetch
_RESTORE = "stop the application, keep the rows as they are, and restore a backup"


class PostgreSQLStore:
    """Checks the server, the privileges, and the content of the tables. It changes nothing.

    Args:
        url: The URL of the store.

    Attributes:
        is_readable: Whether the accounts can be read; False until `examine` has found out.

    Raises:
        ModuleNotFoundError: The driver is not installed.
    """

    def __init__(self, url: URL) -> None:
        self._url = url
        self._schema = schema_of(url)
        self._database = database_for(url)
        self.is_readable = False

    def examine(self) -> Iterator[Finding]:
        """Check everything except the accounts."""
        with self._driver() as driver:
            yield from ServerChecks(self._database.name, driver).examine()
            privileges = PrivilegeChecks(self._schema, driver)
            tables = privileges.tables()
            if not {"accounts", "refreshes", VERSION_TABLE} <= tables:
                yield self._no_store(tables, privileges)
                return
            yield from privileges.examine()
            if not privileges.can_read:
                return
            revision = self._revision(driver)
            yield from compare_schema(self._url, revision)
            if revision != REVISION:
                return
            if not set(metadata.tables) <= tables:
                yield self._no_store(tables, privileges)
                return
            rows = self._rows(driver)
            yield from rows.integrity("every account is as it was saved", _RESTORE)
            yield from rows.shared_tokens()
            self.is_readable = True

    def unanswered_refreshes(self) -> set[UnansweredRefresh]:
        """Return the refreshes without a recorded response."""
        with self._driver() as driver:
            return self._rows(driver).unanswered_refreshes()

    def is_locked(self, account_name: str) -> bool:
        """Return whether the account is being refreshed now."""
        return self._database.locks.is_held(account_name)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    @contextmanager
    def _driver(self) -> Iterator[psycopg.Connection[Any]]:
        """Yield the driver's connection, in a read-only transaction."""
        from tokenstore.storage.postgresql.connections import driver_of

        with self._database.inspection() as connection:
            driver = driver_of(connection.connection)
            # In the schema itself, others may have created functions.
            driver.execute("SET LOCAL search_path = pg_catalog")
            yield driver

    def _rows(self, driver: psycopg.Connection[Any]) -> RowChecks:
        def read(statement: ClauseElement) -> Iterator[Row]:
            sql, constants, _ = CompiledStatement(statement).postgresql(self._schema)
            with driver.cursor("doctor") as cursor:  # on the server: there may be millions of rows
                cursor.itersize = _PAGE
                yield from cursor.execute(sql.encode(), constants)

        return RowChecks(read)

    def _revision(self, driver: psycopg.Connection[Any]) -> str | None:
        query = f"SELECT version_num FROM {quoted(self._schema)}.{VERSION_TABLE}"  # noqa: S608 - a name
        row = driver.execute(query.encode()).fetchone()
        return None if row is None else str(row[0])

    def _no_store(self, tables: set[str], privileges: PrivilegeChecks) -> Finding:
        where = f"{self._database.name}: the schema {self._schema}"
        if tables > {VERSION_TABLE}:
            return Finding("database", "error", f"{where} lacks some of the tables", _RESTORE)
        if tables and VERSION_TABLE not in tables:
            hint = "use another schema: add ?schema=NAME to the URL"
            message = f"{where} contains the tables of another application"
            return Finding("database", "error", message, hint)
        message = f"{where} contains no store; the first save creates it"
        hint = "check the URL if there should be one"
        if (grant := privileges.required_to_create()) is not None:
            hint += f"; this user cannot create one: as an administrator, run: {grant}"
        return Finding("database", "warning", message, hint)
