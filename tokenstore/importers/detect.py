"""What a file holds, by its content: the accounts in it, or why there are none."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from tokenstore.errors import InvalidTokenError
from tokenstore.importers import globus, msal
from tokenstore.importers.formats import (
    TokenFile,
    UnreadableError,
    Unusable,
    from_json,
    holds_tokens,
    parse,
)
from tokenstore.importers.sqlite_reader import SIDECARS, NotSQLiteError, may_be_database, reading
from tokenstore.storage.sqlite.engine import pragma
from tokenstore.storage.tables import APPLICATION_ID

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

_MAX_FILE = 1 << 20  # bytes, of one account; it has a few thousand
_MAX_STORAGE = 16 << 20  # bytes, of many accounts in one JSON file
_MAX_DATABASE = 256 << 20  # bytes

_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}

_IS_OURS = (
    "a database of tokenstore; export its accounts (tokenstore --database FILE export DIR), and "
    "import that directory"
)
_IS_EMPTY = (
    "is empty; one that MSAL keeps beside Keychain or libsecret always is, and what they hold "
    "cannot be imported from there"
)
_IS_DAMAGED = "is a SQLite database that is damaged"
_IS_ENCRYPTED = (
    "is encrypted by Windows (DPAPI); let the program that it belongs to decrypt it, and import "
    "that"
)
_BINARY = (  # how a file begins, and why it is not imported
    (b"SQLite format 3\0", _IS_DAMAGED),
    (bytes.fromhex("01000000d08c9ddf0115d1118c7a00c04fc297eb"), _IS_ENCRYPTED),
)


def read(path: Path) -> list[TokenFile | Unusable]:
    """Return every account that the file at *path* holds, and what in it is none.

    The file stays as it is. There is at least one entry.
    """
    try:
        return _read(path)
    except (UnreadableError, InvalidTokenError) as error:
        return [Unusable(str(error))]
    except OSError as error:
        return [Unusable(error.strerror or type(error).__name__)]
    except ValueError:
        return [Unusable("not valid JSON")]


def is_storage(path: Path) -> bool:
    """Tell whether a file is a SQLite database whose accounts `read` would return.

    One that cannot be read may be; what it is then will be told.
    """
    try:
        size, file = _look_at(path)
        if not may_be_database(size) or _database_beside(file) is not None:
            return False
    except (OSError, UnreadableError):
        return False
    try:
        with reading(path) as connection:
            return globus.is_storage(connection)
    except UnreadableError as error:
        return not isinstance(error, NotSQLiteError)


def _database_beside(file: Path) -> Path | None:
    """Return the database that a file is a part of; to open one of these would drop its locks."""
    if not file.name.endswith(SIDECARS):
        return None
    database = _database_of(file)
    return database if database.exists() else None


def _read(path: Path) -> list[TokenFile | Unusable]:
    size, real = _look_at(path)
    if (database := _database_beside(real)) is not None:
        raise UnreadableError(f"belongs to the database {database.name!r}; import that")
    if may_be_database(size):
        try:
            with reading(path) as connection:
                return _of_database(connection, path, size)
        except NotSQLiteError:
            pass
    _limit(size, _MAX_STORAGE)
    with path.open("rb", buffering=0) as file:  # two thirds of the time of read_bytes()
        content = file.readall()
    if not content:
        raise UnreadableError(_IS_EMPTY)
    for beginning, reason in _BINARY:
        if content.startswith(beginning):
            raise UnreadableError(reason)
    return _of_json(parse(content), len(content), path)


def _of_database(
    connection: sqlite3.Connection, path: Path, size: int
) -> list[TokenFile | Unusable]:
    if pragma(connection, "application_id") == APPLICATION_ID:
        raise UnreadableError(_IS_OURS)
    if not globus.is_storage(connection):
        raise UnreadableError("a SQLite database, but none with tokens that are known here")
    _limit(size, _MAX_DATABASE)
    return globus.from_sqlite(connection, path)


def _of_json(data: object, size: int, path: Path) -> list[TokenFile | Unusable]:
    if isinstance(data, dict) and not holds_tokens(data):
        if globus.recognizes(data):
            return globus.from_json(data, path)
        if msal.recognizes(data):
            return msal.from_cache(data)
    _limit(size, _MAX_FILE)
    return [from_json(data, stem=path.stem)]


def _limit(size: int, most: int) -> None:
    if size > most:
        raise UnreadableError(f"larger than {most >> 20} MiB")


def _look_at(path: Path) -> tuple[int, Path]:
    """Return the size of a file, and the file itself, which may be called otherwise."""
    file = path
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            found, file = path.stat(), path.resolve()
    except OSError as error:
        if error.errno in _MISSING:
            raise UnreadableError("no such file") from None
        raise
    except ValueError:  # no file can be called so
        raise UnreadableError("no such file") from None
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableError("not a file, nor a readable directory")
    return found.st_size, file


def _database_of(path: Path) -> Path:
    """Return the database that SQLite would keep *path* for."""
    return path.with_name(path.name[: path.name.rindex("-")])
