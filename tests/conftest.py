from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# What takes minutes (`make torture`), and what needs a browser (`make test-browser`).
collect_ignore = ["torture", "browser"]

# `make test` tries the same examples each time; `make torture` tries others, and many more.
settings.register_profile("test", deadline=None, derandomize=True)
settings.register_profile("torture", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile("test")

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


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL that this process has for itself."""
    from tests.helpers.postgresql import server

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
