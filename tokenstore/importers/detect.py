"""Detects the format of a file by its content, and reads the accounts in it."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from tokenstore.errors import InvalidTokenError
from tokenstore.importers import globus, msal
from tokenstore.importers.formats import (
    ImportedAccount,
    UnreadableEntry,
    UnreadableFileError,
    account_from_json,
    has_tokens,
    parse_json,
)
from tokenstore.importers.sqlite_reader import (
    DAMAGED,
    SIDECARS,
    NotSQLiteError,
    may_be_database,
    open_read_only,
)
from tokenstore.storage.sqlite.engine import pragma
from tokenstore.storage.tables import APPLICATION_ID

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

_MAX_ACCOUNT = 1 << 20  # bytes, of a file with one account; usually a few thousand
_MAX_STORAGE = 16 << 20  # bytes, of a JSON file with many accounts
_MAX_DATABASE = 256 << 20  # bytes

_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}

_OWN_DATABASE = (
    "is a tokenstore database; export it (tokenstore --database FILE export DIR), and import DIR"
)
_EMPTY = (
    "is empty; MSAL keeps an empty file if the tokens are in Keychain or libsecret, where they "
    "cannot be read"
)
_ENCRYPTED = "is encrypted with Windows DPAPI; decrypt it with its program, and import the result"
_BINARY = (  # the first bytes of a file, and the reason why it cannot be imported
    (b"SQLite format 3\0", DAMAGED),
    (bytes.fromhex("01000000d08c9ddf0115d1118c7a00c04fc297eb"), _ENCRYPTED),
)


def read_accounts(path: Path) -> list[ImportedAccount | UnreadableEntry]:
    """Return the accounts in a file, and its entries that cannot be imported; at least one of them.

    The file is not changed.
    """
    try:
        return _read(path)
    except (UnreadableFileError, InvalidTokenError) as error:
        return [UnreadableEntry(str(error))]
    except OSError as error:
        return [UnreadableEntry(error.strerror or type(error).__name__)]
    except ValueError:
        return [UnreadableEntry("not valid JSON")]


def is_token_storage(path: Path) -> bool:
    """Return whether a file is a SQLite database from which accounts can be read.

    Also returns True for a database that cannot be read, so that the import reports the reason.
    """
    try:
        size, file = _stat(path)
        if not may_be_database(size) or _database_of(file) is not None:
            return False
    except (OSError, UnreadableFileError):
        return False
    try:
        with open_read_only(path) as connection:
            return globus.recognizes_sqlite(connection)
    except UnreadableFileError as error:
        return not isinstance(error, NotSQLiteError)


def _database_of(file: Path) -> Path | None:
    """Return the database to which a sidecar file belongs.

    It must not be opened: closing it would drop the locks of a process that uses the database.
    """
    if not file.name.endswith(SIDECARS):
        return None
    database = file.with_name(file.name[: file.name.rindex("-")])
    return database if database.exists() else None


def _read(path: Path) -> list[ImportedAccount | UnreadableEntry]:
    size, real = _stat(path)
    if (database := _database_of(real)) is not None:
        raise UnreadableFileError(f"belongs to the database {database.name!r}; import that file")
    if may_be_database(size):
        try:
            with open_read_only(path) as connection:
                return _from_database(connection, path, size)
        except NotSQLiteError:
            pass
    _check_size(size, _MAX_STORAGE)
    with path.open("rb", buffering=0) as file:  # in two thirds of the time of read_bytes()
        content = file.readall()
    if not content:
        raise UnreadableFileError(_EMPTY)
    for prefix, reason in _BINARY:
        if content.startswith(prefix):
            raise UnreadableFileError(reason)
    return _from_json(parse_json(content), len(content), path)


def _from_database(
    connection: sqlite3.Connection, path: Path, size: int
) -> list[ImportedAccount | UnreadableEntry]:
    if pragma(connection, "application_id") == APPLICATION_ID:
        raise UnreadableFileError(_OWN_DATABASE)
    if not globus.recognizes_sqlite(connection):
        raise UnreadableFileError("is a SQLite database without tokens in a supported format")
    _check_size(size, _MAX_DATABASE)
    return globus.read_sqlite(connection, path)


def _from_json(data: object, size: int, path: Path) -> list[ImportedAccount | UnreadableEntry]:
    if isinstance(data, dict) and not has_tokens(data):
        if globus.recognizes_json(data):
            return globus.read_json(data, path)
        if msal.recognizes(data):
            return msal.read_cache(data)
    _check_size(size, _MAX_ACCOUNT)
    return [account_from_json(data, stem=path.stem)]


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise UnreadableFileError(f"larger than {limit >> 20} MiB")


def _stat(path: Path) -> tuple[int, Path]:
    """Return the size of a file, and its path with a symlink resolved."""
    file = path
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            found, file = path.stat(), path.resolve()
    except OSError as error:
        if error.errno in _MISSING:
            raise UnreadableFileError("no such file") from None
        raise
    except ValueError:  # a NUL byte in the path
        raise UnreadableFileError("no such file") from None
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableFileError("neither a file nor a readable directory")
    return found.st_size, file
