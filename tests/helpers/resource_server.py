"""A resource server on loopback, for the tests of the HTTP client integrations."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers.refreshes import World


@dataclass(frozen=True)
class Seen:
    """A request, with its Authorization header."""

    method: str
    path: str
    authorization: str | None = field(repr=False)
    body: bytes


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Resource

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self._body()
        seen = Seen(self.command, self.path, self.headers["Authorization"], body)
        status, headers = self.server.respond(seen)
        content = json.dumps({"status": status, "body": body.decode()}).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_: Any) -> None:
        """Write nothing: the output belongs to the test."""


class Resource(ThreadingTCPServer):
    """A server that responds 200 to an accepted token and 401 to any other request.

    Attributes:
        url: The URL of the server.
        seen: The requests that it received.
        script: Responses to the next requests: status and headers.
        moved: Redirects by path: status and location. They require no token.
        accepts: Returns whether a token is accepted.
        together: Barrier at which refused requests wait for each other.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, accepts: Callable[[str], bool]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.accepts = accepts
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.seen: list[Seen] = []
        self.script: list[tuple[int, dict[str, str]]] = []
        self.moved: dict[str, tuple[int, str]] = {}
        self.together: threading.Barrier | None = None
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnected."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def respond(self, seen: Seen) -> tuple[int, dict[str, str]]:
        self.seen.append(seen)
        if self.script:
            return self.script.pop(0)
        if seen.path in self.moved:
            status, location = self.moved[seen.path]
            return status, {"Location": location}
        if self.accepts((seen.authorization or "").removeprefix("Bearer ")):
            return 200, {}
        if self.together is not None:
            self.together.wait()
        return 401, {"WWW-Authenticate": 'Bearer error="invalid_token"'}

    @property
    def tokens(self) -> list[str | None]:
        """The Authorization header of each request."""
        return [seen.authorization for seen in self.seen]


REFUSED = "refused-before-its-time"


def refused(world: World, **more: Any) -> str:
    """Store a token for alice that looks valid but is refused; return its header."""
    world.sign_in(**{"access_token": REFUSED, "expires_in": 3600, **more})
    return f"Bearer {REFUSED}"


def stored(world: World) -> str:
    """Return the header of the stored token."""
    return f"Bearer {world.tokens()[0]}"
