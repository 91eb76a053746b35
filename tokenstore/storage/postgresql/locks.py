"""Refresh locks that the server releases when their holder's connection ends.

Each is held by a transaction that does nothing else, so that it works through a pooler that lends
a server connection for one transaction, too.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from psycopg.pq import TransactionStatus

from tokenstore.errors import StorageError
from tokenstore.storage.locks import LockTimeoutError, thread_lock
from tokenstore.storage.postgresql.connections import Connections, driver_of
from tokenstore.storage.postgresql.errors import (
    ERRORS,
    LOCK_NOT_AVAILABLE,
    is_transient,
    postgresql_error,
    sqlstate,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    from sqlalchemy.pool import PoolProxiedConnection

# A request may take long, and nothing is said meanwhile. The server has to notice within a minute
# or so that the holder's machine is gone, and must not end the transaction by itself.
_BEGIN = """
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL statement_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL tcp_keepalives_idle = 30;
SET LOCAL tcp_keepalives_interval = 10;
SET LOCAL tcp_keepalives_count = 3;
"""
_LIMITLESS = "SET LOCAL transaction_timeout = 0;"
_LIMITED_SINCE = 170000  # the server's version


class AdvisoryLocks:
    """The refresh locks of the accounts in one schema.

    Args:
        name: What messages call the database.
        schema: The schema.
        connections: The connections whose transactions hold the locks: one for each account that
            is refreshed, or waited for, at the same time.
    """

    def __init__(self, name: str, schema: str, connections: Connections) -> None:
        self._name = name
        self._schema = schema
        self._connections = connections

    @contextmanager
    def account(self, account_name: str, *, timeout: float) -> Iterator[HeldAdvisoryLock]:
        """Hold the refresh lock of an account (see `RefreshLocks`)."""
        key = key_of(f"{self._schema}\n{account_name}")
        deadline = time.monotonic() + timeout
        with thread_lock(f"{self._name} {key}", timeout=timeout):
            lock = HeldAdvisoryLock(self._acquire(key, deadline))
            try:
                yield lock
            finally:
                lock.release()
                self._connections.checkin(lock.pooled)

    def is_held(self, account_name: str) -> bool:
        """Return whether any process holds the lock of an account."""
        try:
            with self.account(account_name, timeout=0.0):
                return False
        except LockTimeoutError:
            return True
        except StorageError as error:
            if error.errno == errno.EDEADLK:  # this very thread holds it
                return True
            raise

    def _acquire(self, key: int, deadline: float) -> PoolProxiedConnection:
        try:
            return self._take(key, deadline - time.monotonic())
        except StorageError as error:
            if not is_transient(error):
                raise
        # The pool had kept a connection that was lost since.
        return self._take(key, deadline - time.monotonic())

    def _take(self, key: int, timeout: float) -> PoolProxiedConnection:
        pooled = self._connections.checkout()
        try:
            driver = driver_of(pooled)
            if not self._lock(driver, key, timeout):
                raise LockTimeoutError
        except ERRORS as error:
            self._connections.checkin(pooled)
            if sqlstate(error) == LOCK_NOT_AVAILABLE:
                raise LockTimeoutError from None
            raise postgresql_error(self._name, error) from None
        except BaseException:
            self._connections.checkin(pooled)
            raise
        return pooled

    def _lock(self, driver: psycopg.Connection[Any], key: int, timeout: float) -> bool:
        begin = _BEGIN + (_LIMITLESS if driver.info.server_version >= _LIMITED_SINCE else "")
        try:
            if timeout <= 0:
                driver.execute(begin.encode())
                row = driver.execute(
                    "SELECT pg_catalog.pg_try_advisory_xact_lock(%s)", (key,)
                ).fetchone()
                if row is not None and row[0]:
                    return True
                driver.execute("ROLLBACK")
                return False
            milliseconds = max(1, round(timeout * 1000))
            wait = f"SELECT pg_catalog.pg_advisory_xact_lock({key})"
            limit = f"SET LOCAL lock_timeout = {milliseconds};"
            driver.execute((begin + limit + wait).encode())
        except ERRORS:
            if not driver.closed and driver.info.transaction_status is TransactionStatus.INERROR:
                driver.execute("ROLLBACK")
            raise
        return True


class HeldAdvisoryLock:
    """A lock that the transaction of a connection holds, and what is done on that transaction.

    Attributes:
        pooled: The connection.
        ended: Whether the transaction was committed, which has released the lock.
    """

    def __init__(self, pooled: PoolProxiedConnection) -> None:
        self.pooled = pooled
        self.ended = False
        self._process = os.getpid()

    @property
    def driver(self) -> psycopg.Connection[Any] | None:
        """The driver's connection while it holds the lock, else None."""
        if self.ended or self.pooled.driver_connection is None or self._process != os.getpid():
            return None
        driver = driver_of(self.pooled)
        held = driver.info.transaction_status is TransactionStatus.INTRANS
        return driver if held and not driver.closed else None

    def is_lost(self) -> bool:
        """Return whether the transaction has ended, and the lock with it."""
        driver = self.driver
        if driver is None:  # the connection is lost, or the outcome was committed on it
            return True
        try:
            driver.execute("SELECT 1")
        except ERRORS:
            return True
        return False

    def release(self) -> None:
        """End the transaction, which releases the lock."""
        driver = self.driver
        if driver is None:
            return
        self.ended = True
        with suppress(*ERRORS):  # then the server has released the lock already
            driver.execute("COMMIT")


def key_of(name: str) -> int:
    """Return the number that stands for a name among the server's advisory locks."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], signed=True)
