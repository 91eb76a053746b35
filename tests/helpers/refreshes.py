"""What the tests of refreshing share: a clock, a server, a store, and calls that wait."""

from __future__ import annotations

import logging
import re
import sqlite3
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from queue import SimpleQueue
from socket import SHUT_RDWR, create_server
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import pytest

from tests.helpers.postgresql import connect, schema_of
from tokenstore import TokenManager
from tokenstore.lifecycle.jobs import Job
from tokenstore.storage.tables import accounts
from tokenstore.testing import Answer, AuthorizationServer, Hold

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from socket import socket
    from types import FrameType

SOON = 20.0  # seconds; nothing here takes so long unless it hangs

on_both_engines = pytest.mark.usefixtures("database")
"""For a module whose tests run on SQLite and on PostgreSQL."""

of_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
"""For a test, in such a module, of what only a file has."""

P = ParamSpec("P")
T = TypeVar("T")


def until(condition: Callable[[], bool], patience: float = SOON) -> None:
    """Return as soon as *condition* holds, which nothing tells of."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)  # leaves the interpreter to those who are watched


class Clock:
    """A wall clock that stands still until it is set.

    Attributes:
        now: What it shows.
        next: What to do when it is next looked at, first things first.
    """

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now
        self.next: list[Callable[[], object]] = []

    def __call__(self) -> float:
        if self.next:
            self.next.pop(0)()
        return self.now


def _worker_of(job: Job[Any] | None) -> int | None:
    """Return the thread that does a job, or None."""
    for thread, frame in sys._current_frames().items():
        at: FrameType | None = frame
        while at is not None:
            if at.f_code is Job.run.__code__ and at.f_locals["self"] is job:
                return thread
            at = at.f_back
    return None


class Call(Generic[T]):
    """A call that runs in a thread of its own."""

    def __init__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> None:
        self._future: Future[T] = Future()
        self._job: Job[Any] | None = None
        self._has_joined = False

        def run() -> None:
            sys.setprofile(self._profile)
            try:
                self._future.set_result(function(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - raised by result()
                self._future.set_exception(error)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is Job.wait.__code__:
            self._job = frame.f_locals["self"]
            self._has_joined = self._job is not None and self._job.is_at_work

    def _is_waiting(self) -> bool:
        """Return whether the call, or the refresh that works for it, waits for another refresh."""
        at_lock = _is_at_lock(self._thread.ident) or _is_at_lock(_worker_of(self._job))
        return self._has_joined or at_lock

    def result(self) -> T:
        """Wait for the end of the call."""
        result = self._future.result(SOON)
        self._thread.join(SOON)
        return result

    def error(self) -> BaseException:
        """Wait for the error that ends the call."""
        error = self._future.exception(SOON)
        assert error is not None
        return error

    def waits(self) -> Call[T]:
        """Return as soon as the call waits for the refresh of somebody else."""
        until(self._is_waiting)
        assert not self._future.done()
        return self


def _is_at_lock(thread: int | None) -> bool:
    """Return whether a thread needs a refresh lock, which another one holds."""
    frame = sys._current_frames().get(thread or 0)
    while frame is not None and frame.f_code.co_qualname != "TokenRepository.refresh_lock":
        frame = frame.f_back
    return frame is not None


class Told(logging.Handler):
    """What is logged under a name, at any level, while this is in use."""

    def __init__(self, name: str = "tokenstore") -> None:
        super().__init__()
        self._logger = logging.getLogger(name)
        self._new: SimpleQueue[logging.LogRecord] = SimpleQueue()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self._new.put(record)

    def wait_for(self, text: str) -> None:
        """Wait until a message contains *text*."""
        while text not in self._new.get(timeout=SOON).getMessage():
            pass

    def __enter__(self) -> Told:
        self._level = self._logger.level
        self._logger.setLevel(logging.DEBUG)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)


class Raw:
    """A server that answers each connection with the same bytes and keeps what it was sent."""

    def __init__(self, answer: bytes = b"") -> None:
        self._socket = create_server(("127.0.0.1", 0))
        self.answer = answer
        self.received: list[bytes] = []
        self.host = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = f"http://{self.host}/token"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                self.received.append(_request(connection))
                connection.sendall(self.answer)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(SHUT_RDWR)
        self._thread.join(SOON)
        self._socket.close()


def _request(connection: socket) -> bytes:
    """Read a request to its end, or what there is if it is none."""
    received = connection.recv(1 << 16)
    while received.isascii():
        head, end, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if end and len(body) >= int(length[1] if length else 0):
            break
        received += connection.recv(1 << 16)
    return received


def execute(database: Path | str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run a statement, with ``?`` for parameters, on a connection of its own and commit it."""
    if isinstance(database, str):
        with connect(database) as server:
            server.execute(f"SET search_path = {schema_of(database)}".encode())
            ran = server.execute(statement.replace("?", "%s").encode(), parameters or None)
            return ran.fetchall() if ran.description else []
    with closing(sqlite3.connect(database, timeout=SOON)) as connection, connection:
        return connection.execute(statement, parameters).fetchall()


