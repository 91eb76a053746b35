"""Copies of a database that appear whole, 0600, while others go on writing to it."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from typing import TYPE_CHECKING

from tokenstore.errors import InsecureStorageError, StorageError
from tokenstore.files import (
    atomic_write,
    file_error,
    make_private_directory,
    sync_directory,
    writer_lock,
)
from tokenstore.storage.sqlite.engine import pragma, uri
from tokenstore.storage.sqlite.errors import translated
from tokenstore.storage.sqlite.file import DatabaseFile

if TYPE_CHECKING:
    from pathlib import Path


def copy_database(source: sqlite3.Connection, path: Path, target: Path) -> None:
    """Copy the database of *source* to *target*, durably; whatever is there is replaced.

    The copy is one state of the database, whoever writes meanwhile. It is checked before it takes
    its name: a damaged database does not cost an older copy.

    Args:
        source: A connection that is in no transaction.
        path: Its file, for errors.
        target: The file to write.

    Raises:
        StorageError: It cannot be read or written, or it is damaged.
    """
    try:
        with writer_lock(target.parent, target.name.__eq__), atomic_write(target) as new:
            _copy(source, path, new, target)
            _require_sound(path, new)
            _require_unused(target)  # somebody may have opened it meanwhile
        sync_directory(target.parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise file_error(error, target) from None


def prepare(target: Path, source: DatabaseFile, *, replace: bool) -> None:
    """Make the directory that *target* goes to, and see that nothing of value is there.

    Raises:
        StorageError: Something is there that is not to be replaced.
    """
    if target.name.endswith(("-wal", "-shm", "-journal")):
        raise StorageError(
            f"{target}: SQLite takes a file of that name for part of a database; use another name",
            target,
        )
    make_private_directory(target.parent)
    try:
        found = target.lstat()
    except FileNotFoundError:
        DatabaseFile(target).reject_stale_wal()  # they would be replayed into the copy
        return
    except OSError as error:
        raise file_error(error, target) from None
    if not stat.S_ISREG(found.st_mode):
        raise InsecureStorageError(f"{target} is not a file; name a file for the backup", target)
    identity = source.identity()
    if identity is not None and (found.st_dev, found.st_ino) == (identity.device, identity.inode):
        raise StorageError(f"{target} is the database itself; name another file", target)
    if not replace:
        raise StorageError(f"{target} is there already; name another file, or replace it", target)
    _require_unused(target)


def _require_unused(target: Path) -> None:
    if DatabaseFile(target).has_log():
        raise StorageError(f"{target} is a database that is in use; name another file", target)


def _copy(source: sqlite3.Connection, path: Path, new: Path, target: Path) -> None:
    with translated(path):
        # The snapshot is taken before: SQLite's backup would wait for a lock without end.
        source.execute("BEGIN")
        source.execute("SELECT 1 FROM sqlite_master").fetchone()
    try:
        with translated(target), closing(sqlite3.connect(uri(new, "mode=rw"), uri=True)) as copy:
            source.backup(copy)
    finally:
        source.rollback()


def _require_sound(path: Path, new: Path) -> None:
    with (
        translated(path),
        closing(sqlite3.connect(uri(new, "mode=ro&immutable=1"), uri=True)) as copy,
    ):
        sound = pragma(copy, "integrity_check(1)") == "ok"
    if not sound:
        raise StorageError(
            f"{path}: is damaged, and no backup was made of it; keep this file and restore an "
            "older backup",
            path,
        )
