"""A SQLite database: read and written by many threads, in transactions that we own."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from tokenstore.errors import StorageError
from tokenstore.storage.sqlite.connections import ThreadConnection, ThreadConnections
from tokenstore.storage.sqlite.connector import Connector
from tokenstore.storage.sqlite.engine import BUSY_TIMEOUT, decoding_what_can_be, pragma
from tokenstore.storage.sqlite.errors import (
    DRIVER_ERRORS,
    is_undecodable,
    read_only_error,
    sqlite_error,
    translated,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Connection

    from tokenstore.storage.base import JournalMode
    from tokenstore.storage.query import Query, Row
    from tokenstore.storage.sqlite.file import FileId

T = TypeVar("T")

_LONGEST_RUSH = 1.0  # seconds for which threads that write one after the other let the log be


class SQLiteDatabase:
    """A token database in a SQLite file, shared by threads and processes (see `Database`).

    Args:
        path: The SQLite file.
        journal_mode: ``wal``, or ``delete`` for file systems without shared memory. A database
            that is in ``delete`` mode stays so; one in ``wal`` mode is changed when asked.
        upgrade: Migrate an older database, after a backup, in place of refusing it.
    """

    def __init__(
        self,
        path: Path,
        *,
        journal_mode: JournalMode = "wal",
        upgrade: bool = False,
    ) -> None:
        if journal_mode not in {"wal", "delete"}:
            raise ValueError("journal_mode: 'wal' or 'delete' is needed")
        self.path = path
        self.name = str(path)
        self._opener = Connector(path, journal_mode=journal_mode, upgrade=upgrade)
        self.locks = self._opener.locks
        self._threads = ThreadConnections(path)

    def fetch_one(self, query: Query, parameters: dict[str, Any]) -> Row | None:
        """Return the first row, None if there is none or no database."""
        return self._read(query, parameters, sqlite3.Cursor.fetchone)

    def fetch_all(self, query: Query, parameters: dict[str, Any]) -> list[Row]:
        """Return all rows, none if there is no database."""
        return self._read(query, parameters, sqlite3.Cursor.fetchall) or []

    def _read(
        self, query: Query, parameters: dict[str, Any], fetch: Callable[[sqlite3.Cursor], T]
    ) -> T | None:
        compiled = query.sqlite
        values = compiled.values(parameters)
        thread = self._threads.current()
        with thread.lock:
            driver = self._in_transaction(thread) if thread.in_transaction else self._ready(thread)
            if driver is None:
                return None
            try:
                try:
                    return fetch(driver.execute(compiled.sql, values))
                except DRIVER_ERRORS as error:
                    if not is_undecodable(error):
                        raise sqlite_error(self.path, error) from None
                # One damaged row must not hide the others of its page. Not inside of `except`:
                # what is raised there would take along an error that quotes what it has read.
                with translated(self.path), decoding_what_can_be(driver):
                    return fetch(driver.execute(compiled.sql, values))
            finally:
                if thread.immutable:
                    thread.close()

    def execute(self, query: Query, parameters: dict[str, Any]) -> int:
        """Run a statement that writes, inside `transaction`; return how many rows it changed."""
        thread = self._threads.current()
        if not thread.in_transaction:
            raise RuntimeError("execute() is for inside a transaction()")
        compiled = query.sqlite
        driver = self._in_transaction(thread)
        try:
            return driver.execute(compiled.sql, compiled.values(parameters)).rowcount
        except DRIVER_ERRORS as error:
            raise sqlite_error(self.path, error) from None

    def run(self, work: Callable[[], T], *, where: object = None) -> T:
        """Do *work* in one durable transaction, or in the one that this thread is in."""
        if self._threads.current().in_transaction:
            return work()
        with self.transaction(where=where):
            return work()

    @contextmanager
    def transaction(self, *, where: object = None) -> Iterator[None]:
        """Make what this thread does inside one durable transaction; nested ones join it.

        Args:
            where: The file that has to be there still (see `identity`); None: any, made if missing.

        Raises:
            StorageError: The database cannot be written, or the commit failed; then nothing of
                the transaction is stored.
        """
        if self._threads.current().in_transaction:
            yield
            return
        process = os.getpid()
        with self._threads.writing() as thread:
            try:
                self._begin(thread, where)
                thread.in_transaction = True
                yield
                if os.getpid() == process:  # a child forked inside has no part in it
                    self._commit(thread)
            except BaseException:
                thread.rollback()
                raise
            finally:
                thread.in_transaction = False
                self._scrub(thread)

    def scrub_after_commit(self) -> None:
        """Let the bytes that this transaction deletes leave the write-ahead log as well.

        If somebody reads an older state just then, a later transaction of this process does it.
        """
        write_lock = self._threads.write_lock
        if write_lock.unscrubbed is None:
            write_lock.unscrubbed = time.monotonic()

    def _scrub(self, thread: ThreadConnection) -> None:
        """Empty the write-ahead log if something is in it that was deleted.

        That waits for the disk three times, a transaction once. So it is left to the thread whose
        turn comes right after this one, unless that has gone on for long.
        """
        write_lock = self._threads.write_lock
        if write_lock.unscrubbed is None or thread.driver is None:
            return
        left_to_the_next = time.monotonic() < write_lock.unscrubbed + _LONGEST_RUSH
        if write_lock.has_scrubbing_waiters() and left_to_the_next:
            return
        if _empty_log(thread.driver):
            write_lock.unscrubbed = None

    def identity(self) -> FileId | None:
        """Return which file this thread works on."""
        return self._threads.current().identity

    def backup(self, target: Path, *, replace: bool) -> None:
        """Copy the database to *target* while others go on writing (see `copy_database`)."""
        thread = self._threads.current()
        if thread.in_transaction:
            raise StorageError(
                f"{self.path}: this thread is inside a transaction; end it, then back up", self.path
            )
        with thread.lock:  # no fork comes in between
            self._opener.backup(target, replace=replace)

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        """Yield a connection for migrations to run on (see `Connector.migration`)."""
        with self._threads.writing(scrubs=False), self._opener.migration() as connection:
            yield connection

    @contextmanager
    def inspection(self) -> Iterator[Connection]:
        """Yield a connection for commands that only look (see `Connector.inspection`)."""
        with self._threads.current().lock, self._opener.inspection() as connection:
            yield connection

    def back_up_before_upgrade(self, connection: Connection) -> None:
        """Copy a database that is about to be migrated to a file beside it."""
        self._opener.builder.back_up(connection)

    def close(self) -> None:
        """Close the connections of all threads; whoever goes on using it opens a new one."""
        try:
            if self._threads.write_lock.unscrubbed is not None and not self._threads.is_writing():
                with self._threads.writing() as thread, suppress(StorageError):
                    self._ready(thread)
                    self._scrub(thread)
        finally:
            self._threads.close()

    def _begin(self, thread: ThreadConnection, where: object) -> None:
        if thread.driver is None and where is None:
            self._opener.builder.create_if_missing()
        driver = self._ready(thread)
        if driver is None or where not in {None, thread.identity}:
            raise self._opener.gone(thread.log)
        if thread.immutable:
            thread.close()
            raise read_only_error(self.path)
        try:
            driver.execute("BEGIN IMMEDIATE")
        except DRIVER_ERRORS as error:
            raise sqlite_error(self.path, error) from None

    def _in_transaction(self, thread: ThreadConnection) -> sqlite3.Connection:
        """Return the connection of the transaction that the thread is in."""
        if thread.driver is None or not thread.driver.in_transaction:
            # A fork closes every connection: the child must not have a part in it.
            raise StorageError(
                f"{self.path}: an earlier error, or a fork, has ended this transaction; nothing of "
                "it is stored. Repeat it as a whole, and fork outside",
                self.path,
            )
        return thread.driver

    def _commit(self, thread: ThreadConnection) -> None:
        driver = self._in_transaction(thread)
        try:
            driver.execute("COMMIT")
        except DRIVER_ERRORS as error:
            thread.close()  # and with it a transaction that SQLite may still have open
            raise sqlite_error(self.path, error) from None
        if not self._opener.file.is_still(thread.identity):
            thread.close()
            raise self._opener.gone(thread.log)

    def _ready(self, thread: ThreadConnection) -> sqlite3.Connection | None:
        """Return the thread's connection, opened if need be; None if there is no database."""
        if thread.driver is not None and thread.driver.in_transaction:
            thread.rollback()  # an interrupt came before that could be done
        if thread.driver is None:
            opened = self._opener.open()
            return None if opened is None else thread.adopt(opened)
        if not self._opener.file.is_still(thread.identity):
            thread.close()
            raise self._opener.gone(thread.log)
        return thread.driver


def _empty_log(driver: sqlite3.Connection) -> bool:
    """Empty the write-ahead log; tell whether that was done, as nobody else was at work on it."""
    driver.execute("PRAGMA busy_timeout = 0")
    try:
        return not pragma(driver, "wal_checkpoint(TRUNCATE)")
    except sqlite3.Error:  # the transaction is stored all the same
        return False
    finally:
        driver.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT * 1000:.0f}")
