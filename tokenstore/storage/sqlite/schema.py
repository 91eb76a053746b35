"""Creates the tables of a database and migrates them, completely or not at all."""

from __future__ import annotations

import errno
import logging
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from tokenstore.errors import StorageError
from tokenstore.files import BUILD_ROOM, file_error, private_build, publish, writer_lock
from tokenstore.storage.migrations import has_tables, upgrade_to_head
from tokenstore.storage.sqlite.backup import copying
from tokenstore.storage.sqlite.engine import driver_of, make_engine
from tokenstore.storage.sqlite.errors import DRIVER_ERRORS, sqlite_error, translated
from tokenstore.storage.sqlite.file import BACKUP, backup_suffix
from tokenstore.storage.tables import APPLICATION_ID, REVISION, VERSION_TABLE

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection

    from tokenstore.storage.base import JournalMode
    from tokenstore.storage.sqlite.file import DatabaseFile, FileId
    from tokenstore.storage.sqlite.locks import FileLocks

_log = logging.getLogger(__name__)
_TIMEOUT = 120.0  # seconds to wait for another process that creates or migrates the database


class SchemaManager:
    """Creates and migrates one database, under a lock that excludes other processes.

    Args:
        file: The database file.
        locks: The locks of the database.
        journal_mode: ``wal`` or ``delete``, for a new database.
    """

    def __init__(self, file: DatabaseFile, locks: FileLocks, journal_mode: JournalMode) -> None:
        self._file = file
        self._locks = locks
        self._journal_mode = journal_mode
        self._backups = ExitStack()  # what gives the backups of a transaction their names
        self._made: list[Path] = []

    def find(self) -> FileId | None:
        """Return the identity of the database, or None if there is none."""
        found = self._file.inspect()
        if found is None and self._file.was_set_aside():
            with self.lock():  # after a restore, or to put it back
                found = self._file.inspect()
        return found

    def create_if_missing(self) -> bool:
        """Create the database with the newest schema, unless it exists; return whether it did."""
        if self.find() is not None:
            return False
        with self.lock():
            if self._file.inspect() is not None:  # another process was faster
                return False
            with self.creation() as connection:
                upgrade_to_head(str(self._file.path), connection)
        return True

    @contextmanager
    def creation(self) -> Iterator[Connection]:
        """Yield a connection to a new database, in one transaction. The caller holds the `lock`.

        The file is written next to its final path and moved there when complete. If the caller
        creates no tables, nothing remains.
        """
        self._file.reject_stale_wal()
        self._file.require_short_name(extra=BUILD_ROOM + len("-journal"))
        path = self._file.path
        try:
            # The lock deletes files of killed processes.
            with writer_lock(path.parent, path.name.__eq__), private_build(path) as new:
                yield from self._create(new)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise file_error(error, path) from None

    def _create(self, new: Path) -> Iterator[Connection]:
        with translated(self._file.path), make_engine(new).connect() as connection:
            with connection.begin():
                driver_of(connection).execute(f"PRAGMA application_id = {APPLICATION_ID}")
                yield connection
                self._require_tables(connection)
            is_complete = revision_of(connection, new) is not None
            self.set_journal_mode(driver_of(connection))
        if is_complete:
            publish(new, self._file.path)

    def upgrade(self, connection: Connection) -> None:
        """Migrate an older database to the newest schema, after a backup."""
        with self.lock(), self.transaction(connection):
            if revision_of(connection, self._file.path) != REVISION:  # no other process was faster
                self.back_up_before_upgrade(connection)
                upgrade_to_head(str(self._file.path), connection)

    @contextmanager
    def transaction(self, connection: Connection) -> Iterator[None]:
        """Make the migrations of *connection* one transaction. The caller holds the `lock`.

        A backup that is made inside gets its name just before the commit. If anything fails, the
        database is unchanged and the backup is removed.
        """
        self._backups, self._made = ExitStack(), []
        before = revision_of(connection, self._file.path)
        try:
            with translated(self._file.path), connection.begin(), self._backups:
                yield
                self._require_tables(connection)
        except BaseException:
            if self._made and self._is_still_at(before, connection):
                for target in self._made:
                    with suppress(OSError):
                        target.unlink()
            raise

    def _is_still_at(self, revision: str | None, connection: Connection) -> bool:
        """Return whether nothing was migrated: a commit may report an error that came after it."""
        try:
            return revision_of(connection, self._file.path) == revision
        except StorageError:
            return False  # then a backup is worth keeping

    def _require_tables(self, connection: Connection) -> None:
        """Refuse a revision without tables, as ``alembic stamp`` would leave it."""
        revision = revision_of(connection, self._file.path)
        if revision is not None and not has_tables(connection):
            raise StorageError(
                f"{self._file.path}: there are no tables, so it cannot have schema {revision}; "
                "upgrade it instead, which creates them",
                self._file.path,
            )

    def back_up_before_upgrade(self, connection: Connection) -> None:
        """Copy an older database to a file next to it, 0600, in a `transaction`.

        *connection* is in a transaction that excludes other writers. SQLite's backup would wait
        for that transaction forever if it used the same connection, so it gets another one.
        """
        path = self._file.path
        revision = revision_of(connection, path)
        if revision is None or revision >= REVISION:
            return
        target = self._file.sidecar(backup_suffix(revision))

        def is_ours(name: str) -> bool:
            return name.startswith(f"{path.name}{BACKUP}")

        with connection.engine.connect() as reader:
            copy = copying(driver_of(reader), path, target, is_ours=is_ours)
            self._backups.enter_context(copy)
        self._made.append(target)

    def set_journal_mode(self, driver: sqlite3.Connection) -> None:
        """Set the journal mode.

        Raises:
            StorageError: SQLite kept another mode.
        """
        found = driver.execute(f"PRAGMA journal_mode = {self._journal_mode}").fetchone()[0]
        if found != self._journal_mode:
            raise StorageError(
                f"{self._file.path}: cannot change the journal mode from {found!r} to "
                f"{self._journal_mode!r}; another journal_mode may suit this file system",
                self._file.path,
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock under which a process creates, migrates or replaces the database.

        A database that an interrupted restore has set aside is put back first.
        """
        self._file.make_directories()
        held = self._locks.schema(timeout=_TIMEOUT)
        try:
            held.__enter__()
        except TimeoutError:
            raise StorageError(
                f"{self._file.path}: another process has been creating or migrating it for more "
                f"than {_TIMEOUT:.0f} s; find that process and try again",
                self._file.path,
                errno=errno.EBUSY,
            ) from None
        try:
            self._file.put_back()
            yield
        finally:
            try:
                held.__exit__(None, None, None)
            except OSError as error:  # what was done under the lock is stored
                _log.warning("%s: cannot release the schema lock: %s", self._file.path, error)


def revision_of(connection: Connection, path: Path) -> str | None:
    """Return the schema revision of a database, or None if it has no tables of ours."""
    sql = f"SELECT version_num FROM {VERSION_TABLE}"  # noqa: S608 - a constant
    try:
        row = driver_of(connection).execute(sql).fetchone()
    except DRIVER_ERRORS as error:
        if "no such table" in str(error):
            return None
        raise sqlite_error(path, error) from None
    return row[0] if row else None
