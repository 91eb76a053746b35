"""SQLAlchemy engines for SQLite files, with the pragmas of every connection."""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from tokenstore.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LEAST_VERSION = (3, 35, 0)
"""The oldest SQLite that this code works with, for its RETURNING."""

BUSY_TIMEOUT = 30.0
"""Seconds to wait for the transaction of another process."""


def make_engine(path: Path, options: str = "mode=rw") -> Engine:
    """Return an engine without a pool, whose driver begins and commits nothing by itself.

    A transaction acquires the write lock at once (BEGIN IMMEDIATE): a reader that starts to write
    later may fail at once, however long its timeout is. Reading needs no transaction, as every
    read is one statement.

    Args:
        path: The database file, which must exist.
        options: SQLite's URI parameters.
    """

    def connect() -> sqlite3.Connection:
        driver = connect_to(path, options)
        try:
            driver.execute("SELECT 1 FROM sqlite_master").fetchone()  # this opens the file
        except BaseException:
            driver.close()
            raise
        return driver

    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        creator=connect,
        poolclass=NullPool,
        hide_parameters=True,
        paramstyle="named",
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        kind = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
        driver_of(connection).execute(f"BEGIN {kind}")

    return engine


def connect_to(path: Path, options: str) -> sqlite3.Connection:
    """Return a connection of the driver that begins and commits nothing by itself.

    A commit is durable in every journal mode: with a rollback journal that takes EXTRA, as the
    journal's removal is what commits. With a write-ahead log EXTRA is the same as FULL. What SQLite
    sorts or sets aside stays in memory, since a temporary file would hold tokens.

    Args:
        path: The database file, which must exist.
        options: SQLite's URI parameters.

    Raises:
        StorageError: This SQLite is too old.
    """
    if sqlite3.sqlite_version_info < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        raise StorageError(
            f"{path}: SQLite {sqlite3.sqlite_version} is too old; use a Python whose sqlite3 "
            f"module has SQLite {least} or later",
            path,
        )
    driver = sqlite3.connect(
        uri(path, options),
        uri=True,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,  # close() and fork() close it in another thread
    )
    try:
        driver.execute("PRAGMA synchronous = EXTRA")
        driver.execute("PRAGMA secure_delete = ON")
        driver.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        driver.close()
        raise
    return driver


def uri(path: Path, options: str) -> str:
    """Return the URI with which SQLite opens *path*."""
    return f"file://{quote(os.fsencode(path))}?{options}"


def driver_of(connection: Connection) -> sqlite3.Connection:
    """Return the driver's connection of an SQLAlchemy connection."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)  # noqa: S101 - for the type checker
    return driver


def pragma(driver: sqlite3.Connection, name: str) -> Any:
    """Return the value of a pragma."""
    return driver.execute(f"PRAGMA {name}").fetchone()[0]


def decode_leniently(stored: bytes) -> str:
    """Decode stored text that may be damaged; bytes that are not UTF-8 become surrogates."""
    return stored.decode("utf-8", "surrogateescape")


@contextmanager
def lenient_decoding(driver: sqlite3.Connection) -> Iterator[None]:
    """Let the driver return damaged text instead of raising an error."""
    driver.text_factory = decode_leniently
    try:
        yield
    finally:
        driver.text_factory = str
