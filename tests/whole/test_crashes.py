"""Processes that are killed while they write. `make torture` kills many more of them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, get_args

import pytest

from tests.helpers.kills import SEED, Storm
from tests.helpers.stores import is_sound, journal_mode_of, modes, names, raw
from tests.helpers.workers import BackUp, Exporter, Writer, made, stored
from tokenstore import TokenRepository
from tokenstore.jsonfiles import export_accounts, find_files, import_accounts
from tokenstore.storage.base import JournalMode

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

JOURNAL_MODES = get_args(JournalMode)

seeded = pytest.mark.parametrize("seed", [SEED], ids="seed {}".format)
"""SEED=… repeats the choices that a test makes; when who runs, the system decides."""


def make_writers(path: Path, count: int, journal_mode: JournalMode = "wal") -> list[Writer]:
    path.parent.mkdir()
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        repository.save("first", made(1))
        repository.delete("first")
    return [Writer(path, journal_mode, number) for number in range(count)]


# -- saves ------------------------------------------------------------------------------------

ALWAYS = {"tokens.db": 0o600, "tokens.db-locks": 0o700, "tokens.db-locks/schema": 0o600}
AT_WORK = {
    "wal": {"tokens.db-wal": 0o600, "tokens.db-shm": 0o600},
    "delete": {"tokens.db-journal": 0o600},
}


def kill_writers(directory: Path, journal_mode: JournalMode, seed: int, kills: int) -> Counter[str]:
    """Kill processes that write, and check the files after each."""
    path = directory / "store" / "tokens.db"
    writers = make_writers(path, 3, journal_mode)

    def alone() -> Iterator[str]:
        left = modes(path.parent)
        assert ALWAYS.items() <= left.items() <= (ALWAYS | AT_WORK[journal_mode]).items()
        yield "nobody at work"
        if left != ALWAYS:
            yield "logs left"

        with TokenRepository(path) as repository:
            for writer in writers:
                writer.ledger.check(repository, writer.ledger.acknowledged)
            repository.save("after", made(1))
            assert repository.load("after") == made(1)
            assert repository.delete("after")

        assert modes(path.parent) == ALWAYS
        assert is_sound(path)
        assert journal_mode_of(path) == journal_mode

    with Storm(writers, random.Random(seed)) as storm:
        storm.rage(kills, alone)
    assert storm.facts["changes in force"] + storm.facts["changes undone"] > 0, storm.facts
    return storm.facts


@seeded
@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
def test_acknowledged_writes_of_a_killed_process_are_stored(
    tmp_path: Path, journal_mode: JournalMode, seed: int
) -> None:
    kill_writers(tmp_path, journal_mode, seed, 10)


# -- exports ----------------------------------------------------------------------------------


def kill_exporters(directory: Path, seed: int, kills: int) -> Counter[str]:
    """Kill processes that export into one directory; check the files after each, and the end."""
    path, target = directory / "store" / "tokens.db", directory / "exported"
    writers = make_writers(path, 2)
    ledgers = [writer.ledger for writer in writers]
    exporters = [Exporter(path, target, ledgers) for _ in range(3)]

    def alone() -> Iterator[str]:
        left = modes(target)
        assert set(left.values()) <= {0o600}
        if any(name.startswith(".") for name in left):
            yield "leftovers"
        if any(name.endswith(".json") for name in left):
            yield "files"

    with Storm([*writers, *exporters], random.Random(seed)) as storm:
        storm.rage(kills, alone)
        for _ in range(20):
            if not (storm.facts["leftovers"] and storm.facts["files"]):
                storm.rage(1, alone)
    assert storm.facts["exports under way"] > 0, storm.facts

    with TokenRepository(directory / "other.db") as repository:
        results = list(import_accounts(repository, target))
        assert {result.outcome for result in results} == {"imported"}
        assert [result.path for result in results] == find_files(target)
        stored(repository, [account.name for account in repository.accounts()])
    return storm.facts


@seeded
def test_killed_exports_leave_only_complete_files(tmp_path: Path, seed: int) -> None:
    kill_exporters(tmp_path, seed, 10)


@seeded
def test_an_export_removes_the_temporary_files_of_killed_ones(tmp_path: Path, seed: int) -> None:
    kill_exporters(tmp_path, seed, 1)

    with TokenRepository(tmp_path / "store" / "tokens.db") as repository:
        results = list(export_accounts(repository, tmp_path / "exported"))
        accounts = [account.name for account in repository.accounts()]

    assert [(result.account_name, result.outcome) for result in results] == [
        (name, "exported") for name in accounts
    ]
    assert {name for name in names(tmp_path / "exported") if not name.endswith(".json")} == set()


# -- backups ----------------------------------------------------------------------------------


def kill_backups(directory: Path, seed: int, kills: int) -> Counter[str]:
    """Kill processes that back up; check the targets after each, and a complete backup at last."""
    path, target = directory / "store" / "tokens.db", directory / "backups"
    target.mkdir()
    writers = make_writers(path, 2)
    ledgers = [writer.ledger for writer in writers]
    targets = [target / f"{name}.db" for name in ("first", "second", "common")]
    backups = [BackUp(path, own, targets[-1], ledgers) for own in targets[:-1]]

    def alone() -> Iterator[str]:
        left = modes(target)
        assert set(left.values()) <= {0o600, 0o700}  # copies, in directories of their own
        if left.keys() - {target.name for target in targets}:
            yield "leftovers"

    with raw(path) as reader, Storm([*writers, *backups], random.Random(seed)) as storm:
        reader.execute("BEGIN")  # keeps what is written from now on in the -wal file alone
        reader.execute("SELECT * FROM accounts").fetchall()
        storm.rage(kills, alone)
        for _ in range(20):
            if not storm.facts["leftovers"]:
                storm.rage(1, alone)
    assert storm.facts["backups under way"] > 0, storm.facts

    with TokenRepository(path) as repository:
        for each in targets:
            assert repository.backup(each, replace=True) == each
    assert modes(target) == dict.fromkeys((each.name for each in targets), 0o600)
    for each in targets:
        assert is_sound(each)
        with TokenRepository(each) as repository:
            for ledger in ledgers:
                ledger.check(repository, ledger.acknowledged)
    return storm.facts


@seeded
def test_killed_backups_leave_a_complete_backup(tmp_path: Path, seed: int) -> None:
    kill_backups(tmp_path, seed, 10)
