"""What the refresh locks of every backend share: their half among the threads of this process.

Of the threads of a process only one at a time asks the operating system or the server for a lock.
"""

from __future__ import annotations

import errno
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

from tokenstore import fork
from tokenstore.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator


class LockTimeoutError(TimeoutError):
    """Another thread or process held the lock for as long as the caller was willing to wait."""


class HeldLock(Protocol):
    """A refresh lock that is held, until its block ends or its process dies."""

    def is_lost(self) -> bool:
        """Return whether another process may hold the lock as well, because ours was lost."""


class ThreadLock:
    """The half of a named lock that is held among the threads of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    def acquire(self, timeout: float) -> bool:
        """Wait for the lock; return whether it was acquired in time.

        Raises:
            StorageError: The calling thread holds it already, and would wait for itself.
        """
        this = threading.get_ident()
        if self._owner == this:
            raise StorageError(
                "this thread holds the refresh lock of the account already; release it first",
                errno=errno.EDEADLK,
            )
        if not self._lock.acquire(timeout=timeout):
            return False
        self._owner = this
        return True

    def release(self) -> None:
        """Release the lock."""
        self._owner = None
        self._lock.release()


@contextmanager
def thread_lock(name: str, *, timeout: float) -> Iterator[None]:
    """Hold a lock among the threads of this process.

    Raises:
        LockTimeoutError: Another thread held it for *timeout* seconds.
        StorageError: The calling thread holds it already.
    """
    lock = _thread_locks.get(name)
    if not lock.acquire(timeout):
        raise LockTimeoutError
    try:
        yield
    finally:
        lock.release()


class _ThreadLocks(fork.ForkParticipant):
    """The thread locks that are in use, by name."""

    def __init__(self) -> None:
        self.after_fork_in_child()
        fork.register(fork.Stage.LOCKS, self)

    def get(self, name: str) -> ThreadLock:
        with self._lock:
            return self._locks.setdefault(name, ThreadLock())

    def after_fork_in_child(self) -> None:
        """Start with every lock free: the threads that held them are not in the child."""
        self._locks: WeakValueDictionary[str, ThreadLock] = WeakValueDictionary()
        self._lock = threading.Lock()


_thread_locks = _ThreadLocks()