class World:
    """A strict server, a database of either kind, and managers whose clock stands still."""

    def __init__(self, directory: Path, database: Path | str | None = None, **server: Any) -> None:
        self.clock = Clock()
        self.server = AuthorizationServer(clock=lambda: self.clock.now, **server)
        self.path = directory / "tokens.db"  # of the one that is a file
        self.database = self.path if database is None else database
        self._exit = ExitStack()
        self._exit.enter_context(self.server)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def manager(self, **options: Any) -> TokenManager:
        """Return one more manager of the database; it knows the provider ``test``."""
        settings: dict[str, Any] = {
            "providers": {"test": self.server.provider()},
            "timeout": SOON,
            "clock": self.clock,
            **options,
        }
        manager = TokenManager(self.database, **settings)
        self._exit.callback(manager._repository.close)
        return manager

    def sign_in(
        self, account: str = "alice", *, provider: str | None = "test", **more: Any
    ) -> dict[str, Any]:
        """Store the tokens of a new sign-in; without ``expires_in`` they have expired."""
        tokens = {**self.server.sign_in(account), "expires_in": -1, **more}
        self.manager().save_tokens(account, tokens, provider=provider)
        return tokens

    def hold(self, account: str | None = None) -> Hold:
        """Keep the next request waiting until the test lets it go."""
        hold = Hold()
        self._exit.callback(hold.release.set)
        self.server.script(hold, subject=account)
        return hold

    @property
    def posts(self) -> int:
        """How many requests have reached the token endpoint."""
        return len(self.server.requests)

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement, with ``?`` for parameters, on a connection of its own and commit it."""
        return execute(self.database, statement, *parameters)

    def row(self, account: str = "alice") -> dict[str, Any]:
        """Return all that is stored of an account."""
        names = [column.name for column in accounts.c]
        query = f"SELECT {', '.join(names)} FROM accounts WHERE account_name = ?"
        [row] = self.sql(query, account)
        return dict(zip(names, row, strict=True))

    def tokens(self, account: str = "alice") -> tuple[str | None, str | None, float | None]:
        """Return the stored access token, refresh token and expiry."""
        row = self.row(account)
        return row["access_token"], row["refresh_token"], row["expires_at"]

    def outcomes(self, account: str = "alice") -> list[str | None]:
        """Return what the journal says of each refresh, None of one that has not ended."""
        query = "SELECT outcome FROM refreshes WHERE account_name = ? ORDER BY id"
        return [outcome for (outcome,) in self.sql(query, account)]

    def refuse(self, write: str, when: str = "true") -> None:
        """Let the database refuse a kind of write, such as ``UPDATE ON accounts``."""
        self.accept()
        if isinstance(self.database, str):
            body = "$$BEGIN RAISE EXCEPTION 'refused'; END$$"
            self.sql(f"CREATE FUNCTION refusal() RETURNS trigger LANGUAGE plpgsql AS {body}")
            what = f"FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION refusal()"
            self.sql(f"CREATE TRIGGER refusal BEFORE {write} {what}")
            self._exit.callback(self.accept)  # its tables are not this test's alone
        else:
            body = "BEGIN SELECT RAISE(ABORT, 'refused'); END"
            self.sql(f"CREATE TRIGGER refusal BEFORE {write} WHEN {when} {body}")

    def refuse_outcome(self, account: str = "alice") -> None:
        """Let the database refuse the tokens of a refresh, though it took note of its begin."""
        name = f"old.account_name = '{account}'"
        self.refuse("UPDATE OF refreshed_at ON accounts", f"new.refreshed_at > 0 AND {name}")

    def accept(self) -> None:
        """Take back what `refuse` did."""
        if isinstance(self.database, str):
            self.sql("DROP FUNCTION IF EXISTS refusal CASCADE")
        else:
            self.sql("DROP TRIGGER IF EXISTS refusal")


def denied(error: str = "invalid_grant", status: int = 400, **headers: str) -> Answer:
    """Return a refusal of the token endpoint."""
    return Answer(status, {"error": error}, {k.replace("_", "-"): v for k, v in headers.items()})
