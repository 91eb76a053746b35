"""The server: its sockets, its endpoints, its state."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from socket import SHUT_RDWR
from socketserver import ThreadingTCPServer
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, TypeAlias

from tokenstore.testing.protocol import (
    AUTH_METHODS,
    NO_STORE,
    Client,
    Family,
    Ledger,
    Received,
    RefusedError,
    decode_form,
    parameters,
)
from tokenstore.testing.script import (
    Answer,
    Drip,
    Drop,
    Hold,
    Step,
    TokenRequest,
    Transform,
    Truncate,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenstore.providers import Provider

_DEFAULT_SECRET = "p+a/b=:%é€"  # noqa: S105 - made up; sloppy encoding breaks every character
_DEFAULT_SCOPE = "openid"
_POLL = 0.02  # seconds
_Reply: TypeAlias = "tuple[Answer | None, Step | None]"
_WELL_KNOWN = ("/.well-known/openid-configuration", "/.well-known/oauth-authorization-server")


class _Handler(BaseHTTPRequestHandler):
    """One connection: HTTP in, answers out, as slowly and as broken as the script wants."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self._read_body(headers)
        if body is None:
            self.close_connection = True
            return
        answer, step = self.server.respond(
            Received(self.command, path, query, headers, decode_form(body))
        )
        if answer is None:
            self.close_connection = True
        else:
            self._send(answer, step)

    def _read_body(self, headers: dict[str, str]) -> bytes | None:
        """Return the body, or None if the client left before its end."""
        length = headers.get("content-length", "")
        if not length.isdecimal():
            # A body of unknown length stays unread, and would be taken for the next request.
            self.close_connection |= self.command == "POST"
            return b""
        body = self.rfile.read(int(length))
        return body if len(body) == int(length) else None

    def _send(self, answer: Answer, step: Step | None) -> None:
        self.close_connection |= isinstance(step, Truncate)
        body = answer.encoded()
        head = self._head(answer, len(body))
        match step:
            case Drip(interval=interval, headers=True):
                self._drip(head + body, interval)
            case Drip(interval=interval):
                self.wfile.write(head)
                self._drip(body, interval)
            case Truncate(missing=missing):
                self.wfile.write(head + body[: max(0, len(body) - missing)])
            case _:
                self.wfile.write(head + body)

    def _head(self, answer: Answer, length: int) -> bytes:
        phrase, _ = self.responses.get(answer.status, ("", ""))
        headers = {**answer.headers, "Content-Length": str(length)}
        if answer.content_type is not None:
            headers["Content-Type"] = answer.content_type
        if self.close_connection:
            headers["Connection"] = "close"
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        return f"HTTP/1.1 {answer.status} {phrase}\r\n{''.join(lines)}\r\n".encode("latin-1")

    def _drip(self, data: bytes, interval: float) -> None:
        for number in data:
            self.wfile.write(bytes([number]))
            if self.server.closing.wait(interval):
                break

    def log_message(self, *_: Any) -> None:
        """Write nothing: a test's output is its own."""


