"""The authorization server: routes requests, holds the state."""

from __future__ import annotations

import time
from dataclasses import replace
from ssl import CERT_OPTIONAL, CERT_REQUIRED, PROTOCOL_TLS_SERVER, SSLContext
from threading import Lock
from typing import TYPE_CHECKING, Any

from tokenstore.testing import browser
from tokenstore.testing.authorize import AuthorizationPages
from tokenstore.testing.codes import Codes
from tokenstore.testing.devices import Devices
from tokenstore.testing.dialects import DIALECTS, Dialect
from tokenstore.testing.endpoints import DEFAULT_SCOPE, DEVICE, REVOKE, TOKEN, Endpoints, metadata
from tokenstore.testing.http import LoopbackHTTPServer, ScriptedResponse
from tokenstore.testing.protocol import (
    ANY_CALLBACK,
    REDIRECT_URIS,
    Client,
    HTTPRequest,
    OAuthError,
    TokenFamily,
    TokenRegistry,
)
from tokenstore.testing.script import Answer, Step, TokenRequest
from tokenstore.testing.steps import StepRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from os import PathLike

    from tokenstore.oauth.provider import Provider

_DEFAULT_SECRET = "p+a/b=:%é€"  # noqa: S105 - made up; wrong encoding breaks every character
_USERS = {"alice": "wonderland", "bob": "builder", "carol": "christmas"}
_PROVIDER_SETTINGS = (
    "issuer",
    "authorization_endpoint",
    "device_authorization_endpoint",
    "revocation_endpoint",
    "authorization_response_iss_parameter_supported",
)
_PLACES = {"redirect_uri", "token_origins"}  # of the real provider
_WELL_KNOWN = ("/.well-known/openid-configuration", "/.well-known/oauth-authorization-server")


