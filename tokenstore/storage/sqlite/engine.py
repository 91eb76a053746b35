"""Connections to SQLite, and the pragmas that each of them gets."""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUSY_TIMEOUT = 30.0
"""Seconds to wait for somebody else's transaction."""


def make_engine(path: Path, options: str = "mode=rw") -> Engine:
    """Make an engine whose every connection is a new one and whose transactions are ours.

    The driver begins and commits nothing by itself. A transaction takes the write lock at once
    (BEGIN IMMEDIATE): a reader that turns writer later fails, however long it is willing to wait.
    Reading needs no transaction, as every read is one statement.

    Args:
        path: The database file, which has to exist.
        options: SQLite's URI parameters.
    """

    def connect() -> sqlite3.Connection:
        driver = sqlite3.connect(
            uri(path, options),
            uri=True,
            timeout=BUSY_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,  # close() and a fork close it from another thread
        )
        try:
            driver.execute("PRAGMA synchronous = FULL")
            driver.execute("PRAGMA secure_delete = ON")
            driver.execute("SELECT 1 FROM sqlite_master").fetchone()  # opens it for real
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


def uri(path: Path, options: str) -> str:
    """Return the URI under which SQLite opens *path*, whatever characters are in it."""
    return f"file://{quote(os.fsencode(path))}?{options}"


def driver_of(connection: Connection) -> sqlite3.Connection:
    """Return the driver's connection below an SQLAlchemy one."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)  # noqa: S101 - for the type checker
    return driver


def pragma(driver: sqlite3.Connection, name: str) -> Any:
    """Return the value of a pragma."""
    return driver.execute(f"PRAGMA {name}").fetchone()[0]


def decode_what_can_be(stored: bytes) -> str:
    """Decode stored text that may be damaged; what is no UTF-8 becomes surrogates."""
    return stored.decode("utf-8", "surrogateescape")


@contextmanager
def decoding_what_can_be(driver: sqlite3.Connection) -> Iterator[None]:
    """Read stored text that may be damaged."""
    driver.text_factory = decode_what_can_be
    try:
        yield
    finally:
        driver.text_factory = str
