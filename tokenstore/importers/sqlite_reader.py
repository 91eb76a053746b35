"""Opens the SQLite databases of other programs read-only, without changing any file."""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tokenstore.importers.formats import UnreadableFileError
from tokenstore.storage.sqlite.engine import uri
from tokenstore.storage.sqlite.errors import error_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIDECARS = ("-wal", "-shm", "-journal")
"""Suffixes of the files that SQLite keeps next to a database."""

DAMAGED = "is a damaged SQLite database"

_SMALLEST_PAGE = 512  # bytes; the size of a database is a multiple of it
_BUSY_TIMEOUT = 5.0  # seconds to wait while another program writes
_LONGEST_VALUE = 64 << 20  # bytes


class NotSQLiteError(UnreadableFileError):
    """The file is not a SQLite database."""


def may_be_database(size: int) -> bool:
    """Return whether a file of *size* bytes may be a complete SQLite database.

    The file is not opened for this: closing it would drop the locks that SQLite has on it if this
    process uses the database.
    """
    return size > 0 and size % _SMALLEST_PAGE == 0


@contextmanager
def open_read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a read-only connection to the database at *path*, in one transaction.

    Text that is not UTF-8 is returned with surrogate escapes.

    Raises:
        NotSQLiteError: The file is not a database.
        UnreadableFileError: The database cannot be opened or read.
    """
    path = path.resolve()  # SQLite keeps its other files next to the target of a symlink
    try:
        connection, immutable = _connect(path)
        try:
            yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise _error_for(path, error) from None  # its message may quote the content
    if immutable and _has_sidecar(path, "-wal"):
        raise UnreadableFileError("another program opened it during the import; try again")


class _Budget:
    """Ends queries that take more steps than reading a file of this size can.

    A view, a computed column or a tree with a loop can make a query of a small file endless.

    Args:
        path: The file.
    """

    STEP = 10_000  # instructions of SQLite between two calls
    _PER_BYTE = 50  # instructions; sorting the smallest of rows takes fewer

    def __init__(self, path: Path) -> None:
        size = sum(p.stat().st_size for p in (path, _sidecar(path, "-wal")) if p.exists())
        self._left = (1 << 20) + self._PER_BYTE * size

    def __call__(self) -> bool:
        self._left -= self.STEP
        return self._left < 0


def _connect(path: Path) -> tuple[sqlite3.Connection, bool]:
    """Return a connection, and whether the file was opened as immutable.

    Reading a database in WAL mode creates ``-wal`` and ``-shm`` files, and a read-only connection
    leaves them behind. If there is no ``-wal`` file, no other program uses the database, so it can
    be opened as immutable, which creates no files. Exclusive locking detects WAL mode: there, it
    needs a lock that a read-only connection cannot get, and fails before any file is created.
    """
    if _has_sidecar(path, "-wal"):
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
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
        connection.set_progress_handler(_Budget(path), _Budget.STEP)
        for statement in ("PRAGMA trusted_schema = OFF", *pragmas, "BEGIN"):
            connection.execute(statement)
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # opens the file
    except BaseException:
        connection.close()
        raise
    return connection


def _has_sidecar(path: Path, suffix: str) -> bool:
    return os.path.lexists(_sidecar(path, suffix))


def _sidecar(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _error_for(path: Path, error: sqlite3.Error) -> UnreadableFileError:
    name = error_name(error)
    if not os.access(path, os.R_OK):
        return UnreadableFileError("Permission denied")
    if name.startswith("SQLITE_NOTADB"):
        return NotSQLiteError("is not a SQLite database")
    reason = next((reason for prefix, reason in _REASONS if name.startswith(prefix)), None)
    return UnreadableFileError(f"{reason or 'cannot be read'} ({name})")


_INTERRUPTED = (
    "cannot be read without writing: a transaction was interrupted, or the log is incomplete; "
    "open it once with its program"
)
_REASONS = (
    ("SQLITE_CORRUPT", DAMAGED),
    ("SQLITE_INTERRUPT", "has tables that cannot be read to an end"),
    ("SQLITE_TOOBIG", "has a value that is too long"),
    ("SQLITE_BUSY", "stayed locked by another program; try again when it is done"),
    ("SQLITE_READONLY", _INTERRUPTED),
    ("SQLITE_CANTOPEN", _INTERRUPTED),
)
