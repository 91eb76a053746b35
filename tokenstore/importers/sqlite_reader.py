"""SQLite files of other programs: opened for reading alone, and left as they are."""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tokenstore.importers.formats import UnreadableError
from tokenstore.storage.sqlite.engine import uri
from tokenstore.storage.sqlite.errors import error_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIDECARS = ("-wal", "-shm", "-journal")
"""How the names of the files end that SQLite keeps beside a database."""

_SMALLEST_PAGE = 512  # bytes; a database consists of whole pages
_BUSY_TIMEOUT = 5.0  # seconds to wait for a program that is writing


class NotSQLiteError(UnreadableError):
    """A file that is no SQLite database at all."""


def may_be_database(size: int) -> bool:
    """Tell whether a file of so many bytes may be a SQLite database that is whole.

    This decides without opening the file: one that this process has open may be opened by SQLite
    only (`storefile` says why).
    """
    return size > 0 and size % _SMALLEST_PAGE == 0


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection to the database at *path* that can change nothing.

    All of it sees one state. Text that is not UTF-8 comes with half surrogates in it.

    Raises:
        NotSQLiteError: The file is no database.
        UnreadableError: It cannot be read, when it is opened or later.
    """
    path = path.resolve()  # SQLite keeps its files beside the real one
    try:
        connection, alone = _connect(path)
        try:
            yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise _explained(path, error) from None  # SQLite's own text may quote the content
    if alone and _lies_beside(path, "-wal"):
        raise UnreadableError("another program opened it meanwhile; try again")


def _connect(path: Path) -> tuple[sqlite3.Connection, bool]:
    """Connect; tell whether that was done as to a file that nobody else uses.

    Whoever reads a database with a write-ahead log writes beside it, and a connection that may
    only read leaves that behind. If there is no log there is nobody else, and the file can be
    read as one that does not change. Exclusive locking tells this kind from others: for a log it
    needs a lock that a read-only connection cannot have, and fails before anything is made.
    """
    if _lies_beside(path, "-wal"):
        return _open(path, "mode=ro"), False
    try:
        return _open(path, "mode=ro", "PRAGMA locking_mode = EXCLUSIVE"), False
    except sqlite3.Error as error:
        if error_name(error) != "SQLITE_IOERR_LOCK":
            raise
    return _open(path, "mode=ro&immutable=1"), True


def _open(path: Path, options: str, *pragmas: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri(path, options), uri=True, timeout=_BUSY_TIMEOUT, isolation_level=None
    )
    try:
        connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        for statement in ("PRAGMA trusted_schema = OFF", *pragmas, "BEGIN"):
            connection.execute(statement)
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # opens it for real
    except BaseException:
        connection.close()
        raise
    return connection


def _lies_beside(path: Path, suffix: str) -> bool:
    return os.path.lexists(path.with_name(path.name + suffix))


def _explained(path: Path, error: sqlite3.Error) -> UnreadableError:
    name = error_name(error)
    if not os.access(path, os.R_OK):
        return UnreadableError("Permission denied")
    if name.startswith("SQLITE_NOTADB"):
        return NotSQLiteError("is no SQLite database")
    reason = next((reason for prefix, reason in _REASONS if name.startswith(prefix)), None)
    return UnreadableError(f"{reason or 'cannot be read'} ({name})")


_INTERRUPTED = (
    "cannot be read without writing: a change was interrupted, or a log was copied in part; "
    "let the program that it belongs to open it once"
)
_REASONS = (
    ("SQLITE_CORRUPT", "is a SQLite database that is damaged"),
    ("SQLITE_BUSY", "stayed locked by another program; try again when that is done"),
    ("SQLITE_READONLY", _INTERRUPTED),
    ("SQLITE_CANTOPEN", _INTERRUPTED),
)
