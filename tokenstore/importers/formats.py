"""The JSON formats of token files: parses them to accounts, and formats exports. No I/O."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, tzinfo
from typing import TYPE_CHECKING, Any

from tokenstore.errors import InvalidTokenError
from tokenstore.models.timestamps import (
    clamp_to_calendar,
    local_iso,
    parse_seconds,
    parse_timestamp,
)
from tokenstore.models.tokens import TokenSet, is_token, normalize_account_name

if TYPE_CHECKING:
    from collections.abc import Iterable

_EXPORT_KEY = "tokenstore"  # added by an export
_EXPIRED = 0.0  # for an expiry that is not valid: due at once, and earlier than any other

_INVALID_EXPIRY = "its expiry is not a valid timestamp; the token counts as expired"
_NO_TOKENS = "neither an access token nor a refresh token"

# The keys of each field in order of precedence, with the time zone of a naive time (None: local).
_ACCESS = ("access_token", "accessToken", "token")
_REFRESH = ("refresh_token", "refreshToken")
_EXPIRY: tuple[tuple[str, tzinfo | None], ...] = (
    ("expires_at", None),
    ("expiresAt", None),
    ("expiry", UTC),  # google-auth
    ("token_expiry", UTC),  # oauth2client
    ("expiry_date", UTC),  # Google's library for Node.js, in milliseconds
)
_OBTAINED = ("obtained_at", "created_at")

_decoder = json.JSONDecoder(parse_constant=lambda _: None)  # json.loads creates one on each call


@dataclass(frozen=True, slots=True)
class ImportedAccount:
    """An account that was read from a file.

    Attributes:
        account_name: The name of the account.
        provider: The provider of the account, or None if the file has none.
        tokens: The tokens.
        note: What was not valid or not imported, or None.
    """

    account_name: str
    provider: str | None
    tokens: TokenSet
    note: str | None = None


class UnreadableFileError(Exception):
    """No account can be imported from the file. The reason does not quote the content."""


@dataclass(frozen=True, slots=True)
class UnreadableEntry:
    """An entry of a file that cannot be imported.

    Attributes:
        reason: Why it cannot. Does not quote the content.
        account_name: The name of the account, or None if it is unknown.
    """

    reason: str
    account_name: str | None = None


def parse_json(content: str | bytes) -> Any:
    """Parse JSON; NaN and Infinity become null.

    Raises:
        ValueError: It is not valid JSON, or nested too deeply.
    """
    if isinstance(content, bytes):
        content = content.decode(json.detect_encoding(content), "surrogatepass")
    try:
        return _decoder.decode(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def has_tokens(data: object) -> bool:
    """Return whether parsed JSON is an object with the tokens of one account."""
    return isinstance(data, Mapping) and bool(
        any(data.get(name) for name in (*_ACCESS, *_REFRESH)) or _from_token_response(data)
    )


def account_from_json(data: object, *, stem: str) -> ImportedAccount:
    """Read the account in a file.

    Args:
        data: The parsed JSON.
        stem: The name of the file without ``.json``; the account name if *data* has none.

    Raises:
        InvalidTokenError: There are no tokens, or a field is not valid.
    """
    if not isinstance(data, Mapping):
        raise InvalidTokenError("file", "expected a JSON object")
    fields = dict(data)
    export = fields.pop(_EXPORT_KEY, None)
    export = export if isinstance(export, Mapping) else {}
    access_token = _pop_first(fields, _ACCESS) or _from_token_response(fields)
    refresh_token = _pop_first(fields, _REFRESH)
    if access_token is None and refresh_token is None:
        raise InvalidTokenError("access_token", _NO_TOKENS)
    exported = parse_timestamp(export.get("expires_at")) if export else None
    unchanged = bool(export) and _is_unchanged(exported, data)
    expires_at, note = (exported, None) if unchanged else _pop_expiry(fields)
    name, provider = stem, None
    if unchanged or (export and stem in _possible_stems(str(export.get("account_name")))):
        name = export.get("account_name") or stem
        provider = export.get("provider")
    # A token without a key in the file stays absent.
    if access_token is not None or "access_token" in data:
        fields["access_token"] = access_token
    if refresh_token is not None or "refresh_token" in data:
        fields["refresh_token"] = refresh_token
    return ImportedAccount(
        account_name=normalize_account_name(name),
        provider=provider if is_token(provider) else None,
        tokens=TokenSet.from_fields(
            fields, expires_at=expires_at, obtained_at=_obtained_at(fields)
        ),
        note=note,
    )


def account_from_entry(
    account_name: object,
    fields: Mapping[str, Any],
    *,
    expires_at: object,
    obtained_at: float | None = None,
    note: str | None = None,
) -> ImportedAccount | UnreadableEntry:
    """Read one entry of a storage with many accounts.

    Args:
        account_name: The name of the account.
        fields: Its tokens as ``access_token`` and ``refresh_token``, and any other fields.
        expires_at: Expiry of the access token as stored, or None if it is unknown.
        obtained_at: When the refresh token was obtained, in UTC epoch seconds, or None.
        note: A note to report with the account.
    """
    name = None
    try:
        name = normalize_account_name(account_name)
        if fields.get("access_token") is None and fields.get("refresh_token") is None:
            raise InvalidTokenError("access_token", _NO_TOKENS)
        expiry = parse_timestamp(expires_at, naive=UTC)
        if expiry is None and expires_at is not None:
            expiry = _EXPIRED
            note = "; ".join(filter(None, (_INVALID_EXPIRY, note)))
        tokens = TokenSet.from_fields(fields, expires_at=expiry, obtained_at=obtained_at)
    except InvalidTokenError as error:
        return UnreadableEntry(str(error), name)
    return ImportedAccount(name, None, tokens, note)


def add_note(
    accounts: Iterable[ImportedAccount | UnreadableEntry], note: str
) -> list[ImportedAccount | UnreadableEntry]:
    """Return *accounts* with a note added to the first that can be imported."""
    accounts = list(accounts)
    for number, account in enumerate(accounts):
        if isinstance(account, ImportedAccount):
            notes = "; ".join(filter(None, (account.note, note)))
            accounts[number] = replace(account, note=notes)
            break
    return accounts


def account_to_json(account_name: str, provider: str | None, tokens: TokenSet) -> dict[str, Any]:
    """Return the content of an exported file, which older programs can read.

    ``expires_at`` is a naive local ISO string, null for no expiry, and absent if it is unknown.
    """
    data = tokens.to_dict()
    data.pop("expires_at", None)
    if tokens.expires_at is not None:
        data["expires_at"] = local_iso(tokens.expires_at)
    data[_EXPORT_KEY] = {
        "version": 1,
        "account_name": account_name,
        "provider": provider,
        "expires_at": tokens.expires_at,
    }
    return data


def file_stem(account_name: str, *, case_sensitive: bool = True) -> str:
    """Return the name, without ``.json``, of the file of an account.

    A safe account name is the file name. For any other, it is the safe characters, "~" and a hash;
    "~" is not a safe character, so that two accounts never have the same file.

    Args:
        account_name: The account.
        case_sensitive: Whether file names on the file system are case-sensitive.
    """
    folded = account_name if case_sensitive else account_name.lower()
    if folded == account_name and _SAFE.fullmatch(folded) and not _RESERVED.match(folded):
        return account_name
    digest = hashlib.sha256(account_name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{re.sub(r'^-|[^A-Za-z0-9@_-]+', '_', account_name)[:80]}~{digest}"


_SAFE = re.compile(r"[A-Za-z0-9@_+=][A-Za-z0-9@._+=-]{0,198}(?<![.])")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)


def _pop_first(fields: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Remove the first of *names* that has a value, and return the value."""
    for name in names:
        if fields.get(name):
            return fields.pop(name)
    return None


