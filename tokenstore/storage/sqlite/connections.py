"""One connection per thread, one writing thread per process, and no connection across a fork.

A connection that stays open while the process forks loses writes: parent and child share SQLite's
state but not its locks. So a fork waits for the transactions of other threads and closes every
connection first; parent and child open new ones when they need them.

For the same reason no finaliser closes one, as that may happen at any time. When a thread is gone,
that is noted, and its connection is closed with the next use of the database; those of a database
that is gone are closed when another one is opened.
"""

from __future__ import annotations

import atexit
import errno
import os
import sqlite3
import threading
from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from tokenstore import fork
from tokenstore.errors import StorageError
from tokenstore.storage.sqlite.engine import BUSY_TIMEOUT, driver_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from tokenstore.storage.ownership import Owner
    from tokenstore.storage.sqlite.connector import OpenConnection
    from tokenstore.storage.sqlite.file import FileId

_FORK_WAIT = 0.05  # seconds that a fork waits for one thread while the others are stopped


class Transaction:
    """What a thread knows of its transaction.

    Attributes:
        owner: The part of the program that it belongs to, or None for all code of the thread.
        has_begun: Whether it has begun in the database; it has not while there is no database.
        has_read: Whether it was told before that there is nothing.
        has_failed: Whether an inner failure has undone it.
        writes: How many statements it has written with.
        stack: What ends with it.
    """

    def __init__(self, owner: Owner | None = None) -> None:
        self.owner = owner
        self.has_begun = self.has_read = self.has_failed = False
        self.writes = 0
        self.stack = ExitStack()

    def is_joined(self) -> bool:
        """Return whether the calling code belongs to it."""
        return self.owner is None or self.owner.is_current()


class ThreadConnection:
    """The connection of one thread. Another thread may only close it, and only with its lock.

    Attributes:
        lock: Held while the connection is in use.
        driver: The driver's connection, or None while it is closed.
        file_id: The file that is open.
        log_id: Its write-ahead log, or None if it has none.
        immutable: Whether it was opened as a file that no process changes, for a single read.
        in_transaction: Whether this thread is inside a transaction.
        transaction: That transaction.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.connection: Connection | None = None
        self.driver: sqlite3.Connection | None = None
        self.file_id: FileId | None = None
        self.log_id: FileId | None = None
        self.immutable = False
        self.in_transaction = False
        self.transaction = Transaction()

    def adopt(self, opened: OpenConnection) -> sqlite3.Connection:
        """Use an open connection as that of this thread."""
        self.connection, self.immutable = opened.connection, opened.immutable
        self.file_id, self.log_id = opened.file_id, opened.log_id
        self.driver = driver_of(self.connection)
        return self.driver

    def rollback(self) -> None:
        """Roll back the transaction, unless SQLite has ended it after an error."""
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


class _OfThread:
    """What a thread has of its connection: it goes with the thread, and notes that."""

    def __init__(self, connection: ThreadConnection, ended: deque[ThreadConnection]) -> None:
        self.connection = connection
        self._ended = ended

    def __del__(self) -> None:
        self._ended.append(self.connection)


class ThreadConnections:
    """The connections of all threads to one database file, and its write lock.

    Whoever drops one calls `retire`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._write_lock: WriteLock | None = None
        self.reset()
        _registry.add(self)

    def reset(self) -> None:
        """Forget all connections, in a child of fork."""
        self._local, self._beside = threading.local(), threading.local()
        self._open: set[ThreadConnection] = set()
        self._ended: deque[ThreadConnection] = deque()  # those of threads that are gone
        self._lock = threading.Lock()
        self._suspended: list[ThreadConnection] = []

    def current(self) -> ThreadConnection:
        """Return the connection of the calling thread, which may be closed."""
        if self._ended:
            self._close_ended()
        try:
            connection: ThreadConnection = self._local.own.connection
        except AttributeError:
            connection = self._add(self._local)
        return connection

    def beside(self) -> ThreadConnection:
        """Return another connection of the calling thread, for reads outside its transaction."""
        try:
            connection: ThreadConnection = self._beside.own.connection
        except AttributeError:
            connection = self._add(self._beside)
        return connection

    def _add(self, local: threading.local) -> ThreadConnection:
        connection = ThreadConnection()
        with self._lock:
            self._open.add(connection)
        local.own = _OfThread(connection, self._ended)
        return connection

    def _close_ended(self) -> None:
        with self._lock, suppress(IndexError):
            while True:
                connection = self._ended.popleft()
                with connection.lock:
                    connection.close()
                self._open.discard(connection)

    def retire(self) -> None:
        """Note that the database is gone; its connections are closed when another is opened."""
        _registry.retired.append(self)

    @property
    def write_lock(self) -> WriteLock:
        """The lock that a thread of this process holds while it writes to the file."""
        if self._write_lock is None:
            self._write_lock = _registry.write_lock_of(self._path)
        return self._write_lock

    def is_writing(self) -> bool:
        """Return whether the calling thread holds the write lock."""
        return self.write_lock.is_owned()

    @contextmanager
    def writing(self, *, scrubs: bool = True) -> Iterator[ThreadConnection]:
        """Wait for the write lock, then yield the connection of the calling thread.

        SQLite itself would poll, in no order.

        Args:
            scrubs: Whether the caller will remove deleted content from the write-ahead log.

        Raises:
            StorageError: Another thread held the lock too long, or this thread holds it already.
        """
        if self.is_writing():
            raise self._own_transaction_error()
        lock = self.write_lock.lock
        try:
            if not self.write_lock.acquire(scrubs=scrubs):
                raise StorageError(
                    f"{self._path}: another thread's transaction did not end; keep transactions "
                    "short",
                    self._path,
                    errno=errno.EBUSY,
                )
            with lock:
                lock.release()  # from here on, the end of the block is what releases it
                thread = self.current()
                with thread.lock:
                    yield thread
        except BaseException:
            if self.write_lock.is_owned():
                lock.release()  # an interrupt came right after it was acquired
            raise

    @contextmanager
    def writing_to(self, file_id: FileId | None) -> Iterator[None]:
        """Note that the calling thread writes to a file, which may have several paths.

        Raises:
            StorageError: It writes to that file already, through another path.
        """
        if file_id in _written.files:
            raise self._own_transaction_error()
        _written.files.add(file_id)
        try:
            yield
        finally:
            _written.files.discard(file_id)

    def _own_transaction_error(self) -> StorageError:
        return StorageError(
            f"{self._path}: this thread is inside a transaction on the same file, of another "
            "repository, coroutine or generator; use that one, or end it first",
            self._path,
            errno=errno.EDEADLK,
        )

    def close(self, *, wait: bool = True) -> None:
        """Close every connection; wait for those in use, or leave them open."""
        with self._lock:
            threads = list(self._open)
        for thread in threads:
            if thread.lock.acquire(blocking=wait):
                try:
                    thread.close()
                finally:
                    thread.lock.release()

    def close_for_all(self) -> None:
        """Close the connections of this process to the file, those of other repositories, too."""
        for connections in list(_registry.connections):
            if connections.write_lock is self.write_lock:
                connections.close()

    def suspend(self) -> ThreadConnection | None:
        """Stop every thread from using its connection; return one that is still in use, if any."""
        self._lock.acquire()
        for thread in list(self._open):
            if not thread.lock.acquire(timeout=_FORK_WAIT):
                return thread
            self._suspended.append(thread)
        return None

    def close_suspended(self) -> None:
        """Close every connection, even if the forking thread is in a transaction."""
        for thread in self._suspended:
            thread.close()

    def resume(self) -> None:
        """Let the threads use their connections again."""
        while self._suspended:
            self._suspended.pop().lock.release()
        self._lock.release()


