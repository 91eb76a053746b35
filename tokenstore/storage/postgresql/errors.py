"""PostgreSQL's errors, as `StorageError`s that say what to do about them.

Neither the text nor the detail of what the server says is shown once it is connected: it quotes
rows and parameters.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from psycopg import DataError, Error
from sqlalchemy.exc import DBAPIError

from tokenstore.errors import InsecureStorageError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

ERRORS = (Error, DBAPIError)
"""What the driver's errors arrive as, whether or not they came through SQLAlchemy."""

LOCK_NOT_AVAILABLE = "55P03"
MISSING = frozenset({"3F000", "42P01", "42703"})
"""No such schema, table or column."""

_LOST = ("08", "57P01", "57P02", "57P03", "25P03", "57P05")
_UNKNOWN = "40003"  # statement_completion_unknown
_STORED_NOTHING = "nothing was stored, so the call may be repeated"
_ERRORS = (
    ("40", errno.EAGAIN, f"the transaction met with another one; {_STORED_NOTHING}"),
    (
        LOCK_NOT_AVAILABLE,
        errno.EBUSY,
        "stayed locked by another transaction; find out which (pg_locks) and try again",
    ),
    ("57014", errno.ETIMEDOUT, "the server cancelled the statement; see its statement_timeout"),
    ("53100", errno.ENOSPC, "no space is left on the server's disk; free some and repeat the call"),
    ("53300", errno.EUSERS, "the server has no connection left; raise max_connections"),
    ("53", errno.ENOMEM, "the server has no room left; see its log and repeat the call"),
    ("42501", errno.EACCES, "this user lacks a right; grant it (see the manual's PostgreSQL page)"),
    ("25006", errno.EROFS, "can only be read: connect to the primary server"),
    ("25P02", errno.EIO, "an earlier error has ended this transaction; repeat it as a whole"),
    (
        ("3F000", "42"),
        errno.EIO,
        "its tables are not those of this version; compare them with: tokenstore db check",
    ),
    (("58", "XX"), errno.EIO, "the server reports an internal error; see its log"),
)


def postgresql_error(name: str, error: BaseException, *, committing: bool = False) -> StorageError:
    """Return the `StorageError` that tells of the driver's *error*.

    Args:
        name: What to call the database.
        error: The error, of a connection that was established.
        committing: Whether it came while a transaction was being committed.
    """
    state = sqlstate(error)
    original = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(original, DataError) and not state:  # the driver's own, before it sent anything
        return StorageError(
            f"{name}: PostgreSQL cannot store what was given; leave out the character NUL",
            name,
            errno=errno.EINVAL,
        )
    if not state or state.startswith(_LOST) or state == _UNKNOWN:
        if committing or state == _UNKNOWN:
            return StorageError(
                f"{name}: the connection was lost while a transaction was being committed; whether "
                "it is stored is not known. Look before you repeat the call",
                name,
                errno=errno.ECONNABORTED,
            )
        return StorageError(
            f"{name}: the connection was lost; {_STORED_NOTHING} ({state or 'no answer'})",
            name,
            errno=errno.ECONNRESET,
        )
    for prefix, number, what in _ERRORS:
        if state.startswith(prefix):
            return StorageError(f"{name}: {what} ({state})", name, errno=number)
    return StorageError(f"{name}: the server refuses it ({state}); see its log", name)


def connection_error(name: str, error: BaseException, password: object) -> StorageError:
    """Return the `StorageError` that tells why no connection could be made."""
    original = error.orig if isinstance(error, DBAPIError) else error
    text = str(original).removeprefix("connection failed: ").partition("\n")[0]
    if password:
        text = text.replace(str(password), "***")
    refused = "FATAL:" in text and not any(word in text for word in _PASSING)
    return StorageError(
        f"{name}: {text}; check the URL and the server, then repeat the call",
        name,
        errno=errno.EACCES if refused else errno.ECONNREFUSED,
    )


_PASSING = ("starting up", "shutting down", "recovery", "too many", "remaining connection slots")


def is_transient(error: StorageError) -> bool:
    """Tell whether nothing was stored and the same may succeed at once."""
    return error.errno in {errno.EAGAIN, errno.ECONNRESET, errno.ECONNREFUSED}


def sqlstate(error: BaseException) -> str:
    """Return the server's five letters for an error, nothing if it did not say any."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(original, "sqlstate", None) or "")


def foreign_schema_error(name: str, schema: str) -> InsecureStorageError:
    """Return the error that there is a schema of that name which is not ours."""
    return InsecureStorageError(
        f"{name}: the schema {schema} holds tables of something else; name another one, with "
        "?schema=NAME at the end of the URL",
        name,
    )


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn the driver's errors into a `StorageError` about *name*."""
    try:
        yield
    except ERRORS as error:
        raise postgresql_error(name, error) from None
