"""Token sets: validation, and merging with the response to a refresh."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tokenstore.errors import InvalidTokenError
from tokenstore.models.timestamps import NEVER, clamp_to_calendar, expiry_of, parse_seconds

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MAX_NAME = 512
_MAX_DEPTH = 200  # of nested values; far below the depth at which JSON parsers overflow the stack
_REFRESH_TOKEN_LIFETIMES = (  # the field has no standard name
    "refresh_token_expires_in",
    "refresh_expires_in",
    "x_refresh_token_expires_in",
)
_COLUMNS = ("access_token", "refresh_token", "expires_at")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSet:
    """The tokens of one account. The repr contains no secrets.

    Attributes:
        access_token: The access token, or None in an imported set that has only a refresh token.
        refresh_token: The refresh token, or None.
        expires_at: When the access token expires, in UTC epoch seconds, or None if unknown.
        refresh_token_obtained_at: When the refresh token was obtained, in UTC epoch seconds, or
            None if unknown.
        refresh_token_expires_at: When the refresh token expires according to the provider's
            response, in UTC epoch seconds, or None if unknown.
        extra: All other fields, unchanged.
    """

    access_token: str | None = field(default=None, repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    expires_at: float | None = None
    refresh_token_obtained_at: float | None = None
    refresh_token_expires_at: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_mapping(cls, tokens: Mapping[str, Any], *, now: float) -> TokenSet:
        """Validate *tokens*; an ``expires_in`` without ``expires_at`` counts from *now*.

        Raises:
            InvalidTokenError: A field is missing or invalid; the error names it.
        """
        if not isinstance(tokens, Mapping):
            raise InvalidTokenError("tokens", f"expected a mapping, got {_type_name(tokens)}")
        if tokens.get("access_token") is None:
            raise InvalidTokenError("access_token", "missing; save the provider's whole response")
        return cls.from_fields(tokens, expires_at=_valid_expiry(tokens, now), obtained_at=now)

    @classmethod
    def from_fields(
        cls, tokens: Mapping[str, Any], *, expires_at: float | None, obtained_at: float | None
    ) -> TokenSet:
        """Return a token set; either token may be missing.

        Args:
            tokens: The fields by name.
            expires_at: When the access token expires, in UTC epoch seconds, or None if unknown.
            obtained_at: When the tokens were obtained, in UTC epoch seconds, or None if unknown.

        Raises:
            InvalidTokenError: A token is invalid, or a field cannot be stored as JSON.
        """
        known: dict[str, Any] = {
            "access_token": _token(tokens, "access_token"),
            "refresh_token": _token(tokens, "refresh_token"),
            "expires_at": expires_at,
        }
        # A known field that is null stays in `extra`, so that `to_dict` returns it as null.
        extra = {k: v for k, v in tokens.items() if known.get(k) is None}
        for name in _COLUMNS:
            if name in extra:
                extra[name] = None
        for name, value in extra.items():
            _require_json(name, value)
        if known["refresh_token"] is None:
            obtained_at = None
        return cls(
            **known,
            refresh_token_obtained_at=obtained_at,
            refresh_token_expires_at=_refresh_token_expiry(tokens, obtained_at),
            extra=extra,
        )

    def with_extra(self, extra: Mapping[str, Any]) -> TokenSet:
        """Return this set with other values of `extra`."""
        return TokenSet(  # `dataclasses.replace` takes several times as long
            access_token=self.access_token,
            refresh_token=self.refresh_token,
            expires_at=self.expires_at,
            refresh_token_obtained_at=self.refresh_token_obtained_at,
            refresh_token_expires_at=self.refresh_token_expires_at,
            extra=extra,
        )

    def with_default_lifetime(self, lifetime: float, *, since: float | None) -> TokenSet:
        """Return this set with an expiry if it has none.

        A token that expires and cannot be refreshed gets none: it is used until it is rejected.

        Args:
            lifetime: Seconds to assume; ``math.inf`` for a token that does not expire.
            since: When the token was obtained, in UTC epoch seconds, or None if unknown.
        """
        if self.expires_at is not None or self.access_token is None:
            return self
        if math.isinf(lifetime):
            expires_at = NEVER
        elif since is not None and self.refresh_token is not None:
            expires_at = clamp_to_calendar(since + lifetime)
        else:
            return self
        extra = {k: v for k, v in self.extra.items() if k != "expires_at"}
        return replace(self, expires_at=expires_at, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as one dictionary, with ``expires_at`` in UTC epoch seconds."""
        known = {
            "access_token": self.access_token,
            "refresh_token": self.refresh_token,
            "expires_at": self.expires_at,
        }
        return {k: v for k, v in known.items() if v is not None} | dict(self.extra)

    def merge(
        self, response: Mapping[str, Any], *, now: float, default_expires_in: float
    ) -> TokenSet:
        """Return this set with the fields of a successful response (RFC 6749 section 6).

        A missing or unusable ``refresh_token`` keeps the old one, fields that the response lacks
        are kept, and an invalid field of the response never loses the new access token. Without a
        usable access token the old one is kept, and is due.

        Args:
            response: A JSON object with a usable ``access_token`` or ``refresh_token``.
            now: When the request was sent, in UTC epoch seconds.
            default_expires_in: Seconds to assume if the response has no usable ``expires_in``;
                ``math.inf`` for tokens that do not expire.
        """
        received = response.get("refresh_token")
        refresh_token = received if is_token(received) else self.refresh_token
        rotated = refresh_token != self.refresh_token
        expiry = _refresh_token_expiry(response, now)
        access_token, lifetime = response.get("access_token"), lifetime_of(response, now=now)
        if not is_token(access_token):
            access_token, lifetime = self.access_token, 0.0
        elif lifetime is None or (lifetime <= 0 and math.isinf(default_expires_in)):
            lifetime = default_expires_in  # some say with 0 that a token has no end
        extra = {k: v for k, v in self.extra.items() if k not in {*_COLUMNS, "expires_in"}}
        # The client_id names the client that the refresh token was issued to, before and after.
        ignored = {*_COLUMNS, "client_id"}
        extra |= {k: v for k, v in response.items() if k not in ignored and _is_json(v)}
        return TokenSet(
            access_token=access_token,
            refresh_token=refresh_token,
            expires_at=clamp_to_calendar(now + lifetime),
            refresh_token_obtained_at=now if rotated else self.refresh_token_obtained_at,
            refresh_token_expires_at=(
                self.refresh_token_expires_at if expiry is None and not rotated else expiry
            ),
            extra=extra,
        )


