"""Opens a database, if it belongs to this user, is a tokenstore database and is up to date."""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from tokenstore.errors import InsecureStorageError, SchemaTooNewError, StorageError
from tokenstore.storage.migrations import (
    command,
    fits_a_revision,
    outdated_error,
    too_new_error,
)
from tokenstore.storage.sqlite.backup import copy_database, prepare
from tokenstore.storage.sqlite.engine import connect_to, driver_of, make_engine, pragma
from tokenstore.storage.sqlite.errors import (
    DRIVER_ERRORS,
    ERRORS,
    can_open_files,
    error_name,
    read_only_error,
    sqlite_error,
    translated,
)
from tokenstore.storage.sqlite.file import DatabaseFile, FileId
from tokenstore.storage.sqlite.locks import FileLocks
from tokenstore.storage.sqlite.schema import SchemaManager, revision_of
from tokenstore.storage.tables import APPLICATION_ID, REVISION, VERSION_TABLE

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection

    from tokenstore.storage.base import JournalMode

_MODE_TIMEOUT = 10.0  # seconds to wait until no other process has the database open
_POLL = 0.02  # seconds between two attempts
_stale_logs: dict[Path, tuple[FileId, FileId]] = {}  # a database, and another database's log
_restores: Counter[str] = Counter()  # how often this process has replaced a database with a copy


@dataclass(frozen=True, slots=True)
class OpenConnection:
    """A connection and its file.

    Attributes:
        connection: The connection.
        file_id: The file that is open.
        log_id: Its write-ahead log, or None if it has none.
        immutable: Whether it was opened as a file that no process changes, for a single read.
    """

    connection: Connection
    file_id: FileId
    log_id: FileId | None
    immutable: bool


