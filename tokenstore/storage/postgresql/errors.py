"""Translates PostgreSQL's errors to `StorageError`s that say how to fix them.

The server's own messages quote rows and parameters, so they are shown only while connecting.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

from psycopg import DataError, Error
from sqlalchemy.exc import DBAPIError

from tokenstore.errors import InsecureStorageError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

ERRORS = (Error, DBAPIError)
"""PostgreSQL's errors, raised by the driver or by SQLAlchemy."""

LOCK_NOT_AVAILABLE = "55P03"
MISSING = frozenset({"3F000", "42P01", "42703"})
"""The states for a missing schema, table or column."""

_LOST = ("08", "57P01", "57P02", "57P03", "25P03", "57P05")
_UNKNOWN = "40003"  # statement_completion_unknown
_STORED_NOTHING = "nothing was stored, so the call may be repeated"
_ERRORS = (
    ("40", errno.EAGAIN, f"the transaction conflicted with another one; {_STORED_NOTHING}"),
    (
        LOCK_NOT_AVAILABLE,
        errno.EBUSY,
        "stayed locked by another transaction; find it (pg_locks) and try again",
    ),
    ("57014", errno.ETIMEDOUT, "the server cancelled the statement; see its statement_timeout"),
    ("53100", errno.ENOSPC, "no space is left on the server's disk; free some and repeat the call"),
    ("53300", errno.EUSERS, "the server has no connections left; raise max_connections"),
    ("53", errno.ENOMEM, "the server has run out of resources; see its log and repeat the call"),
    (
        "42501",
        errno.EACCES,
        "this user lacks a privilege; grant it (see the manual's PostgreSQL page)",
    ),
    ("25006", errno.EROFS, "is read-only; connect to the primary server"),
    ("25P02", errno.EIO, "an earlier error has ended this transaction; repeat all of it"),
    (
        ("3F000", "42"),
        errno.EIO,
        "its tables do not match this version; compare them with: tokenstore db check",
    ),
    (("58", "XX"), errno.EIO, "the server reported an internal error; see its log"),
)


def postgresql_error(name: str, error: BaseException, *, committing: bool = False) -> StorageError:
    """Return the `StorageError` for an error of an established connection.

    Args:
        name: The name of the database in messages.
        error: The error.
        committing: Whether it occurred during a commit.
    """
    state = sqlstate(error)
    original = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(original, DataError) and not state:  # raised before anything was sent
        return StorageError(
            f"{name}: PostgreSQL cannot store the character NUL; remove it",
            name,
            errno=errno.EINVAL,
        )
    if not state or state.startswith(_LOST) or state == _UNKNOWN:
        if committing or state == _UNKNOWN:
            return StorageError(
                f"{name}: the connection was lost during a commit, and the changes may or may not "
                "be stored; check before you repeat the call",
                name,
                errno=errno.ECONNABORTED,
            )
        return StorageError(
            f"{name}: the connection was lost; {_STORED_NOTHING} ({state or 'no response'})",
            name,
            errno=errno.ECONNRESET,
        )
    for prefix, number, message in _ERRORS:
        if state.startswith(prefix):
            return StorageError(f"{name}: {message} ({state})", name, errno=number)
    return StorageError(f"{name}: the server refused the statement ({state}); see its log", name)


def connection_error(name: str, error: BaseException, password: object) -> StorageError:
    """Return the `StorageError` for a connection that could not be established."""
    original = error.orig if isinstance(error, DBAPIError) else error
    text = str(original).removeprefix("connection failed: ").partition("\n")[0]
    if password:
        text = text.replace(str(password), "***")
    refused = "FATAL:" in text and not any(words in text for words in _TRANSIENT)
    return StorageError(
        f"{name}: {text}; check the URL and the server, then repeat the call",
        name,
        errno=errno.EACCES if refused else errno.ECONNREFUSED,
    )


_TRANSIENT = ("starting up", "shutting down", "recovery", "too many", "remaining connection slots")


def is_transient(error: StorageError) -> bool:
    """Return whether nothing was stored and a retry may succeed at once."""
    return error.errno in {errno.EAGAIN, errno.ECONNRESET, errno.ECONNREFUSED}


def sqlstate(error: BaseException) -> str:
    """Return the SQLSTATE of an error, or an empty string if it has none."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(original, "sqlstate", None) or "")


def foreign_schema_error(name: str, schema: str) -> InsecureStorageError:
    """Return the error for a schema with another application's tables."""
    return InsecureStorageError(
        f"{name}: the schema {schema} holds tables of another application; choose another schema "
        "with ?schema=NAME at the end of the URL",
        name,
    )


def foreign_owner_error(name: str, schema: str, owner: str) -> InsecureStorageError:
    """Return the error for a schema, or tables in it, that another role owns."""
    return InsecureStorageError(
        f"{name}: the schema {schema} or tables in it belong to the role {owner}, which can read "
        f"and change every token; if that is intended, add owner={quote(owner)} to the URL, or "
        "else choose another schema with schema=NAME",
        name,
    )


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Raise PostgreSQL's errors as a `StorageError` about *name*."""
    try:
        yield
    except ERRORS as error:
        raise postgresql_error(name, error) from None