def lifetime_of(response: Mapping[str, Any], *, now: float) -> float | None:
    """Return the seconds of a response's ``expires_in``, None if it is missing or unusable."""
    lifetime = parse_seconds(response.get("expires_in"))
    return None if lifetime is None or now + lifetime > NEVER else lifetime


def is_token(value: object) -> bool:
    """Return whether *value* can be an access or refresh token: storable text, not empty."""
    return isinstance(value, str) and bool(value) and _storage_problem(value) is None


def fingerprint(secret: str) -> str:
    """Return a short hash that distinguishes tokens without revealing them."""
    return hashlib.sha256(secret.encode()).hexdigest()[:16]


def normalize_account_name(account_name: object) -> str:
    """Return the account name in the form in which it is stored (Unicode NFC).

    Raises:
        InvalidTokenError: It is not a string of 1 to 512 characters without control characters.
    """
    if not isinstance(account_name, str):
        raise InvalidTokenError("account_name", _expected_string(account_name))
    name = unicodedata.normalize("NFC", _to_exact_str(account_name))
    if not name:
        raise InvalidTokenError("account_name", "the account name must not be empty")
    if len(name) > _MAX_NAME:
        raise InvalidTokenError("account_name", f"longer than {_MAX_NAME} characters")
    if problem := _storage_problem(name):
        raise InvalidTokenError("account_name", problem)
    return name


def _refresh_token_expiry(fields: Mapping[str, Any], obtained_at: float | None) -> float | None:
    """Return when a refresh token expires according to the provider; some send 0 for never."""
    if obtained_at is None:
        return None
    for name in _REFRESH_TOKEN_LIFETIMES:
        if name in fields:
            lifetime = parse_seconds(fields[name])
            if lifetime is not None and lifetime > 0:
                return clamp_to_calendar(obtained_at + lifetime)
    return None


def _valid_expiry(tokens: Mapping[str, Any], now: float) -> float | None:
    if tokens.get("expires_in") is not None and parse_seconds(tokens["expires_in"]) is None:
        raise InvalidTokenError("expires_in", "expected a finite number of seconds")
    timestamp = expiry_of(tokens, now=now)
    if timestamp is None and tokens.get("expires_at") is not None:
        raise InvalidTokenError(
            "expires_at", "expected epoch seconds, an ISO 8601 string or a datetime"
        )
    return timestamp


def _token(tokens: Mapping[str, Any], name: str) -> str | None:
    value = tokens.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidTokenError(name, _expected_string(value))
    if not value:
        raise InvalidTokenError(name, "must not be empty")
    if problem := _storage_problem(value):
        raise InvalidTokenError(name, problem)
    return _to_exact_str(value)


def _storage_problem(text: str) -> str | None:
    """Return why *text* cannot be stored, or None if it can."""
    if str.isascii(text) and str.isprintable(text):
        return None  # nearly every token; the search below takes twice as long
    if _CONTROL.search(text):
        return "control characters are not allowed"
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return "unpaired surrogates are not allowed"
    return None


def _to_exact_str(text: str) -> str:
    """Return *text* as an exact `str`: the ``__str__`` of a subclass may differ from its value."""
    return text if type(text) is str else str.__str__(text)


def _require_json(name: object, value: object) -> None:
    if not isinstance(name, str):
        raise InvalidTokenError("tokens", f"field names must be strings, got {_type_name(name)}")
    if not _is_json(value):
        raise InvalidTokenError(name, "cannot be stored as JSON")


def _is_json(value: object) -> bool:
    if value is None or type(value) is str:
        return True  # nearly every field
    try:
        json.dumps(value, allow_nan=False)
        return _survives_json(value, _MAX_DEPTH)
    except (TypeError, ValueError, RecursionError):
        return False


def _survives_json(value: object, depth: int) -> bool:
    """Return whether all keys are strings, since JSON turns others into strings."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            return False
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return True
    return depth > 0 and all(_survives_json(item, depth - 1) for item in value)


def _expected_string(value: object) -> str:
    return f"expected a string, got {_type_name(value)}"


def _type_name(value: object) -> str:
    return "None" if value is None else type(value).__name__
