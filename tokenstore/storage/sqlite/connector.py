"""A database is opened only if it is ours, private, and of the schema that we know."""

from __future__ import annotations

import errno
import sqlite3
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from tokenstore.errors import InsecureStorageError, SchemaOutdatedError, StorageError
from tokenstore.storage.migrations import too_new
from tokenstore.storage.sqlite.backup import copy_database, prepare
from tokenstore.storage.sqlite.engine import driver_of, make_engine, pragma, uri
from tokenstore.storage.sqlite.errors import (
    DRIVER_ERRORS,
    ERRORS,
    error_name,
    read_only_error,
    sqlite_error,
    translated,
)
from tokenstore.storage.sqlite.file import DatabaseFile, FileId
from tokenstore.storage.sqlite.locks import FileLocks
from tokenstore.storage.sqlite.schema import SchemaManager, revision_of
from tokenstore.storage.tables import APPLICATION_ID, REVISION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection

    from tokenstore.storage.base import JournalMode

_MODE_TIMEOUT = 10.0  # seconds to wait until nobody else has a database open
_lost_logs: dict[Path, tuple[FileId, FileId]] = {}  # a database, and a log that is not its own
_POLL = 0.02  # seconds between two looks at whether that is so


@dataclass(frozen=True, slots=True)
class OpenConnection:
    """A connection, and the file that it is to.

    Attributes:
        connection: The connection.
        identity: The file that it is to.
        log: Its write-ahead log, None if it has none.
        immutable: Whether it was opened as a file that nobody changes, for one read only.
    """

    connection: Connection
    identity: FileId
    log: FileId | None
    immutable: bool


