"""FileLocks beside a SQLite file, which the operating system releases when their holder dies."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from tokenstore.errors import InsecureStorageError, StorageError
from tokenstore.storage.locks import HeldLock, thread_lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_POLL = 0.02  # seconds between two looks at a lock that another process holds


class FileLocks:
    """Named locks as files in one directory, which is made when the first is taken.

    A file is never removed: whoever waits for it would then wait for a file that is gone.

    Args:
        directory: Where the lock files are.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextmanager
    def account(self, account_name: str, *, timeout: float) -> Iterator[HeldLock]:
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
    def _hold(self, name: str, timeout: float) -> Iterator[HeldLock]:
        path = str(self.directory / name)
        deadline = time.monotonic() + timeout
        with thread_lock(path, timeout=timeout) as mine:
            lock = self._acquire(path, max(0.0, deadline - time.monotonic()))
            hold = HeldLock(mine, lock.release, lambda: False)
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
