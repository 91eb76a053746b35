"""An authorization server in a process of its own, which takes its time to answer."""

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
    """The server, seen from another process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.provider: Provider = connection.recv()

    def ask(self, *question: Any) -> Any:
        """Let the server do something; return what comes of it."""
        self._connection.send(question)
        return self._connection.recv()

    def sign_in(self, name: str) -> dict[str, Any]:
        """Return the tokens of a sign-in; they have expired."""
        tokens: dict[str, Any] = self.ask("sign_in", name)
        return {**tokens, "expires_in": -1}

    @property
    def requests(self) -> int:
        """How many requests have reached the token endpoint."""
        return int(self.ask("requests"))


@contextmanager
def provider() -> Iterator[Remote]:
    """Run a server in another process."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_serve, args=(its,))
    process.start()
    try:
        yield Remote(ours)
    finally:
        ours.send(("end",))
        process.join()


def _serve(connection: Connection) -> None:
    hold = Hold()
    with AuthorizationServer() as server:
        connection.send(server.provider())
        while True:
            match connection.recv():
                case ("sign_in", str(name)):
                    connection.send(server.sign_in(name))
                case ("delay", int(many), float(seconds)):
                    server.script(*[Transform(_after(seconds))] * many)
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
    def change(answer: dict[str, Any]) -> dict[str, Any]:
        time.sleep(seconds)
        return answer

    return change