class _Listener(ThreadingTCPServer):
    """The listening socket and its connections. No HTTPServer: that asks DNS for its own name."""

    request_queue_size = 256

    def __init__(self, respond: Callable[[Received], _Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.respond = respond
        self.closing = Event()
        self._open: dict[Any, Thread] = {}
        self._thread = Thread(target=self.serve_forever, args=(_POLL,), daemon=True)
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        arguments = (request, client_address)
        thread = Thread(target=self.process_request_thread, args=arguments, daemon=True)
        self._open[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self._open.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over clients that went away; show what else fails, such as a Transform."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection, thread in list(self._open.items()):
            with suppress(OSError):
                connection.shutdown(SHUT_RDWR)
            thread.join(timeout=1)


class AuthorizationServer:
    """A strict authorization server on 127.0.0.1, ready as soon as it is made.

    Endpoints: ``POST /token``; ``GET /userinfo``, a protected resource (RFC 6750); and the
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
    ) -> None:
        client = Client.register(client_id, client_secret, token_endpoint_auth_method)
        self._default = client
        self._clients = {client_id: client}
        self._ledger = Ledger(expires_in, rotate=rotate, lifetime=refresh_token_lifetime)
        self._clock = clock
        self._lock = Lock()  # around clients, ledger, script and requests; never while waiting
        self._script: list[tuple[str | None, Step]] = []
        self._requests: list[TokenRequest] = []
        self._listener = _Listener(self._respond)
        self.issuer = f"http://127.0.0.1:{self._listener.server_address[1]}"
        self.token_endpoint = f"{self.issuer}/token"

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
    ) -> None:
        """Add a client, or replace the one of that id; the arguments are the constructor's.

        Raises:
            ValueError: The authentication method is unknown or does not go with the secret.
        """
        client = Client.register(client_id, client_secret, token_endpoint_auth_method)
        with self._lock:
            self._clients[client_id] = client

    def provider(self, name: str = "test", **changes: Any) -> Provider:
        """Return a provider for the default client.

        Args:
            name: The provider's name.
            **changes: Arguments of ``Provider`` to add or to replace.
        """
        from tokenstore.providers import Provider

        settings: dict[str, Any] = {
            "token_endpoint": self.token_endpoint,
            "client_id": self._default.client_id,
            "client_secret": self._default.secret,
            "token_endpoint_auth_method": self._default.method,
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
            family = Family(subject, client.client_id, scope or _DEFAULT_SCOPE)
            return self._ledger.sign_in(family, now)

    def script(self, *steps: Step, subject: str | None = None) -> None:
        """Say what happens to the next requests at the token endpoint, one step each, in order.

        Args:
            *steps: What to do; they follow those scripted before. When none is left, requests
                are handled normally.
            subject: Keep the steps for requests with a refresh token of this subject; None:
                for any request.
        """
        with self._lock:
            self._script += [(subject, step) for step in steps]

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
        with self._lock:
            return list(self._requests)

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

    def _respond(self, received: Received) -> _Reply:
        """Return what to send, None for nothing, and the scripted step that says how."""
        if received.path == "/token":
            return self._token(received)
        if received.method == "GET" and received.path == "/userinfo":
            return self._userinfo(received.headers.get("authorization", "")), None
        if received.method == "GET" and received.path in _WELL_KNOWN:
            return Answer(body=self._metadata()), None
        return Answer(404, {"error": "not_found"}), None

    def _userinfo(self, authorization: str) -> Answer:
        scheme, _, access_token = authorization.partition(" ")
        subject = self._holder(access_token) if scheme.lower() == "bearer" else None
        if subject is None:
            challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            return Answer(401, {"error": "invalid_token"}, challenge)
        return Answer(body={"sub": subject})

    def _metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": self.token_endpoint,
            "userinfo_endpoint": f"{self.issuer}/userinfo",
            "token_endpoint_auth_methods_supported": list(AUTH_METHODS),
            "grant_types_supported": ["refresh_token"],
            "response_types_supported": ["code"],
        }

    def _token(self, received: Received) -> _Reply:
        index, step = self._arrive(received)
        answer = self._play(step, received)
        if answer is not None:
            with self._lock:
                self._requests[index] = replace(
                    self._requests[index], status=answer.status, error=answer.error
                )
        return answer, step

    def _arrive(self, received: Received) -> tuple[int, Step | None]:
        """Record a request and take the step that is scripted for it."""
        params = dict(received.form or ())
        with self._lock:
            token = self._ledger.refresh.get(params.get("refresh_token", ""))
            subject = token.family.subject if token else None
            self._requests.append(
                TokenRequest(received.method, received.path, received.headers, params, subject)
            )
            for position, (limit, step) in enumerate(self._script):
                if limit in (None, subject):
                    del self._script[position]
                    return len(self._requests) - 1, step
            return len(self._requests) - 1, None

    def _play(self, step: Step | None, received: Received) -> Answer | None:
        """Do what the step says; return the answer, or None to drop the connection."""
        match step:
            case Answer():
                return step
            case Drop(spent=False):
                return None
            case Hold() if not self._wait(step):
                return None
        answer = self._handle(received)
        match step:
            case Drop():
                return None
            case Transform(change=change, content_type=content_type):
                body = change(json.loads(answer.encoded()))
                return replace(answer, body=body, content_type=content_type)
        return answer

    def _wait(self, hold: Hold) -> bool:
        """Return whether the request was released, rather than the server closed."""
        hold.arrived.set()
        while not hold.release.wait(_POLL):
            if self._listener.closing.is_set():
                return False
        return True

    def _handle(self, received: Received) -> Answer:
        """Answer a token request by the rules (RFC 6749 section 5)."""
        now = self._clock()
        try:
            params = parameters(received)
            with self._lock:
                client_id = self._authenticate(received.headers.get("authorization"), params)
                body = self._ledger.exchange(client_id, params, now)
        except RefusedError as refusal:
            return refusal.answer
        return Answer(200, body, NO_STORE)

    def _authenticate(self, authorization: str | None, params: dict[str, str]) -> str:
        client = Client.presented(authorization, params)
        if self._clients.get(client.client_id) == client:
            return client.client_id
        basic = {} if authorization is None else {"WWW-Authenticate": 'Basic realm="tokens"'}
        raise RefusedError("invalid_client", "unknown client", 401, {**NO_STORE, **basic})
