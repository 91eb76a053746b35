"""The sockets: HTTP in, answers out, as slowly and as broken as the script wants."""

from __future__ import annotations

import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socket import SHUT_RDWR
from socketserver import ThreadingTCPServer
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeAlias

from tokenstore.testing.protocol import Received, decode_form
from tokenstore.testing.script import Answer, Drip, Step, Truncate

if TYPE_CHECKING:
    from collections.abc import Callable

POLL = 0.02  # seconds
Reply: TypeAlias = "tuple[Answer | None, Step | None]"


class _Handler(BaseHTTPRequestHandler):
    """One connection: HTTP in, answers out, as slowly and as broken as the script wants."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

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


class Listener(ThreadingTCPServer):
    """The listening socket and its connections. No HTTPServer: that asks DNS for its own name."""

    request_queue_size = 256

    def __init__(self, respond: Callable[[Received], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.respond = respond
        self.closing = Event()
        self._open: dict[Any, Thread] = {}
        self._thread = Thread(target=self.serve_forever, args=(POLL,), daemon=True)
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread that `close` knows."""
        arguments = (request, client_address)
        thread = Thread(target=self.process_request_thread, args=arguments, daemon=True)
        self._open[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        """Close a connection and forget it."""
        super().shutdown_request(request)
        self._open.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over clients that went away; show what else fails, such as a Transform."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        """Stop listening and cut every connection."""
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection, thread in list(self._open.items()):
            with suppress(OSError):
                connection.shutdown(SHUT_RDWR)
            thread.join(timeout=1)
