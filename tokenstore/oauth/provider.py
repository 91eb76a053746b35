"""Providers: where tokens are refreshed, and as whom."""

from __future__ import annotations

import base64
import re
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus, urlsplit

from tokenstore.errors import ProviderConfigurationError
from tokenstore.redaction import protect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

AUTH_METHODS = ("client_secret_basic", "client_secret_post", "none")


@dataclass(frozen=True)
class Provider:
    """An authorization server and this application's registration with it.

    The names are those of RFC 8414 (the server) and RFC 7591 (the client). What is wrong with a
    provider shows when it is used, as a `ProviderConfigurationError`, before anything is sent.

    Attributes:
        name: What accounts are bound to.
        token_endpoint: URL that refreshes tokens: https, or http on loopback. None if the
            issuer's metadata is to tell.
        client_id: This application's id at the provider.
        client_secret: Its secret, or None for a public client.
        token_endpoint_auth_method: ``client_secret_basic``, ``client_secret_post`` or ``none``.
            None means post if there is a secret, else none.
        scope: Space-separated scopes to ask for when signing in and refreshing; None sends no
            ``scope`` with a refresh.
        authorization_endpoint: URL of the sign-in page.
        device_authorization_endpoint: URL of the device grant (RFC 8628).
        revocation_endpoint: URL that revokes tokens (RFC 7009).
        redirect_uri: Where the browser returns after a sign-in: http on loopback (RFC 8252
            section 7.3), as the provider knows it. Without a port, a free one is taken.
        sign_in_scope: Scopes that every sign-in asks for besides `scope`, or None.
        authorization_params: Further parameters of the sign-in page's URL.
        authorization_response_iss_parameter_supported: Whether the browser always brings back who
            sent it (RFC 9207); then an answer without that is refused.
        extra_params: Further parameters of the token request.
        default_expires_in: Seconds to assume for an answer without a usable ``expires_in``;
            ``math.inf`` for tokens that do not expire.
        body_format: ``form``, as RFC 6749 has it, or ``json`` for providers that want that.
        basic_form_encode: Whether id and secret are form-encoded before they go into the Basic
            header, as RFC 6749 section 2.3.1 has it; some providers do not decode them.
        refresh_token_lifetime: Seconds that a refresh token lives from when it was obtained, for
            providers that do not tell; None if it has no end.
        refresh_token_idle: Seconds that it lives without being used; None if it has no end.
        max_concurrency: How many accounts a fleet refresh asks it about at once; None: no limit.
        issuer: URL whose ``.well-known/openid-configuration`` fills the endpoints that are None.
    """

    name: str
    token_endpoint: str | None
    client_id: str
    _: KW_ONLY
    client_secret: str | None = field(default=None, repr=False)
    token_endpoint_auth_method: str | None = None
    scope: str | None = None
    authorization_endpoint: str | None = None
    device_authorization_endpoint: str | None = None
    revocation_endpoint: str | None = None
    redirect_uri: str = "http://127.0.0.1/callback"
    sign_in_scope: str | None = None
    authorization_params: Mapping[str, str] = field(default_factory=dict)
    authorization_response_iss_parameter_supported: bool = False
    extra_params: Mapping[str, str] = field(default_factory=dict, repr=False)
    default_expires_in: float = 3600.0
    body_format: str = "form"
    basic_form_encode: bool = True
    refresh_token_lifetime: float | None = None
    refresh_token_idle: float | None = None
    max_concurrency: int | None = None
    issuer: str | None = None

    @property
    def auth_method(self) -> str:
        """How the client authenticates: the method that was chosen, or the one that fits."""
        if self.token_endpoint_auth_method is not None:
            return self.token_endpoint_auth_method
        return "none" if self.client_secret is None else "client_secret_post"

    @property
    def basic_credentials(self) -> str:
        """Id and secret as a Basic header has them (secret!).

        They are form-encoded first (RFC 6749 section 2.3.1), unless told otherwise.
        """
        pair = [self.client_id, self.client_secret or ""]
        if self.basic_form_encode:
            pair = [quote_plus(part) for part in pair]
        return base64.b64encode(":".join(pair).encode()).decode()

    @property
    def client(self) -> str:
        """Whom a verdict about a refresh token was given to: this client at this endpoint."""
        return f"{self.client_id} {self.token_endpoint or self.issuer}"

    def require_usable(self) -> None:
        """Raise a `ProviderConfigurationError` unless a request could be sent."""
        for fault in (*self._faults_of_client(), *self._faults_of_endpoints(), *self._faults()):
            raise self.misconfigured(fault)

    def _faults_of_client(self) -> Iterator[str]:
        if not self.client_id or not isinstance(self.client_id, str):
            yield "has no client_id"
        if self.auth_method not in AUTH_METHODS:
            known = ", ".join(AUTH_METHODS)
            yield f"has an unknown token_endpoint_auth_method; use one of {known}"
        if self.auth_method != "none" and not self.client_secret:
            yield f"needs a client_secret for {self.auth_method}"

    def _faults_of_endpoints(self) -> Iterator[str]:
        if not self.token_endpoint and not self.issuer:
            yield "has neither a token_endpoint nor an issuer"
        for kind in ("token_endpoint", "issuer"):
            url = getattr(self, kind)
            if url and (reason := _refusal(url)):
                yield f"has a {kind} that {reason}"

    def _faults(self) -> Iterator[str]:
        if self.body_format not in {"form", "json"}:
            yield "has an unknown body_format; use form or json"
        for name in ("default_expires_in", "refresh_token_lifetime", "refresh_token_idle"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds > 0:
                yield f"needs a positive {name}"
        if self.max_concurrency is not None and self.max_concurrency < 1:
            yield "needs a max_concurrency of 1 or more"

    def with_metadata(self, metadata: Mapping[str, Any]) -> Provider:
        """Return this provider with its missing endpoints taken from *metadata* (RFC 8414)."""
        if metadata.get("issuer") != self.issuer:
            raise self.misconfigured("has an issuer that calls itself by another name")
        missing: dict[str, Any] = {
            name: metadata[name]
            for name in _ENDPOINTS
            if getattr(self, name) is None and isinstance(metadata.get(name), str)
        }
        if metadata.get(_ISS_SUPPORTED) is True:
            missing[_ISS_SUPPORTED] = True
        found = replace(self, **missing)
        if not found.token_endpoint:
            raise self.misconfigured("has an issuer whose metadata names no token_endpoint")
        found.require_usable()
        return found

    def endpoint(self, kind: str) -> str:
        """Return the URL of an endpoint that something is sent to, such as the device one.

        Raises:
            ProviderConfigurationError: There is none, or it must not be used.
        """
        url = getattr(self, kind)
        if not url or not isinstance(url, str):
            raise self.misconfigured(f"has no {kind}")
        if reason := _refusal(url):
            raise self.misconfigured(f"has a {kind} that {reason}")
        return url

    def misconfigured(self, what: str) -> ProviderConfigurationError:
        """Return the error that says what is wrong with this provider."""
        return ProviderConfigurationError(f"provider {self.name!r} {what}", provider=self.name)


_ISS_SUPPORTED = "authorization_response_iss_parameter_supported"
_ENDPOINTS = tuple(f.name for f in fields(Provider) if f.name.endswith("_endpoint"))


def _refusal(url: str) -> str | None:
    """Say why *url* must not be sent a secret, None if it may be."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        return "is no URL"
    if not host or parts.scheme not in {"https", "http"} or re.search(r"[\x00-\x20\x7f]", url):
        return "is no https URL"
    if parts.scheme == "http" and not is_loopback(host):
        return "is not https; http is for loopback only"
    if parts.username is not None or parts.password is not None:
        return "has a user name or password in it"
    if parts.fragment:
        return "has a fragment (#…)"
    return None


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine, by its name alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


protect(__name__)
