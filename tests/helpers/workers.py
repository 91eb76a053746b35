"""Workers that write, export and back up a store, and what each has to leave when it is killed."""

from __future__ import annotations

import json
import random
import shutil
from datetime import datetime
from itertools import count
from typing import TYPE_CHECKING, Any

from tests.helpers.kills import Worker
from tests.helpers.stores import LATER, SOON, is_sound, mode, raw
from tokenstore import TokenRepository
from tokenstore.jsonfiles import export_accounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tokenstore.storage.base import JournalMode

    Say = Callable[[object], None]
    State = dict[str, int]


# -- token sets -------------------------------------------------------------------------------


def made(number: int) -> dict[str, Any]:
    """Return a token set in which every field says *number*; some are larger than a page.

    Some are so large that a few of them are more than SQLite's page cache: those reach the file
    before their transaction ends.
    """
    return {
        "access_token": f"access-{number:08}",
        "refresh_token": f"refresh-{number:08}",
        "expires_at": LATER + number,
        "number": number,
        "padding": f"{number:08}" * (number % 700 if number % 10 else 60_000),
    }


def stored(repository: TokenRepository, names: Iterable[str]) -> State:
    """Return the number that is stored of each account, all of whose fields have to say it."""
    found = {}
    for name in names:
        tokens = repository.load(name)
        if tokens is not None:
            found[name] = tokens["number"]
            assert tokens == made(found[name]), name
    return found


def exported(path: Path) -> int:
    """Return the number that every field of an exported file says."""
    assert mode(path) == 0o600
    tokens = json.loads(path.read_text())
    ours = tokens.pop("tokenstore")
    assert ours["account_name"] == path.stem
    assert datetime.fromisoformat(tokens["expires_at"]).timestamp() == ours["expires_at"]
    tokens["expires_at"] = ours["expires_at"]
    assert tokens == made(tokens["number"])
    return int(tokens["number"])