class AuthorizationServer:
    """A strict authorization server on 127.0.0.1, which listens as soon as it is constructed.

    Endpoints: ``POST /token``; the sign-in page ``/authorize`` (PKCE with S256, RFC 7636, and the
    ``iss`` of RFC 9207); ``POST /device_authorization`` with the page ``/device`` (RFC 8628);
    ``POST /revoke`` (RFC 7009); ``GET /userinfo``, a protected resource (RFC 6750); and the
    metadata of RFC 8414 under both well-known names. All methods are thread-safe.

    Args:
        expires_in: Lifetime of an access token in seconds. With None it does not expire, and
            responses have no ``expires_in``.
        rotate: Whether a refresh uses up the refresh token and returns a new one. With False the
            refresh token stays valid, and responses to a refresh omit it.
        refresh_token_lifetime: Lifetime of a refresh token in seconds. Defaults to no expiry.
        clock: Returns UTC epoch seconds, for every expiry.
        client_id: The default client.
        client_secret: Its secret, or None for a public client.
        token_endpoint_auth_method: ``client_secret_basic``, ``client_secret_post``, ``none``,
            ``client_secret_jwt``, ``private_key_jwt``, ``tls_client_auth`` or
            ``self_signed_tls_client_auth``. Defaults to ``client_secret_post`` with a secret and
            ``none`` without.
        users: Passwords by user names, for the sign-in pages.
        offline_access: Whether a sign-in on a page returns a refresh token only with the scope
            ``offline_access``.
        iss_parameter: Whether redirects have the parameter ``iss`` (RFC 9207).
        device_expires_in: Lifetime of a device code in seconds.
        device_interval: Minimum seconds between two polls of a device.
        dialect: The name of a provider in the catalogue whose token endpoint is imitated: what it
            demands of a request, the shape of its responses, and its words for a refresh token that
            is not valid. Defaults to RFC 6749. `provider` returns the settings of that provider.
        public_key: The default client's public key in PEM format. It verifies the assertions with
            which the client authenticates, and those of the grant ``jwt-bearer``, which the client
            may issue for each of the users and for itself.
        certificate: The default client's certificate in PEM format. The server accepts no
            connection without a registered certificate then; it requires *tls*.
        tls: The server's own certificate and its key, as PEM files. With it the server speaks
            https. Defaults to plain HTTP.
        resources: What an access token may be requested for in a refresh: values of ``resource``
            (RFC 8707) or ``audience``. Defaults to anything.

    Attributes:
        issuer: The URL of the server, which is its issuer identifier (RFC 8414).
        token_endpoint: The URL of the token endpoint.

    Raises:
        ValueError: The authentication method is unknown or does not match the secret, or the
            dialect is unknown.
    """

    def __init__(
        self,
        *,
        expires_in: float | None = 3600,
        rotate: bool = True,
        refresh_token_lifetime: float | None = None,
        clock: Callable[[], float] = time.time,
        client_id: str = "tokenstore",
        client_secret: str | None = _DEFAULT_SECRET,
        token_endpoint_auth_method: str | None = None,
        users: Mapping[str, str] = _USERS,
        offline_access: bool = False,
        iss_parameter: bool = True,
        device_expires_in: float = 600,
        device_interval: float = 5,
        dialect: str | None = None,
        public_key: str | None = None,
        certificate: str | None = None,
        tls: tuple[str | PathLike[str], str | PathLike[str]] | None = None,
        resources: Iterable[str] | None = None,
    ) -> None:
        client = Client.register(
            client_id,
            client_secret,
            token_endpoint_auth_method,
            (*REDIRECT_URIS, ANY_CALLBACK),
            public_key=public_key,
            certificate=certificate,
        )
        self._tls = _tls_context(tls, requires_certificate=certificate is not None)
        self._accept(certificate)
        self._dialect_name = dialect
        self._dialect = _dialect(dialect)
        self._default = client
        self._clients = {client_id: client}
        self._tokens = TokenRegistry(
            expires_in, rotate=rotate, lifetime=refresh_token_lifetime, resources=resources
        )
        self._clock = clock
        self._lock = Lock()  # guards clients and tokens; not held while waiting
        self._http = LoopbackHTTPServer(self._respond, self._tls)
        self._runner = StepRunner(self._handle, self._http.closing)
        self._script = self._runner.steps
        scheme = "http" if self._tls is None else "https"
        self.issuer = f"{scheme}://127.0.0.1:{self._http.server_address[1]}"
        self.token_endpoint = f"{self.issuer}{TOKEN}"
        self._users = dict(users)
        self._metadata = metadata(self.issuer, iss_parameter=iss_parameter)
        codes = Codes()
        devices = Devices(expires_in=device_expires_in, interval=device_interval)
        iss = self.issuer if iss_parameter else None
        self._pages = AuthorizationPages(
            iss, self._clients, self._users, codes, devices, DEFAULT_SCOPE
        )
        self._endpoints = Endpoints(
            self.issuer,
            self._clients,
            self._tokens,
            codes,
            devices,
            self._users,
            offline_access=offline_access,
        )

    def __enter__(self) -> AuthorizationServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and close every connection, even if it is held or dripping."""
        self._http.close()

    def register(
        self,
        client_id: str,
        client_secret: str | None = None,
        token_endpoint_auth_method: str | None = None,
        redirect_uris: Iterable[str] = REDIRECT_URIS,
        *,
        public_key: str | None = None,
        certificate: str | None = None,
    ) -> None:
        """Register a client, or replace the one with that id.

        Args:
            client_id: Its id.
            client_secret: Its secret, or None for a public client.
            token_endpoint_auth_method: As for the constructor.
            redirect_uris: Its redirect URIs. They must match exactly, except that a loopback URI
                without a port matches any port (RFC 8252 section 7.3).
            public_key: As for the constructor.
            certificate: As for the constructor.

        Raises:
            ValueError: The authentication method is unknown or does not match the secret.
        """
        client = Client.register(
            client_id,
            client_secret,
            token_endpoint_auth_method,
            redirect_uris,
            public_key=public_key,
            certificate=certificate,
        )
        self._accept(certificate)
        with self._lock:
            self._clients[client_id] = client

    def _accept(self, certificate: str | None) -> None:
        """Accept connections with a client's certificate, which is compared with each request."""
        if certificate is not None:
            if self._tls is None:
                raise ValueError("a client's certificate requires a server with tls")
            self._tls.load_verify_locations(cadata=certificate)

    def provider(self, name: str = "test", **changes: Any) -> Provider:
        """Return a provider for the default client.

        Its redirect URI is registered. Until a provider of another name than ``test`` is requested,
        the default client may return to the callback path of any provider.

        Args:
            name: The provider's name.
            **changes: Arguments of ``Provider`` to add or replace.
        """
        from tokenstore.oauth.builtin import built_in
        from tokenstore.oauth.provider import Provider

        settings: dict[str, Any] = {
            "token_endpoint": self.token_endpoint,
            "client_id": self._default.client_id,
            "client_secret": self._default.secret,
            "token_endpoint_auth_method": self._default.method,
            **{name: self._metadata[name] for name in _PROVIDER_SETTINGS},
            "sign_in_scope": DEFAULT_SCOPE,
        }
        if self._dialect_name is not None:
            known = built_in()[self._dialect_name].settings
            facts = {k: v for k, v in known.items() if k not in settings and k not in _PLACES}
            settings = {**facts, **settings, "issuer": None}
        provider = Provider(name, **{**settings, **changes})
        if provider.client_id == self._default.client_id and provider.redirect_uri is None:
            self._allow_redirect(provider.callback_uri)
        return provider

    def _allow_redirect(self, uri: str) -> None:
        with self._lock:
            client = self._clients[self._default.client_id]
            if client is self._default and uri not in client.redirect_uris:
                uris = [known for known in client.redirect_uris if known != ANY_CALLBACK]
                self._default = replace(client, redirect_uris=(*uris, uri))
                self._clients[client.client_id] = self._default

    def sign_in(
        self, subject: str = "alice", *, scope: str | None = None, client_id: str | None = None
    ) -> dict[str, Any]:
        """Sign a user in and return the tokens; earlier sign-ins are not affected.

        Args:
            subject: The user.
            scope: The scopes granted, separated by single spaces. Defaults to ``openid``.
            client_id: The client that gets the tokens. Defaults to the default client.

        Returns:
            The token response (RFC 6749 section 5.1).

        Raises:
            KeyError: The client is not registered.
        """
        now = self._clock()
        with self._lock:
            client = self._clients[client_id or self._default.client_id]
            family = TokenFamily(subject, client.client_id, scope or DEFAULT_SCOPE)
            return self._tokens.sign_in(family, now)

    def visit(
        self, url: str, username: str = "alice", *, allow: bool = True, user_code: str = ""
    ) -> browser.Page:
        """Act as a user with a browser: open *url*, sign in, and allow or refuse access.

        Args:
            url: A sign-in page of this server, or the page where the code of a device is entered.
            username: The user, one of ``users``.
            allow: Whether the user allows or refuses access.
            user_code: The code to enter if *url* does not contain it.

        Returns:
            The last page; after a redirect, that of the application.
        """
        password = self._users[username]
        return browser.visit(url, username, password, allow=allow, user_code=user_code)

    def script(self, *steps: Step, subject: str | None = None, path: str = TOKEN) -> None:
        """Script the next requests at an endpoint, one step per request, in order.

        Args:
            *steps: Steps to add to the script. When none is left, requests are handled normally.
            subject: Apply the steps only to requests with a refresh token of this subject.
                Defaults to any request.
            path: The endpoint: ``/token``, ``/revoke`` or ``/device_authorization``.
        """
        self._runner.script(steps, path=path, subject=subject)

    def revoke(self, subject: str) -> None:
        """Revoke every token of a subject.

        Raises:
            KeyError: The subject never signed in.
        """
        with self._lock:
            families = [family for family in self._tokens.families if family.subject == subject]
            for family in families:
                family.revoked = True
        if not families:
            raise KeyError(subject)

    @property
    def requests(self) -> list[TokenRequest]:
        """Requests that reached the token endpoint, in order of arrival."""
        return self._runner.requests(TOKEN)

    def requests_at(self, path: str) -> list[TokenRequest]:
        """Return the requests that reached an endpoint, in order of arrival."""
        return self._runner.requests(path)

    @property
    def reuses(self) -> int:
        """How often a client presented a refresh token that was used before."""
        with self._lock:
            return self._tokens.reuses

    def refreshes(self, subject: str | None = None) -> int:
        """Return the number of refreshes, lost responses included, of a subject or of all."""
        with self._lock:
            families = self._tokens.families
            return sum(f.refreshes for f in families if subject in (None, f.subject))

    def is_live(self, access_token: str) -> bool:
        """Return whether the access token is valid now."""
        return self._access_token_subject(access_token) is not None

    def audience(self, access_token: str) -> tuple[str, tuple[str, ...]]:
        """Return the scope and the resources that an access token is for.

        Raises:
            KeyError: The token was not issued here.
        """
        with self._lock:
            token = self._tokens.access_tokens[access_token]
            return token.scope, token.resources

    def _access_token_subject(self, access_token: str) -> str | None:
        now = self._clock()
        with self._lock:
            token = self._tokens.access_tokens.get(access_token)
            return token.family.subject if token is not None and token.is_live(now) else None

    def _respond(self, request: HTTPRequest) -> ScriptedResponse:
        """Return the response to a request."""
        if request.path == TOKEN:
            try:
                request = self._dialect.understood(request)
            except OAuthError as error:
                return error.response, None
        if request.path in {TOKEN, REVOKE, DEVICE}:
            return self._runner.run(request, self._refresh_token_subject(request))
        if request.method == "GET" and request.path == "/userinfo":
            return self._userinfo(request.headers.get("authorization", "")), None
        if request.method == "GET" and request.path in _WELL_KNOWN:
            return Answer(body=self._metadata), None
        now = self._clock()
        with self._lock:
            page = self._pages.respond(request, now)
        return page or Answer(404, {"error": "not_found"}), None

    def _userinfo(self, authorization: str) -> Answer:
        scheme, _, access_token = authorization.partition(" ")
        subject = self._access_token_subject(access_token) if scheme.lower() == "bearer" else None
        if subject is None:
            challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            return Answer(401, {"error": "invalid_token"}, challenge)
        return Answer(body={"sub": subject})

    def _handle(self, request: HTTPRequest) -> Answer:
        now = self._clock()
        with self._lock:
            answer = self._endpoints.respond(request, now)
        return self._dialect.spoken(answer, request) if request.path == TOKEN else answer

    def _refresh_token_subject(self, request: HTTPRequest) -> str | None:
        """Return the subject of the refresh token in a request, or None."""
        with self._lock:
            token = self._tokens.refresh_tokens.get(
                dict(request.form or ()).get("refresh_token", "")
            )
            return token.family.subject if token else None


def _dialect(name: str | None) -> Dialect:
    """Return how a provider of the catalogue speaks; some speak as RFC 6749 requires."""
    if name is None:
        return Dialect()
    from tokenstore.oauth.builtin import built_in

    if name not in built_in():
        raise ValueError(f"dialect must be one of {', '.join(built_in())}")
    return DIALECTS.get(name, Dialect())


def _tls_context(
    files: tuple[str | PathLike[str], str | PathLike[str]] | None, *, requires_certificate: bool
) -> SSLContext | None:
    if files is None:
        return None
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    context.verify_mode = CERT_REQUIRED if requires_certificate else CERT_OPTIONAL
    return context
