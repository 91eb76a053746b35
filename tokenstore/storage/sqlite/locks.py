"""Locks next to a SQLite file, which the operating system releases when their holder dies."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from tokenstore.errors import StorageError
from tokenstore.storage.locks import LockTimeoutError, thread_lock
from tokenstore.trust import require_own_directory, require_own_file, restrict_permissions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenstore.storage.locks import HeldLock

_POLL = 0.02  # seconds between two attempts to take a lock that another process holds


class FileLocks:
    """Named locks as files in one directory, which is created with the first of them.

    A file is never removed: a process that waits for it would wait for a file that is gone.

    Args:
        directory: The directory of the lock files.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextmanager
    def account(self, account_name: str, *, timeout: float) -> Iterator[HeldLock]:
        """Hold the refresh lock of an account (see `RefreshLocks`)."""
        with self._hold(_file_of(account_name), timeout) as lock:
            yield lock

    def is_held(self, account_name: str) -> bool:
        """Return whether any process holds the lock of an account; creates nothing."""
        if not (self.directory / _file_of(account_name)).exists():
            return False
        try:
            with self.account(account_name, timeout=0.0):
                return False
        except LockTimeoutError:
            return True
        except StorageError as error:  # this very thread holds it, or no process can take it
            return error.errno == errno.EDEADLK

    @contextmanager
    def schema(self, *, timeout: float) -> Iterator[None]:
        """Hold the lock under which the database is created; otherwise like `account`."""
        with self._hold("schema", timeout):
            yield

    @contextmanager
    def _hold(self, name: str, timeout: float) -> Iterator[_HeldFileLock]:
        path = str(self.directory / name)
        deadline = time.monotonic() + timeout
        with thread_lock(path, timeout=timeout):
            lock = self._acquire(path, max(0.0, deadline - time.monotonic()))
            try:
                yield _HeldFileLock(path)
            finally:
                lock.release()

    def _acquire(self, path: str, timeout: float) -> FileLock:
        lock = FileLock(path, mode=0o600, thread_local=False, fallback_to_soft=False)
        try:
            self._make_directory()
            self._require_own(path)
            lock.acquire(timeout=timeout, poll_interval=_POLL)
        except Timeout:
            raise LockTimeoutError from None
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                f"{path}: cannot take the lock: {error.strerror or error}; its directory must "
                "be writable and on a file system with flock",
                path,
                errno=error.errno,
            ) from error
        return lock

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(mode=0o700)
        except FileExistsError:
            found = self.directory.lstat()
            require_own_directory(self.directory, found, "move it away, locks go there")
            restrict_permissions(self.directory, found)

    def _require_own(self, path: str) -> None:
        """Refuse a lock file of another user, who could hold the lock forever."""
        with suppress(FileNotFoundError):
            require_own_file(Path(path), os.lstat(path), "remove it while no process uses it")


class _HeldFileLock:
    """A lock file that is locked; a lock is lost if its file is removed or replaced."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._identity = self._look()

    def is_lost(self) -> bool:
        """Return whether another file, or none, is at the path: another process may lock that."""
        return self._identity is None or self._look() != self._identity

    def _look(self) -> tuple[int, int] | None:
        with suppress(OSError):
            found = os.lstat(self._path)
            return found.st_dev, found.st_ino
        return None


def _file_of(account_name: str) -> str:
    digest = hashlib.sha256(account_name.encode()).hexdigest()
    return f"{digest[:40]}.lock"
