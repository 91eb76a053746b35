"""Detects the format of a file by its content, and reads the accounts in it."""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import TYPE_CHECKING, Any

from tokenstore.errors import InvalidTokenError
from tokenstore.files import decode_name
from tokenstore.importers import globus, msal
from tokenstore.importers.formats import (
    ImportedAccount,
    UnreadableEntry,
    UnreadableFileError,
    account_from_json,
    accounts_from_json,
    add_note,
    export_block,
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

_ADDRESS = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_BACKUPS = ("~", ".bak", ".old", ".orig", ".save", ".swp", ".tmp")
_NO_NUMBER = "NaN and infinite numbers were imported as null"

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


def read_accounts(
    path: Path, *, stem: str | None = None, content: bytes | None = None
) -> list[ImportedAccount | UnreadableEntry]:
    """Return the accounts in a file, and its entries that cannot be imported; at least one of them.

    The file is not changed.

    Args:
        path: The file.
        stem: The account name if the content has none. Defaults to `stem_of` its name.
        content: The content, if it was read already.
    """
    stem = stem_of(path) if stem is None else stem
    try:
        return _read(path, stem) if content is None else _from_bytes(content, path, stem)
    except (UnreadableFileError, InvalidTokenError) as error:
        return [UnreadableEntry(str(error))]
    except OSError as error:
        return [UnreadableEntry(error.strerror or type(error).__name__)]
    except ValueError:
        return [UnreadableEntry("not valid JSON")]


def stem_of(path: Path) -> str:
    """Return the name of a file without ``.json``."""
    return decode_name(path.name).removesuffix(".json")


def may_have_accounts(path: Path) -> bool:
    """Return whether to import a file of a directory that is not called ``*.json``.

    These are token storages, files that are named by an address, as mail programs do, and what an
    export has written. For the last two, the content decides.
    """
    name = path.name
    if name.endswith(".db"):
        return is_token_storage(path)
    if name.endswith(_BACKUPS):
        return False
    data = read_json(path)
    is_address = _ADDRESS.fullmatch(name) is not None
    return export_block(data) is not None or (is_address and has_tokens(data))


def read_json(path: Path) -> Any:
    """Return the JSON object in a regular file, or None if there is none or it is not readable."""
    try:
        size, real = _stat(path)
        if size > _MAX_STORAGE or _database_of(real) is not None:
            return None
        if may_be_database(size):
            try:
                with open_read_only(path):
                    return None
            except NotSQLiteError:
                pass
        with path.open("rb") as file:
            start = file.read(1)
            return parse_json(start + file.read()) if start == b"{" else None
    except (OSError, ValueError, UnreadableFileError):
        return None


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


def _read(path: Path, stem: str) -> list[ImportedAccount | UnreadableEntry]:
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
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - half the time of read_bytes()
        content = file.readall()
    return _from_bytes(content, path, stem)


def _from_bytes(content: bytes, path: Path, stem: str) -> list[ImportedAccount | UnreadableEntry]:
    _check_size(len(content), _MAX_STORAGE)
    if not content:
        raise UnreadableFileError(_EMPTY)
    for prefix, reason in _BINARY:
        if content.startswith(prefix):
            raise UnreadableFileError(reason)
    constants: list[str] = []
    accounts = _from_json(parse_json(content, constants=constants), len(content), path, stem)
    return add_note(accounts, _NO_NUMBER) if constants else accounts


def _from_database(
    connection: sqlite3.Connection, path: Path, size: int
) -> list[ImportedAccount | UnreadableEntry]:
    if pragma(connection, "application_id") == APPLICATION_ID:
        raise UnreadableFileError(_OWN_DATABASE)
    if not globus.recognizes_sqlite(connection):
        raise UnreadableFileError("is a SQLite database without tokens in a supported format")
    _check_size(size, _MAX_DATABASE)
    return globus.read_sqlite(connection, path)


def _from_json(
    data: object, size: int, path: Path, stem: str
) -> list[ImportedAccount | UnreadableEntry]:
    if has_tokens(data):
        if size > _MAX_ACCOUNT and export_block(data) is None:
            _check_size(size, _MAX_ACCOUNT)
        return [account_from_json(data, stem=stem)]
    if isinstance(data, dict):
        if globus.recognizes_json(data):
            return globus.read_json(data, path)
        if msal.recognizes(data):
            return msal.read_cache(data)
    accounts = accounts_from_json(data, stem=stem)
    if len(accounts) == 1 and export_block(data) is None:
        _check_size(size, _MAX_ACCOUNT)
    return accounts


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise UnreadableFileError(f"larger than {limit >> 20} MiB")


def _stat(path: Path) -> tuple[int, Path]:
    """Return the size of a file, and its path with a symlink resolved."""
    file = path
    try:
        found = os.lstat(path)  # half the time of Path.lstat
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
