"""The PostgreSQL backend: a schema of a database that threads, processes and machines share."""

from __future__ import annotations

import errno
import os
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from tokenstore.errors import StorageError
from tokenstore.messages import shell_word
from tokenstore.storage.location import display_name, owner_of, quoted, schema_of
from tokenstore.storage.ownership import Owner
from tokenstore.storage.postgresql.connections import BUSY_TIMEOUT, Connections
from tokenstore.storage.postgresql.errors import (
    ERRORS,
    MISSING,
    is_transient,
    postgresql_error,
    sqlstate,
)
from tokenstore.storage.postgresql.locks import AdvisoryLocks, HeldAdvisoryLock
from tokenstore.storage.postgresql.schema import SchemaManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import psycopg
    from sqlalchemy import Connection
    from sqlalchemy.engine import URL

    from tokenstore.storage.base import Restored
    from tokenstore.storage.locks import HeldLock
    from tokenstore.storage.query import CompiledStatement, Row

T = TypeVar("T")

_POOL_SIZE = 5  # idle connections that a process keeps open
_MAX_CONNECTIONS = 15  # connections of a process for reads and writes
_PAUSES = (0.0, 0.2, 1.0)  # seconds before each retry after a transient error

# No operator or function without a schema: another role may have created one in a schema of
# search_path (see `qualified`).
_DURABLE = """
SELECT pg_catalog.set_config(
    'synchronous_commit',
    pg_catalog.replace(pg_catalog.current_setting('synchronous_commit'), 'off', 'on'),
    true
);
"""
_BEGIN = f"""
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = {BUSY_TIMEOUT * 1000:.0f};
{_DURABLE}
"""


_ON_LOCK = f"""
SET LOCAL lock_timeout = {BUSY_TIMEOUT * 1000:.0f};
{_DURABLE}
SAVEPOINT outcome;
"""


class _Transactions(threading.local):
    """The names of the stores in whose transactions a thread is, through whichever object."""

    def __init__(self) -> None:
        self.names: list[str] = []


_transactions = _Transactions()


class _Thread(threading.local):
    """The transaction of a thread."""

    driver: psycopg.Connection[Any] | None = None
    process = 0
    is_open = False  # also while it has not begun, because there are no tables yet
    owner: Owner | None = None  # the part of the program that it belongs to; None: all of it
    begin: Callable[[], object] | None = None  # begins it, if that is left to the first write
    has_read = False  # whether it was told before that there is nothing
    has_failed = False  # whether an inner failure has undone it
    writes = 0  # how many statements it has written with


