"""Token sets: what they are, when they expire, how an answer changes them. No I/O."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenstore.errors import InvalidTokenError
from tokenstore.models.timestamps import NEVER, clamp, expiry_of, parse_seconds

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MAX_NAME = 512
_MAX_DEPTH = 200  # of nested values; far from where JSON overflows the stack of whoever reads it
_REFRESH_TOKEN_LIFETIMES = (  # no standard has a name for it
    "refresh_token_expires_in",
    "refresh_expires_in",
    "x_refresh_token_expires_in",
)
_COLUMNS = ("access_token", "refresh_token", "expires_at")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSet:
    """The tokens of one account. Secrets stay out of the repr.

    Attributes:
        access_token: The access token, or None in an imported set that has only a refresh token.
        refresh_token: The refresh token, or None.
        expires_at: When the access token expires, in UTC epoch seconds; None if nobody knows.
        refresh_token_obtained_at: When the refresh token was obtained, likewise.
        refresh_token_expires_at: When it dies of age, going by what the provider said, likewise.
        extra: Every other field, as it was given.
    """

    access_token: str | None = field(default=None, repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    expires_at: float | None = None
    refresh_token_obtained_at: float | None = None
    refresh_token_expires_at: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_mapping(cls, tokens: Mapping[str, Any], *, now: float) -> TokenSet:
        """Validate *tokens* and turn a bare ``expires_in`` into a moment, counted from *now*.

        Raises:
            InvalidTokenError: A field is not what it has to be; the error names it.
        """
        if not isinstance(tokens, Mapping):
            raise InvalidTokenError("tokens", f"a mapping is needed, not {_kind(tokens)}")
        if tokens.get("access_token") is None:
            raise InvalidTokenError("access_token", "missing; save what the provider answered")
        return cls.from_fields(tokens, expires_at=_given_expiry(tokens, now), obtained_at=now)

    @classmethod
    def from_fields(
        cls, tokens: Mapping[str, Any], *, expires_at: float | None, obtained_at: float | None
    ) -> TokenSet:
        """Make a token set of *tokens*, of which either token may be missing.

        Args:
            tokens: The fields, each under its own name.
            expires_at: When the access token expires, in UTC epoch seconds, or None.
            obtained_at: When the tokens were obtained, likewise.

        Raises:
            InvalidTokenError: A token is not a token, or a field is nothing that JSON can hold.
        """
        known: dict[str, Any] = {
            "access_token": _token(tokens, "access_token"),
            "refresh_token": _token(tokens, "refresh_token"),
            "expires_at": expires_at,
        }
        # A known field that was given as null stays in `extra`, so that it comes back as it came.
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

    def to_dict(self) -> dict[str, Any]:
        """Return every field as one dictionary, ``expires_at`` in UTC epoch seconds."""
        known = {
            "access_token": self.access_token,
            "refresh_token": self.refresh_token,
            "expires_at": self.expires_at,
        }
        return {k: v for k, v in known.items() if v is not None} | dict(self.extra)

    def merge(
        self, answer: Mapping[str, Any], *, now: float, default_expires_in: float
    ) -> TokenSet:
        """Return this set as a successful refresh answer changes it (RFC 6749 section 6).

        An absent, empty or unusable ``refresh_token`` keeps the old one, a field that the answer
        does not have is kept, and no field of the answer can cost the new access token.

        Args:
            answer: A JSON object with a usable ``access_token``.
            now: When the request was sent, in UTC epoch seconds.
            default_expires_in: Seconds to assume if the answer has no usable ``expires_in``;
                ``math.inf`` for tokens that do not expire.
        """
        given = answer.get("refresh_token")
        refresh_token = given if is_token(given) else self.refresh_token
        rotated = refresh_token != self.refresh_token
        expiry = _refresh_token_expiry(answer, now)
        lifetime = parse_seconds(answer.get("expires_in"))
        if lifetime is None or now + lifetime > NEVER:
            _log.warning(
                "the answer has no usable expires_in; assuming %s seconds", default_expires_in
            )
            lifetime = default_expires_in
        extra = {k: v for k, v in self.extra.items() if k not in {*_COLUMNS, "expires_in"}}
        # A client_id says whom the refresh token was issued to; a refresh does not change that.
        ignored = {*_COLUMNS, "client_id"}
        extra |= {k: v for k, v in answer.items() if k not in ignored and _is_json(v)}
        return TokenSet(
            access_token=answer["access_token"],
            refresh_token=refresh_token,
            expires_at=clamp(now + lifetime),
            refresh_token_obtained_at=now if rotated else self.refresh_token_obtained_at,
            refresh_token_expires_at=(
                self.refresh_token_expires_at if expiry is None and not rotated else expiry
            ),
            extra=extra,
        )


def is_token(value: object) -> bool:
    """Tell whether *value* can be an access or refresh token: text, not empty, storable."""
    return isinstance(value, str) and bool(value) and _unstorable(value) is None


def plain(text: str) -> str:
    """Return *text* as nothing but a string: a class of somebody's own may show another one."""
    return text if type(text) is str else str.__str__(text)


