"""Rows to token sets and back: the one place that does it, and that notices damage on the way.

SQLite checks the structure of its file, not what is written in it. A bit that flips inside a token
would be served, or sent to a provider, so every row carries checksums of its own.
"""

from __future__ import annotations

import errno
import json
import os
import re
from typing import TYPE_CHECKING, Any
from zlib import crc32

from tokenstore.errors import StorageError
from tokenstore.models.accounts import HistoryEntry, Record
from tokenstore.models.failures import Failure
from tokenstore.models.tokens import TokenSet

if TYPE_CHECKING:
    from tokenstore.storage.query import Row

TOKEN_COLUMNS = (
    "access_token",
    "refresh_token",
    "expires_at",
    "extra",
    "refresh_token_obtained_at",
    "refresh_token_expires_at",
)
CHECKSUMS = ("access_checksum", "checksum")

_parsed = json.JSONDecoder().raw_decode  # half the time of json.loads for a text this small
_SURROGATES = re.compile("[\ud800-\udfff]")


class CorruptRowError(Exception):
    """What a row holds is not what was stored.

    Attributes:
        account_name: The account that it is of, as far as that can be told.
    """

    def __init__(self, account_name: object) -> None:
        super().__init__()
        self.account_name = str(account_name)


def damaged(store: str, account_name: str) -> StorageError:
    """Return the error that tells of it."""
    return StorageError(
        f"{store}: what is stored of {account_name!a} is damaged; keep what is there and "
        "restore a backup, or sign that account in again",
        store,
        errno=errno.EIO,
    )


def new_version() -> int:
    """Return the mark of a changed row: another number every time, also after a delete."""
    return int.from_bytes(os.urandom(8), "big") >> 2  # in the range of a signed 64-bit integer


def to_columns(account_name: str, tokens: TokenSet) -> dict[str, Any]:
    """Return the columns that hold *tokens*, and the checksums that bind them to the account."""
    access_token, refresh_token = tokens.access_token, tokens.refresh_token
    expires_at = tokens.expires_at
    if expires_at is not None:
        expires_at = float(expires_at) + 0.0  # no -0.0
    extra = json.dumps(dict(tokens.extra))
    return {
        "access_token": access_token,
        "refresh_token": refresh_token,
        "expires_at": expires_at,
        "extra": extra,
        "refresh_token_obtained_at": tokens.refresh_token_obtained_at,
        "refresh_token_expires_at": tokens.refresh_token_expires_at,
        "access_checksum": _access_checksum(account_name, access_token),
        "checksum": _checksum(account_name, access_token, refresh_token, expires_at, extra),
    }


def to_tokens(account_name: str, row: Row) -> TokenSet:
    """Return the token set of the token columns and, last, the checksum.

    Raises:
        CorruptRowError: They do not match. Rows older than the checksums have none.
    """
    access_token, refresh_token, expires_at, extra, obtained_at, dies_at, checksum = row
    # Whatever is raised here shows what it is about, so that nothing may come from it.
    try:
        found = _checksum(account_name, access_token, refresh_token, expires_at, extra)
        fields, end = _parsed(extra)
    except (TypeError, ValueError, RecursionError):
        found, fields, end = -1, None, 0
    if checksum is None:  # what a checksum would have told
        optional = all(v is None or is_text(v) for v in (access_token, refresh_token))
        known = optional and is_text(extra) and end == len(extra)
    else:
        known = checksum == found
    moments = is_moment(expires_at) and is_moment(obtained_at) and is_moment(dies_at)
    if not (known and moments and isinstance(fields, dict)):
        raise CorruptRowError(account_name)
    return TokenSet(
        access_token=access_token,
        refresh_token=refresh_token,
        expires_at=expires_at,
        refresh_token_obtained_at=obtained_at,
        refresh_token_expires_at=dies_at,
        extra=fields,
    )


def to_access(account_name: str, row: Row) -> tuple[str | None, float | None, float | None]:
    """Return access token, ``expires_at`` and ``refreshed_at`` of a row with its checksum, last.

    This is the hot path: it checks what it returns and no more.

    Raises:
        CorruptRowError: The token is not the one that was stored.
    """
    token, expires_at, refreshed_at, checksum = row
    try:
        known = checksum is None and (token is None or is_text(token))
        intact = known or checksum == _access_checksum(account_name, token)
    except UnicodeEncodeError:
        intact = False
    if not (intact and is_moment(expires_at) and is_moment(refreshed_at)):
        raise CorruptRowError(account_name)
    return token, expires_at, refreshed_at


def to_record(row: Row) -> Record:
    """Return all that is stored of an account.

    Raises:
        CorruptRowError: The row is not what was stored.
    """
    name, provider, version, refreshed_at, refresh_id, failure, *tokens = row
    if not (provider is None or is_text(provider)) or not is_moment(refreshed_at):
        raise CorruptRowError(name)
    return Record(
        account_name=name,
        provider=provider,
        tokens=to_tokens(name, tuple(tokens)),
        version=version,
        refreshed_at=refreshed_at,
        refresh_id=refresh_id,
        failure=to_failure(failure),
    )


def to_failure(details: object) -> Failure | None:
    """Return the remembered failure; one that cannot be read is not remembered."""
    if details is None:
        return None
    try:
        return Failure.from_json(str(details))
    except (TypeError, ValueError, RecursionError):
        return None


def to_history_entry(row: Row) -> HistoryEntry:
    """Return one line of the journal."""
    maybe_spent = row[-1]
    return HistoryEntry(*(*row[:-1], None if maybe_spent is None else bool(maybe_spent)))


def is_text(value: object) -> bool:
    """Tell whether *value* is text that was UTF-8 in the file; what was not has surrogates."""
    return isinstance(value, str) and (value.isascii() or not _SURROGATES.search(value))


def is_moment(value: object) -> bool:
    """Tell whether *value* is a moment, in UTC epoch seconds, or None."""
    return value is None or isinstance(value, float)


def _access_checksum(account_name: str, access_token: str | None) -> int:
    return crc32(f"{account_name}\n{access_token}".encode())


def _checksum(
    account_name: str,
    access_token: str | None,
    refresh_token: str | None,
    expires_at: float | None,
    extra: str,
) -> int:
    covered = f"{account_name}\n{access_token}\n{refresh_token}\n{expires_at}\n{extra}"
    return crc32(covered.encode())
