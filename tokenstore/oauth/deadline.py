"""The hard end of a request: at its time, its sockets are shut down, whatever it is doing.

requests bounds each read, not the whole: a server that sends a byte now and then is not outwaited
by that.
"""

from __future__ import annotations

import heapq
import itertools
import socket
import threading
import time
from contextlib import suppress

from tokenstore import fork


class Exchange:
    """One request at work: its sockets, and whether any byte was sent on them.

    Args:
        timeout: Seconds after which its sockets are shut down.

    Attributes:
        is_over: Whether that has happened.
        is_done: Whether the request has ended.
        has_connection: Whether a connection was established.
        has_sent: Whether any byte of the request was sent.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.is_over = self.is_done = False
        self._sockets: list[socket.socket] = []
        self.has_connection = False
        self.has_sent = False

    def __enter__(self) -> Exchange:
        current.exchange = self
        _watchdog.watch(self)
        return self

    def __exit__(self, *_: object) -> None:
        current.exchange = None
        self.is_done = True
        while self._sockets:
            with suppress(OSError):  # what was received is not affected
                self._sockets.pop().close()

    def connected(self, connection: socket.socket) -> None:
        """Remember a connection of this request."""
        self.has_connection = True
        # TLS detaches the descriptor from its socket; a duplicate shuts the connection down, too.
        self._sockets.append(connection.dup())
        if self.is_over:
            self.end()

    def unobserved(self) -> None:
        """Count the request as sent: what does it now cannot be watched."""
        self.has_connection = self.has_sent = True

    def sending(self) -> None:
        """Note that bytes of the request are about to be sent."""
        self.has_sent = True

    def end(self) -> None:
        """Shut the connections down, so that nothing waits for them any more."""
        self.is_over = True
        for connection in list(self._sockets):
            with suppress(OSError):  # it is closed
                connection.shutdown(socket.SHUT_RDWR)


class Current(threading.local):
    """The exchange that the calling thread is in, or None."""

    exchange: Exchange | None = None


current = Current()


class _Watchdog(fork.ForkParticipant):
    """One thread of the process that ends every exchange at its time."""

    def __init__(self) -> None:
        self.after_fork_in_child()
        fork.register(fork.Stage.THREADS, self)

    def after_fork_in_child(self) -> None:
        """Start with nothing to watch, and without the thread."""
        self._condition = threading.Condition()
        self._watched: list[tuple[float, int, Exchange]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    def watch(self, exchange: Exchange) -> None:
        ends_at = time.monotonic() + exchange.timeout
        entry = (ends_at, next(self._numbers), exchange)
        with self._condition:
            heapq.heappush(self._watched, entry)
            if self._watched[0] is entry:
                self._condition.notify()
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="tokenstore-watchdog", daemon=True)
                with suppress(RuntimeError):  # no thread to spare, or the process is ending
                    thread.start()
                    self._thread = thread

    def _run(self) -> None:
        with self._condition:
            while True:
                while self._watched and self._watched[0][2].is_done:
                    heapq.heappop(self._watched)
                left = self._watched[0][0] - time.monotonic() if self._watched else None
                if left is None or left > 0:
                    self._condition.wait(left)
                else:
                    heapq.heappop(self._watched)[2].end()


_watchdog = _Watchdog()
