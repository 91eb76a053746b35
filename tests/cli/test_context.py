"""What commands say of a database or an account that is not there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.helpers.command import Command, Ran, save
from tokenstore import TokenRepository

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokenstore.testing import AuthorizationServer


@pytest.mark.parametrize(
    ("arguments", "code", "out"),
    [
        ("status", 0, ""),
        ("status --json", 0, '{"accounts":[]}'),
        ("status alice", 5, ""),
        ("token alice", 5, ""),
        ("history", 0, ""),
        ("history --json", 0, '{"history":[]}'),
        ("history alice", 5, ""),
        ("refresh --all", 1, ""),
        ("refresh --all --dry-run", 1, ""),
        ("refresh --all --json", 1, '{"results":[]}'),
        ("refresh --idle-for 1d", 1, ""),
        ("refresh alice", 5, ""),
        ("export NEW", 1, ""),
        ("export NEW --json", 1, '{"results":[]}'),
        ("backup NEW", 1, ""),
        ("delete alice", 5, ""),
        ("logout alice", 5, ""),
        ("db current", 0, ""),
        ("db check", 1, ""),
    ],
)
@pytest.mark.parametrize("is_empty", [False, True], ids=["no file", "empty file"])
def test_d10_a_database_that_is_not_there_is_reported(
    cli: Callable[..., Ran],
    database: Path,
    arguments: str,
    code: int,
    out: str,
    is_empty: bool,
) -> None:
    if is_empty:
        database.touch()

    ran = cli(*arguments.replace("NEW", str(database.parent / "new")).split())

    assert (ran.code, "".join(ran.out.split())) == (code, out)
    [line] = [line for line in ran.err.splitlines() if "there is no database" in line]
    assert line.startswith("tokenstore: ")
    assert str(database) in line
    assert {path.name for path in database.parent.iterdir()} <= {database.name}


def test_d10_a_database_without_accounts_is_there(cli: Callable[..., Ran], database: Path) -> None:
    assert cli("db", "upgrade").code == 0

    for command in ("status", "history", "refresh --all", f"export {database.parent / 'new'}"):
        ran = cli(*command.split())
        assert ran.code == 0
        assert "there is no database" not in ran.err


def test_d10_an_empty_status_names_the_database(command: Command) -> None:
    assert command("db", "upgrade")[0] == 0

    assert f"no accounts yet in {command.world.path}" in command.shown("status")


def test_an_account_that_is_not_there_is_told_with_the_nearest(
    cli: Callable[..., Ran], database: Path, server: AuthorizationServer
) -> None:
    for name in ("alice@example.com", "bob@example.com"):
        save(database, server, name, expires_in=3600)

    for mistyped in ("alcie@example.com", "Alice@example.com", "lice@example.com"):
        assert "; did you mean 'alice@example.com'?" in cli("token", mistyped).err
    assert "; see: tokenstore status" in cli("token", "zzz").err


def test_d17_a_mistyped_name_costs_the_same_among_many(
    cli: Callable[..., Ran], database: Path
) -> None:
    """With all names, the comparison took 6 s at 100,000 accounts."""
    with TokenRepository(database) as repository, repository.transaction():
        for number in range(10_000):
            repository.save(f"user{number:06}@example.com", {"access_token": "a"})
    cli("token", "nobody")  # imports what is needed

    began = time.process_time()
    ran = cli("token", "user005000@exmaple.com")

    assert time.process_time() - began < 0.2
    assert ran.code == 5
    assert "did you mean 'user005000@example.com'?" in ran.err
