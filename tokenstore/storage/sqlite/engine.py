"""How tokenstore talks to SQLite: its connections, its pragmas, its errors."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from tokenstore.errors import InsecureStorageError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUSY_TIMEOUT = 30.0
"""Seconds to wait for somebody else's transaction."""

DRIVER_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""What the driver raises; the latter if the text of an error quotes a damaged schema."""

ERRORS = (*DRIVER_ERRORS, DBAPIError)
"""What SQLite's errors arrive as, whether or not they came through SQLAlchemy."""


def make_engine(path: Path, options: str = "mode=rw") -> Engine:
    """Make an engine whose every connection is a new one and whose transactions are ours.

    The driver begins and commits nothing by itself. A transaction takes the write lock at once
    (BEGIN IMMEDIATE): a reader that turns writer later fails, however long it is willing to wait.
    Reading needs no transaction, as every read is one statement.

    Args:
        path: The database file, which has to exist.
        options: SQLite's URI parameters.
    """

    def connect() -> sqlite3.Connection:
        driver = sqlite3.connect(
            uri(path, options),
            uri=True,
            timeout=BUSY_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,  # close() and a fork close it from another thread
        )
        try:
            driver.execute("PRAGMA synchronous = FULL")
            driver.execute("PRAGMA secure_delete = ON")
            driver.execute("SELECT 1 FROM sqlite_master").fetchone()  # opens it for real
        except BaseException:
            driver.close()
            raise
        return driver

    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        creator=connect,
        poolclass=NullPool,
        hide_parameters=True,
        paramstyle="named",
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        kind = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
        driver_of(connection).execute(f"BEGIN {kind}")

    return engine


def uri(path: Path, options: str) -> str:
    """Return the URI under which SQLite opens *path*, whatever characters are in it."""
    return f"file://{quote(os.fsencode(path))}?{options}"


def driver_of(connection: Connection) -> sqlite3.Connection:
    """Return the driver's connection below an SQLAlchemy one."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)  # noqa: S101 - for the type checker
    return driver


def pragma(driver: sqlite3.Connection, name: str) -> Any:
    """Return the value of a pragma."""
    return driver.execute(f"PRAGMA {name}").fetchone()[0]


def error_name(error: BaseException) -> str:
    """Return SQLite's name for an error, such as ``SQLITE_FULL``."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(original, "sqlite_errorname", "SQLITE_ERROR"))


def storage_error(path: Path, error: BaseException) -> StorageError:
    """Return the `StorageError` that tells of SQLite's *error* and what to do about it."""
    name = error_name(error)
    for prefix, number, what in _ERRORS:
        if name.startswith(prefix):
            cls = InsecureStorageError if prefix == "SQLITE_NOTADB" else StorageError
            return cls(f"{path}: {what.format(uid=os.geteuid())} ({name})", path, errno=number)
    original = error.orig if isinstance(error, DBAPIError) else error
    if is_undecodable(original):  # its text quotes what it has read
        return StorageError(f"{path}: {_DAMAGED}", path, errno=errno.EIO)
    if getattr(original, "sqlite_errorname", "") == "SQLITE_ERROR":
        # Our statements are always the same, so it is the tables that are not.
        return StorageError(f"{path}: {_DAMAGED} ({original}, {name})", path, errno=errno.EIO)
    return StorageError(f"{path}: {original} ({name})", path)


def is_undecodable(error: object) -> bool:
    """Tell whether *error* is that stored text is no UTF-8: the driver's, not SQLite's."""
    if isinstance(error, UnicodeDecodeError):
        return True
    return isinstance(error, sqlite3.OperationalError) and not hasattr(error, "sqlite_errorname")


def decode_what_can_be(stored: bytes) -> str:
    """Decode stored text that may be damaged; what is no UTF-8 becomes surrogates."""
    return stored.decode("utf-8", "surrogateescape")


@contextmanager
def decoding_what_can_be(driver: sqlite3.Connection) -> Iterator[None]:
    """Read stored text that may be damaged."""
    driver.text_factory = decode_what_can_be
    try:
        yield
    finally:
        driver.text_factory = str


def not_writable(path: Path) -> StorageError:
    """Return the error of a write to a database that can only be read."""
    what = _UNWRITABLE.format(uid=os.geteuid())
    return StorageError(f"{path}: {what}", path, errno=errno.EACCES)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into a `StorageError` about *path*."""
    try:
        yield
    except ERRORS as error:
        raise storage_error(path, error) from None


_DAMAGED = "is damaged; keep this file and restore a backup"
_FULL = "no space is left on the disk; free some and repeat the call"
_UNWRITABLE = (
    "cannot be written by uid {uid}; the file and its directory have to be writable "
    "(SQLite keeps -wal and -shm beside the file)"
)
_ERRORS = (
    ("SQLITE_FULL", errno.ENOSPC, _FULL),
    ("SQLITE_IOERR_SHMSIZE", errno.ENOSPC, _FULL),
    ("SQLITE_READONLY", errno.EACCES, _UNWRITABLE),
    ("SQLITE_CANTOPEN", errno.EACCES, _UNWRITABLE),
    ("SQLITE_NOTADB", None, "is not a tokenstore database; name another file"),
    ("SQLITE_CORRUPT", errno.EIO, _DAMAGED),
    ("SQLITE_BUSY", errno.EBUSY, "stayed locked by another process; find out which and try again"),
    ("SQLITE_IOERR", errno.EIO, "the disk reports an error; check it and repeat the call"),
)