class Connector:
    """Opens connections to one database.

    Args:
        path: The SQLite file.
        journal_mode: ``wal`` or ``delete``.
        upgrade: Migrate an older database, after a backup, instead of refusing it.
    """

    def __init__(self, path: Path, *, journal_mode: JournalMode, upgrade: bool) -> None:
        self.path = path
        self.file = DatabaseFile(path)
        self._log = DatabaseFile(self.file.sidecar("-wal"))
        self.locks = FileLocks(self.file.sidecar("-locks"))
        self.schema = SchemaManager(self.file, self.locks, journal_mode)
        self._engine = make_engine(path)
        self._journal_mode = journal_mode
        self._upgrade = upgrade
        # The file, its log, and how often a file was restored there before.
        self._opened: tuple[FileId, FileId | None, int] | None = None

    def open(self) -> OpenConnection | None:
        """Return a new connection to the database, or None if there is no database."""
        self.require_same_file()
        file_id = self.schema.find()
        if file_id is None:
            self.file.reject_stale_wal()
            return None
        self._reject_stale_log(file_id)
        connection, immutable = self._connect()
        try:
            self.file.restrict_permissions()
            self._require_schema(connection)
            if self._journal_mode == "delete" and not immutable and self._is_in_wal(connection):
                connection.close()
                self._leave_wal()
                connection, immutable = self._connect()
            if self.file.file_id() != file_id:
                raise self.replaced_error()
        except BaseException:
            connection.close()
            raise
        log_id = self._log.file_id()
        self._opened = file_id, log_id, self._restores
        return OpenConnection(connection, file_id, log_id, immutable)

    def exists(self) -> bool:
        """Return whether there is a database, which is the one that was opened last, if any."""
        self.require_same_file()
        return self.schema.find() is not None

    def require_same_file(self) -> None:
        """Raise `replaced_error`, once, if the file is not the one that was opened last.

        A thread that has no connection yet would open the new file beside the old one's log. A
        file that this process has restored has no such log.
        """
        if self._opened is None:
            return
        file_id, log_id, restores = self._opened
        if restores == self._restores and not self.file.is_current(file_id):
            raise self.replaced_error(log_id)

    def forget(self) -> None:
        """Let the next connection be one to whatever file there is."""
        self._opened = None

    def note_restore(self) -> None:
        """Let every repository of this process continue with the file that is there now."""
        _restores[self._real_path] += 1

    @property
    def _restores(self) -> int:
        return _restores[self._real_path]

    @property
    def _real_path(self) -> str:
        return os.path.join(os.path.realpath(self.path.parent), self.path.name)  # noqa: PTH118

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        """Yield a connection for migrations (see `Database.migration`)."""
        if self.schema.find() is not None:
            self._reject_foreign(adopt=True)  # before a lock file is created next to it
        with self.schema.lock():
            if self.file.inspect() is None:
                with self.schema.creation() as connection:
                    yield connection
                return
            with self.connection(adopt=True) as (connection, immutable):
                self.file.restrict_permissions()
                if immutable:
                    raise self.read_only_error()
                with self.schema.transaction(connection):
                    self._adopt(connection)
                    yield connection

    @contextmanager
    def inspection(self) -> Iterator[Connection]:
        """Yield a connection that only reads; to an empty database if there is none."""
        if self.schema.find() is None:
            self.file.reject_stale_wal()
            with create_engine("sqlite://", poolclass=NullPool).connect() as connection:
                yield connection
            return
        with self.connection() as (connection, _):
            connection.execution_options(sqlite_begin="DEFERRED")
            with translated(self.path):
                yield connection

    def backup(self, target: Path, *, replace: bool) -> None:
        """Copy the database, whatever its schema, to *target*."""
        if self.schema.find() is None:
            raise StorageError(
                f"{self.path}: there is no database to back up; check the path", self.path
            )
        prepare(target, self.file, replace=replace)
        with self.connection() as (connection, _):
            copy_database(driver_of(connection), self.path, target)

    def replaced_error(self, log_id: FileId | None = None) -> StorageError:
        """Return the error for a file that was removed or replaced while it was open.

        Args:
            log_id: The write-ahead log of the file that was open. If that log still exists, it
                does not belong to the current file, and SQLite would replay it into that file.
        """
        self.forget()
        current = self.file.file_id()
        if current is not None and log_id is not None and log_id == self._log.file_id():
            _stale_logs[self.path] = current, log_id
        return StorageError(
            f"{self.path} was removed or replaced while it was open; recent changes may be lost "
            "with it. Restore it, or repeat the call to use the current file",
            self.path,
            errno=errno.ESTALE,
        )

    def read_only_error(self) -> StorageError:
        """Return the error for a write to a database that can only be read."""
        return self.file.hard_link_error() or read_only_error(self.path)

    def _reject_stale_log(self, file_id: FileId) -> None:
        """Refuse a database with the log of the database that it has replaced."""
        if _stale_logs.get(self.path) == (file_id, self._log.file_id()):
            raise StorageError(
                f"{self._log.path} belongs to the database that was at {self.path} before; stop "
                "every process that has that one open, and move this file and -shm away",
                self._log.path,
            )

    @contextmanager
    def connection(self, *, adopt: bool = False) -> Iterator[tuple[Connection, bool]]:
        """Yield a connection of its own, whatever the schema, and whether it is immutable."""
        connection, immutable = self._connect(adopt=adopt)
        try:
            yield connection, immutable
        finally:
            connection.close()

    def _connect(self, *, adopt: bool = False) -> tuple[Connection, bool]:
        """Connect to a tokenstore database; return whether it was opened as immutable.

        A reader of a WAL database writes files next to it. Where that is not possible, the
        database can still be read if it has no log, and hence no writer.

        Args:
            adopt: Whether the database may lack the mark of a tokenstore database.
        """
        self.file.require_own_sidecars()
        self.file.require_unmounted()
        self._reject_foreign(adopt=adopt)
        connection, immutable = self._connect_to_any()
        try:
            self._require_own_log(connection, immutable=immutable)
            with translated(self.path):
                self.require_mark(driver_of(connection), adopt=adopt)
        except BaseException:
            connection.close()
            raise
        return connection, immutable

    def _connect_to_any(self) -> tuple[Connection, bool]:
        linked = self.file.hard_link_error()
        if linked is not None and self.file.has_log():
            raise linked
        try:
            # Next to a file that it cannot write, SQLite would create files and leave them there.
            if linked is None and (self.file.is_writable() or self.file.has_log()):
                return self._engine.connect(), False
        except ERRORS as error:
            cannot_open = error_name(error).startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY"))
            may_have_writers = self.file.is_writable() and self.file.has_writable_directory()
            if not cannot_open or may_have_writers or self.file.has_log() or not can_open_files():
                raise sqlite_error(self.path, error) from None
        with translated(self.path):
            return make_engine(self.path, "mode=ro&immutable=1").connect(), True

    def _require_own_log(self, connection: Connection, *, immutable: bool) -> None:
        """Refuse the log that is open now if it was not there before and is not ours."""
        self.file.require_own_sidecars()
        if immutable or self.file.has_wal():
            return
        with translated(self.path):
            if pragma(driver_of(connection), "journal_mode") == "wal":
                raise InsecureStorageError(
                    f"{self._log.path} was removed while it was opened; make sure that no other "
                    "user can write to the directory, and repeat the call",
                    self._log.path,
                )

    def _reject_foreign(self, *, adopt: bool = False) -> None:
        """Refuse another application's database before SQLite repairs or changes anything in it.

        This read ignores logs and locks, so it may find a file that is shorter than its header
        says: during a checkpoint, or after an interrupted one. Then only SQLite's repair can tell.
        """
        try:
            with closing(connect_to(self.path, "mode=ro&immutable=1")) as driver:
                self.require_mark(driver, adopt=adopt)
        except DRIVER_ERRORS as error:
            if not error_name(error).startswith("SQLITE_CORRUPT"):
                raise sqlite_error(self.path, error) from None

    def require_mark(self, driver: sqlite3.Connection, *, adopt: bool) -> None:
        """Refuse a database without the mark of a tokenstore database.

        Args:
            driver: A connection to it.
            adopt: Whether to accept one of ours that has lost its mark, as in a dump.
        """
        mark = pragma(driver, "application_id")
        if mark == APPLICATION_ID:
            return
        is_ours = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
        if mark or driver.execute(is_ours, [VERSION_TABLE]).fetchone() is None:
            raise InsecureStorageError(
                f"{self.path} is not a tokenstore database; choose another file", self.path
            )
        if not adopt:
            raise InsecureStorageError(
                f"{self.path} has the tables of a tokenstore database, but not its application_id, "
                "which a dump does not contain; if you have restored it from a dump of yours, "
                f"run: {command(str(self.path), 'db', 'upgrade')}",
                self.path,
            )

    def _adopt(self, connection: Connection) -> None:
        """Mark a database of ours that has lost its mark, in the current transaction."""
        driver = driver_of(connection)
        if pragma(driver, "application_id") == APPLICATION_ID:
            return
        if not fits_a_revision(str(self.path), connection):
            raise InsecureStorageError(
                f"{self.path} is not a tokenstore database: its tables differ from every schema "
                "that this version knows; choose another file",
                self.path,
            )
        driver.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def _require_schema(self, connection: Connection) -> None:
        error = self.schema_error(connection)
        if error is None:
            return
        if isinstance(error, SchemaTooNewError) or not self._upgrade:
            raise error
        self.schema.upgrade(connection)

    def schema_error(self, connection: Connection) -> StorageError | None:
        """Return the error for a schema that is not the newest, or None if it is."""
        revision = revision_of(connection, self.path)
        if revision == REVISION:
            return None
        if revision is not None and revision > REVISION:
            return too_new_error(str(self.path), revision)
        return outdated_error(str(self.path), revision or "base")

    def _is_in_wal(self, connection: Connection) -> bool:
        """Return whether the database is in WAL mode and can be changed."""
        with translated(self.path):
            mode = pragma(driver_of(connection), "journal_mode")
        return mode != self._journal_mode and self.file.is_writable()

    def _leave_wal(self) -> None:
        """Change the journal mode, which requires that no other connection is open.

        SQLite does not wait for that. Every process that makes the same change waits here without
        a connection, so that one of them succeeds.
        """
        with self.schema.lock():
            deadline = time.monotonic() + _MODE_TIMEOUT
            while True:
                try:
                    with self._engine.connect() as connection:
                        return self.schema.set_journal_mode(driver_of(connection))
                except ERRORS as error:
                    busy = error_name(error).startswith("SQLITE_BUSY")
                    if not busy or time.monotonic() > deadline:
                        raise sqlite_error(self.path, error) from None
                time.sleep(_POLL)
