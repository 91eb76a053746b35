from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.doctor import tokens
from tokenstore import TokenRepository


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two accounts, which is made once and copied for each test."""
    directory = tmp_path_factory.mktemp("made") / "data"
    with TokenRepository(directory / "tokens.db") as repository:
        repository.save("alice", tokens(1))
        repository.save("bob", tokens(2))
    return directory


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A store with two accounts, in a directory of its own."""
    return Path(shutil.copytree(made, tmp_path / "data")) / "tokens.db"
