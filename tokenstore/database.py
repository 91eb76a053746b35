"""The database: opened safely, created whole, read and written in transactions that we own."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from tokenstore.errors import (
    InsecureStorageError,
    SchemaOutdatedError,
    SchemaTooNewError,
    StorageError,
)
from tokenstore.locks import Locks
from tokenstore.schema import APPLICATION_ID, REVISION, VERSION_TABLE
from tokenstore.sqlite import (
    BUSY_TIMEOUT,
    ERRORS,
    Query,
    Row,
    driver_of,
    error_name,
    make_engine,
    not_writable,
    pragma,
    storage_error,
    translated,
    uri,
)
from tokenstore.storefile import Identity, StoreFile
from tokenstore.threads import ThreadConnection, ThreadConnections

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Connection

JournalMode = Literal["wal", "delete"]

_SCHEMA_TIMEOUT = 120.0  # seconds to wait for another process that creates or migrates
_MODE_TIMEOUT = 10.0  # seconds to wait until nobody else has a database open
_POLL = 0.02  # seconds between two looks at whether that is so


class Database:
    """A token database, shared by threads and processes. It does no I/O before its first use.

    Reading never creates it; the first transaction does.

    Args:
        path: The SQLite file.
        migrate: Brings the database of a connection to the newest schema.
        journal_mode: ``wal``, or ``delete`` for file systems without shared memory. A database
            that is in ``delete`` mode stays so; one in ``wal`` mode is changed when asked.
        upgrade: Migrate an older database, after a backup, in place of refusing it.
    """

    def __init__(
        self,
        path: Path,
        migrate: Callable[[Connection], None],
        *,
        journal_mode: JournalMode = "wal",
        upgrade: bool = False,
    ) -> None:
        if journal_mode not in {"wal", "delete"}:
            raise ValueError("journal_mode: 'wal' or 'delete' is needed")
        self.path = path
        self.locks = Locks(path.with_name(path.name + "-locks"))
        self._file = StoreFile(path)
        self._migrate = migrate
        self._journal_mode = journal_mode
        self._upgrade = upgrade
        self._engine = make_engine(path)
        self._threads = ThreadConnections(path)
        self._scrub_is_due = False

    # -- reading and writing ------------------------------------------------------------------

    def fetch_one(self, query: Query, parameters: dict[str, Any]) -> Row | None:
        """Return the first row, None if there is none or no database."""
        rows = self.fetch_all(query, parameters)
        return rows[0] if rows else None

    def fetch_all(self, query: Query, parameters: dict[str, Any]) -> list[Row]:
        """Return all rows, none if there is no database."""
        thread = self._threads.mine()
        if thread.in_transaction:
            with translated(self.path):
                mine = self._in_transaction(thread)
                return mine.execute(query.sql, query.constants | parameters).fetchall()
        with thread.lock:
            driver = self._ready(thread)
            if driver is None:
                return []
            try:
                return driver.execute(query.sql, query.constants | parameters).fetchall()
            except sqlite3.Error as error:
                raise storage_error(self.path, error) from None
            finally:
                if thread.immutable:
                    thread.close()

    def execute(self, query: Query, parameters: dict[str, Any]) -> int:
        """Run a statement that writes, inside `transaction`; return how many rows it changed."""
        thread = self._threads.mine()
        if not thread.in_transaction:
            raise RuntimeError("execute() is for inside a transaction()")
        with translated(self.path):
            driver = self._in_transaction(thread)
            return driver.execute(query.sql, query.constants | parameters).rowcount

    @contextmanager
    def transaction(self, *, file: Identity | None = None) -> Iterator[None]:
        """Make what this thread does inside one durable transaction; nested ones join it.

        Args:
            file: The file that has to be there still (see `file`); None: any, made if missing.

        Raises:
            StorageError: The database cannot be written, or the commit failed; then nothing of
                the transaction is stored.
        """
        if self._threads.mine().in_transaction:
            yield
            return
        process = os.getpid()
        with self._threads.writing() as thread:
            try:
                self._begin(thread, file)
                thread.in_transaction = True
                yield
                if os.getpid() == process:  # a child forked inside has no part in it
                    self._commit(thread)
            except BaseException:
                thread.rollback()
                raise
            finally:
                thread.in_transaction = False
            if self._scrub_is_due and thread.driver is not None:
                self._scrub_is_due = not _scrub(thread.driver)

    def scrub_after_commit(self) -> None:
        """Let the bytes that this transaction deletes leave the write-ahead log as well.

        If somebody reads an older state just then, a later transaction of this process does it.
        """
        self._scrub_is_due = True

    def file(self) -> Identity | None:
        """Return which file this thread works on."""
        return self._threads.mine().identity

    def close(self) -> None:
        """Close the connections of all threads; whoever goes on using it opens a new one."""
        self._threads.close()

    def _begin(self, thread: ThreadConnection, file: Identity | None) -> sqlite3.Connection:
        if thread.driver is None and file is None:
            self._create_if_missing()
        driver, connection = self._ready(thread), thread.connection
        if driver is None or connection is None or file not in {None, thread.identity}:
            raise self._gone()
        if thread.immutable:
            thread.close()
            raise not_writable(self.path)
        with translated(self.path):
            connection.begin()
        return driver

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
        self._in_transaction(thread)
        assert thread.connection is not None  # noqa: S101 - for the type checker
        try:
            thread.connection.commit()
        except ERRORS as error:
            thread.close()  # and with it a transaction that SQLite may still have open
            raise storage_error(self.path, error) from None
        if self._file.identity() != thread.identity:
            thread.close()
            raise self._gone()

    # -- opening ------------------------------------------------------------------------------

    def _ready(self, thread: ThreadConnection) -> sqlite3.Connection | None:
        """Return the thread's connection, opened if need be; None if there is no database."""
        if thread.driver is None:
            return self._open(thread)
        if not thread.in_transaction and self._file.identity() != thread.identity:
            thread.close()
            raise self._gone()
        return thread.driver

    def _open(self, thread: ThreadConnection) -> sqlite3.Connection | None:
        identity = self._file.inspect()
        if identity is None:
            return None
        connection, immutable = self._connect()
        try:
            self._require_ours(connection)
            self._file.tighten()
            self._require_schema(connection)
            if self._journal_mode == "delete" and not immutable and self._is_to_change(connection):
                connection.close()
                self._leave_wal()
                connection, immutable = self._connect()
            if self._file.identity() != identity:
                raise self._gone()
        except BaseException:
            connection.close()
            raise
        return thread.adopt(connection, identity, immutable=immutable)

    def _connect(self) -> tuple[Connection, bool]:
        """Connect; tell whether that was possible only as to a file that nobody changes.

        Whoever reads a WAL database writes beside it. Where that cannot be, it can still be read
        as long as the file is all there is: no log, hence no writer.
        """
        try:
            return self._engine.connect(), False
        except ERRORS as error:
            cannot_open = error_name(error).startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY"))
            if not cannot_open or self._file.has_wal():
                raise storage_error(self.path, error) from None
        with translated(self.path):
            return make_engine(self.path, "mode=ro&immutable=1").connect(), True

    def _require_ours(self, connection: Connection) -> None:
        with translated(self.path):
            found = pragma(driver_of(connection), "application_id")
        if found != APPLICATION_ID:
            raise InsecureStorageError(
                f"{self.path} is not a tokenstore database; name another file", self.path
            )

    def _require_schema(self, connection: Connection) -> None:
        revision = self.revision(connection)
        if revision == REVISION:
            return
        if revision is not None and revision > REVISION:
            raise too_new(self.path, revision)
        if not self._upgrade:
            raise SchemaOutdatedError(
                f"{self.path} has schema {revision or 'base'}, this tokenstore needs {REVISION}; "
                f"run: tokenstore --database '{self.path}' db upgrade",
                self.path,
            )
        with self._schema_lock(), translated(self.path), connection.begin():
            if self.revision(connection) != REVISION:  # no other process was faster
                self.backup_before_upgrade(connection)
                self._migrate(connection)

    def _is_to_change(self, connection: Connection) -> bool:
        with translated(self.path):
            mode = pragma(driver_of(connection), "journal_mode")
        return mode != self._journal_mode and self._file.is_writable()

    def _leave_wal(self) -> None:
        """Change the journal mode, for which nobody else may have the database open.

        SQLite does not wait for that moment by itself. Everybody who wants the same change comes
        here without a connection, so that it does come.
        """
        with self._schema_lock():
            deadline = time.monotonic() + _MODE_TIMEOUT
            while True:
                try:
                    with self._engine.connect() as connection:
                        return self._set_journal_mode(driver_of(connection))
                except ERRORS as error:
                    busy = error_name(error).startswith("SQLITE_BUSY")
                    if not busy or time.monotonic() > deadline:
                        raise storage_error(self.path, error) from None
                time.sleep(_POLL)

    # -- creating and migrating ---------------------------------------------------------------

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        """Yield a connection inside one transaction, for migrations to run on.

        A new database is built beside its final place and moved there as a whole. If nothing was
        built, nothing is left.
        """
        with self._threads.writing(), self._schema_lock():
            if self._file.inspect() is None:
                with self._building() as connection:
                    yield connection
                return
            connection, immutable = self._connect()
            try:
                self._require_ours(connection)
                self._file.tighten()
                if immutable:
                    raise not_writable(self.path)
                with translated(self.path), connection.begin():
                    yield connection
            finally:
                connection.close()

    @contextmanager
    def inspection(self) -> Iterator[Connection]:
        """Yield a connection for migration commands that only look; it creates nothing.

        Where there is no database, it is to an empty one in memory.
        """
        if self._file.inspect() is None:
            with create_engine("sqlite://", poolclass=NullPool).connect() as connection:
                yield connection
            return
        with self._threads.writing():  # no fork comes in between
            connection, _ = self._connect()
            connection.execution_options(sqlite_begin="DEFERRED")
            try:
                self._require_ours(connection)
                with translated(self.path):
                    yield connection
            finally:
                connection.close()

    def revision(self, connection: Connection) -> str | None:
        """Return the schema revision of the database behind *connection*, None if it has none."""
        sql = f"SELECT version_num FROM {VERSION_TABLE}"  # noqa: S608 - a constant
        try:
            row = driver_of(connection).execute(sql).fetchone()
        except sqlite3.Error as error:
            if "no such table" in str(error):
                return None
            raise storage_error(self.path, error) from None
        return row[0] if row else None

    def backup_before_upgrade(self, connection: Connection) -> None:
        """Copy a database that is about to be migrated to a file beside it, 0600.

        SQLite copies nothing from a connection that is inside a transaction which writes, as that
        of *connection* is, so that nobody else can write; it waits for ever.
        """
        revision = self.revision(connection)
        if revision is None or revision >= REVISION:
            return
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        target = StoreFile(self._file.beside(f"-backup-{revision}-{moment}"))
        target.create()
        with translated(target.path), self._engine.connect() as reader:
            copy = sqlite3.connect(uri(target.path, "mode=rw"), uri=True)
            try:
                driver_of(reader).backup(copy)
            except BaseException:
                target.remove()
                raise
            finally:
                copy.close()

    def _create_if_missing(self) -> None:
        if self._file.inspect() is not None:
            return
        with self._schema_lock():
            if self._file.inspect() is None:  # no other process was faster
                with self._building() as connection:
                    self._migrate(connection)

    @contextmanager
    def _building(self) -> Iterator[Connection]:
        self._file.refuse_leftovers()
        new = StoreFile(self._file.beside("-new"))
        new.remove()  # what a process that died here has left
        new.create()
        try:
            with translated(new.path), make_engine(new.path).connect() as connection:
                with connection.begin():
                    driver_of(connection).execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    yield connection
                built = self.revision(connection) is not None
                self._set_journal_mode(driver_of(connection))
            if built:
                new.move_to(self._file)
        finally:
            new.remove()

    def _set_journal_mode(self, driver: sqlite3.Connection) -> None:
        found = driver.execute(f"PRAGMA journal_mode = {self._journal_mode}").fetchone()[0]
        if found != self._journal_mode:
            raise StorageError(
                f"{self.path}: the journal mode stays {found!r} where {self._journal_mode!r} was "
                "asked for; another journal_mode may suit this file system",
                self.path,
            )

    @contextmanager
    def _schema_lock(self) -> Iterator[None]:
        self._file.make_directories()
        try:
            with self.locks.schema(timeout=_SCHEMA_TIMEOUT):
                yield
        except TimeoutError:
            raise StorageError(
                f"{self.path} is being created or migrated by another process for more than "
                f"{_SCHEMA_TIMEOUT:.0f} s; find out which and try again",
                self.path,
                errno=errno.EBUSY,
            ) from None

    def _gone(self) -> StorageError:
        return StorageError(
            f"{self.path} was removed or replaced while it was open; what was just written may be "
            "lost with it. Put it back, or repeat the call to use what is there now",
            self.path,
            errno=errno.ESTALE,
        )


def too_new(path: Path, revision: str) -> SchemaTooNewError:
    """Return the error that *path* has a schema which this code does not know."""
    return SchemaTooNewError(
        f"{path} has schema {revision}, this tokenstore knows up to {REVISION}; upgrade tokenstore",
        path,
    )


def _scrub(driver: sqlite3.Connection) -> bool:
    """Empty the write-ahead log; tell whether that was done, as nobody else was at work on it."""
    driver.execute("PRAGMA busy_timeout = 0")
    try:
        busy = pragma(driver, "wal_checkpoint(TRUNCATE)")
    except sqlite3.Error:  # the transaction is stored all the same
        busy = True
    driver.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT * 1000:.0f}")
    return not busy
