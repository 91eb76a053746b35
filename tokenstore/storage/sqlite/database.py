"""The SQLite backend: a database file that threads and processes share."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import finalize

from tokenstore.errors import StorageError
from tokenstore.files import file_error
from tokenstore.storage.ownership import Owner
from tokenstore.storage.sqlite.connections import ThreadConnection, ThreadConnections, Transaction
from tokenstore.storage.sqlite.connector import Connector
from tokenstore.storage.sqlite.engine import BUSY_TIMEOUT, lenient_decoding, pragma
from tokenstore.storage.sqlite.errors import (
    DRIVER_ERRORS,
    error_name,
    is_undecodable,
    sqlite_error,
    translated,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from sqlalchemy import Connection

    from tokenstore.storage.base import JournalMode, Restored
    from tokenstore.storage.locks import HeldLock
    from tokenstore.storage.query import CompiledStatement, Row
    from tokenstore.storage.sqlite.file import FileId

T = TypeVar("T")

_LEAST_ROOM = 256 << 10  # bytes that must be free before a refresh token is spent
_MAX_SCRUB_DELAY = 1.0  # seconds for which a series of writers may leave the scrub to the next


class SQLiteDatabase:
    """A `Database` in a SQLite file.

    Args:
        path: The SQLite file.
        journal_mode: ``wal``, or ``delete`` for file systems without shared memory. ``delete``
            changes a database in WAL mode; ``wal`` leaves a database in DELETE mode unchanged.
        upgrade: Migrate an older database, after a backup, instead of refusing it.
    """

    excludes_writers = True

    def __init__(
        self,
        path: Path,
        *,
        journal_mode: JournalMode = "wal",
        upgrade: bool = False,
    ) -> None:
        if journal_mode not in {"wal", "delete"}:
            raise ValueError("journal_mode: expected 'wal' or 'delete'")
        self.path = path
        self.name = str(path)
        self._connector = Connector(path, journal_mode=journal_mode, upgrade=upgrade)
        self._connections = ThreadConnections(path)
        finalize(self, self._connections.retire)
        self.locks = self._connector.locks

    def exists(self) -> bool:
        """Return whether there is a file that is not empty (see `Database.exists`)."""
        if self._connector.schema.find() is not None:
            return True
        self._connector.file.reject_stale_wal()
        return False

    def fetch_one(self, statement: CompiledStatement, parameters: dict[str, Any]) -> Row | None:
        """Return the first row (see `Database.fetch_one`)."""
        return self._read(statement, parameters, sqlite3.Cursor.fetchone)

    def fetch_all(self, statement: CompiledStatement, parameters: dict[str, Any]) -> list[Row]:
        """Return all rows (see `Database.fetch_all`)."""
        return self._read(statement, parameters, sqlite3.Cursor.fetchall) or []

    def execute(self, statement: CompiledStatement, parameters: dict[str, Any]) -> int:
        """Run a statement that writes (see `Database.execute`)."""
        thread = self._connections.current()
        if not thread.in_transaction or not thread.transaction.is_joined():
            raise RuntimeError("execute() requires a transaction()")
        sql, _, values_of = statement.sqlite
        driver = self._transaction_driver(thread)
        thread.transaction.writes += 1
        try:
            return driver.execute(sql, values_of(parameters)).rowcount
        except DRIVER_ERRORS as error:
            raise self._error(thread, error) from None

    def run(
        self,
        work: Callable[[], T],
        *,
        expected_identity: object = None,
        lock: HeldLock | None = None,  # noqa: ARG002 - its file is not part of the database
    ) -> T:
        """Call *work* in a transaction (see `Database.run`)."""
        thread = self._connections.current()
        if thread.in_transaction and thread.transaction.is_joined():
            return self._run_inside(thread, work)
        with self._transaction(expected_identity):
            return work()

    def transaction(self) -> AbstractContextManager[None]:
        """Make the work of this thread one transaction (see `Database.transaction`)."""
        return self._transaction(None, Owner())

    def scrub_after_commit(self) -> None:
        """Remove the bytes that this transaction deletes from the write-ahead log too.

        If a reader still needs them, a later transaction of this process removes them.
        """
        write_lock = self._connections.write_lock
        if write_lock.unscrubbed is None:
            write_lock.unscrubbed = time.monotonic()

    def identity(self) -> FileId | None:
        """Return the file that this thread has open."""
        return self._connections.current().file_id

    def backup(self, target: Path, *, replace: bool) -> None:
        """Copy the database to *target* (see `copy_database`)."""
        thread = self._connections.current()
        if thread.in_transaction:
            raise StorageError(
                f"{self.path}: this thread is inside a transaction; end it, then back up", self.path
            )
        with thread.lock:  # a fork waits for it
            self._connector.backup(target, replace=replace)

    def restore(self, source: Path) -> Restored:
        """Replace the database with a copy of it (see `restore_database`)."""
        from tokenstore.storage.sqlite.restore import restore_database

        with self._connections.writing(scrubs=False):
            self._connections.close_for_all()
            return restore_database(self._connector, source)

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        """Yield a connection for migrations (see `Database.migration`)."""
        with self._connections.writing(scrubs=False), self._connector.migration() as connection:
            yield connection

    @contextmanager
    def inspection(self) -> Iterator[Connection]:
        """Yield a connection that only reads (see `Database.inspection`)."""
        with self._connections.current().lock, self._connector.inspection() as connection:
            yield connection

    def back_up_before_upgrade(self, connection: Connection) -> None:
        """Copy an older database to a file next to it."""
        self._connector.schema.back_up_before_upgrade(connection)

    def close(self) -> None:
        """Close the connections of all threads, after removing deleted content from the log."""
        connections = self._connections
        try:
            if connections.write_lock.unscrubbed is not None and not connections.is_writing():
                with connections.writing() as thread, suppress(StorageError):
                    self._open(thread)
                    self._scrub(thread)
        finally:
            connections.close()
            self._connector.forget()

    def _read(
        self,
        statement: CompiledStatement,
        parameters: dict[str, Any],
        fetch: Callable[[sqlite3.Cursor], T],
    ) -> T | None:
        sql, _, values_of = statement.sqlite
        values = values_of(parameters)
        thread = self._connections.current()
        if thread.in_transaction and not thread.transaction.is_joined():
            thread = self._connections.beside()
        with thread.lock:
            if not thread.in_transaction:
                driver = self._open(thread)
            elif thread.transaction.has_begun or thread.transaction.has_failed:
                driver = self._transaction_driver(thread)
            else:
                thread.transaction.has_read = True
                return None
            if driver is None:
                return None
            try:
                try:
                    return fetch(driver.execute(sql, values))
                except DRIVER_ERRORS as error:
                    if not is_undecodable(error):
                        raise self._error(thread, error) from None
                # One damaged row must not hide the others of its page. This is outside `except`:
                # the context of an error from there would quote the damaged text.
                with translated(self.path), lenient_decoding(driver):
                    return fetch(driver.execute(sql, values))
            finally:
                if thread.immutable:
                    thread.close()

    @contextmanager
    def _transaction(self, expected_identity: object, owner: Owner | None = None) -> Iterator[None]:
        """Begin a transaction and end it, or join the current one of this thread.

        Args:
            expected_identity: The file that must still be open, or None for any.
            owner: The part of the program that it belongs to, for one that may only read: it does
                not begin before the first write if there is no database. Defaults to one that
                begins at once.
        """
        thread = self._connections.current()
        if thread.in_transaction and thread.transaction.is_joined():
            try:
                yield
            except BaseException:
                self._undo(thread)
                raise
            return
        process = os.getpid()
        with self._connections.writing() as thread, ExitStack() as stack:
            thread.transaction = transaction = Transaction(owner)
            transaction.stack = stack
            try:
                if owner is None or thread.driver is not None or self._connector.exists():
                    self._begin(thread, expected_identity)
                thread.in_transaction = True
                yield
                # A child forked inside must not commit.
                if os.getpid() == process and (transaction.has_begun or transaction.has_failed):
                    self._commit(thread)
            except BaseException:
                thread.rollback()
                raise
            finally:
                thread.in_transaction = False
                thread.transaction = Transaction()
                self._scrub(thread)

    def _run_inside(self, thread: ThreadConnection, work: Callable[[], T]) -> T:
        """Call *work* in the current transaction; if it fails after a write, all is undone."""
        transaction = thread.transaction
        if not transaction.has_begun:
            self._begin(thread, None)
        writes, owner = transaction.writes, transaction.owner
        transaction.owner = None  # nothing else of this thread runs before the work ends
        try:
            return work()
        except BaseException:
            if transaction.writes != writes:
                self._undo(thread)
            raise
        finally:
            transaction.owner = owner

    def _undo(self, thread: ThreadConnection) -> None:
        """Undo the current transaction because its inner part has failed."""
        thread.transaction.has_failed = True
        thread.rollback()

    def in_transaction(self) -> bool:
        """Return whether the calling thread is inside a transaction on the same file."""
        return self._connections.is_writing()

    def require_room(self, size: int) -> None:
        """Check the free space of the disk (see `Database.require_room`).

        The row, its indexes and the journal's entry are written as whole pages, and once more
        when the log is emptied.
        """
        needed = _LEAST_ROOM + 4 * size
        try:
            found = os.statvfs(self.path.parent)
        except OSError as error:
            raise file_error(error, self.path.parent) from None
        if found.f_bavail * found.f_frsize < needed:
            raise StorageError(
                f"{self.path}: less than {needed >> 10} KiB are free on the disk, too little to "
                "store new tokens; free some and repeat the call",
                self.path,
                errno=errno.ENOSPC,
            )

    def _begin(self, thread: ThreadConnection, expected_identity: object) -> None:
        transaction = thread.transaction
        if thread.driver is None and expected_identity is None:
            self._connector.require_same_file()
            is_new = self._connector.schema.create_if_missing()
            if transaction.has_read and not is_new:
                raise StorageError(
                    f"{self.path}: another process has created it during this transaction, which "
                    "has found nothing before; repeat all of it",
                    self.path,
                    errno=errno.EAGAIN,
                )
        driver = self._open(thread)
        if driver is None or expected_identity not in {None, thread.file_id}:
            raise self._connector.replaced_error(thread.log_id)
        if thread.immutable:
            thread.close()
            raise self._connector.read_only_error()
        if thread.log_id is None:  # a rollback journal, which each transaction creates anew
            self._connector.file.require_own_sidecars()
        transaction.stack.enter_context(self._connections.writing_to(thread.file_id))
        try:
            driver.execute("BEGIN IMMEDIATE")
        except DRIVER_ERRORS as error:
            transaction.has_failed = True
            raise sqlite_error(self.path, error) from None
        transaction.has_begun = True

    def _transaction_driver(self, thread: ThreadConnection) -> sqlite3.Connection:
        """Return the connection of the thread's transaction."""
        transaction = thread.transaction
        if not transaction.has_begun and not transaction.has_failed:
            self._begin(thread, None)
        if transaction.has_failed or thread.driver is None or not thread.driver.in_transaction:
            # A fork closes every connection, so that the child does not share it.
            raise StorageError(
                f"{self.path}: an earlier error, or a fork, has ended this transaction; nothing of "
                "it was stored. Repeat all of it, and do not fork inside",
                self.path,
            )
        return thread.driver

    def _error(self, thread: ThreadConnection, error: BaseException) -> StorageError:
        """Return the error for a statement that failed; the schema may have been changed."""
        if error_name(error) == "SQLITE_ERROR" and thread.connection is not None:
            changed = self._connector.schema_error(thread.connection)
            if not thread.in_transaction:
                thread.close()  # the next use looks at the schema again
            if changed is not None:
                return changed
        return sqlite_error(self.path, error)

    def _commit(self, thread: ThreadConnection) -> None:
        driver = self._transaction_driver(thread)
        try:
            driver.execute("COMMIT")
        except DRIVER_ERRORS as error:
            thread.close()  # SQLite may have kept the transaction open
            raise sqlite_error(self.path, error) from None
        self._require_current(thread)

    def _open(self, thread: ThreadConnection) -> sqlite3.Connection | None:
        """Return the thread's connection, opened if necessary, or None if there is no database."""
        if thread.driver is not None and thread.driver.in_transaction:
            thread.rollback()  # an interrupt has prevented it
        if thread.driver is None:
            opened = self._connector.open()
            return None if opened is None else thread.adopt(opened)
        self._require_current(thread)
        return thread.driver

    def _require_current(self, thread: ThreadConnection) -> None:
        if not self._connector.file.is_current(thread.file_id):
            thread.close()
            raise self._connector.replaced_error(thread.log_id)

    def _scrub(self, thread: ThreadConnection) -> None:
        """Empty the write-ahead log if it holds deleted content.

        This waits for the disk three times, a transaction only once. So while other threads wait
        for the write lock, it is left to the last of them, within limits.
        """
        write_lock = self._connections.write_lock
        if write_lock.unscrubbed is None or thread.driver is None:
            return
        may_wait = time.monotonic() < write_lock.unscrubbed + _MAX_SCRUB_DELAY
        if may_wait and write_lock.has_scrubbing_waiters():
            return
        if _empty_log(thread.driver):
            write_lock.unscrubbed = None


def _empty_log(driver: sqlite3.Connection) -> bool:
    """Empty the write-ahead log; return False if another connection prevented it."""
    driver.execute("PRAGMA busy_timeout = 0")
    try:
        return not pragma(driver, "wal_checkpoint(TRUNCATE)")
    except sqlite3.Error:  # the transaction is stored nevertheless
        return False
    finally:
        driver.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT * 1000:.0f}")
