"""Pooled connections to a PostgreSQL server, never shared across a fork."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import finalize

import psycopg
from sqlalchemy import create_engine, event
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tokenstore import fork
from tokenstore.errors import StorageError
from tokenstore.storage.location import display_name
from tokenstore.storage.postgresql.errors import ERRORS, connection_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine import URL
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

BUSY_TIMEOUT = 30.0
"""Seconds to wait for another transaction, or for a connection of the pool."""

_DEFAULTS: dict[str, Any] = {  # libpq's parameters; those in a URL override them
    "application_name": "tokenstore",
    "connect_timeout": 10,  # seconds
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # milliseconds
}


class Connections(fork.ForkParticipant):
    """A pool of connections in autocommit mode.

    Args:
        url: The database.
        pool_size: Number of idle connections to keep open.
        limit: Maximum number of connections. Defaults to no limit.
    """

    def __init__(self, url: URL, *, pool_size: int, limit: int | None = None) -> None:
        self._url = url
        self._name = display_name(url)
        self._pool_size = pool_size
        self._max_overflow = -1 if limit is None else limit - pool_size
        self._engine: Engine | None = None
        fork.register(fork.Stage.POSTGRESQL, self)

    @property
    def engine(self) -> Engine:
        """The engine, created when it is first needed."""
        if self._engine is None:
            parameters = {n: v for n, v in _DEFAULTS.items() if n not in self._url.query}
            self._engine = create_engine(
                self._url.difference_update_query(["schema", "owner"]),
                # A pooler may use another server connection for each transaction, so prepared
                # statements and settings of an earlier one are lost.
                connect_args={**parameters, "prepare_threshold": None, "client_encoding": "utf8"},
                isolation_level="AUTOCOMMIT",
                use_native_hstore=False,  # it would cost a query per connection
                hide_parameters=True,
                pool_size=self._pool_size,
                max_overflow=self._max_overflow,
                pool_timeout=BUSY_TIMEOUT,
                pool_reset_on_return=None,  # see _roll_back
                pool_use_lifo=True,  # so that rarely used connections stay idle
            )
            # SQLAlchemy would ask for it without pg_catalog (see `qualified`).
            vars(self._engine.dialect)["_get_default_schema_name"] = lambda _: None
            event.listen(self._engine, "reset", _roll_back)
            finalize(self, self._engine.dispose)
        return self._engine

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """Yield the driver's connection of the pool.

        Raises:
            StorageError: No connection is available.
        """
        pooled = self.checkout()
        try:
            yield driver_of(pooled)
        finally:
            self.checkin(pooled)

    def checkout(self) -> PoolProxiedConnection:
        """Take a connection from the pool, until `checkin`."""
        pool = self.engine.pool
        try:
            pooled = self.engine.raw_connection()
        except PoolTimeoutError:
            raise StorageError(
                f"{self._name}: all connections of this process are in use, and none became free "
                f"in {BUSY_TIMEOUT:.0f} s; use fewer threads or shorter transactions",
                self._name,
            ) from None
        except ERRORS as error:
            raise connection_error(self._name, error, self._url.password) from None
        pooled.info.update(pool=pool, process=os.getpid())
        return pooled

    def checkin(self, pooled: PoolProxiedConnection) -> None:
        """Return a connection to the pool.

        If it is lost, the others of the pool probably are too, so all of them are closed.
        """
        if pooled.info["process"] != os.getpid():
            _inherited.append(pooled)
            return
        driver = driver_of(pooled)
        if driver.closed:
            pooled.invalidate()
            self.engine.dispose()
            return
        is_idle = driver.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        if not is_idle or pooled.info["pool"] is not self.engine.pool:
            pooled.invalidate()  # a transaction did not end, or `close` was called
            return
        pooled.close()

    @contextmanager
    def sqlalchemy_connection(self) -> Iterator[Connection]:
        """Yield an SQLAlchemy connection of its own, whose transactions SQLAlchemy begins."""
        engine = self.engine.execution_options(isolation_level="READ COMMITTED")
        try:
            connection = engine.connect()
        except ERRORS as error:
            raise connection_error(self._name, error, self._url.password) from None
        try:
            yield connection
        finally:
            connection.invalidate()  # its search path has changed
            connection.close()

    def close(self) -> None:
        """Close idle connections at once, and the others at their checkin."""
        if self._engine is not None:
            self._engine.dispose()

    def after_fork_in_child(self) -> None:
        """Leave all connections to the parent process, which keeps using them."""
        if self._engine is not None:
            _inherited.append(self._engine.pool)
            self._engine.dispose(close=False)


def _roll_back(
    driver: psycopg.Connection[Any], record: ConnectionPoolEntry, _state: object
) -> None:
    """End a transaction whose end an interrupt has prevented.

    A child of fork must not do this to its parent's connection, which both share.
    """
    if record.info.get("process") == os.getpid() and not driver.closed:
        driver.rollback()


def driver_of(pooled: PoolProxiedConnection) -> psycopg.Connection[Any]:
    """Return the driver's connection of a pooled connection."""
    driver = pooled.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101 - for the type checker
    return driver


_inherited: list[object] = []  # connections of a parent process, which no finaliser may close
