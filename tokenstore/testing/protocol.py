"""What OAuth 2.0 requires of a request, and the tokens that were issued. No sockets."""

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
    from collections.abc import Iterable, Mapping, Sequence

_SECRET_METHODS = ("client_secret_basic", "client_secret_post", "client_secret_jwt")
CERTIFICATE_METHODS = ("tls_client_auth", "self_signed_tls_client_auth")
AUTH_METHODS = (*_SECRET_METHODS, "private_key_jwt", *CERTIFICATE_METHODS, "none")
REDIRECT_URIS = ("http://127.0.0.1/callback", "http://127.0.0.1/callback/test")
ANY_CALLBACK = "http://127.0.0.1/callback/*"  # the only pattern: the callback of any provider
RESOURCE = "resource"
NO_STORE = {"Cache-Control": "no-store"}
_FORM = "application/x-www-form-urlencoded"
_FORM_ENCODED = re.compile(r"(?:[A-Za-z0-9*._~+-]|%[0-9A-Fa-f]{2})*")


class OAuthError(Exception):
    """An error response to a request (RFC 6749 section 5.2)."""

    def __init__(
        self, error: str, description: str, status: int = 400, headers: Mapping[str, str] = NO_STORE
    ) -> None:
        super().__init__(error)
        self.params = {"error": error, "error_description": description}
        self.response = Answer(status, self.params, headers)


class HTTPRequest(NamedTuple):
    """A request as it was read from the socket, unchecked; with the client's certificate (DER)."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    form: list[tuple[str, str]] | None
    certificate: bytes | None = None
    body: bytes = b""


@dataclass(frozen=True)
class Client:
    """A client as registered, or the credentials of a request: the two must be equal."""

    client_id: str
    secret: str | None = field(repr=False)
    method: str
    redirect_uris: tuple[str, ...] = field(default=(), compare=False)
    public_key: str | None = field(default=None, compare=False)
    certificate: str | None = field(default=None, compare=False)

    @classmethod
    def register(
        cls,
        client_id: str,
        secret: str | None,
        method: str | None,
        redirect_uris: Iterable[str] = REDIRECT_URIS,
        *,
        public_key: str | None = None,
        certificate: str | None = None,
    ) -> Client:
        """Return a registered client (RFC 7591)."""
        method = method or ("none" if secret is None else "client_secret_post")
        if method not in AUTH_METHODS:
            raise ValueError(f"token_endpoint_auth_method must be one of {', '.join(AUTH_METHODS)}")
        if (secret is None) == (method in _SECRET_METHODS) or secret == "":
            raise ValueError(f"client_secret is required with {', '.join(_SECRET_METHODS)} only")
        if method == "private_key_jwt" and public_key is None:
            raise ValueError("public_key is required with private_key_jwt")
        if method in CERTIFICATE_METHODS and certificate is None:
            raise ValueError(f"certificate is required with {method}")
        return cls(client_id, secret, method, tuple(redirect_uris), public_key, certificate)

    @classmethod
    def from_request(cls, authorization: str | None, params: dict[str, str]) -> Client:
        """Read the credentials of a request (RFC 6749 section 2.3.1)."""
        secret = params.get("client_secret")
        if authorization is None:
            method = "none" if secret is None else "client_secret_post"
            return cls(params.get("client_id", ""), secret, method)
        client_id, password = _decode_basic(authorization)
        if secret is not None or params.get("client_id", client_id) != client_id:
            raise OAuthError("invalid_request", "the client uses two authentication methods")
        return cls(client_id, password, "client_secret_basic")


def _decode_text(text: str) -> str:
    """Decode a form-encoded name or value; raise ValueError if it is not form-encoded."""
    if not _FORM_ENCODED.fullmatch(text):
        raise ValueError("not form-encoded")
    return unquote_plus(text, errors="strict")


def decode_form(body: bytes) -> list[tuple[str, str]] | None:
    """Return the pairs of a form, or None if the body is not form-encoded."""
    try:
        pairs = [pair.split("=") for pair in body.decode("ascii").split("&") if body]
        return [(_decode_text(name), _decode_text(value)) for name, value in pairs]
    except ValueError:
        return None


def _decode_basic(authorization: str) -> tuple[str, str]:
    """Return the client id and secret of a Basic header, empty if it is malformed."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        user, _, password = b64decode(encoded, validate=True).decode("ascii").partition(":")
        client_id, secret = _decode_text(user), _decode_text(password)
    except ValueError:
        return "", ""
    return (client_id, secret) if scheme.lower() == "basic" else ("", "")


def parse_params(request: HTTPRequest) -> dict[str, str]:
    """Return the parameters of a request to a client endpoint.

    RFC 6749 section 3.2 lets a server treat an empty value as an omitted one; real providers
    refuse it, so it is refused here.
    """
    if request.method != "POST":
        raise OAuthError("invalid_request", "use POST", 405, {**NO_STORE, "Allow": "POST"})
    if request.query:
        raise OAuthError("invalid_request", "parameters must be in the body")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise OAuthError("invalid_request", f"the Content-Type is not {_FORM}")
    if "content-length" not in request.headers:
        raise OAuthError("invalid_request", "Content-Length is missing", 411)
    if request.form is None:
        raise OAuthError("invalid_request", "the body is not form-encoded")
    params = dict(request.form)
    once = [name for name, _ in request.form if name != RESOURCE]  # RFC 8707 section 2
    if len(set(once)) != len(once):
        raise OAuthError("invalid_request", "a parameter is repeated")
    if not all(value for _, value in request.form):
        raise OAuthError("invalid_request", "a parameter is empty")
    return params


