"""Operations on all accounts hold only few of them in memory."""

from __future__ import annotations

import os
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from tests.helpers.stores import raw
from tokenstore import TokenRepository
from tokenstore.cli import output
from tokenstore.cli.app import run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

ONE, FEW, MANY = 1, 1100, 3300  # few are more than two pages


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Create databases of due accounts that cannot be refreshed."""
    found = {}
    for size in (ONE, FEW, MANY):
        found[size] = path = tmp_path_factory.mktemp("store") / "tokens.db"
        with TokenRepository(path) as repository:
            tokens = {"access_token": "a" * 100, "refresh_token": "r", "expires_in": -1}
            repository.save("a-0000000", tokens)
        with raw(path) as connection:
            connection.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?)"
                " INSERT INTO accounts (account_name, access_token, refresh_token, expires_at,"
                " extra, version) SELECT printf('a-%07d', i), access_token, refresh_token,"
                " expires_at, extra, i FROM accounts, n",
                (size,),
            )
    return found


def peak(path: Path, *words: str) -> int:
    """Return how many bytes a command has in use at most."""
    tracemalloc.start()
    try:
        run(["--database", str(path), *words])
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "line", ["status", "status --json", "refresh --all --dry-run --json", "export DIR"]
)
def test_memory_does_not_grow_with_the_number_of_accounts(
    stores: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr(output, "_forced_terminal", line == "status")  # as on a terminal
    monkeypatch.setattr(os, "fsync", lambda _: None)  # these files need not survive a crash
    words = line.replace("DIR", str(tmp_path / "exported")).split()

    run(["--database", str(stores[ONE]), *words])  # imports what it needs
    few, many = peak(stores[FEW], *words), peak(stores[MANY], *words)

    assert many < 1.5 * few