class Ledger:
    """What the accounts of one writer may hold.

    Attributes:
        states: What each change was about to make of them, in order.
        acknowledged: Which of them is in force, unless a later one is.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.states: list[State] = [{}]
        self.acknowledged = 0

    def begin(self, changes: dict[str, int | None]) -> None:
        after = self.states[-1] | changes
        self.states.append({n: number for n, number in after.items() if number is not None})

    def end(self) -> None:
        self.acknowledged = len(self.states) - 1

    def check(self, repository: TokenRepository, since: int) -> State:
        """Check that one of the states since then is what is stored; return it."""
        found = stored(repository, self.names)
        assert found in self.states[since:], (found, self.states[since:])
        return found

    def settle(self, found: State) -> bool:
        """Learn whether the change that was under way is in force; nobody is at it any more."""
        happened = self.states[-1] == found
        if not happened:
            self.states.pop()
        self.end()
        return happened


# -- work -------------------------------------------------------------------------------------


def write(say: Say, path: Path, journal_mode: JournalMode, names: list[str], seed: int) -> None:
    """Save, replace and delete accounts, at times several in one transaction."""
    rng = random.Random(seed)
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        for number in count(rng.randrange(10**7)):
            several = rng.sample(names, rng.choice([1, 1, 1, 2, len(names)]))
            changes = {name: None if rng.random() < 0.3 else number for name in several}
            say(changes)
            if len(changes) == 1:
                change(repository, changes)
            else:
                with repository.transaction():
                    change(repository, changes)
            say("done")


def change(repository: TokenRepository, changes: dict[str, int | None]) -> None:
    for name, number in changes.items():
        if number is None:
            repository.delete(name)
        else:
            repository.save(name, made(number))


def export(say: Say, path: Path, directory: Path) -> None:
    """Export the whole store, over and over."""
    with TokenRepository(path) as repository:
        while True:
            say("begins")
            for result in export_accounts(repository, directory):
                assert result.outcome == "exported", result
            say("done")


def back_up(say: Say, path: Path, *targets: Path) -> None:
    """Back up the store to each of the targets, over and over."""
    with TokenRepository(path) as repository:
        while True:
            for target in targets:
                say(target)
                repository.backup(target, replace=True)
                say("done")


# -- workers -----------------------------------------------------------------------------------


def overwrite_log(path: Path) -> None:
    """Make it final that a process which was killed during its commit has changed nothing.

    SQLite writes a commit to the log before it tells other processes of it. What a process that was
    killed in between has left there counts when the log is read anew, unless another write has
    replaced it.
    """
    with raw(path, timeout=SOON) as connection:
        [(version,)] = connection.execute("PRAGMA user_version")
        connection.execute(f"PRAGMA user_version = {version + 1}")


class Writer(Worker):
    """One that writes accounts of its own."""

    def __init__(self, path: Path, journal_mode: JournalMode, number: int) -> None:
        self.ledger = Ledger([f"account-{number}-{which}" for which in range(6)])
        self._path = path
        self._journal_mode = journal_mode

    def task(self, rng: random.Random) -> tuple[Callable[..., None], tuple[object, ...]]:
        return write, (self._path, self._journal_mode, self.ledger.names, rng.randrange(2**32))

    def hear(self, said: Any) -> None:
        if said == "done":
            self.ledger.end()
        else:
            self.ledger.begin(said)

    def check(self, _: Callable[[], None]) -> Iterable[str]:
        under_way = self.ledger.acknowledged < len(self.ledger.states) - 1
        with TokenRepository(self._path) as repository:
            happened = self.ledger.settle(self.ledger.check(repository, self.ledger.acknowledged))
        if under_way and not happened:
            overwrite_log(self._path)
        yield "writers"
        if under_way:
            yield "changes in force" if happened else "changes undone"


class Exporter(Worker):
    """One that exports what the writers write."""

    def __init__(self, path: Path, directory: Path, ledgers: list[Ledger]) -> None:
        self._path = path
        self._directory = directory
        self._ledgers = ledgers
        self._under_way = False

    def task(self, _: random.Random) -> tuple[Callable[..., None], tuple[object, ...]]:
        return export, (self._path, self._directory)

    def hear(self, said: Any) -> None:
        self._under_way = said != "done"

    def check(self, listen: Callable[[], None]) -> Iterable[str]:
        found = {path.stem: exported(path) for path in self._directory.glob("*.json")}
        listen()
        for ledger in self._ledgers:
            for name in found.keys() & ledger.names:
                assert any(state.get(name) == found[name] for state in ledger.states), name
        yield "exporters"
        if self._under_way:
            yield "exports under way"


class BackUp(Worker):
    """One that backs up what the writers write, to a target of its own and to a common one."""

    def __init__(self, path: Path, own: Path, common: Path, ledgers: list[Ledger]) -> None:
        self._path = path
        self._own = own
        self._common = common
        self._ledgers = ledgers
        self._target: Path | None = None
        self._begun = self._complete = [0 for _ in ledgers]

    def task(self, _: random.Random) -> tuple[Callable[..., None], tuple[object, ...]]:
        return back_up, (self._path, self._own, self._common)

    def hear(self, said: Any) -> None:
        if said != "done":
            self._target, self._begun = said, [each.acknowledged for each in self._ledgers]
            return
        if self._target == self._own:
            self._complete = self._begun
        self._target = None

    def check(self, listen: Callable[[], None]) -> Iterable[str]:
        self._look(self._own, self._complete, listen)
        self._look(self._common, [0 for _ in self._ledgers], listen)
        yield "backups"
        if self._target is not None:
            yield "backups under way"

    def _look(self, target: Path, since: list[int], listen: Callable[[], None]) -> None:
        """Check that the file, and no other beside it, holds all that it has to hold."""
        if not any(since) and not target.exists():
            return
        assert mode(target) == 0o600
        copy = target.parent.with_name("copy") / target.name  # others replace the target
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(target, copy)
        listen()
        with TokenRepository(copy) as repository:
            for ledger, least in zip(self._ledgers, since, strict=True):
                ledger.check(repository, least)
        assert is_sound(copy)
