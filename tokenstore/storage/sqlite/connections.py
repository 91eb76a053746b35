"""One connection a thread, one writer at a time in a process, no connection across a fork.

A connection that is open while a process forks ends in lost writes: the child's copy and the
parent's share SQLite's state but not its locks. So a fork waits for other threads' transactions
and closes every connection first; parent and child open new ones when they next need one.
"""

from __future__ import annotations

import atexit
import errno
import os
import sqlite3
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakSet, WeakValueDictionary

import filelock  # noqa: F401 - its hook before a fork runs after ours, which waits for who holds locks

from tokenstore.errors import StorageError
from tokenstore.storage.sqlite.engine import BUSY_TIMEOUT, driver_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection

    from tokenstore.storage.sqlite.connector import Opened
    from tokenstore.storage.sqlite.file import Identity

_PATIENCE = 0.05  # seconds that a fork waits for one thread while it holds up the others


class ThreadConnection:
    """The connection of one thread. Another thread may only close it, holding its lock.

    Attributes:
        lock: Held while the connection is at work.
        driver: The driver's connection, None while it is closed.
        identity: The file that is open.
        log: Its write-ahead log, None if it has none.
        immutable: Whether it was opened as a file that nobody changes, for one read only.
        in_transaction: Whether this thread is inside a transaction.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.connection: Connection | None = None
        self.driver: sqlite3.Connection | None = None
        self.identity: Identity | None = None
        self.log: Identity | None = None
        self.immutable = False
        self.in_transaction = False

    def adopt(self, opened: Opened) -> sqlite3.Connection:
        """Take over an open connection."""
        self.connection, self.identity = opened.connection, opened.identity
        self.log, self.immutable = opened.log, opened.immutable
        self.driver = driver_of(self.connection)
        return self.driver

    def rollback(self) -> None:
        """Undo the transaction, if there is one; SQLite ends one by itself after some errors."""
        if self.driver is None or not self.driver.in_transaction:
            return
        try:
            self.driver.execute("ROLLBACK")
        except sqlite3.Error:
            self.close()

    def close(self) -> None:
        """Close the connection, if it is open."""
        connection, self.connection, self.driver = self.connection, None, None
        if connection is not None:
            connection.close()


class ThreadConnections:
    """The connections of all threads to one database file, and the turn of its writers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start()
        with _registry:
            self._writer = _writers.setdefault(path, Writer())
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

    @property
    def writer(self) -> Writer:
        """Whose turn it is to write."""
        return self._writer

    def in_turn(self) -> bool:
        """Tell whether it is this thread's turn to write."""
        return self._writer.thread == threading.get_ident()

    @contextmanager
    def writing(self, *, scrubs: bool = True) -> Iterator[ThreadConnection]:
        """Wait for this process's other writers, then lend the calling thread its connection.

        SQLite's own waiting is a poll that knows no order; within a process a lock is better.

        Args:
            scrubs: Whether the caller empties the write-ahead log of what others deleted.

        Raises:
            StorageError: Another writer did not end in time, or it is this very thread.
        """
        writer = self._writer
        if self.in_turn():
            raise StorageError(
                f"{self._path}: this thread is inside a transaction of another repository on the "
                "same file; go on with that one",
                self._path,
                errno=errno.EDEADLK,
            )
        lock = writer.lock
        if not writer.wait(scrubs=scrubs):
            raise StorageError(
                f"{self._path}: another thread's transaction did not end; keep them short",
                self._path,
                errno=errno.EBUSY,
            )
        writer.thread = threading.get_ident()
        try:
            thread = self.mine()
            with thread.lock:
                yield thread
        finally:
            writer.thread = None
            lock.release()

    def close(self, *, wait: bool = True) -> None:
        """Close every connection; wait for those at work, or let them be."""
        with self._lock:
            threads = list(self._open)
        for thread in threads:
            if thread.lock.acquire(blocking=wait):
                try:
                    thread.close()
                finally:
                    thread.lock.release()

    def suspend(self) -> ThreadConnection | None:
        """Stop every thread from using its connection; return one that goes on and on, if any."""
        self._lock.acquire()
        for thread in list(self._open):
            if not thread.lock.acquire(timeout=_PATIENCE):
                return thread
            self._suspended.append(thread)
        return None

    def close_suspended(self) -> None:
        """Close every connection, also that of a transaction which the forking thread is in."""
        for thread in self._suspended:
            thread.close()

    def resume(self) -> None:
        """Go on in the parent."""
        while self._suspended:
            self._suspended.pop().lock.release()
        self._lock.release()

    def restart(self) -> None:
        """Begin anew in the child, which has none of the other threads and none of the locks."""
        self._start()


class Writer:
    """Whose turn it is to write to a file, among the threads of this process.

    Attributes:
        lock: Held by whoever's it is.
        thread: That thread.
        unscrubbed: Since when (`time.monotonic`) there is something in the write-ahead log that
            was deleted, None if nothing is. Whoever's turn it is may change it.
    """

    def __init__(self) -> None:
        self.unscrubbed: float | None = None
        self.restart()

    def restart(self) -> None:
        """Begin anew, with nobody's turn."""
        self.lock = threading.Lock()
        self.thread: int | None = None
        self._waiting: list[int] = []

    def wait(self, *, scrubs: bool) -> bool:
        """Wait for the turn of this thread; tell whether it came."""
        if not scrubs:
            return self.lock.acquire(timeout=BUSY_TIMEOUT)
        waiting, this = self._waiting, threading.get_ident()  # a fork begins another list
        try:
            waiting.append(this)
            return self.lock.acquire(timeout=BUSY_TIMEOUT)
        finally:
            if this in waiting:
                waiting.remove(this)

    def somebody_waits(self) -> bool:
        """Tell whether another thread will have its turn right after this one, and scrub."""
        return bool(self._waiting)


_registry = threading.Lock()  # held while the next two are changed, and across a fork
_writers: WeakValueDictionary[Path, Writer] = WeakValueDictionary()
_all: WeakSet[ThreadConnections] = WeakSet()
_forking: list[ThreadConnections] = []


def _before_fork() -> None:
    busy = _suspend_all()
    while busy is not None:
        _resume_all()  # it may be waiting for another database
        with busy.lock:
            busy = _suspend_all()
    for connections in _forking:
        connections.close_suspended()


def _suspend_all() -> ThreadConnection | None:
    _registry.acquire()
    for connections in list(_all):
        _forking.append(connections)
        busy = connections.suspend()
        if busy is not None:
            return busy
    return None


def _resume_all() -> None:
    while _forking:
        _forking.pop().resume()
    _registry.release()


def _restart_all() -> None:
    for writer in list(_writers.values()):
        writer.restart()
    while _forking:
        _forking.pop().restart()
    _registry.release()


def _close_all() -> None:
    for connections in list(_all):
        connections.close(wait=False)  # a daemon thread may be at work for ever


atexit.register(_close_all)
os.register_at_fork(before=_before_fork, after_in_parent=_resume_all, after_in_child=_restart_all)
