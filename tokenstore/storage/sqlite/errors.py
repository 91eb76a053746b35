"""Translates SQLite's errors to `StorageError`s that say how to fix them."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from tokenstore.errors import InsecureStorageError, StorageError
from tokenstore.storage.migrations import command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DRIVER_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""The errors of the driver; the latter if an error message quotes a damaged schema."""

ERRORS = (*DRIVER_ERRORS, DBAPIError)
"""SQLite's errors, raised by the driver or by SQLAlchemy."""

_FILES = 4  # the database, its log, the log's index, and the directory
_DAMAGED = "is damaged; keep this file and restore a backup"
_FULL = "no space is left on the disk; free some and repeat the call"
_UNWRITABLE = (
    "cannot be written by uid {uid}; the file and its directory must be writable "
    "(SQLite keeps -wal and -shm next to the file)"
)
_TOO_MANY_FILES = (
    "cannot be opened: too many files are open; close some, or raise the limit (ulimit -n)"
)
_MESSAGES = (
    ("SQLITE_FULL", errno.ENOSPC, _FULL),
    ("SQLITE_IOERR_SHMSIZE", errno.ENOSPC, _FULL),
    ("SQLITE_READONLY", errno.EACCES, _UNWRITABLE),
    ("SQLITE_CANTOPEN", errno.EACCES, _UNWRITABLE),
    ("SQLITE_NOTADB", None, "is not a tokenstore database; choose another file"),
    ("SQLITE_CORRUPT", errno.EIO, _DAMAGED),
    (
        "SQLITE_BUSY",
        errno.EBUSY,
        "stayed locked by another process; find it and try again",
    ),
    ("SQLITE_IOERR", errno.EIO, "the disk reported an error; check it and repeat the call"),
)


def error_name(error: BaseException) -> str:
    """Return SQLite's name for an error, such as ``SQLITE_FULL``."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(original, "sqlite_errorname", "SQLITE_ERROR"))


def sqlite_error(path: Path, error: BaseException) -> StorageError:
    """Return the `StorageError` for an error of SQLite about *path*."""
    name = error_name(error)
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")) and not can_open_files():
        return StorageError(f"{path}: {_TOO_MANY_FILES} ({name})", path, errno=errno.EMFILE)
    for prefix, number, message in _MESSAGES:
        if name.startswith(prefix):
            cls = InsecureStorageError if prefix == "SQLITE_NOTADB" else StorageError
            return cls(f"{path}: {message.format(uid=os.geteuid())} ({name})", path, errno=number)
    original = error.orig if isinstance(error, DBAPIError) else error
    if is_undecodable(original):  # its message quotes the text
        return StorageError(f"{path}: {_DAMAGED}", path, errno=errno.EIO)
    if "unsupported file format" in str(original):
        return StorageError(
            f"{path}: SQLite {sqlite3.sqlite_version} cannot read this file ({original}, {name}): "
            "a newer SQLite has written it, or its header is damaged; use a newer SQLite, or "
            "restore a backup",
            path,
        )
    if getattr(original, "sqlite_errorname", "") == "SQLITE_ERROR":
        return StorageError(
            # The statements are fixed, so the tables must have changed.
            f"{path}: the tables are not those of its schema ({original}, {name}); to list the "
            f"differences, run: {command(str(path), 'db', 'check')}",
            path,
        )
    return StorageError(f"{path}: {original} ({name})", path)


def can_open_files() -> bool:
    """Return whether this process can open as many files as a database consists of.

    SQLite reports the lack of file descriptors as it reports the lack of permissions.
    """
    opened: list[int] = []
    try:
        while len(opened) < _FILES:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno not in {errno.EMFILE, errno.ENFILE}
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return True


def is_undecodable(error: object) -> bool:
    """Return whether the driver found stored text that is not UTF-8."""
    if isinstance(error, UnicodeDecodeError):
        return True
    return isinstance(error, sqlite3.OperationalError) and not hasattr(error, "sqlite_errorname")


def read_only_error(path: Path) -> StorageError:
    """Return the error for a write to a database that can only be read."""
    message = _UNWRITABLE.format(uid=os.geteuid())
    return StorageError(f"{path}: {message}", path, errno=errno.EACCES)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise SQLite's errors as a `StorageError` about *path*."""
    try:
        yield
    except ERRORS as error:
        raise sqlite_error(path, error) from None
