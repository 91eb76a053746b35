"""Creates a database and migrates it: each happens completely, or not at all."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tokenstore.errors import StorageError
from tokenstore.files import create_temporary, file_error, writer_lock
from tokenstore.storage.migrations import upgrade_to_head
from tokenstore.storage.sqlite.backup import copy_database
from tokenstore.storage.sqlite.engine import driver_of, make_engine
from tokenstore.storage.sqlite.errors import DRIVER_ERRORS, sqlite_error, translated
from tokenstore.storage.sqlite.file import DatabaseFile
from tokenstore.storage.tables import APPLICATION_ID, REVISION, VERSION_TABLE

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection

    from tokenstore.storage.base import JournalMode
    from tokenstore.storage.sqlite.locks import FileLocks

_TIMEOUT = 120.0  # seconds to wait for another process that creates or migrates


class SchemaManager:
    """Creates one database and migrates it, while no other process does.

    Args:
        file: The place of the database.
        locks: Where the lock is under which that happens.
        journal_mode: ``wal`` or ``delete``, for a new database.
    """

    def __init__(
        self,
        file: DatabaseFile,
        locks: FileLocks,
        journal_mode: JournalMode,
    ) -> None:
        self._file = file
        self._locks = locks
        self._journal_mode = journal_mode

    def create_if_missing(self) -> None:
        """Create the database with the newest schema, unless there is one."""
        if self._file.inspect() is not None:
            return
        with self.alone():
            if self._file.inspect() is None:  # no other process was faster
                with self.building() as connection:
                    upgrade_to_head(str(self._file.path), connection)

    @contextmanager
    def building(self) -> Iterator[Connection]:
        """Yield a connection to a new database, in one transaction; its caller is `alone`.

        It is built beside its final place and moved there as a whole. If nothing was built,
        nothing is left.
        """
        self._file.reject_stale_wal()
        path = self._file.path
        try:
            with writer_lock(path.parent, path.name.__eq__):  # and sweep up after who died here
                yield from self._built(DatabaseFile(create_temporary(path)))
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise file_error(error, path) from None

    def _built(self, new: DatabaseFile) -> Iterator[Connection]:
        try:
            with translated(new.path), make_engine(new.path).connect() as connection:
                with connection.begin():
                    driver_of(connection).execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    yield connection
                built = revision_of(connection, new.path) is not None
                self.set_journal_mode(driver_of(connection))
            if built:
                new.move_to(self._file)
        finally:
            new.remove()

    def upgrade(self, connection: Connection) -> None:
        """Bring an older database to the newest schema, after a backup."""
        with self.alone(), translated(self._file.path), connection.begin():
            if revision_of(connection, self._file.path) != REVISION:  # no other process was faster
                self.back_up(connection)
                upgrade_to_head(str(self._file.path), connection)

    def back_up(self, connection: Connection) -> None:
        """Copy a database that is about to be migrated to a file beside it, 0600.

        SQLite copies nothing from a connection that is inside a transaction which writes, as that
        of *connection* is, so that nobody else can write; it waits for ever.
        """
        path = self._file.path
        revision = revision_of(connection, path)
        if revision is None or revision >= REVISION:
            return
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        with connection.engine.connect() as reader:
            copy_database(
                driver_of(reader), path, self._file.beside(f"-backup-{revision}-{moment}")
            )

    def set_journal_mode(self, driver: sqlite3.Connection) -> None:
        """Change the journal mode, and see that it did change."""
        found = driver.execute(f"PRAGMA journal_mode = {self._journal_mode}").fetchone()[0]
        if found != self._journal_mode:
            raise StorageError(
                f"{self._file.path}: the journal mode stays {found!r} where "
                f"{self._journal_mode!r} was asked for; another journal_mode may suit this file "
                "system",
                self._file.path,
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one, of all processes, that creates or migrates the database."""
        self._file.make_directories()
        try:
            with self._locks.schema(timeout=_TIMEOUT):
                yield
        except TimeoutError:
            raise StorageError(
                f"{self._file.path} is being created or migrated by another process for more than "
                f"{_TIMEOUT:.0f} s; find out which and try again",
                self._file.path,
                errno=errno.EBUSY,
            ) from None


def revision_of(connection: Connection, path: Path) -> str | None:
    """Return the schema revision of a database, None if it has none."""
    sql = f"SELECT version_num FROM {VERSION_TABLE}"  # noqa: S608 - a constant
    try:
        row = driver_of(connection).execute(sql).fetchone()
    except DRIVER_ERRORS as error:
        if "no such table" in str(error):
            return None
        raise sqlite_error(path, error) from None
    return row[0] if row else None