class Connector:
    """Opens one database, as often as it is asked to.

    Args:
        path: The SQLite file.
        journal_mode: ``wal`` or ``delete``.
        upgrade: Migrate an older database, after a backup, in place of refusing it.
    """

    def __init__(
        self,
        path: Path,
        *,
        journal_mode: JournalMode,
        upgrade: bool,
    ) -> None:
        self.path = path
        self.file = DatabaseFile(path)
        self._log = DatabaseFile(self.file.beside("-wal"))
        self.locks = FileLocks(path.with_name(path.name + "-locks"))
        self.builder = SchemaManager(self.file, self.locks, journal_mode)
        self._engine = make_engine(path)
        self._journal_mode = journal_mode
        self._upgrade = upgrade

    def open(self) -> OpenConnection | None:
        """Return a new connection to the database; None if there is none."""
        identity = self.file.inspect()
        if identity is None:
            self.file.reject_stale_wal()
            return None
        self._refuse_lost_log(identity)
        connection, immutable = self._connect()
        try:
            self.file.tighten()
            self._require_schema(connection)
            if self._journal_mode == "delete" and not immutable and self._is_to_change(connection):
                connection.close()
                self._leave_wal()
                connection, immutable = self._connect()
            if self.file.identity() != identity:
                raise self.gone()
        except BaseException:
            connection.close()
            raise
        return OpenConnection(connection, identity, self._log.identity(), immutable)

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        """Yield a connection inside one transaction, for migrations to run on.

        A new database is built beside its final place and moved there as a whole. If nothing was
        built, nothing is left.
        """
        if self.file.inspect() is not None:
            self._refuse_foreign()  # beside another's, not even a lock is put
        with self.builder.alone():
            if self.file.inspect() is None:
                with self.builder.building() as connection:
                    yield connection
                return
            with self._apart() as (connection, immutable):
                self.file.tighten()
                if immutable:
                    raise read_only_error(self.path)
                with translated(self.path), connection.begin():
                    yield connection

    @contextmanager
    def inspection(self) -> Iterator[Connection]:
        """Yield a connection for migration commands that only look; it creates nothing.

        Where there is no database, it is to an empty one in memory.
        """
        if self.file.inspect() is None:
            self.file.reject_stale_wal()
            with create_engine("sqlite://", poolclass=NullPool).connect() as connection:
                yield connection
            return
        with self._apart() as (connection, _):
            connection.execution_options(sqlite_begin="DEFERRED")
            with translated(self.path):
                yield connection

    def backup(self, target: Path, *, replace: bool) -> None:
        """Copy the database, of whatever schema, to *target*."""
        if self.file.inspect() is None:
            raise StorageError(
                f"{self.path}: there is no database to back up; check the path", self.path
            )
        prepare(target, self.file, replace=replace)
        with self._apart() as (connection, _):
            copy_database(driver_of(connection), self.path, target)

    def gone(self, log: FileId | None = None) -> StorageError:
        """Return the error that the file is not there any more, or another is.

        Args:
            log: The write-ahead log of the one that was open. If it is there still, it is not of
                the one that is there now, and SQLite would replay it into that.
        """
        found = self.file.identity()
        if found is not None and log is not None and log == self._log.identity():
            _lost_logs[self.path] = found, log
        return StorageError(
            f"{self.path} was removed or replaced while it was open; what was just written may be "
            "lost with it. Put it back, or repeat the call to use what is there now",
            self.path,
            errno=errno.ESTALE,
        )

    def _refuse_lost_log(self, identity: FileId) -> None:
        """Refuse a database beside which lies the log of the one whose place it has taken."""
        if _lost_logs.get(self.path) == (identity, self._log.identity()):
            raise StorageError(
                f"{self._log.path}: left over from the database that was at {self.path} before; "
                "stop everybody who has that one open, and move this file and -shm away",
                self._log.path,
            )

    @contextmanager
    def _apart(self) -> Iterator[tuple[Connection, bool]]:
        """Yield a connection of its own, to a database of whatever schema, if it is ours."""
        connection, immutable = self._connect()
        try:
            yield connection, immutable
        finally:
            connection.close()

    def _connect(self) -> tuple[Connection, bool]:
        """Connect to a database of ours; tell whether as to a file that nobody changes.

        Whoever reads a WAL database writes beside it. Where that cannot be, it can still be read
        as long as the file is all there is: no log, hence no writer.
        """
        self._refuse_foreign()
        connection, immutable = self._connect_to_any()
        try:
            with translated(self.path):
                self._require_mark(pragma(driver_of(connection), "application_id"))
        except BaseException:
            connection.close()
            raise
        return connection, immutable

    def _connect_to_any(self) -> tuple[Connection, bool]:
        try:
            # SQLite would put files beside one that it may not write, and leave them there.
            if self.file.is_writable() or self.file.has_log():
                return self._engine.connect(), False
        except ERRORS as error:
            cannot_open = error_name(error).startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY"))
            if not cannot_open or self.file.has_log():
                raise sqlite_error(self.path, error) from None
        with translated(self.path):
            return make_engine(self.path, "mode=ro&immutable=1").connect(), True

    def _refuse_foreign(self) -> None:
        """Refuse another application's database before SQLite repairs or changes anything in it.

        A look past every log and lock may find a file that is shorter than it says: in the middle
        of a checkpoint, or after one that was cut off. Then only SQLite's own repair can tell.
        """
        options = uri(self.path, "mode=ro&immutable=1")
        try:
            with closing(sqlite3.connect(options, uri=True)) as looking:
                self._require_mark(pragma(looking, "application_id"))
        except DRIVER_ERRORS as error:
            if not error_name(error).startswith("SQLITE_CORRUPT"):
                raise sqlite_error(self.path, error) from None

    def _require_mark(self, found: object) -> None:
        if found != APPLICATION_ID:
            raise InsecureStorageError(
                f"{self.path} is not a tokenstore database; name another file", self.path
            )

    def _require_schema(self, connection: Connection) -> None:
        revision = revision_of(connection, self.path)
        if revision == REVISION:
            return
        if revision is not None and revision > REVISION:
            raise too_new(str(self.path), revision)
        if not self._upgrade:
            raise SchemaOutdatedError(
                f"{self.path} has schema {revision or 'base'}, this tokenstore needs {REVISION}; "
                f"run: tokenstore --database '{self.path}' db upgrade",
                self.path,
            )
        self.builder.upgrade(connection)

    def _is_to_change(self, connection: Connection) -> bool:
        with translated(self.path):
            mode = pragma(driver_of(connection), "journal_mode")
        return mode != self._journal_mode and self.file.is_writable()

    def _leave_wal(self) -> None:
        """Change the journal mode, for which nobody else may have the database open.

        SQLite does not wait for that moment by itself. Everybody who wants the same change comes
        here without a connection, so that it does come.
        """
        with self.builder.alone():
            deadline = time.monotonic() + _MODE_TIMEOUT
            while True:
                try:
                    with self._engine.connect() as connection:
                        return self.builder.set_journal_mode(driver_of(connection))
                except ERRORS as error:
                    busy = error_name(error).startswith("SQLITE_BUSY")
                    if not busy or time.monotonic() > deadline:
                        raise sqlite_error(self.path, error) from None
                time.sleep(_POLL)
