"""The loopback redirect (RFC 8252 section 7.3): one right callback, and nothing else."""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socket import AF_INET, AF_INET6
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from tokenstore.oauth.flows import callback_page as page

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenstore.oauth.flows.callback_page import Page

_READ = 10.0  # seconds that a browser may take to send its request
_LINGER = 5.0  # seconds that a browser may take to read the last page
_POLL = 0.05  # seconds until the listener notices that it is to stop


class AuthorizationResponse:
    """The browser that came back. It waits for its page.

    Attributes:
        params: The parameters of its address (secret: the code is one).
    """

    def __init__(self, params: Mapping[str, str]) -> None:
        self.params = params
        self.page: Future[Page] = Future()
        self.shown = threading.Event()

    def answer(self, answer: Page) -> None:
        """Show the last page, if none was shown yet, and wait until it is sent."""
        with suppress(InvalidStateError):
            self.page.set_result(answer)
        self.shown.wait(_LINGER)


class _Handler(BaseHTTPRequestHandler):
    """One connection of a browser, or of whatever else finds the port."""

    server: RedirectServer
    timeout = _READ
    server_version = "tokenstore"
    sys_version = ""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path != self.server.path:
            self._send(page.NOWHERE)
            return
        callback = self.server.accept(query)
        if not isinstance(callback, AuthorizationResponse):
            self._send(callback)
            return
        try:
            self._send(callback.page.result())
        finally:
            callback.shown.set()

    def _send(self, answer: Page) -> None:
        body = answer.html().encode()
        self.send_response(answer.status)
        for name, value in page.HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Write nothing: the address holds the code."""


class RedirectServer(ThreadingTCPServer):
    """Listens on loopback for the browser to come back, from the start to the end of its block.

    Args:
        redirect_uri: Where the browser returns to. Without a port, a free one is taken.
        port: A port to use in place of that; 0: as the redirect URI has it.
        state: What the right callback has to bring.

    Attributes:
        redirect_uri: The same with its port.
        path: Its path.

    Raises:
        OSError: The port cannot be had.
    """

    allow_reuse_address = True  # nobody else can listen meanwhile; old connections do not count
    daemon_threads = True

    def __init__(self, redirect_uri: str, port: int, state: str) -> None:
        parts = urlsplit(redirect_uri)
        host = parts.hostname or ""
        self.address_family = AF_INET6 if ":" in host else AF_INET
        self.path = parts.path or "/"
        self._state = state
        self._lock = threading.Lock()
        self._callback: Future[AuthorizationResponse] = Future()
        address = "127.0.0.1" if host == "localhost" else host
        super().__init__((address, port or parts.port or 0), _Handler)
        bound = self.server_address[1]
        shown = f"[{host}]" if ":" in host else host
        self.redirect_uri = parts._replace(netloc=f"{shown}:{bound}").geturl()
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL,), daemon=True)

    def __enter__(self) -> RedirectServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            nobody_came = self._callback.cancel()
        if not nobody_came and self._callback.exception() is None:
            self._callback.result().answer(page.INTERRUPTED)  # unless it has its page
        self.shutdown()
        self._thread.join()
        self.server_close()

    def wait(self, prompt: Callable[[], object], timeout: float) -> AuthorizationResponse:
        """Return the right callback.

        Args:
            prompt: Sends the person off. It runs in a thread of its own, as it may last until the
                browser is closed. What it raises ends the wait.
            timeout: Seconds to wait.

        Raises:
            TimeoutError: Nobody came.
        """
        threading.Thread(target=self._send_off, args=(prompt,), daemon=True).start()
        return self._callback.result(timeout)

    def accept(self, query: str) -> AuthorizationResponse | Page:
        """Return the callback if this is the right one, else the page that says why not."""
        pairs = parse_qsl(query, keep_blank_values=True)
        params = dict(pairs)
        right = secrets.compare_digest(params.get("state", "").encode(), self._state.encode())
        if not right or len(params) != len(pairs):  # no parameter twice (RFC 6749, 3.1)
            return page.STRAY
        with self._lock:
            if self._callback.done():
                return page.OVER
            callback = AuthorizationResponse(params)
            self._callback.set_result(callback)
            return callback

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over browsers that go away."""

    def _send_off(self, prompt: Callable[[], object]) -> None:
        try:
            prompt()
        except BaseException as error:  # noqa: BLE001 - it is raised where the callback is awaited
            with self._lock, suppress(Exception):
                self._callback.set_exception(error)
