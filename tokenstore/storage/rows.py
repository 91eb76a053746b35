"""Converts rows to token sets and back, and detects damaged rows.

SQLite checks the structure of its file, not the content of its rows. A token with a flipped bit
would be returned, or sent to a provider, so every row carries checksums.
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
from tokenstore.models.further_tokens import FurtherToken
from tokenstore.models.targets import Target
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
FURTHER_COLUMNS = (
    "target",
    "access_token",
    "token_type",
    "scope",
    "expires_at",
    "refreshed_at",
    "refresh_id",
    "failure",
    "checksum",
)

_parse = json.JSONDecoder().raw_decode  # half the time of json.loads for a text this small
_SURROGATES = re.compile("[\ud800-\udfff]")


class CorruptRowError(Exception):
    """A row does not hold the values that were stored.

    Attributes:
        account_name: The account, as far as its name can be read.
    """

    def __init__(self, account_name: object) -> None:
        super().__init__()
        self.account_name = str(account_name)


def corrupt_account_error(database: str, account_name: str) -> StorageError:
    """Return the error for a damaged account."""
    return StorageError(
        f"{database}: the stored tokens of {account_name!a} are damaged; keep the database and "
        "restore a backup, or sign in to the account again",
        database,
        errno=errno.EIO,
    )


def new_version() -> int:
    """Return a random number that marks a changed row, also after a delete."""
    return int.from_bytes(os.urandom(8), "big") >> 2  # in the range of a signed 64-bit integer


def to_columns(account_name: str, tokens: TokenSet) -> dict[str, Any]:
    """Return the columns for *tokens*, with the checksums that bind them to the account."""
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


def row_size(tokens: TokenSet) -> int:
    """Return about how many bytes the row of a token set takes."""
    secrets = len(tokens.access_token or "") + len(tokens.refresh_token or "")
    return secrets + len(json.dumps(dict(tokens.extra)))


def to_tokens(account_name: str, row: Row) -> TokenSet:
    """Return the token set of a row: the token columns and then the checksum.

    Raises:
        CorruptRowError: The checksum does not match. A row older than the checksums has none.
    """
    access_token, refresh_token, expires_at, extra, obtained_at, refresh_expires_at, checksum = row
    # These errors quote the values, so none of them may become the context of another.
    try:
        computed = _checksum(account_name, access_token, refresh_token, expires_at, extra)
        fields, end = _parse(extra)
    except (TypeError, ValueError, RecursionError):
        computed, fields, end = -1, None, 0
    if checksum is None:
        are_texts = all(v is None or is_text(v) for v in (access_token, refresh_token))
        intact = are_texts and is_text(extra) and end == len(extra)
    else:
        intact = checksum == computed
    timestamps = (expires_at, obtained_at, refresh_expires_at)
    if not (intact and all(map(is_timestamp, timestamps)) and isinstance(fields, dict)):
        raise CorruptRowError(account_name)
    return TokenSet(
        access_token=access_token,
        refresh_token=refresh_token,
        expires_at=expires_at,
        refresh_token_obtained_at=obtained_at,
        refresh_token_expires_at=refresh_expires_at,
        extra=fields,
    )


def to_access_token(
    account_name: str, row: Row
) -> tuple[str | None, float | None, float | None, str | None]:
    """Return access token, ``expires_at``, ``refreshed_at`` and provider of a row.

    The last column is the checksum.

    This is the hot path: it checks only the values that it returns.

    Raises:
        CorruptRowError: The checksum does not match.
    """
    token, expires_at, refreshed_at, provider, checksum = row
    try:
        is_unchecked = checksum is None and (token is None or is_text(token))
        intact = is_unchecked or checksum == _access_checksum(account_name, token)
    except UnicodeEncodeError:
        intact = False
    if not (intact and is_timestamp(expires_at) and is_timestamp(refreshed_at)):
        raise CorruptRowError(account_name)
    return token, expires_at, refreshed_at, provider


def to_record(row: Row) -> Record:
    """Return the record of an account.

    Raises:
        CorruptRowError: The row is damaged.
    """
    name, provider, version, refreshed_at, refresh_id, failure, *tokens = row
    if not (provider is None or is_text(provider)) or not is_timestamp(refreshed_at):
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


def further_columns(account_name: str, further: FurtherToken) -> dict[str, Any]:
    """Return the row of a further access token, with the checksum that binds it to the account."""
    expires_at = further.expires_at
    values = {
        "target": further.target.text,
        "access_token": further.access_token,
        "token_type": further.token_type,
        "scope": further.scope,
        "expires_at": None if expires_at is None else float(expires_at) + 0.0,
    }
    return {
        "account_name": account_name,
        "target_digest": further.target.digest,
        **values,
        "refreshed_at": further.refreshed_at,
        "refresh_id": further.refresh_id,
        "failure": further.failure and further.failure.to_json(),
        "checksum": _further_checksum(account_name, *values.values()),
    }


def to_further(account_name: str, row: Row) -> FurtherToken:
    """Return the further access token of a row: the columns `FURTHER_COLUMNS`.

    Raises:
        CorruptRowError: The checksum does not match.
    """
    target, token, kind, scope, expires_at, refreshed_at, refresh_id, failure, checksum = row
    try:
        intact = checksum == _further_checksum(account_name, target, token, kind, scope, expires_at)
    except UnicodeEncodeError:
        intact = False
    if not (intact and is_timestamp(expires_at) and is_timestamp(refreshed_at)):
        raise CorruptRowError(account_name)
    return FurtherToken(
        target=Target.parse(target),
        access_token=token,
        token_type=kind,
        scope=scope,
        expires_at=expires_at,
        refreshed_at=refreshed_at,
        refresh_id=refresh_id,
        failure=to_failure(failure),
    )


def to_failure(details: object) -> Failure | None:
    """Return the recorded failure, or None if there is none or it cannot be read."""
    if details is None:
        return None
    try:
        return Failure.from_json(str(details))
    except (TypeError, ValueError, RecursionError):
        return None


def to_history_entry(row: Row) -> HistoryEntry:
    """Return one entry of the journal."""
    *entry, maybe_spent, target = row
    return HistoryEntry(*(*entry, None if maybe_spent is None else bool(maybe_spent), target))


def is_text(value: object) -> bool:
    """Return whether *value* is text that was valid UTF-8 in the file: it has no surrogates."""
    return isinstance(value, str) and (value.isascii() or not _SURROGATES.search(value))


def is_timestamp(value: object) -> bool:
    """Return whether *value* is a timestamp, in UTC epoch seconds, or None."""
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


def _further_checksum(account_name: str, *values: object) -> int:
    return crc32("\n".join(map(str, (account_name, *values))).encode())
