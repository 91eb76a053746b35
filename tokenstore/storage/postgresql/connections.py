"""Connections to a PostgreSQL server: made, pooled, and never shared across a fork."""

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
from tokenstore.storage.location import shown
from tokenstore.storage.postgresql.errors import ERRORS, connection_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine import URL
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

BUSY_TIMEOUT = 30.0
"""Seconds to wait for somebody else's transaction, or for a connection of the pool."""

_DEFAULTS: dict[str, Any] = {  # libpq's parameters; those in a URL go before
    "application_name": "tokenstore",
    "connect_timeout": 10,  # seconds, as all of these
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # milliseconds
}


class Connections(fork.ForkParticipant):
    """A pool of connections on which every statement is its own, unless it begins a transaction.

    Args:
        url: Where the server is.
        kept: How many to keep open while they are idle.
        most: How many there may be at a time; None: as many as are asked for.
    """

    def __init__(self, url: URL, *, kept: int, most: int | None) -> None:
        self._url = url
        self._name = shown(url)
        self._sizes = {"pool_size": kept, "max_overflow": -1 if most is None else most - kept}
        self._engine: Engine | None = None
        fork.register(fork.Stage.POSTGRESQL, self)

    @property
    def engine(self) -> Engine:
        """The engine, made when it is first needed."""
        if self._engine is None:
            parameters = {n: v for n, v in _DEFAULTS.items() if n not in self._url.query}
            self._engine = create_engine(
                self._url.difference_update_query(["schema"]),
                # A pooler that lends a server connection for one transaction knows neither what
                # was prepared nor what was set in an earlier one.
                connect_args={**parameters, "prepare_threshold": None, "client_encoding": "utf8"},
                isolation_level="AUTOCOMMIT",
                use_native_hstore=False,  # it would ask the server for it at every connection
                hide_parameters=True,
                pool_timeout=BUSY_TIMEOUT,
                pool_reset_on_return=None,  # see _undo
                pool_use_lifo=True,  # so that those of a rush get old and are closed
                **self._sizes,
            )
            event.listen(self._engine, "reset", _undo)
            finalize(self, self._engine.dispose)
        return self._engine

    @contextmanager
    def lent(self) -> Iterator[psycopg.Connection[Any]]:
        """Lend the driver's connection; one that comes back unfit is closed.

        Raises:
            StorageError: There is none to be had.
        """
        pooled = self.take()
        try:
            yield driver_of(pooled)
        finally:
            self.give_back(pooled)

    def take(self) -> PoolProxiedConnection:
        """Take a connection, for `give_back`."""
        pool = self.engine.pool
        try:
            pooled = self.engine.raw_connection()
        except PoolTimeoutError:
            raise StorageError(
                f"{self._name}: this process has no connection left and none became free within "
                f"{BUSY_TIMEOUT:.0f} s; use fewer threads, or end transactions sooner",
                self._name,
            ) from None
        except ERRORS as error:
            raise connection_error(self._name, error, self._url.password) from None
        pooled.info.update(pool=pool, process=os.getpid())
        return pooled

    def give_back(self, pooled: PoolProxiedConnection) -> None:
        """Take a connection back; if it is lost, those that are as old are probably lost too."""
        if pooled.info["process"] != os.getpid():
            _inherited.append(pooled)
            return
        driver = driver_of(pooled)
        if driver.closed:
            pooled.invalidate()
            self.engine.dispose()
            return
        ended = driver.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        if not ended or pooled.info["pool"] is not self.engine.pool:
            pooled.invalidate()  # nobody ended what was begun on it, or `close` was called
            return
        pooled.close()

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """Yield an SQLAlchemy connection of its own, whose transactions SQLAlchemy begins."""
        engine = self.engine.execution_options(isolation_level="READ COMMITTED")
        try:
            connection = engine.connect()
        except ERRORS as error:
            raise connection_error(self._name, error, self._url.password) from None
        try:
            yield connection
        finally:
            connection.invalidate()  # its search path was changed
            connection.close()

    def close(self) -> None:
        """Close what is idle; what is in use is closed when it comes back."""
        if self._engine is not None:
            self._engine.dispose()

    def after_fork_in_child(self) -> None:
        """Leave all connections to the parent of this process, which goes on using them."""
        if self._engine is not None:
            _inherited.append(self._engine.pool)
            self._engine.dispose(close=False)


def _undo(driver: psycopg.Connection[Any], record: ConnectionPoolEntry, _state: object) -> None:
    """End a transaction whose end an interrupt prevented.

    Never the parent's: what a child of fork says goes over the connection that both share.
    """
    if record.info.get("process") == os.getpid() and not driver.closed:
        driver.rollback()


def driver_of(pooled: PoolProxiedConnection) -> psycopg.Connection[Any]:
    """Return the driver's connection below one of the pool."""
    driver = pooled.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101 - for the type checker
    return driver


_inherited: list[object] = []  # connections of a parent process, which a finaliser must not touch