class PostgreSQLDatabase:
    """A `Database` in a schema of a PostgreSQL database.

    READ COMMITTED transactions suffice for the repository: each of its operations changes one row,
    on the condition that the row has not changed since. Only `transaction`, which combines several
    of them, excludes other writers, as SQLite always does.

    Args:
        url: The database. ``?schema=`` names another schema than ``tokenstore``, ``owner=`` a role
            that may own it.
        upgrade: Migrate an older database instead of refusing it.
    """

    excludes_writers = False

    def __init__(self, url: URL, *, upgrade: bool = False) -> None:
        self.name = display_name(url)
        self._schema = schema_of(url)
        self._connections = Connections(url, pool_size=_POOL_SIZE, limit=_MAX_CONNECTIONS)
        self._lock_connections = Connections(url, pool_size=_POOL_SIZE)
        self._schema_manager = SchemaManager(
            self.name, self._schema, self._connections, owner=owner_of(url), upgrade=upgrade
        )
        self.locks = AdvisoryLocks(self.name, self._schema, self._lock_connections)
        self._thread = _Thread()
        self._is_known_to_exist = False

    def exists(self) -> bool:
        """Return whether the schema has the tables (see `Database.exists`)."""
        return self._retry(self._schema_manager.stored_revision) is not None

    def fetch_one(self, statement: CompiledStatement, parameters: dict[str, Any]) -> Row | None:
        """Return the first row (see `Database.fetch_one`)."""
        rows = self.fetch_all(statement, parameters)
        return rows[0] if rows else None

    def fetch_all(self, statement: CompiledStatement, parameters: dict[str, Any]) -> list[Row]:
        """Return all rows (see `Database.fetch_all`)."""
        if self._is_joined():
            if self._thread.driver is None and not self._thread.has_failed:
                self._thread.has_read = True
                return []
            return self._execute(self._transaction_driver(), statement, parameters).fetchall()
        return self._retry(lambda: self._read(statement, parameters))

    def execute(self, statement: CompiledStatement, parameters: dict[str, Any]) -> int:
        """Run a statement that writes (see `Database.execute`)."""
        if not self._is_joined():
            raise RuntimeError("execute() requires a transaction()")
        self._begin_late()
        self._thread.writes += 1
        return self._execute(self._transaction_driver(), statement, parameters).rowcount

    def run(
        self,
        work: Callable[[], T],
        *,
        expected_identity: object = None,
        lock: HeldLock | None = None,
    ) -> T:
        """Call *work* in a transaction (see `Database.run`)."""
        if self._is_joined():
            with self._joined(always_undo=False):
                self._begin_late()
                return work()
        self._require_no_transaction()
        if isinstance(lock, HeldAdvisoryLock) and lock.driver is not None:
            return self._run_on_lock(work, expected_identity, lock, lock.driver)

        def attempt() -> T:
            with self._transaction(expected_identity):
                return work()

        return self._retry(attempt)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the work of this thread one transaction (see `Database.transaction`)."""
        if self._is_joined():
            with self._joined(always_undo=True):
                yield
            return
        self._require_no_transaction()
        with ExitStack() as stack, self._open(Owner()):

            def begin() -> None:
                driver = stack.enter_context(self._transaction(None))
                table = f"{quoted(self._schema)}.accounts"
                self._run(driver, f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")

            if self._exists(create=False):
                begin()
            else:
                self._thread.begin = begin
            yield
            if self._thread.has_failed:
                self._transaction_driver()  # which raises

    @contextmanager
    def _open(self, owner: Owner) -> Iterator[None]:
        """Note that a transaction of *owner* is open, which may begin later."""
        thread = self._thread
        thread.is_open, thread.owner, thread.writes = True, owner, 0
        thread.has_read = thread.has_failed = False
        _transactions.names.append(self.name)
        try:
            yield
        finally:
            _transactions.names.remove(self.name)
            thread.is_open, thread.owner, thread.begin = False, None, None
            thread.has_failed = False

    def _is_joined(self) -> bool:
        """Return whether the calling code belongs to an open transaction of its thread."""
        thread = self._thread
        if not thread.is_open and thread.driver is None:
            return False
        return thread.owner is None or thread.owner.is_current()

    @contextmanager
    def _joined(self, *, always_undo: bool) -> Iterator[None]:
        """Work inside the current transaction; a failure undoes all of it.

        Args:
            always_undo: Undo it even if the work that failed has written nothing.
        """
        writes = self._thread.writes
        try:
            yield
        except BaseException:
            if always_undo or self._thread.writes != writes:
                self._thread.has_failed = True
            raise

    def _begin_late(self) -> None:
        """Begin a transaction that has not begun, because there were no tables."""
        begin, self._thread.begin = self._thread.begin, None
        if begin is None:
            return
        if self._thread.has_read and self._exists(create=False):
            self._thread.has_failed = True
            raise StorageError(
                f"{self.name}: another process has created it during this transaction, which has "
                "found nothing before; repeat all of it",
                self.name,
                errno=errno.EAGAIN,
            )
        begin()

    def _require_no_transaction(self) -> None:
        """Raise a `StorageError` if this thread would wait for a transaction of its own."""
        if self.name in _transactions.names:
            raise StorageError(
                f"{self.name}: this thread is inside a transaction of another repository, "
                "coroutine or generator; use that one, or end it first",
                self.name,
                errno=errno.EDEADLK,
            )

    def in_transaction(self) -> bool:
        """Return whether the calling thread is inside a transaction on the same store."""
        return self.name in _transactions.names

    def require_room(self, size: int) -> None:
        """Do nothing: the room on the server's disk is not known here."""

    def scrub_after_commit(self) -> None:
        """Do nothing: vacuum removes old rows, and the log is the server's."""

    def identity(self) -> int | None:
        """Return the object id of the version table, or None if there is none."""
        return self._schema_manager.identity(self._transaction_driver())

    def backup(self, target: Path, *, replace: bool) -> None:  # noqa: ARG002 - of the protocol
        """Refuse: PostgreSQL has its own tools for backups."""
        raise StorageError(
            f"{self.name} is not a file; back it up with: pg_dump --format=custom "
            f"--file=tokens.dump --schema={self._schema}",
            self.name,
        )

    def restore(self, source: Path) -> Restored:
        """Refuse: PostgreSQL has its own tools for backups."""
        raise StorageError(
            f"{self.name} is not a file; restore it with: pg_restore --clean --if-exists "
            f"--dbname=DATABASE {shell_word(str(source))}",
            self.name,
        )

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        """Yield a connection for migrations (see `Database.migration`)."""
        self._is_known_to_exist = False
        with self._schema_manager.migration() as connection:
            yield connection

    @contextmanager
    def inspection(self) -> Iterator[Connection]:
        """Yield a connection that only reads (see `Database.inspection`)."""
        with self._schema_manager.inspection() as connection:
            yield connection

    def back_up_before_upgrade(self, connection: Connection) -> None:
        """Do nothing: migrations are one transaction, and backups are the server's."""

    def close(self) -> None:
        """Close all connections."""
        self._connections.close()
        self._lock_connections.close()

    def _read(self, statement: CompiledStatement, parameters: dict[str, Any]) -> list[Row]:
        if not self._exists(create=False):
            return []
        with self._connections.connection() as driver:
            return self._execute(driver, statement, parameters).fetchall()

    def _exists(self, *, create: bool) -> bool:
        if not self._is_known_to_exist:
            self._is_known_to_exist = self._schema_manager.find(create=create)
        return self._is_known_to_exist

    def _retry(self, call: Callable[[], T]) -> T:
        """Make a call that stores all or nothing, and repeat it after transient errors."""
        for pause in _PAUSES:
            try:
                return call()
            except StorageError as error:
                if not is_transient(error):
                    raise
            time.sleep(pause)
        return call()

    def _run_on_lock(
        self,
        work: Callable[[], T],
        expected_identity: object,
        lock: HeldAdvisoryLock,
        driver: psycopg.Connection[Any],
    ) -> T:
        """Do *work* on the transaction that holds a lock, and commit that.

        If the work fails, the lock is still held: only what it did is undone.
        """
        self._run(driver, _ON_LOCK)
        with self._inside(driver):
            try:
                if expected_identity is not None and expected_identity != self.identity():
                    raise self._replaced_error()
                done = work()
            except BaseException:
                if not driver.closed:
                    with suppress(StorageError):
                        self._run(driver, "ROLLBACK TO SAVEPOINT outcome")
                raise
        lock.ended = True
        self._commit(driver)
        return done

    @contextmanager
    def _inside(self, driver: psycopg.Connection[Any]) -> Iterator[None]:
        """Run the statements of this thread on *driver*."""
        self._thread.driver, self._thread.process = driver, os.getpid()
        _transactions.names.append(self.name)
        try:
            yield
        finally:
            _transactions.names.remove(self.name)
            self._thread.driver = None

    @contextmanager
    def _transaction(self, expected_identity: object) -> Iterator[psycopg.Connection[Any]]:
        """Begin a transaction on a connection of its own, and end it.

        Args:
            expected_identity: The `identity` that the database must still have, or None for any.
        """
        if not self._exists(create=expected_identity is None):
            raise self._replaced_error()
        with self._connections.connection() as driver:
            self._run(driver, _BEGIN)
            with self._inside(driver):
                try:
                    if expected_identity is not None and expected_identity != self.identity():
                        raise self._replaced_error()
                    yield driver
                    if os.getpid() == self._thread.process:  # a forked child must not commit
                        self._commit(driver)
                except BaseException:
                    self._roll_back(driver)
                    raise

    def _transaction_driver(self) -> psycopg.Connection[Any]:
        """Return the connection of the thread's transaction."""
        driver = self._thread.driver
        if driver is None or self._thread.has_failed or self._thread.process != os.getpid():
            raise StorageError(
                f"{self.name}: an earlier error, or a fork, has ended this transaction; nothing of "
                "it was stored. Repeat all of it, and do not fork inside",
                self.name,
            )
        return driver

    def _execute(
        self,
        driver: psycopg.Connection[Any],
        statement: CompiledStatement,
        parameters: dict[str, Any],
    ) -> psycopg.Cursor[Any]:
        sql, constants, _ = statement.postgresql(self._schema)
        return self._run(driver, sql, constants | parameters)

    def _run(
        self, driver: psycopg.Connection[Any], sql: str, parameters: dict[str, Any] | None = None
    ) -> psycopg.Cursor[Any]:
        try:
            return driver.execute(sql.encode(), parameters)
        except ERRORS as error:
            if sqlstate(error) in MISSING:
                self._is_known_to_exist = False
            raise postgresql_error(self.name, error) from None

    def _commit(self, driver: psycopg.Connection[Any]) -> None:
        try:
            status = driver.execute("COMMIT").statusmessage
        except ERRORS as error:
            raise postgresql_error(self.name, error, committing=True) from None
        if status != "COMMIT":  # after an earlier error the server rolls back, without an error
            raise StorageError(
                f"{self.name}: an earlier error has ended this transaction; nothing of it was "
                "stored. Repeat all of it",
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

    def _replaced_error(self) -> StorageError:
        return StorageError(
            f"{self.name} was removed or replaced while it was open; recent changes may be lost "
            "with it. Restore it, or repeat the call to use the current database",
            self.name,
            errno=errno.ESTALE,
        )
