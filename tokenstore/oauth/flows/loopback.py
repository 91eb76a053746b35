"""The loopback redirect (RFC 8252 section 7.3): accepts one authorization response."""

from __future__ import annotations

import errno
import secrets
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socket import AF_INET, AF_INET6
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from tokenstore.oauth.flows import callback_page

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenstore.oauth.flows.callback_page import Page

_READ_TIMEOUT = 10.0  # seconds that a browser may take to send its request
_SEND_TIMEOUT = 5.0  # seconds that a browser may take to read the page
_SHUTDOWN_INTERVAL = 0.05  # seconds between two checks for a shutdown
_RETRIES = 20  # to find a port that is free on both addresses
_NO_IPV6 = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


class AuthorizationResponse:
    """The request of a browser that was redirected here; the browser waits for a page.

    Attributes:
        params: The query parameters (secret: the code is one of them).
        page: The page to show.
        sent: Set once the page was sent.
    """

    def __init__(self, params: Mapping[str, str]) -> None:
        self.params = params
        self.page: Future[Page] = Future()
        self.sent = threading.Event()

    def show(self, page: Page) -> None:
        """Send the page, unless another one was sent before, and wait until it is sent."""
        with suppress(InvalidStateError):
            self.page.set_result(page)
        self.sent.wait(_SEND_TIMEOUT)


class _Handler(BaseHTTPRequestHandler):
    """One connection, from the browser or any other program."""

    server: _Listener
    timeout = _READ_TIMEOUT
    server_version = "tokenstore"
    sys_version = ""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        redirect = self.server.redirect
        if path != redirect.path:
            self._send(callback_page.NOT_FOUND)
            return
        response = redirect.accept(query)
        if not isinstance(response, AuthorizationResponse):
            self._send(response)
            return
        try:
            self._send(response.page.result())
        finally:
            response.sent.set()

    def _send(self, page: Page) -> None:
        body = page.html().encode()
        self.send_response(page.status)
        for name, value in callback_page.HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Write no log: the URL contains the code."""


class _Listener(ThreadingTCPServer):
    """Listens on one address."""

    allow_reuse_address = True  # closed connections do not block the port; another listener does
    daemon_threads = True

    def __init__(self, address: str, port: int, redirect: RedirectServer) -> None:
        self.redirect = redirect
        self.address_family = AF_INET6 if ":" in address else AF_INET
        super().__init__((address, port), _Handler)
        self._thread = threading.Thread(
            target=self.serve_forever, args=(_SHUTDOWN_INTERVAL,), daemon=True
        )

    def start(self) -> None:
        """Accept connections, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore browsers that close their connection."""


class RedirectServer:
    """Listens on loopback for the authorization response, inside its ``with`` block.

    For ``localhost`` it listens on both of its addresses: browsers try ``::1`` first, and any user
    of the machine could listen there.

    Args:
        redirect_uri: The provider's redirect URI. Without a port, a free one is used.
        port: The port to listen on. 0 uses the port of the redirect URI, or a free one.
        state: The ``state`` that the authorization response must contain.

    Attributes:
        redirect_uri: The redirect URI with the port.
        path: Its path.

    Raises:
        OSError: The port is not available.
    """

    def __init__(self, redirect_uri: str, port: int, state: str) -> None:
        parts = urlsplit(redirect_uri)
        host = parts.hostname or ""
        self.path = parts.path or "/"
        self._state = state
        self._lock = threading.Lock()
        self._response: Future[AuthorizationResponse] = Future()
        self._listeners = self._listen(host, port or parts.port or 0)
        bound_port = self._listeners[0].server_address[1]
        name = f"[{host}]" if ":" in host else host
        self.redirect_uri = parts._replace(netloc=f"{name}:{bound_port}").geturl()

    def _listen(self, host: str, port: int, retries: int = _RETRIES) -> list[_Listener]:
        if host != "localhost":
            return [_Listener(host, port, self)]
        ipv4 = _Listener("127.0.0.1", port, self)
        try:
            return [ipv4, _Listener("::1", ipv4.server_address[1], self)]
        except OSError as error:
            if error.errno in _NO_IPV6:
                return [ipv4]
            ipv4.server_close()
            if port or not retries:
                raise
        return self._listen(host, port, retries - 1)

    def __enter__(self) -> RedirectServer:
        for listener in self._listeners:
            listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            cancelled = self._response.cancel()
        if not cancelled and self._response.exception() is None:
            self._response.result().show(callback_page.INTERRUPTED)  # unless it has its page
        for listener in self._listeners:
            listener.stop()

    def wait(self, prompt: Callable[[], object], timeout: float) -> AuthorizationResponse:
        """Return the authorization response.

        Args:
            prompt: Sends the user to the sign-in page. It runs in a thread of its own, since it may
                return only when the browser is closed. An error that it raises ends the wait.
            timeout: Seconds to wait.

        Raises:
            TimeoutError: No authorization response arrived.
        """
        threading.Thread(target=self._run_prompt, args=(prompt,), daemon=True).start()
        return self._response.result(timeout)

    def accept(self, query: str) -> AuthorizationResponse | Page:
        """Return the authorization response of a query, or the page that says why it is none."""
        pairs = parse_qsl(query, keep_blank_values=True)
        params = dict(pairs)
        expected = secrets.compare_digest(params.get("state", "").encode(), self._state.encode())
        if not expected or len(params) != len(pairs):  # no duplicates (RFC 6749 section 3.1)
            return callback_page.WRONG_STATE
        with self._lock:
            if self._response.done():
                return callback_page.ALREADY_COMPLETE
            response = AuthorizationResponse(params)
            self._response.set_result(response)
            return response

    def _run_prompt(self, prompt: Callable[[], object]) -> None:
        try:
            prompt()
        except BaseException as error:  # noqa: BLE001 - `wait` raises it
            with self._lock, suppress(Exception):
                self._response.set_exception(error)
