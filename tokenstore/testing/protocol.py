"""What the protocol asks of a request, and what becomes of the tokens. No sockets."""

from __future__ import annotations

import math
import re
import secrets
from base64 import b64decode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote_plus

from tokenstore.testing.script import Answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

AUTH_METHODS = ("client_secret_basic", "client_secret_post", "none")
REDIRECT_URIS = ("http://127.0.0.1/callback",)
NO_STORE = {"Cache-Control": "no-store"}
_FORM = "application/x-www-form-urlencoded"
_FORM_ENCODED = re.compile(r"(?:[A-Za-z0-9*._~+-]|%[0-9A-Fa-f]{2})*")


class RefusedError(Exception):
    """A request is answered with an error (RFC 6749 section 5.2)."""

    def __init__(
        self, error: str, why: str, status: int = 400, headers: Mapping[str, str] = NO_STORE
    ) -> None:
        super().__init__(error)
        self.told = {"error": error, "error_description": why}
        self.answer = Answer(status, self.told, headers)


class Received(NamedTuple):
    """A request as it was read from the socket, with nothing checked."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    form: list[tuple[str, str]] | None


@dataclass(frozen=True)
class Client:
    """A client, as it is registered or as it presents itself: the two must be equal."""

    client_id: str
    secret: str | None = field(repr=False)
    method: str
    redirect_uris: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def register(
        cls,
        client_id: str,
        secret: str | None,
        method: str | None,
        redirect_uris: Iterable[str] = REDIRECT_URIS,
    ) -> Client:
        """Return a client as it is registered (RFC 7591)."""
        method = method or ("none" if secret is None else "client_secret_post")
        if method not in AUTH_METHODS:
            raise ValueError(f"token_endpoint_auth_method is none of {', '.join(AUTH_METHODS)}")
        if (secret is None) != (method == "none") or secret == "":
            raise ValueError("every method needs a client_secret, but 'none', which has none")
        return cls(client_id, secret, method, tuple(redirect_uris))

    @classmethod
    def presented(cls, authorization: str | None, params: dict[str, str]) -> Client:
        """Read the credentials of a request (RFC 6749 section 2.3.1)."""
        secret = params.get("client_secret")
        if authorization is None:
            method = "none" if secret is None else "client_secret_post"
            return cls(params.get("client_id", ""), secret, method)
        client_id, password = _decode_basic(authorization)
        if secret is not None or params.get("client_id", client_id) != client_id:
            raise RefusedError("invalid_request", "the client authenticates in two ways")
        return cls(client_id, password, "client_secret_basic")


def _decode_text(text: str) -> str:
    """Undo the form encoding of a name or a value; ValueError if it was not encoded."""
    if not _FORM_ENCODED.fullmatch(text):
        raise ValueError("not form-encoded")
    return unquote_plus(text, errors="strict")


def decode_form(body: bytes) -> list[tuple[str, str]] | None:
    """Return the pairs of a form, or None if the body is no form."""
    try:
        pairs = [pair.split("=") for pair in body.decode("ascii").split("&") if body]
        return [(_decode_text(name), _decode_text(value)) for name, value in pairs]
    except ValueError:
        return None


def _decode_basic(authorization: str) -> tuple[str, str]:
    """Return the client id and secret of a Basic header; unreadable ones are empty."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        user, _, password = b64decode(encoded, validate=True).decode("ascii").partition(":")
        client_id, secret = _decode_text(user), _decode_text(password)
    except ValueError:
        return "", ""
    return (client_id, secret) if scheme.lower() == "basic" else ("", "")


def parameters(received: Received) -> dict[str, str]:
    """Return the parameters of a token request, or refuse its shape.

    RFC 6749 section 3.2 lets a server read an empty value as an omitted one; providers in the
    field refuse it, so it is refused here.
    """
    if received.method != "POST":
        raise RefusedError("invalid_request", "use POST", 405, {**NO_STORE, "Allow": "POST"})
    if received.query:
        raise RefusedError("invalid_request", "parameters belong into the body")
    if received.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise RefusedError("invalid_request", f"the Content-Type is not {_FORM}")
    if "content-length" not in received.headers:
        raise RefusedError("invalid_request", "Content-Length is missing", 411)
    if received.form is None:
        raise RefusedError("invalid_request", "the body is not form-encoded")
    params = dict(received.form)
    if len(params) != len(received.form):
        raise RefusedError("invalid_request", "a parameter is repeated")
    if not all(params.values()):
        raise RefusedError("invalid_request", "a parameter is empty")
    return params