class _Written(threading.local):
    """The files in whose transactions a thread is."""

    def __init__(self) -> None:
        self.files: set[FileId | None] = set()


_written = _Written()


class WriteLock:
    """The lock of the threads of this process that write to one file.

    Attributes:
        lock: The lock. Whatever interrupts its holder, it is known whether the thread holds it.
        unscrubbed: Since when the write-ahead log holds deleted content, as `time.monotonic`
            seconds, or None. Only the thread that holds the lock may change it.
    """

    def __init__(self) -> None:
        self.unscrubbed: float | None = None
        self.reset()

    def reset(self) -> None:
        """Reset to unlocked."""
        self.lock = threading.RLock()
        self._waiting: list[int] = []

    def is_owned(self) -> bool:
        """Return whether the calling thread holds the lock."""
        owned: bool = self.lock._is_owned()  # type: ignore[attr-defined] # noqa: SLF001
        return owned

    def acquire(self, *, scrubs: bool) -> bool:
        """Wait for the lock; return whether it was acquired in time."""
        if not scrubs:
            return self.lock.acquire(timeout=BUSY_TIMEOUT)
        waiting, this = self._waiting, threading.get_ident()  # a fork replaces the list
        try:
            waiting.append(this)
            return self.lock.acquire(timeout=BUSY_TIMEOUT)
        finally:
            if this in waiting:
                waiting.remove(this)

    def has_scrubbing_waiters(self) -> bool:
        """Return whether another thread waits for the lock and will scrub the log."""
        return bool(self._waiting)


class _Registry(fork.ForkParticipant):
    """The connections of this process to all databases, and the write locks of their files."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held while the others change, and across a fork
        self.connections: set[ThreadConnections] = set()
        self.retired: deque[ThreadConnections] = deque()
        self._write_locks: WeakValueDictionary[Path, WriteLock] = WeakValueDictionary()
        self._suspended: list[ThreadConnections] = []
        fork.register(fork.Stage.SQLITE, self)

    def add(self, connections: ThreadConnections) -> None:
        """Register connections."""
        with self.lock:
            self._close_retired()
            self.connections.add(connections)

    def write_lock_of(self, path: Path) -> WriteLock:
        """Return the write lock of a file, whichever path with symlinked directories it is."""
        real = Path(os.path.realpath(path.parent), path.name)
        with self.lock:
            return self._write_locks.setdefault(real, WriteLock())

    def _close_retired(self) -> None:
        with suppress(IndexError):
            while True:
                connections = self.retired.popleft()
                connections.close()
                self.connections.discard(connections)

    def before_fork(self) -> None:
        """Stop every thread between two uses of its connection, then close all connections."""
        busy = self._suspend_all()
        while busy is not None:
            self.after_fork_in_parent()  # the thread may be waiting for another database
            with busy.lock:
                busy = self._suspend_all()
        for connections in self._suspended:
            connections.close_suspended()

    def after_fork_in_parent(self) -> None:
        """Let every thread continue."""
        while self._suspended:
            self._suspended.pop().resume()
        self.lock.release()

    def after_fork_in_child(self) -> None:
        """Reset everything: no other thread exists in the child, so every lock is free."""
        for write_lock in list(self._write_locks.values()):
            write_lock.reset()
        _written.files.clear()
        while self._suspended:
            self._suspended.pop().reset()
        self.lock.release()

    def close_all(self) -> None:
        """Close the connections that are not in use: a daemon thread may never end."""
        for connections in list(self.connections):
            connections.close(wait=False)

    def _suspend_all(self) -> ThreadConnection | None:
        self.lock.acquire()
        for connections in list(self.connections):
            self._suspended.append(connections)
            busy = connections.suspend()
            if busy is not None:
                return busy
        return None


_registry = _Registry()
atexit.register(_registry.close_all)
