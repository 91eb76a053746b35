"""A store in a PostgreSQL database."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tokenstore.doctor.findings import Finding
from tokenstore.doctor.integrity import Rows
from tokenstore.doctor.privileges import Rights
from tokenstore.doctor.schema import compare_schema
from tokenstore.doctor.server import Server
from tokenstore.storage.factory import database_for
from tokenstore.storage.location import schema_of
from tokenstore.storage.query import CompiledStatement
from tokenstore.storage.tables import REVISION, VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    from sqlalchemy.engine import URL
    from sqlalchemy.sql import ClauseElement

    from tokenstore.doctor.integrity import Unanswered
    from tokenstore.storage.query import Row

_PAGE = 500  # rows that are fetched at once
_RESTORE = "stop the application, keep the rows as they are, and restore a backup"


class PostgreSQLStore:
    """Looks at the server, at rights, and at what is in the tables. It changes nothing.

    Args:
        url: Where the store is.

    Raises:
        ModuleNotFoundError: The driver is not installed.
    """

    def __init__(self, url: URL) -> None:
        self._url = url
        self._schema = schema_of(url)
        self._database = database_for(url)
        self.is_readable = False  # as long as nobody has looked

    def examine(self) -> Iterator[Finding]:
        """Look at everything save the accounts."""
        with self._driver() as driver:
            yield from Server(self._database.name, driver).examine()
            rights = Rights(self._schema, driver)
            tables = rights.tables()
            if not {"accounts", "refreshes", VERSION_TABLE} <= tables:
                yield self._no_store(tables, rights)
                return
            yield from rights.examine()
            if not rights.may_read:
                return
            revision = self._revision(driver)
            yield from compare_schema(self._url, revision)
            if revision != REVISION:
                return
            rows = self._rows(driver)
            yield from rows.integrity("what is in the tables is what was stored", _RESTORE)
            yield from rows.shared_tokens()
            self.is_readable = True

    def unanswered(self) -> set[Unanswered]:
        """Return the refreshes that had no answer that anybody knows of."""
        with self._driver() as driver:
            return self._rows(driver).unanswered()

    def is_held(self, account_name: str) -> bool:
        """Tell whether somebody refreshes an account just now."""
        return self._database.locks.is_held(account_name)

    def close(self) -> None:
        """Close what was opened."""
        self._database.close()

    @contextmanager
    def _driver(self) -> Iterator[psycopg.Connection[Any]]:
        """Yield the driver's connection, in a transaction that can only read."""
        from tokenstore.storage.postgresql.connections import driver_of

        with self._database.inspection() as connection:
            yield driver_of(connection.connection)

    def _rows(self, driver: psycopg.Connection[Any]) -> Rows:
        def read(statement: ClauseElement) -> Iterator[Row]:
            sql, constants, _ = CompiledStatement(statement).postgresql(self._schema)
            with driver.cursor("doctor") as cursor:  # on the server: there may be millions
                cursor.itersize = _PAGE
                yield from cursor.execute(sql.encode(), constants)

        return Rows(read)

    def _revision(self, driver: psycopg.Connection[Any]) -> str | None:
        query = f"SELECT version_num FROM {self._schema}.{VERSION_TABLE}"  # noqa: S608 - a name
        row = driver.execute(query.encode()).fetchone()
        return None if row is None else str(row[0])

    def _no_store(self, tables: set[str], rights: Rights) -> Finding:
        where = f"{self._database.name}: the schema {self._schema}"
        if tables > {VERSION_TABLE}:
            return Finding("database", "error", f"{where} lacks some of the tables", _RESTORE)
        if tables and VERSION_TABLE not in tables:
            cure = "name another one, with ?schema=NAME at the end of the URL"
            return Finding("database", "error", f"{where} holds tables of something else", cure)
        what = f"{where} holds no store; the first save creates it"
        cure = "check the URL, if there should be one"
        if (grant := rights.creation()) is not None:
            cure += f"; this user may not create one: let an administrator run {grant}"
        return Finding("database", "warning", what, cure)