def _from_token_response(fields: Mapping[str, Any]) -> Any:
    """Return the access token in the last token response, which oauth2client keeps."""
    response = fields.get("token_response")
    return response.get("access_token") or None if isinstance(response, Mapping) else None


def _pop_expiry(fields: dict[str, Any]) -> tuple[float | None, str | None]:
    """Remove and return the expiry of the access token; also return a note if it is not valid."""
    malformed = None
    for name, zone in _EXPIRY:
        if fields.get(name) is None:
            continue
        expires_at = parse_timestamp(fields[name], naive=zone)
        if expires_at is not None:
            del fields[name]
            return expires_at, None
        malformed = malformed or name
    lifetime = parse_seconds(fields.get("expires_in"))
    obtained_at = _obtained_at(fields)
    if lifetime is not None and obtained_at is not None:
        return clamp_to_calendar(obtained_at + lifetime), None
    if malformed is not None:
        return _EXPIRED, f"{malformed} is not a valid timestamp; the token counts as expired"
    # `expires_in` alone does not determine the expiry, as the age of the token is unknown.
    return (None if fields.get("expires_in") is None else _EXPIRED), None


def _obtained_at(fields: Mapping[str, Any]) -> float | None:
    for name in _OBTAINED:
        obtained_at = parse_timestamp(fields[name]) if name in fields else None
        if obtained_at is not None:
            return obtained_at
    return None


def _is_unchanged(exported: float | None, data: Mapping[str, Any]) -> bool:
    """Return whether the expiry is the exported one: no program has changed the file since."""
    if exported is None:
        return data.get("expires_at") is None
    expected, written = local_iso(exported), data.get("expires_at", "")
    if expected is None or written is None:
        return expected is written
    found = parse_timestamp(written)
    return found is not None and (abs(exported - found) < 1 or expected == local_iso(found))


def _possible_stems(account_name: str) -> set[str]:
    """Return the possible file names of an account, on any file system."""
    return {file_stem(account_name, case_sensitive=sensitive) for sensitive in (True, False)}
