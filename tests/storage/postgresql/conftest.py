from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.postgresql import empty
from tests.helpers.refreshes import World
from tokenstore import TokenRepository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def url(migrated: str) -> Iterator[str]:
    yield migrated
    empty(migrated)


@pytest.fixture
def world(tmp_path: Path, url: str) -> Iterator[World]:
    with World(tmp_path, url) as world:
        yield world


@pytest.fixture
def repository(url: str) -> Iterator[TokenRepository]:
    with TokenRepository(url) as repository:
        yield repository
