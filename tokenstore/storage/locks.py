"""What the refresh locks of every backend share: a lock that is held, and its half in this process.

Of the threads of a process only one at a time asks the operating system or the server for a lock.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from tokenstore import fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class ThreadLock:
    """The half of a named lock that is held among the threads of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class HeldLock:
    """A lock that is held. It ends with its block, unless what it protects lasts longer.

    Args:
        thread_lock: Its half among the threads of this process.
        release: Releases the other half, which other processes wait for.
        is_lost: Returns whether another process may hold it already.
    """

    def __init__(
        self, thread_lock: ThreadLock, release: Callable[[], object], is_lost: Callable[[], bool]
    ) -> None:
        self._thread_lock = thread_lock
        self._release = release
        self.is_lost = is_lost
        self.kept = False

    def keep(self) -> None:
        """Hold the lock beyond its block, until `release` is called in any thread."""
        self.kept = True

    def release(self) -> None:
        """Release the lock."""
        try:
            self._release()
        finally:
            self._thread_lock.lock.release()


@contextmanager
def thread_lock(name: str, *, timeout: float) -> Iterator[ThreadLock]:
    """Acquire a lock among the threads of this process. The block releases it only if it raises.

    Raises:
        TimeoutError: Another thread held it for *timeout* seconds.
    """
    found = _thread_locks.get(name)
    if not found.lock.acquire(timeout=timeout):
        raise TimeoutError
    try:
        yield found
    except BaseException:
        found.lock.release()
        raise


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
