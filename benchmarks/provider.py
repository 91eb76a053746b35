"""An authorization server in a separate process, with delayed responses."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tokenstore.testing import AuthorizationServer
from tokenstore.testing.script import Hold, Transform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from tokenstore import Provider


class Remote:
    """A client that controls the server process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.provider: Provider = connection.recv()

    def call(self, *command: Any) -> Any:
        """Send a command to the server process and return its result."""
        self._connection.send(command)
        return self._connection.recv()

    def sign_in(self, name: str) -> dict[str, Any]:
        """Return the tokens of a new sign-in, already expired."""
        tokens: dict[str, Any] = self.call("sign_in", name)
        return {**tokens, "expires_in": -1}

    @property
    def requests(self) -> int:
        """The number of requests to the token endpoint."""
        return int(self.call("requests"))


@contextmanager
def provider() -> Iterator[Remote]:
    """Run a server in a separate process."""
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=_serve, args=(child,))
    process.start()
    try:
        yield Remote(parent)
    finally:
        parent.send(("end",))
        process.join()


def _serve(connection: Connection) -> None:
    hold = Hold()
    with AuthorizationServer() as server:
        connection.send(server.provider())
        while True:
            match connection.recv():
                case ("sign_in", str(name)):
                    connection.send(server.sign_in(name))
                case ("delay", int(count), float(seconds)):
                    server.script(*[Transform(_after(seconds))] * count)
                    connection.send(None)
                case ("hold",):
                    hold = Hold()
                    server.script(hold)
                    connection.send(None)
                case ("await",):
                    connection.send(hold.arrived.wait(60))
                case ("release",):
                    hold.release.set()
                    connection.send(None)
                case ("requests",):
                    connection.send(len(server.requests))
                case _:
                    return


def _after(seconds: float) -> Any:
    def delay(response: dict[str, Any]) -> dict[str, Any]:
        time.sleep(seconds)
        return response

    return delay
