from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.helpers import temporary
from tests.helpers.requirements import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.helpers.refreshes import World
    from tokenstore import TokenManager
    from tokenstore.testing import AuthorizationServer

# What takes minutes (`make torture`), and what needs a browser (`make test-browser`).
collect_ignore = ["torture", "browser"]

# `make test` tries the same examples each time; `make torture` tries others, and many more.
settings.register_profile("test", deadline=None, derandomize=True)
settings.register_profile("torture", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile("test")

RUN_DIRECTORY = pytest.StashKey[Path]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keep what the run writes in one directory, and set what a test inherits."""
    os.umask(0o022)  # the group must not write to a providers.toml
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):  # workers of xdist use the directory of their controller
        directory = config.stash[RUN_DIRECTORY] = temporary.make_run_directory()
        if config.option.basetemp is None:
            config.option.basetemp = directory / "t"


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """Keep the directory if a test failed, and say where it is."""
    if exitstatus == pytest.ExitCode.TESTS_FAILED:
        directory = config.stash[RUN_DIRECTORY]
        terminalreporter.write_line(f"kept what the failed tests wrote: {directory / 't'}")
        del config.stash[RUN_DIRECTORY]


def pytest_unconfigure(config: pytest.Config) -> None:
    directory = config.stash.get(RUN_DIRECTORY, None)
    if directory is not None:
        temporary.remove(directory)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        require(*mark.args)


ZONES = {  # POSIX rules, so that no zone database is needed
    "UTC": "UTC0",
    "Los_Angeles": "PST8PDT,M3.2.0,M11.1.0",
    "Kolkata": "IST-5:30",
}


@pytest.fixture
def set_zone() -> Iterator[Callable[[str], None]]:
    """Set the local time zone of this process; after the test it is what it was."""
    before = os.environ.get("TZ")

    def change(zone: str | None) -> None:
        if zone is None:
            os.environ.pop("TZ", None)
        else:
            os.environ["TZ"] = ZONES.get(zone, zone)
        time.tzset()

    yield change
    change(before)


@pytest.fixture(params=ZONES)
def zone(request: pytest.FixtureRequest, set_zone: Callable[[str], None]) -> str:
    """Run the test in each of three local time zones."""
    set_zone(request.param)
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test keeps a SQLite database, which is not there yet."""
    return tmp_path / "tokens.db"


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that other users can enter; pytest's own are private."""
    directory = temporary.open_directory()
    yield directory
    temporary.remove(directory)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL that this process has for itself."""
    from tests.helpers.postgresql import server

    require("postgresql")
    with server() as url:
        yield url


@pytest.fixture
def schema(postgresql: str) -> Iterator[str]:
    """The URL of a schema that is not there yet."""
    from tests.helpers.postgresql import in_schema, without

    yield in_schema(postgresql, "new")
    without(postgresql, "new")


@pytest.fixture(scope="session")
def migrated(postgresql: str) -> str:
    """The URL of a schema for the tests of this process, one after the other."""
    from tests.helpers.postgresql import in_schema
    from tokenstore import migrate

    url = in_schema(postgresql, "tests")
    migrate.upgrade(url)
    return url


ENGINES = ["sqlite", "postgresql"]


@pytest.fixture(params=ENGINES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """A store of each kind, empty: the path of a file that is not there yet, or a URL."""
    from tests.helpers.postgresql import empty

    if request.param == "sqlite":
        yield tmp_path / "tokens.db"
        return
    url = request.getfixturevalue("migrated")
    yield url
    empty(url)


@pytest.fixture
def server() -> Iterator[AuthorizationServer]:
    """A provider."""
    from tokenstore.testing import AuthorizationServer

    with AuthorizationServer() as server:
        yield server


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A provider and a store: on SQLite, or `on_both_engines` where a module says so."""
    from tests.helpers.refreshes import World

    chosen = "database" in request.fixturenames
    with World(tmp_path, request.getfixturevalue("database") if chosen else None) as world:
        yield world


@pytest.fixture
def manager(world: World) -> TokenManager:
    """A manager of that store."""
    return world.manager()


@pytest.fixture
def impatient(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[TokenManager]:
    """One whose callers wait a second for an outcome that cannot be stored; at the end it can."""
    for module in ("refresh", "refresher"):
        monkeypatch.setattr(f"tokenstore.lifecycle.{module}.STORE_PATIENCE", 0.1)
    monkeypatch.setattr("tokenstore.lifecycle.refresh._LONGEST_DELAY", 0.1)
    manager = world.manager(timeout=1.0)
    yield manager
    world.accept()
    manager.close()
