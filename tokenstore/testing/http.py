"""The HTTP server: reads requests, and sends responses as slowly or broken as scripted."""

from __future__ import annotations

import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socket import SHUT_RDWR
from socketserver import ThreadingTCPServer
from ssl import SSLSocket
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeAlias

from tokenstore.testing.protocol import HTTPRequest, decode_form
from tokenstore.testing.script import Answer, Drip, Step, Truncate

if TYPE_CHECKING:
    from collections.abc import Callable
    from ssl import SSLContext

POLL = 0.02  # seconds
ScriptedResponse: TypeAlias = "tuple[Answer | None, Step | None]"
"""What to send, or None to drop the connection; and the step that says how to send it."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: LoopbackHTTPServer

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
        response, step = self.server.respond(
            HTTPRequest(
                self.command, path, query, headers, decode_form(body), self._certificate(), body
            )
        )
        if response is None:
            self.close_connection = True
        else:
            self._send(response, step)

    def _certificate(self) -> bytes | None:
        """Return the certificate that the client has presented (DER), or None."""
        is_tls = isinstance(self.connection, SSLSocket)
        return self.connection.getpeercert(binary_form=True) if is_tls else None

    def _read_body(self, headers: dict[str, str]) -> bytes | None:
        """Return the body, or None if the client disconnected before its end."""
        length = headers.get("content-length", "")
        if not length.isdecimal():
            # A body of unknown length is not read, and would be parsed as the next request.
            self.close_connection |= self.command == "POST"
            return b""
        body = self.rfile.read(int(length))
        return body if len(body) == int(length) else None

    def _send(self, response: Answer, step: Step | None) -> None:
        self.close_connection |= isinstance(step, Truncate)
        body = response.encoded()
        head = self._head(response, len(body))
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

    def _head(self, response: Answer, length: int) -> bytes:
        phrase, _ = self.responses.get(response.status, ("", ""))
        headers = {**response.headers, "Content-Length": str(length)}
        if response.content_type is not None:
            headers["Content-Type"] = response.content_type
        if self.close_connection:
            headers["Connection"] = "close"
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        return f"HTTP/1.1 {response.status} {phrase}\r\n{''.join(lines)}\r\n".encode("latin-1")

    def _drip(self, data: bytes, interval: float) -> None:
        for number in data:
            self.wfile.write(bytes([number]))
            if self.server.closing.wait(interval):
                break

    def log_message(self, *_: Any) -> None:
        """Write nothing: the output belongs to the test."""


class LoopbackHTTPServer(ThreadingTCPServer):
    """An HTTP server on 127.0.0.1, a thread per connection.

    It is not an `http.server.HTTPServer`, which looks up its own host name in DNS.

    Args:
        respond: Returns the response to a request.
        tls: The TLS context of an https server, or None for plain HTTP.

    Attributes:
        closing: Set when the server closes, so that nothing waits any longer.
    """

    request_queue_size = 256

    def __init__(
        self, respond: Callable[[HTTPRequest], ScriptedResponse], tls: SSLContext | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.respond = respond
        self._tls = tls
        self.closing = Event()
        self._open: dict[Any, Thread] = {}
        self._thread = Thread(target=self.serve_forever, args=(POLL,), daemon=True)
        self._thread.start()

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; its own thread does the handshake."""
        connection, address = super().get_request()
        if self._tls is not None:
            connection = self._tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread that `close` can join."""
        arguments = (request, client_address)
        thread = Thread(target=self.process_request_thread, args=arguments, daemon=True)
        self._open[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        """Close a connection and forget it."""
        super().shutdown_request(request)
        self._open.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnected; print any other error, such as one in a Transform."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        """Stop listening and close every connection."""
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection, thread in list(self._open.items()):
            with suppress(OSError):
                connection.shutdown(SHUT_RDWR)
            thread.join(timeout=1)