def fingerprint(secret: str) -> str:
    """Return what may be shown of a token: it tells two apart and gives neither away."""
    return hashlib.sha256(secret.encode()).hexdigest()[:16]


def normalize_account_name(account_name: object) -> str:
    """Return *account_name* in the form in which it is stored (Unicode NFC).

    Raises:
        InvalidTokenError: It is not a string of 1 to 512 characters without control characters.
    """
    if not isinstance(account_name, str):
        raise InvalidTokenError("account_name", f"a string is needed, not {_kind(account_name)}")
    name = unicodedata.normalize("NFC", plain(account_name))
    if not name:
        raise InvalidTokenError("account_name", "an empty string names no account")
    if len(name) > _MAX_NAME:
        raise InvalidTokenError("account_name", f"longer than {_MAX_NAME} characters")
    if reason := _unstorable(name):
        raise InvalidTokenError("account_name", reason)
    return name


def _refresh_token_expiry(fields: Mapping[str, Any], obtained_at: float | None) -> float | None:
    """Return when a provider said that a refresh token dies; some say 0 for never."""
    if obtained_at is None:
        return None
    for name in _REFRESH_TOKEN_LIFETIMES:
        if name in fields:
            lifetime = parse_seconds(fields[name])
            if lifetime is not None and lifetime > 0:
                return clamp(obtained_at + lifetime)
    return None


def _given_expiry(tokens: Mapping[str, Any], now: float) -> float | None:
    if tokens.get("expires_in") is not None and parse_seconds(tokens["expires_in"]) is None:
        raise InvalidTokenError("expires_in", "a finite number of seconds is needed")
    moment = expiry_of(tokens, now=now)
    if moment is None and tokens.get("expires_at") is not None:
        raise InvalidTokenError(
            "expires_at", "epoch seconds, an ISO 8601 string or a datetime is needed"
        )
    return moment


def _token(tokens: Mapping[str, Any], name: str) -> str | None:
    value = tokens.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidTokenError(name, f"a string is needed, not {_kind(value)}")
    if not value:
        raise InvalidTokenError(name, "an empty string is no token")
    if reason := _unstorable(value):
        raise InvalidTokenError(name, reason)
    return plain(value)


def _unstorable(text: str) -> str | None:
    if str.isascii(text) and str.isprintable(text):
        return None  # as nearly every token; the search below takes twice as long
    if _CONTROL.search(text):
        return "control characters are not allowed"
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return "half a surrogate pair is not a character"
    return None


def _require_json(name: object, value: object) -> None:
    if not isinstance(name, str):
        raise InvalidTokenError("tokens", f"field names have to be strings, not {_kind(name)}")
    if not _is_json(value):
        raise InvalidTokenError(name, "JSON cannot hold this value")


def _is_json(value: object) -> bool:
    if value is None or type(value) is str:
        return True  # what nearly every field is
    try:
        json.dumps(value, allow_nan=False)
        return _comes_back(value, _MAX_DEPTH)
    except (TypeError, ValueError, RecursionError):
        return False


def _comes_back(value: object, depth: int) -> bool:
    """Tell whether JSON gives back all keys: others than strings it turns into strings."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            return False
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return True
    return depth > 0 and all(_comes_back(item, depth - 1) for item in value)


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__