def _granted_token(params: dict[str, str]) -> str:
    """Return the refresh token of a refresh grant."""
    if "refresh_token" not in params:
        raise RefusedError("invalid_request", "refresh_token is missing")
    return params["refresh_token"]


@dataclass
class Family:
    """A sign-in; the tokens that come from it die with it."""

    subject: str
    client_id: str
    scope: str
    revoked: bool = False
    refreshes: int = 0


@dataclass
class Token:
    """An access token or a refresh token."""

    family: Family
    expires_at: float
    spent: bool = False

    def is_live(self, now: float) -> bool:
        """Tell whether the token is good at *now*, in UTC epoch seconds."""
        return not (self.family.revoked or self.spent) and now < self.expires_at


class Ledger:
    """Every token ever issued, and the rules by which they live."""

    def __init__(self, expires_in: float | None, *, rotate: bool, lifetime: float | None) -> None:
        self._expires_in = expires_in
        self._rotate = rotate
        self._lifetime = math.inf if lifetime is None else lifetime
        self.families: list[Family] = []
        self.access: dict[str, Token] = {}
        self.refresh: dict[str, Token] = {}
        self.reuses = 0

    def sign_in(self, family: Family, now: float, *, offline: bool = True) -> dict[str, Any]:
        """Begin a family and return its first tokens, a refresh token only if *offline*."""
        self.families.append(family)
        return self._issue(family, family.scope, now, rotate=offline)

    def revoke(self, client_id: str, params: dict[str, str]) -> None:
        """Revoke a token (RFC 7009): a refresh token with all that came from its sign-in."""
        if "token" not in params:
            raise RefusedError("invalid_request", "token is missing")
        secret = params["token"]
        token = self.refresh.get(secret) or self.access.get(secret)
        if token is None:
            return  # an unknown token is as good as a revoked one
        if token.family.client_id != client_id:
            raise RefusedError("unauthorized_client", "the token is not of this client")
        if secret in self.refresh:
            token.family.revoked = True
        else:
            token.spent = True

    def exchange(self, client_id: str, params: dict[str, str], now: float) -> dict[str, Any]:
        """Answer a refresh grant (RFC 6749 section 6) with rotation (RFC 9700 section 4.14.2)."""
        token = self.refresh.get(_granted_token(params))
        if token is None or token.family.client_id != client_id:
            raise RefusedError("invalid_grant", "no refresh token of this client")
        if token.spent:
            self.reuses += 1
            token.family.revoked = True
            raise RefusedError("invalid_grant", "the refresh token was used before")
        if not token.is_live(now):
            raise RefusedError("invalid_grant", "the refresh token has expired or was revoked")
        scope = params.get("scope", token.family.scope)
        if not set(scope.split(" ")) <= set(token.family.scope.split(" ")):
            raise RefusedError("invalid_scope", "the scope exceeds what was granted")
        token.spent = self._rotate
        token.family.refreshes += 1
        return self._issue(token.family, scope, now, rotate=self._rotate)

    def _issue(self, family: Family, scope: str, now: float, *, rotate: bool) -> dict[str, Any]:
        access_token = secrets.token_urlsafe()
        answer: dict[str, Any] = {"access_token": access_token, "token_type": "Bearer"}
        lifetime = math.inf
        if self._expires_in is not None:
            answer["expires_in"] = lifetime = self._expires_in
        self.access[access_token] = Token(family, now + lifetime)
        if rotate:
            answer["refresh_token"] = secrets.token_urlsafe()
            self.refresh[answer["refresh_token"]] = Token(family, now + self._lifetime)
        return {**answer, "scope": scope}
