"""A PostgreSQL database: read and written by many threads and machines, in our transactions."""

from __future__ import annotations

import errno
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from tokenstore.errors import StorageError
from tokenstore.storage.location import schema_of, shown
from tokenstore.storage.postgresql.connections import BUSY_TIMEOUT, Connections
from tokenstore.storage.postgresql.errors import (
    ERRORS,
    MISSING,
    is_transient,
    postgresql_error,
    sqlstate,
)
from tokenstore.storage.postgresql.locks import AdvisoryLocks
from tokenstore.storage.postgresql.schema import SchemaManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import psycopg
    from sqlalchemy import Connection
    from sqlalchemy.engine import URL

    from tokenstore.storage.query import Query, Row

T = TypeVar("T")

_POOL = 5  # connections that a process keeps while they are idle
_MOST = 15  # connections for reading and writing, of a process, at a time
_PAUSES = (0.0, 0.2, 1.0)  # seconds before a call is made again that failed for a passing reason

_BEGIN = f"""
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = {BUSY_TIMEOUT * 1000:.0f};
SELECT set_config(
    'synchronous_commit', replace(current_setting('synchronous_commit'), 'off', 'on'), true
);
"""


class _Thread(threading.local):
    """The transaction that a thread is in."""

    driver: psycopg.Connection[Any] | None = None
    process = 0


