"""Locks between threads and processes that the operating system releases when their holder dies."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from filelock import BaseFileLock, FileLock, Timeout

from tokenstore.errors import InsecureStorageError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_POLL = 0.02  # seconds between two looks at a lock that another process holds


class _Turn:
    """Whose turn it is among the threads of this process, so that only one of them polls."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


_turns: WeakValueDictionary[str, _Turn] = WeakValueDictionary()
_turns_lock = threading.Lock()


def _forget_turns() -> None:
    """A child of fork starts with no lock held: the threads that held them are not in it."""
    global _turns, _turns_lock  # noqa: PLW0603
    _turns = WeakValueDictionary()
    _turns_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_turns)


class Hold:
    """A lock that is held. It ends with its block, unless what it protects goes on after that."""

    def __init__(self, lock: BaseFileLock, turn: _Turn) -> None:
        self._lock = lock
        self._turn = turn
        self.kept = False

    def keep(self) -> None:
        """Go on holding after the block; whoever says so has to `release`, in any thread."""
        self.kept = True

    def release(self) -> None:
        """Let the next one have it."""
        try:
            self._lock.release()
        finally:
            self._turn.lock.release()


class Locks:
    """Named locks as files in one directory, which is made when the first is taken.

    A file is never removed: whoever waits for it would then wait for a file that is gone.

    Args:
        directory: Where the lock files are.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextmanager
    def account(self, account_name: str, *, timeout: float) -> Iterator[Hold]:
        """Hold the refresh lock of an account; wait for it at most *timeout* seconds.

        Raises:
            TimeoutError: Somebody else holds it.
            StorageError: It cannot be taken at all.
        """
        with self._hold(_file_of(account_name), timeout) as hold:
            yield hold

    def is_held(self, account_name: str) -> bool:
        """Tell whether somebody holds the lock of an account; that creates nothing."""
        if not (self.directory / _file_of(account_name)).exists():
            return False
        try:
            with self.account(account_name, timeout=0.0):
                return False
        except TimeoutError:
            return True
        except StorageError:  # it cannot be taken at all, so nobody holds it
            return False

    @contextmanager
    def schema(self, *, timeout: float) -> Iterator[None]:
        """Hold the lock under which the database is created; like `account` otherwise."""
        with self._hold("schema", timeout):
            yield

    @contextmanager
    def _hold(self, name: str, timeout: float) -> Iterator[Hold]:
        path = str(self.directory / name)
        deadline = time.monotonic() + timeout
        with _turns_lock:
            turn = _turns.setdefault(path, _Turn())
        if not turn.lock.acquire(timeout=timeout):
            raise TimeoutError
        try:
            lock = self._acquire(path, max(0.0, deadline - time.monotonic()))
        except BaseException:
            turn.lock.release()
            raise
        hold = Hold(lock, turn)
        try:
            yield hold
        finally:
            if not hold.kept:
                hold.release()

    def _acquire(self, path: str, timeout: float) -> FileLock:
        lock = FileLock(path, mode=0o600, thread_local=False, fallback_to_soft=False)
        try:
            self._make_directory()
            lock.acquire(timeout=timeout, poll_interval=_POLL)
        except Timeout:
            raise TimeoutError from None
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                f"{path}: the lock cannot be taken: {error.strerror or error}; its directory has "
                "to be writable and on a file system with flock",
                path,
                errno=error.errno,
            ) from error
        return lock

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(mode=0o700)
        except FileExistsError:
            found = self.directory.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise InsecureStorageError(
                    f"{self.directory}: not a directory of this user; move it away, locks go there",
                    self.directory,
                ) from None


def _file_of(account_name: str) -> str:
    digest = hashlib.sha256(account_name.encode()).hexdigest()
    return f"{digest[:40]}.lock"
