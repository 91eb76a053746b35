"""Copies a database that is in use. The copy appears complete, 0600, or not at all."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from tokenstore.errors import StorageError
from tokenstore.files import (
    file_error,
    make_private_directory,
    private_build,
    publish,
    writer_lock,
)
from tokenstore.storage.sqlite.engine import connect_to, pragma
from tokenstore.storage.sqlite.errors import translated
from tokenstore.storage.sqlite.file import DatabaseFile, FileId
from tokenstore.trust import require_own_file

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator
    from pathlib import Path


def copy_database(source: sqlite3.Connection, path: Path, target: Path) -> None:
    """Copy the database of *source* to *target* (see `copying`)."""
    with copying(source, path, target):
        pass


@contextmanager
def copying(
    source: sqlite3.Connection,
    path: Path,
    target: Path,
    *,
    is_ours: Callable[[str], bool] | None = None,
) -> Iterator[Path]:
    """Copy the database of *source*; the copy durably replaces *target* at the end.

    The copy is one consistent state of the database. It is checked before it gets its name, so
    that a damaged database never replaces an older copy. After an error, nothing is left of it.
    *source* is used only until this yields.

    Args:
        source: A connection outside a transaction.
        path: The file of the database, for errors.
        target: The file to write.
        is_ours: Returns whether what killed processes have left of a file of that name is deleted.
            Defaults to that of *target*.

    Yields:
        The finished copy, which does not have its name yet.

    Raises:
        StorageError: The database cannot be read, is damaged, or the copy cannot be written.
    """
    try:
        with (
            writer_lock(target.parent, is_ours or target.name.__eq__),
            private_build(target) as new,
        ):
            _copy(source, path, new, target)
            _require_sound(path, new)
            yield new
            _require_unused(target)  # another process may have opened it meanwhile
            publish(new, target)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise file_error(error, target) from None


def prepare(target: Path, source: DatabaseFile, *, replace: bool) -> None:
    """Create the directory of *target*, and check that *target* may be written.

    Raises:
        StorageError: An existing file must not be replaced.
    """
    if target.name.endswith(("-wal", "-shm", "-journal")):
        raise StorageError(
            f"{target}: a file of that name is part of another database; choose another name",
            target,
        )
    make_private_directory(target.parent)
    try:
        found = target.lstat()
    except FileNotFoundError:
        DatabaseFile(target).reject_stale_wal()  # SQLite would replay it into the copy
        return
    except OSError as error:
        raise file_error(error, target) from None
    require_own_file(target, found, "choose another file")
    if source.is_current(FileId(found.st_dev, found.st_ino)):
        raise StorageError(f"{target} is the database itself; choose another file", target)
    if not replace:
        raise StorageError(f"{target} already exists; choose another file, or replace it", target)
    _require_unused(target)


def _require_unused(target: Path) -> None:
    if DatabaseFile(target).has_log():
        raise StorageError(f"{target} is a database in use; choose another file", target)


def _copy(source: sqlite3.Connection, path: Path, new: Path, target: Path) -> None:
    with translated(path):
        # Start the snapshot first: SQLite's backup would wait for a lock indefinitely.
        source.execute("BEGIN")
        source.execute("SELECT 1 FROM sqlite_master").fetchone()
    try:
        with translated(target), closing(connect_to(new, "mode=rw")) as copy:
            copy.execute("PRAGMA journal_mode = MEMORY")  # a failed copy leaves no journal
            source.backup(copy)
    finally:
        source.rollback()


def _require_sound(path: Path, new: Path) -> None:
    with translated(path), closing(connect_to(new, "mode=ro&immutable=1")) as copy:
        is_sound = pragma(copy, "integrity_check(1)") == "ok"
    if not is_sound:
        raise StorageError(
            f"{path} is damaged and was not copied; keep this file, and use an older backup",
            path,
        )