class PostgreSQLDatabase:
    """A token store in a schema of a PostgreSQL database (see `Database`).

    Every operation of the repository is right in a READ COMMITTED transaction: each changes one
    row on the condition of what it knows of it. Only who makes several of them one transaction
    keeps others from writing meanwhile, as SQLite always does.

    Args:
        url: Where the database is; ``?schema=`` names another schema than ``tokenstore``.
        upgrade: Migrate an older store in place of refusing it.
    """

    def __init__(self, url: URL, *, upgrade: bool = False) -> None:
        self.name = shown(url)
        self._schema = schema_of(url)
        self._connections = Connections(url, kept=_POOL, most=_MOST)
        self._for_locks = Connections(url, kept=_POOL, most=None)
        self._namespace = SchemaManager(self.name, self._schema, self._connections, upgrade=upgrade)
        self.locks = AdvisoryLocks(self.name, self._schema, self._for_locks)
        self._thread = _Thread()
        self._found = False  # or not looked for yet

    def fetch_one(self, query: Query, parameters: dict[str, Any]) -> Row | None:
        """Return the first row, None if there is none or no store."""
        rows = self.fetch_all(query, parameters)
        return rows[0] if rows else None

    def fetch_all(self, query: Query, parameters: dict[str, Any]) -> list[Row]:
        """Return all rows, none if there is no store."""
        if self._thread.driver is not None:
            return self._execute(self._in_transaction(), query, parameters).fetchall()
        return self._patiently(lambda: self._read(query, parameters))

    def _read(self, query: Query, parameters: dict[str, Any]) -> list[Row]:
        if not self._is_there(create=False):
            return []
        with self._connections.lent() as driver:
            return self._execute(driver, query, parameters).fetchall()

    def execute(self, query: Query, parameters: dict[str, Any]) -> int:
        """Run a statement that writes, inside a transaction; return how many rows it changed."""
        if self._thread.driver is None:
            raise RuntimeError("execute() is for inside a transaction()")
        return self._execute(self._in_transaction(), query, parameters).rowcount

    def run(self, work: Callable[[], T], *, where: object = None) -> T:
        """Do *work* in one durable transaction, or in the one that this thread is in."""
        if self._thread.driver is not None:
            return work()

        def once() -> T:
            with self._begun(where):
                return work()

        return self._patiently(once)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make what this thread does one durable transaction, while nobody else writes."""
        if self._thread.driver is not None:
            yield
            return
        with self._begun(None) as driver:
            table = f"{self._schema}.accounts"
            self._run(driver, f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
            yield

    def scrub_after_commit(self) -> None:
        """Do nothing: vacuum removes old rows, and what is written of them is the server's."""

    def identity(self) -> int | None:
        """Return what tells this store from another in its place, inside a transaction."""
        return self._namespace.identity(self._in_transaction())

    def backup(self, target: Path, *, replace: bool) -> None:  # noqa: ARG002 - of the protocol
        """Refuse to: PostgreSQL has its own tools for it."""
        raise StorageError(
            f"{self.name} is no file to copy; back it up with: pg_dump --format=custom "
            f"--file=tokens.dump --schema={self._schema}",
            self.name,
        )

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        """Yield a connection for migrations to run on (see `SchemaManager.migration`)."""
        self._found = False
        with self._namespace.migration() as connection:
            yield connection

    @contextmanager
    def inspection(self) -> Iterator[Connection]:
        """Yield a connection for commands that only look."""
        with self._namespace.inspection() as connection:
            yield connection

    def back_up_before_upgrade(self, connection: Connection) -> None:
        """Do nothing: migrations are one transaction, and backups are the server's."""

    def close(self) -> None:
        """Close all connections; whoever goes on using the store opens new ones."""
        self._connections.close()
        self._for_locks.close()

    def _is_there(self, *, create: bool) -> bool:
        if not self._found:
            self._found = self._namespace.find(create=create)
        return self._found

    def _patiently(self, call: Callable[[], T]) -> T:
        """Make a call that stores all or nothing; again, if it failed for a passing reason."""
        for pause in _PAUSES:
            try:
                return call()
            except StorageError as error:
                if not is_transient(error):
                    raise
            time.sleep(pause)
        return call()

    @contextmanager
    def _begun(self, where: object) -> Iterator[psycopg.Connection[Any]]:
        """Begin a transaction on a connection of its own, and end it."""
        if not self._is_there(create=where is None):
            raise self._gone()
        with self._connections.lent() as driver:
            self._run(driver, _BEGIN)
            self._thread.driver, self._thread.process = driver, os.getpid()
            try:
                if where is not None and where != self.identity():
                    raise self._gone()
                yield driver
                if os.getpid() == self._thread.process:  # a child forked inside has no part in it
                    self._commit(driver)
            except BaseException:
                self._roll_back(driver)
                raise
            finally:
                self._thread.driver = None

    def _in_transaction(self) -> psycopg.Connection[Any]:
        driver = self._thread.driver
        if driver is None or self._thread.process != os.getpid():
            raise StorageError(
                f"{self.name}: a fork has ended this transaction for the child; nothing of it is "
                "stored there. Fork outside",
                self.name,
            )
        return driver

    def _execute(
        self, driver: psycopg.Connection[Any], query: Query, parameters: dict[str, Any]
    ) -> psycopg.Cursor[Any]:
        statement, constants, _ = query.postgresql(self._schema)
        try:
            return driver.execute(statement.encode(), constants | parameters)
        except ERRORS as error:
            raise self._told(error) from None

    def _run(self, driver: psycopg.Connection[Any], statement: str) -> psycopg.Cursor[Any]:
        try:
            return driver.execute(statement.encode())
        except ERRORS as error:
            raise self._told(error) from None

    def _told(self, error: BaseException) -> StorageError:
        if sqlstate(error) in MISSING:
            self._found = False  # look for it once more
        return postgresql_error(self.name, error)

    def _commit(self, driver: psycopg.Connection[Any]) -> None:
        try:
            done = driver.execute("COMMIT").statusmessage
        except ERRORS as error:
            raise postgresql_error(self.name, error, committing=True) from None
        if done != "COMMIT":  # the server rolls back, without an error, after an earlier one
            raise StorageError(
                f"{self.name}: an earlier error has ended this transaction; nothing of it is "
                "stored. Repeat it as a whole",
                self.name,
                errno=errno.EIO,
            )

    def _roll_back(self, driver: psycopg.Connection[Any]) -> None:
        if os.getpid() != self._thread.process or driver.closed:
            return
        try:
            driver.execute("ROLLBACK")
        except ERRORS:
            driver.close()

    def _gone(self) -> StorageError:
        return StorageError(
            f"{self.name} was removed or replaced while it was in use; what was just written may "
            "be lost with it. Put it back, or repeat the call to use what is there now",
            self.name,
            errno=errno.ESTALE,
        )
