"""The server: its endpoints, its state, its script."""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING, Any

from tokenstore.testing import browser
from tokenstore.testing.authorize import FrontDoor
from tokenstore.testing.codes import Codes
from tokenstore.testing.devices import Devices
from tokenstore.testing.endpoints import DEFAULT_SCOPE, DEVICE, REVOKE, TOKEN, Endpoints, metadata
from tokenstore.testing.http import Listener, Reply
from tokenstore.testing.protocol import REDIRECT_URIS, Client, Family, Ledger, Received
from tokenstore.testing.script import Answer, Step, TokenRequest
from tokenstore.testing.steps import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tokenstore.oauth.provider import Provider

_DEFAULT_SECRET = "p+a/b=:%é€"  # noqa: S105 - made up; sloppy encoding breaks every character
_USERS = {"alice": "wonderland", "bob": "builder", "carol": "christmas"}
_TOLD = (
    "issuer",
    "authorization_endpoint",
    "device_authorization_endpoint",
    "revocation_endpoint",
    "authorization_response_iss_parameter_supported",
)
_WELL_KNOWN = ("/.well-known/openid-configuration", "/.well-known/oauth-authorization-server")


class AuthorizationServer:
    """A strict authorization server on 127.0.0.1, ready as soon as it is made.

    Endpoints: ``POST /token``; the sign-in page ``/authorize`` (PKCE with S256, RFC 7636, and the
    ``iss`` of RFC 9207); ``POST /device_authorization`` with the page ``/device`` (RFC 8628);
    ``POST /revoke`` (RFC 7009); ``GET /userinfo``, a protected resource (RFC 6750); and the
    metadata of RFC 8414 under both well-known names. All methods may be called by any thread.

    Args:
        expires_in: Seconds an access token lives; None: for ever, and answers do not say.
        rotate: Whether a refresh spends the refresh token and gives a new one. False keeps the
            old one, which the answer then omits.
        refresh_token_lifetime: Seconds a refresh token lives, from its issue; None: for ever.
        clock: Returns UTC epoch seconds; all tokens expire by it.
        client_id: The default client.
        client_secret: Its secret; None for a public client.
        token_endpoint_auth_method: ``client_secret_basic``, ``client_secret_post`` or ``none``;
            None: post with a secret, none without.
        users: Passwords by user names, of those who can sign in on the page.
        offline_access: Whether a sign-in on a page gives a refresh token only if it asks for the
            scope ``offline_access``.
        iss_parameter: Whether the browser brings back who sent it (RFC 9207).
        device_expires_in: Seconds a device code lives.
        device_interval: Seconds that a device has to leave between two questions.

    Attributes:
        issuer: The server's URL, its identity in RFC 8414.
        token_endpoint: The URL of the token endpoint.

    Raises:
        ValueError: The authentication method is unknown or does not go with the secret.
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
    ) -> None:
        client = Client.register(client_id, client_secret, token_endpoint_auth_method)
        self._default = client
        self._clients = {client_id: client}
        self._ledger = Ledger(expires_in, rotate=rotate, lifetime=refresh_token_lifetime)
        self._clock = clock
        self._lock = Lock()  # around clients and tokens; never while waiting
        self._listener = Listener(self._respond)
        self._stage = Stage(self._handle, self._listener.closing)
        self._script = self._stage.steps
        self.issuer = f"http://127.0.0.1:{self._listener.server_address[1]}"
        self.token_endpoint = f"{self.issuer}{TOKEN}"
        self._users = dict(users)
        self._metadata = metadata(self.issuer, iss_parameter=iss_parameter)
        codes = Codes()
        devices = Devices(expires_in=device_expires_in, interval=device_interval)
        iss = self.issuer if iss_parameter else None
        self._door = FrontDoor(iss, self._clients, self._users, codes, devices, DEFAULT_SCOPE)
        self._endpoints = Endpoints(
            self.issuer,
            self._clients,
            self._ledger,
            codes,
            devices,
            offline_access=offline_access,
        )

    def __enter__(self) -> AuthorizationServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and cut every connection, held and dripping ones too."""
        self._listener.close()

    def register(
        self,
        client_id: str,
        client_secret: str | None = None,
        token_endpoint_auth_method: str | None = None,
        redirect_uris: Iterable[str] = REDIRECT_URIS,
    ) -> None:
        """Add a client, or replace the one of that id; the arguments are the constructor's.

        Its redirect URIs match exactly, but for the port of one on loopback that names none
        (RFC 8252 section 7.3).

        Raises:
            ValueError: The authentication method is unknown or does not go with the secret.
        """
        client = Client.register(
            client_id, client_secret, token_endpoint_auth_method, redirect_uris
        )
        with self._lock:
            self._clients[client_id] = client

    def provider(self, name: str = "test", **changes: Any) -> Provider:
        """Return a provider for the default client.

        Args:
            name: The provider's name.
            **changes: Arguments of ``Provider`` to add or to replace.
        """
        from tokenstore.oauth.provider import Provider

        settings: dict[str, Any] = {
            "token_endpoint": self.token_endpoint,
            "client_id": self._default.client_id,
            "client_secret": self._default.secret,
            "token_endpoint_auth_method": self._default.method,
            **{name: self._metadata[name] for name in _TOLD},
            "sign_in_scope": DEFAULT_SCOPE,
        }
        return Provider(name, **{**settings, **changes})

    def sign_in(
        self, subject: str = "alice", *, scope: str | None = None, client_id: str | None = None
    ) -> dict[str, Any]:
        """Sign somebody in anew; earlier sign-ins stay as they are.

        Args:
            subject: Who signs in.
            scope: The scopes granted, with single spaces between them; None: ``openid``.
            client_id: The client that gets the tokens; None: the default client.

        Returns:
            The token answer (RFC 6749 section 5.1).

        Raises:
            KeyError: No such client is registered.
        """
        now = self._clock()
        with self._lock:
            client = self._clients[client_id or self._default.client_id]
            family = Family(subject, client.client_id, scope or DEFAULT_SCOPE)
            return self._ledger.sign_in(family, now)

    def visit(
        self, url: str, username: str = "alice", *, allow: bool = True, user_code: str = ""
    ) -> browser.Page:
        """Be the person in front of the browser: open *url*, sign in, decide.

        Args:
            url: A sign-in page of this server, or the one where a device's code is entered.
            username: Who signs in, one of the users.
            allow: What the person decides.
            user_code: The code to enter where the page does not have it yet.

        Returns:
            The page on which it ends; after a redirect, that of the application.
        """
        password = self._users[username]
        return browser.visit(url, username, password, allow=allow, user_code=user_code)

    def script(self, *steps: Step, subject: str | None = None, path: str = TOKEN) -> None:
        """Say what happens to the next requests at an endpoint, one step each, in order.

        Args:
            *steps: What to do; they follow those scripted before. When none is left, requests
                are handled normally.
            subject: Keep the steps for requests with a refresh token of this subject; None:
                for any request.
            path: The endpoint: ``/token``, ``/revoke`` or ``/device_authorization``.
        """
        self._stage.script(steps, path=path, subject=subject)

    def revoke(self, subject: str) -> None:
        """Revoke every token of a subject.

        Raises:
            KeyError: The subject never signed in.
        """
        with self._lock:
            families = [family for family in self._ledger.families if family.subject == subject]
            for family in families:
                family.revoked = True
        if not families:
            raise KeyError(subject)

    @property
    def requests(self) -> list[TokenRequest]:
        """Every request that reached the token endpoint, in order of arrival."""
        return self._stage.requests(TOKEN)

    def requests_at(self, path: str) -> list[TokenRequest]:
        """Return every request that reached an endpoint of `script`, in order of arrival."""
        return self._stage.requests(path)

    @property
    def reuses(self) -> int:
        """How many times a client presented a refresh token that it had spent before."""
        with self._lock:
            return self._ledger.reuses

    def refreshes(self, subject: str | None = None) -> int:
        """Return how many refreshes were granted, lost answers included; None: to anybody."""
        with self._lock:
            families = self._ledger.families
            return sum(each.refreshes for each in families if subject in (None, each.subject))

    def is_live(self, access_token: str) -> bool:
        """Return whether the protected resource would accept this access token now."""
        return self._holder(access_token) is not None

    def _holder(self, access_token: str) -> str | None:
        now = self._clock()
        with self._lock:
            token = self._ledger.access.get(access_token)
            return token.family.subject if token is not None and token.is_live(now) else None

    def _respond(self, received: Received) -> Reply:
        """Return what to send, None for nothing, and the scripted step that says how."""
        if received.path in {TOKEN, REVOKE, DEVICE}:
            return self._stage.perform(received, self._subject_of(received))
        if received.method == "GET" and received.path == "/userinfo":
            return self._userinfo(received.headers.get("authorization", "")), None
        if received.method == "GET" and received.path in _WELL_KNOWN:
            return Answer(body=self._metadata), None
        now = self._clock()
        with self._lock:
            page = self._door.respond(received, now)
        return page or Answer(404, {"error": "not_found"}), None

    def _userinfo(self, authorization: str) -> Answer:
        scheme, _, access_token = authorization.partition(" ")
        subject = self._holder(access_token) if scheme.lower() == "bearer" else None
        if subject is None:
            challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            return Answer(401, {"error": "invalid_token"}, challenge)
        return Answer(body={"sub": subject})

    def _handle(self, received: Received) -> Answer:
        now = self._clock()
        with self._lock:
            return self._endpoints.answer(received, now)

    def _subject_of(self, received: Received) -> str | None:
        """Return whose refresh token a request brings."""
        with self._lock:
            token = self._ledger.refresh.get(dict(received.form or ()).get("refresh_token", ""))
            return token.family.subject if token else None