@dataclass
class TokenFamily:
    """The tokens of one sign-in, which are revoked together."""

    subject: str
    client_id: str
    scope: str
    revoked: bool = False
    refreshes: int = 0


@dataclass
class Token:
    """An access token or a refresh token."""

    family: TokenFamily
    expires_at: float
    scope: str
    resources: tuple[str, ...] = ()
    used: bool = False
    revoked: bool = False

    def is_live(self, now: float) -> bool:
        """Return whether the token is valid at *now*, in UTC epoch seconds."""
        revoked = self.revoked or self.family.revoked
        return not (self.used or revoked) and now < self.expires_at


class TokenRegistry:
    """Every token ever issued.

    Args:
        expires_in: Lifetime of an access token in seconds, or None for no expiry.
        rotate: Whether a refresh uses up the refresh token and issues a new one.
        lifetime: Lifetime of a refresh token in seconds, or None for no expiry.
        resources: What an access token may be requested for (RFC 8707), or None for anything.

    Attributes:
        families: Every sign-in.
        access_tokens: Access tokens by their values.
        refresh_tokens: Refresh tokens by their values.
        reuses: How often a used refresh token was presented again.
    """

    def __init__(
        self,
        expires_in: float | None,
        *,
        rotate: bool,
        lifetime: float | None,
        resources: Iterable[str] | None = None,
    ) -> None:
        self._expires_in = expires_in
        self._resources = None if resources is None else frozenset(resources)
        self._rotate = rotate
        self._lifetime = math.inf if lifetime is None else lifetime
        self.families: list[TokenFamily] = []
        self.access_tokens: dict[str, Token] = {}
        self.refresh_tokens: dict[str, Token] = {}
        self.reuses = 0

    def sign_in(self, family: TokenFamily, now: float, *, offline: bool = True) -> dict[str, Any]:
        """Add a family and return its first tokens, with a refresh token only if *offline*."""
        self.families.append(family)
        return self._issue(family, family.scope, now, refreshable=offline)

    def revoke(self, client_id: str, params: dict[str, str]) -> None:
        """Revoke an access token, or a refresh token with its whole family (RFC 7009)."""
        if "token" not in params:
            raise OAuthError("invalid_request", "token is missing")
        refresh_token = self.refresh_tokens.get(params["token"])
        token = refresh_token or self.access_tokens.get(params["token"])
        if token is None:
            return  # an unknown token counts as revoked
        if token.family.client_id != client_id:
            raise OAuthError("unauthorized_client", "the token was not issued to this client")
        token.revoked = True
        token.family.revoked |= token is refresh_token

    def refresh(
        self,
        client_id: str,
        params: dict[str, str],
        now: float,
        *,
        resources: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Handle a refresh (RFC 6749 section 6) with rotation (RFC 9700 section 4.14.2).

        The access token is for the requested scope and resources alone; the grant of the refresh
        token stays as it is.
        """
        if "refresh_token" not in params:
            raise OAuthError("invalid_request", "refresh_token is missing")
        token = self.refresh_tokens.get(params["refresh_token"])
        if token is None or token.family.client_id != client_id:
            raise OAuthError("invalid_grant", "the refresh token was not issued to this client")
        if token.used:
            self.reuses += 1
            token.family.revoked = True
            raise OAuthError("invalid_grant", "the refresh token was used before")
        if not token.is_live(now):
            raise OAuthError("invalid_grant", "the refresh token has expired or was revoked")
        scope = params.get("scope", token.family.scope)
        if not set(scope.split(" ")) <= set(token.family.scope.split(" ")):
            raise OAuthError("invalid_scope", "the scope exceeds what was granted")
        if self._resources is not None and not self._resources.issuperset(resources):
            raise OAuthError("invalid_target", "the resource is unknown")
        token.used = self._rotate
        token.family.refreshes += 1
        return self._issue(token.family, scope, now, refreshable=self._rotate, resources=resources)

    def _issue(
        self,
        family: TokenFamily,
        scope: str,
        now: float,
        *,
        refreshable: bool,
        resources: Sequence[str] = (),
    ) -> dict[str, Any]:
        access_token = secrets.token_urlsafe()
        response: dict[str, Any] = {"access_token": access_token, "token_type": "Bearer"}
        lifetime = math.inf
        if self._expires_in is not None:
            response["expires_in"] = lifetime = self._expires_in
        self.access_tokens[access_token] = Token(family, now + lifetime, scope, tuple(resources))
        if refreshable:
            response["refresh_token"] = secrets.token_urlsafe()
            self.refresh_tokens[response["refresh_token"]] = Token(
                family, now + self._lifetime, family.scope
            )
        return {**response, "scope": scope}
