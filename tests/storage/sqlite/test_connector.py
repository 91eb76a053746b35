"""Opening a database during a checkpoint, after an interrupted one, and next to a stale log."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.helpers.stores import is_sound, python, raw, tokens
from tokenstore import StorageError, TokenRepository
from tokenstore.doctor import examine
from tokenstore.jsonfiles import import_accounts

if TYPE_CHECKING:
    from pathlib import Path

PAGE = 4096


def cut_off(path: Path) -> Path:
    """Return a copy of a database as a checkpoint leaves it that ends after its first page."""
    copy = path.parent / "copy" / path.name
    copy.parent.mkdir()
    with TokenRepository(path) as repository:
        repository.save("first", tokens())
    with TokenRepository(path) as repository:
        for number in range(60):
            repository.save(f"account-{number}", tokens(number, padding="x" * 3000))
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    finished = path.read_bytes()
    assert len(finished) > copy.stat().st_size
    with copy.open("r+b") as file:
        file.write(finished[:PAGE])
    return copy


def test_an_interrupted_checkpoint_loses_nothing(path: Path) -> None:
    copy = cut_off(path)

    with TokenRepository(copy) as repository:
        assert repository.load("account-59") == tokens(59, padding="x" * 3000)
        repository.save("after", tokens())
        assert len(list(repository.accounts())) == 62
    assert is_sound(copy)


def test_doctor_and_backup_accept_an_interrupted_checkpoint(path: Path, tmp_path: Path) -> None:
    copy = cut_off(path)

    checks = {finding.check for finding in examine(copy) if finding.severity == "error"}
    assert checks == set()
    with TokenRepository(copy) as repository:
        assert is_sound(repository.backup(tmp_path / "backup.db"))


@pytest.mark.slow
@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_a_growing_database_never_looks_damaged(path: Path, journal_mode: str) -> None:
    printed = python(
        """
def work(number):
    if number:
        for _ in range(150):
            with TokenRepository(sys.argv[1], journal_mode=sys.argv[2]) as repository:
                assert repository.load("first") == tokens()
        return
    with TokenRepository(sys.argv[1], journal_mode=sys.argv[2]) as repository:
        for step in range(40):
            with repository.transaction():
                for which in range(10):
                    name = f"{step}-{which}"
                    repository.save(name, tokens() | {"padding": "x" * 3000})

TokenRepository(sys.argv[1], journal_mode=sys.argv[2]).save("first", tokens())
tell(forked(3, work))
        """,
        path,
        journal_mode,
    )

    assert printed == "[0, 0, 0]\n"


def test_the_log_of_a_new_database_is_not_taken_for_a_stale_one(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "tokens.db"
    with TokenRepository(other) as repository:
        repository.save("restored", tokens(1))
    first, second = TokenRepository(path), TokenRepository(path)
    first.save("alice", tokens())
    for suffix in ("-wal", "-shm"):  # as the guide to restoring a backup says
        path.with_name(path.name + suffix).rename(tmp_path / f"old{suffix}")
    other.replace(path)
    second.save("bob", tokens(2))

    with pytest.raises(StorageError, match="removed or replaced"):
        first.load("alice")

    assert first.load("bob") == tokens(2)
    assert first.load("restored") == tokens(1)
    first.close()
    second.close()
    assert is_sound(path)


def test_the_log_of_the_old_database_is_not_replayed_into_the_new_one(
    path: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "tokens.db"
    with TokenRepository(other) as repository:
        repository.save("restored", tokens(1))
    before = other.read_bytes()
    first = TokenRepository(path)
    first.save("alice", tokens())
    other.replace(path)

    with pytest.raises(StorageError, match="removed or replaced"):
        first.load("alice")
    for repository in (first, TokenRepository(path)):
        with pytest.raises(StorageError, match="belongs to the database that was at"):
            repository.load("alice")

    assert path.read_bytes() == before
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()
    assert first.load("restored") == tokens(1)
    first.close()


def test_a_link_to_a_sidecar_of_an_open_database_is_not_opened(path: Path, tmp_path: Path) -> None:
    TokenRepository(path).save("alice", tokens())
    with TokenRepository(path) as repository, raw(path) as reader:
        repository.load("alice")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM accounts").fetchall()
        (tmp_path / "x.json").symlink_to(f"{path}-shm")

        [result] = import_accounts(repository, tmp_path / "x.json")

    assert result.outcome == "failed"
    assert "belongs to the database" in str(result.reason)
