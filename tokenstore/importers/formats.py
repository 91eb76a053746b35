"""The JSON shapes in which tokens lie in files, to token sets and back. No I/O."""

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

_OURS = "tokenstore"  # the key that an export adds
_EXPIRED = 0.0  # for an expiry that cannot be trusted: due at once, and older than any other

_NO_EXPIRY = "its expiry was not understood; the token counts as expired"
_NO_TOKENS = "neither an access token nor a refresh token"

# Where a field may be found, in this order; with the zone of a time that names none (None: local).
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

_decoder = json.JSONDecoder(parse_constant=lambda _: None)  # json.loads would make one each time


@dataclass(frozen=True, slots=True)
class TokenFile:
    """What a file says.

    Attributes:
        account_name: Whose tokens they are.
        provider: The provider that the account was bound to, or None if the file does not say.
        tokens: The tokens.
        note: What was not understood and how it was taken, or None.
    """

    account_name: str
    provider: str | None
    tokens: TokenSet
    note: str | None = None


class UnreadableError(Exception):
    """A file without an account that can be imported; says why, without any of the content."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A part of a file that cannot be imported.

    Attributes:
        reason: Why, without any of the content.
        account_name: Whose tokens they would be, or None if that is not known.
    """

    reason: str
    account_name: str | None = None


def parse(content: str | bytes) -> Any:
    """Return what a JSON text says; numbers that JSON does not have become null.

    Raises:
        ValueError: It is not valid JSON, or nested too deep to be read.
    """
    if isinstance(content, bytes):
        content = content.decode(json.detect_encoding(content), "surrogatepass")
    try:
        return _decoder.decode(content)
    except RecursionError:
        raise ValueError("nested too deep") from None


def holds_tokens(data: object) -> bool:
    """Tell whether parsed JSON is an object with tokens of its own, as of one account."""
    return isinstance(data, Mapping) and bool(
        any(data.get(name) for name in (*_ACCESS, *_REFRESH)) or _from_token_response(data)
    )


def from_json(data: object, *, stem: str) -> TokenFile:
    """Read the content of a file.

    Args:
        data: The parsed JSON.
        stem: The name of the file without ``.json``, which is the account if nothing else is.

    Raises:
        InvalidTokenError: It holds no tokens, or a field is not what it has to be.
    """
    if not isinstance(data, Mapping):
        raise InvalidTokenError("file", "a JSON object is needed")
    fields = dict(data)
    ours = fields.pop(_OURS, None)
    ours = ours if isinstance(ours, Mapping) else {}
    access_token = _take(fields, _ACCESS) or _from_token_response(fields)
    refresh_token = _take(fields, _REFRESH)
    if access_token is None and refresh_token is None:
        raise InvalidTokenError("access_token", _NO_TOKENS)
    exported = parse_timestamp(ours.get("expires_at")) if ours else None
    agrees = bool(ours) and _agree(exported, data)
    expires_at, note = (exported, None) if agrees else _take_expiry(fields)
    name, provider = stem, None
    if agrees or (ours and stem in _stems(str(ours.get("account_name")))):
        name = ours.get("account_name") or stem
        provider = ours.get("provider")
    # A token that the file does not mention is left out.
    if access_token is not None or "access_token" in data:
        fields["access_token"] = access_token
    if refresh_token is not None or "refresh_token" in data:
        fields["refresh_token"] = refresh_token
    return TokenFile(
        account_name=normalize_account_name(name),
        provider=provider if is_token(provider) else None,
        tokens=TokenSet.from_fields(
            fields, expires_at=expires_at, obtained_at=_obtained_at(fields)
        ),
        note=note,
    )


def from_storage(
    account_name: object,
    fields: Mapping[str, Any],
    *,
    expires_at: object,
    obtained_at: float | None = None,
    note: str | None = None,
) -> TokenFile | Unusable:
    """Read one account of a storage that holds many.

    Args:
        account_name: What the account is to be called.
        fields: Its tokens as ``access_token`` and ``refresh_token``, and whatever else is known.
        expires_at: When the access token expires, as the storage says it; None if it does not.
        obtained_at: When the refresh token was obtained, in UTC epoch seconds, or None.
        note: What else is to be told of the account.
    """
    name = None
    try:
        name = normalize_account_name(account_name)
        if fields.get("access_token") is None and fields.get("refresh_token") is None:
            raise InvalidTokenError("access_token", _NO_TOKENS)
        moment = parse_timestamp(expires_at, naive=UTC)
        if moment is None and expires_at is not None:
            moment = _EXPIRED
            note = "; ".join(filter(None, (_NO_EXPIRY, note)))
        tokens = TokenSet.from_fields(fields, expires_at=moment, obtained_at=obtained_at)
    except InvalidTokenError as error:
        return Unusable(str(error), name)
    return TokenFile(name, None, tokens, note)


