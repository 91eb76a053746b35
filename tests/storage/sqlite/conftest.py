from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.stores import tokens
from tokenstore import TokenRepository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def repository(path: Path) -> Iterator[TokenRepository]:
    """A database with one account."""
    with TokenRepository(path) as repository:
        repository.save("alice", tokens())
        yield repository
