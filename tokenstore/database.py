"""The database: opened safely, created whole, read and written in transactions that we own."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

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
    driver_of,
    error_name,
    make_engine,
    not_writable,
    pragma,
    storage_error,
    translated,
    uri,
)
from tokenstore.storefile import StoreFile
from tokenstore.threads import ThreadConnection, ThreadConnections

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Connection

JournalMode = Literal["wal", "delete"]
Row = tuple[Any, ...]

_SCHEMA_TIMEOUT = 120.0  # seconds to wait for another process that creates or migrates


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

    # -- reading and writing ------------------------------------------------------------------

    def fetch_one(self, query: Query, parameters: dict[str, Any]) -> Row | None:
        """Return the first row, None if there is none or no database."""
        rows = self.fetch_all(query, parameters)
        return rows[0] if rows else None

    def fetch_all(self, query: Query, parameters: dict[str, Any]) -> list[Row]:
        """Return all rows, none if there is no database."""
        thread = self._threads.mine()
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
        if not thread.in_transaction or thread.driver is None:
            raise RuntimeError("execute() is for inside a transaction()")
        try:
            return thread.driver.execute(query.sql, query.constants | parameters).rowcount
        except sqlite3.Error as error:
            raise storage_error(self.path, error) from None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make what this thread does inside one durable transaction; nested ones join it.

        Raises:
            StorageError: The database cannot be written, or the commit failed; then nothing of
                the transaction is stored.
        """
        if self._threads.mine().in_transaction:
            yield
            return
        process = os.getpid()
        with self._threads.writing() as thread:
            connection = self._begin(thread)
            thread.in_transaction = True
            try:
                yield
                if os.getpid() == process:  # a child forked inside has no part in it
                    self._commit(thread, connection)
            except BaseException:
                if os.getpid() == process:
                    connection.rollback()
                raise
            finally:
                thread.in_transaction = False
                scrub, thread.scrub = thread.scrub, False
            if scrub and thread.driver is not None:
                _scrub(thread.driver)

    def scrub_after_commit(self) -> None:
        """Let the bytes that this transaction deletes leave the write-ahead log as well."""
        self._threads.mine().scrub = True

    def close(self) -> None:
        """Close the connections of all threads; whoever goes on using it opens a new one."""
        self._threads.close()

    def _begin(self, thread: ThreadConnection) -> Connection:
        if thread.driver is None:
            self._create_if_missing()
        self._ready(thread)
        connection = thread.connection
        if connection is None:
            raise self._gone()
        if thread.immutable:
            thread.close()
            raise not_writable(self.path)
        with translated(self.path):
            connection.begin()
        return connection

    def _commit(self, thread: ThreadConnection, connection: Connection) -> None:
        try:
            connection.commit()
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
            self._require_schema(connection)
            self._require_journal_mode(connection)
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
            raise SchemaTooNewError(
                f"{self.path} has schema {revision}, this tokenstore knows up to {REVISION}; "
                "upgrade tokenstore",
                self.path,
            )
        if not self._upgrade:
            raise SchemaOutdatedError(
                f"{self.path} has schema {revision or 'base'}, this tokenstore needs {REVISION}; "
                f"run: tokenstore --database '{self.path}' db upgrade",
                self.path,
            )
        with self._schema_lock():
            if self.revision(connection) != REVISION:  # no other process was faster
                self.backup_before_upgrade(connection)
                with translated(self.path), connection.begin():
                    self._migrate(connection)

    def _require_journal_mode(self, connection: Connection) -> None:
        driver = driver_of(connection)
        with translated(self.path):
            if self._journal_mode == "delete" and pragma(driver, "journal_mode") != "delete":
                self._set_journal_mode(driver)

    # -- creating and migrating ---------------------------------------------------------------

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        """Yield a connection inside one transaction, for migrations to run on.

        A new database is built beside its final place and moved there as a whole. If nothing was
        built, nothing is left.
        """
        with self._schema_lock():
            if self._file.inspect() is None:
                with self._building() as connection:
                    yield connection
                return
            connection, immutable = self._connect()
            try:
                self._require_ours(connection)
                if immutable:
                    raise not_writable(self.path)
                with translated(self.path), connection.begin():
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
        """Copy a database that is about to be migrated to a file beside it, 0600."""
        revision = self.revision(connection)
        if revision is None or revision == REVISION:
            return
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        target = StoreFile(self._file.beside(f"-backup-{revision}-{moment}"))
        target.create()
        with translated(target.path):
            copy = sqlite3.connect(uri(target.path, "mode=rw"), uri=True)
            try:
                driver_of(connection).backup(copy)
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


def _scrub(driver: sqlite3.Connection) -> None:
    """Empty the write-ahead log, unless somebody is at work on it: then the next one does."""
    driver.execute("PRAGMA busy_timeout = 0")
    with suppress(sqlite3.OperationalError):
        driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    driver.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT * 1000:.0f}")