def with_note(accounts: Iterable[TokenFile | Unusable], note: str) -> list[TokenFile | Unusable]:
    """Return *accounts*, the first that can be imported with one more thing to be told."""
    accounts = list(accounts)
    for number, account in enumerate(accounts):
        if isinstance(account, TokenFile):
            told = "; ".join(filter(None, (account.note, note)))
            accounts[number] = replace(account, note=told)
            break
    return accounts


def to_json(account_name: str, provider: str | None, tokens: TokenSet) -> dict[str, Any]:
    """Return what a file says of an account, for this library and for those that came before.

    ``expires_at`` is a naive local ISO string, null for never, and absent if nobody knows.
    """
    data = tokens.to_dict()
    data.pop("expires_at", None)
    if tokens.expires_at is not None:
        data["expires_at"] = local_iso(tokens.expires_at)
    data[_OURS] = {
        "version": 1,
        "account_name": account_name,
        "provider": provider,
        "expires_at": tokens.expires_at,
    }
    return data


def file_stem(account_name: str, *, case_sensitive: bool = True) -> str:
    """Return the name, without ``.json``, of the file that holds an account.

    A harmless name is its own file name. Any other gets a readable rest and a hash, which no
    harmless name can look like, as "~" is not harmless.

    Args:
        account_name: The account.
        case_sensitive: Whether the file system tells "A" from "a".
    """
    folded = account_name if case_sensitive else account_name.lower()
    if folded == account_name and _HARMLESS.fullmatch(folded) and not _RESERVED.match(folded):
        return account_name
    digest = hashlib.sha256(account_name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{re.sub(r'^-|[^A-Za-z0-9@_-]+', '_', account_name)[:80]}~{digest}"


_HARMLESS = re.compile(r"[A-Za-z0-9@_+=][A-Za-z0-9@._+=-]{0,198}(?<![.])")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)


def _take(fields: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Remove the first of *names* that has a value, and return that."""
    for name in names:
        if fields.get(name):
            return fields.pop(name)
    return None


def _from_token_response(fields: Mapping[str, Any]) -> Any:
    """oauth2client repeats the provider's last answer; the answer itself stays as it is."""
    answer = fields.get("token_response")
    return answer.get("access_token") or None if isinstance(answer, Mapping) else None


def _take_expiry(fields: dict[str, Any]) -> tuple[float | None, str | None]:
    """Return when the access token expires, and what was not understood."""
    malformed = None
    for name, zone in _EXPIRY:
        if fields.get(name) is None:
            continue
        moment = parse_timestamp(fields[name], naive=zone)
        if moment is not None:
            del fields[name]
            return moment, None
        malformed = malformed or name
    lifetime = parse_seconds(fields.get("expires_in"))
    obtained_at = _obtained_at(fields)
    if lifetime is not None and obtained_at is not None:
        return clamp_to_calendar(obtained_at + lifetime), None
    if malformed is not None:
        return _EXPIRED, f"{malformed} was not understood; the token counts as expired"
    # A bare `expires_in` says nothing: the age of a file is not known.
    return (None if fields.get("expires_in") is None else _EXPIRED), None


def _obtained_at(fields: Mapping[str, Any]) -> float | None:
    for name in _OBTAINED:
        moment = parse_timestamp(fields[name]) if name in fields else None
        if moment is not None:
            return moment
    return None


def _agree(exported: float | None, data: Mapping[str, Any]) -> bool:
    """Tell whether the file's own expiry says what was exported: nobody has rewritten it since."""
    if exported is None:
        return data.get("expires_at") is None
    expected, written = local_iso(exported), data.get("expires_at", "")
    if expected is None or written is None:
        return expected is written
    found = parse_timestamp(written)
    return found is not None and (abs(exported - found) < 1 or expected == local_iso(found))


def _stems(account_name: str) -> set[str]:
    """Return the names that the account's file may have been given, on this system or another."""
    return {file_stem(account_name, case_sensitive=told) for told in (True, False)}
