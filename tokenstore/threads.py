"""One connection a thread, one writer at a time in a process, no connection across a fork.

A connection that is open while a process forks ends in lost writes: the child's copy and the
parent's share SQLite's state but not its locks. So a fork waits for statements that are running
and closes every connection first; parent and child open new ones when they next need one.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakSet, WeakValueDictionary

from tokenstore.sqlite import driver_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection

    from tokenstore.storefile import Identity


class ThreadConnection:
    """The connection of one thread. Another thread may only close it, holding its lock.

    Attributes:
        lock: Held while the connection is at work.
        driver: The driver's connection, None while it is closed.
        identity: The file that is open.
        immutable: Whether it was opened as a file that nobody changes, for one read only.
        in_transaction: Whether this thread is inside a transaction.
        scrub: Whether that transaction deletes what must not stay in the write-ahead log.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.connection: Connection | None = None
        self.driver: sqlite3.Connection | None = None
        self.identity: Identity | None = None
        self.immutable = False
        self.in_transaction = False
        self.scrub = False

    def adopt(
        self, connection: Connection, identity: Identity, *, immutable: bool
    ) -> sqlite3.Connection:
        """Take over an open connection."""
        self.connection, self.identity, self.immutable = connection, identity, immutable
        self.driver = driver_of(connection)
        return self.driver

    def close(self) -> None:
        """Close the connection, if it is open."""
        connection, self.connection, self.driver = self.connection, None, None
        if connection is not None:
            connection.close()


class ThreadConnections:
    """The connections of all threads to one database file, and the turn of its writers."""

    def __init__(self, path: Path) -> None:
        self._writer = _writers.setdefault(path, _Writer())
        self._start()
        _all.add(self)

    def _start(self) -> None:
        self._local = threading.local()
        self._open: WeakSet[ThreadConnection] = WeakSet()
        self._lock = threading.Lock()
        self._suspended: list[ThreadConnection] = []

    def mine(self) -> ThreadConnection:
        """Return the calling thread's."""
        try:
            thread: ThreadConnection = self._local.thread
        except AttributeError:
            thread = ThreadConnection()
            with self._lock:
                self._open.add(thread)
            self._local.thread = thread
        return thread

    @contextmanager
    def writing(self) -> Iterator[ThreadConnection]:
        """Wait for this process's other writers, then lend the calling thread its connection.

        SQLite's own waiting is a poll that knows no order; within a process a lock is better.
        """
        with self._writer.lock:
            thread = self.mine()
            with thread.lock:
                yield thread

    def close(self) -> None:
        """Close every connection, waiting for those at work."""
        with self._lock:
            for thread in list(self._open):
                with thread.lock:
                    thread.close()

    def suspend(self) -> None:
        """Close every connection and keep it closed, until `resume` or `restart`."""
        self._lock.acquire()
        for thread in list(self._open):
            thread.lock.acquire()
            self._suspended.append(thread)
            if not thread.in_transaction:  # else it is the forking thread's own
                thread.close()

    def resume(self) -> None:
        """Go on in the parent."""
        while self._suspended:
            self._suspended.pop().lock.release()
        self._lock.release()

    def restart(self) -> None:
        """Begin anew in the child, which has none of the other threads and none of the locks."""
        _abandoned.extend(t for t in self._suspended if t.connection is not None)
        self._start()


class _Writer:
    def __init__(self) -> None:
        self.lock = threading.Lock()


_writers: WeakValueDictionary[Path, _Writer] = WeakValueDictionary()
_all: WeakSet[ThreadConnections] = WeakSet()
_forking: list[ThreadConnections] = []
_abandoned: list[ThreadConnection] = []  # closing a parent's connection in a child does damage


def _before_fork() -> None:
    for connections in list(_all):
        connections.suspend()
        _forking.append(connections)


def _after_in_parent() -> None:
    while _forking:
        _forking.pop().resume()


def _after_in_child() -> None:
    for writer in list(_writers.values()):
        writer.lock = threading.Lock()
    while _forking:
        _forking.pop().restart()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
