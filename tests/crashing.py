"""Processes at work that are killed at random moments, and what they had said until then.

A worker says what it is about to do, and again when the call has returned. All of them speak into
one pipe, so there is one order of what was said. A worker that was killed has said less than it
did, never more.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import time
from abc import ABC, abstractmethod
from collections import Counter
from datetime import datetime
from itertools import count
from multiprocessing import forkserver
from signal import SIGKILL
from typing import TYPE_CHECKING, Any

from storing import LATER, SOON, is_sound, mode, unmeasured

from tokenstore import TokenRepository
from tokenstore.jsonfiles import export_accounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

    from tokenstore.database import JournalMode

    Say = Callable[[object], None]
    State = dict[str, int]

SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
LONGEST = 0.05  # seconds that somebody works before the next is killed, or all

_context = multiprocessing.get_context("forkserver")


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
    repository: Any = TokenRepository(path)
    while True:
        for target in targets:
            say(target)
            repository.backup(target, replace=True)
            say("done")


class Worker(ABC):
    """Work that a process does until it is killed; then another one goes on with it."""

    @abstractmethod
    def task(self, rng: random.Random) -> tuple[Callable[..., None], tuple[object, ...]]:
        """Return what the next process is to do."""

    @abstractmethod
    def hear(self, said: Any) -> None:
        """Take in what the process says."""

    @abstractmethod
    def check(self, listen: Callable[[], None]) -> Iterable[str]:
        """Check what the process that was killed has left.

        Args:
            listen: Takes in what the others, who are still at work, have said by now.

        Yields:
            Facts that are worth counting.
        """


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


# -- the storm --------------------------------------------------------------------------------


class Storm:
    """Workers at work, whom somebody kills.

    Attributes:
        facts: How often what was met; to be printed, and to see that the test tests something.
    """

    def __init__(self, workers: Sequence[Worker], rng: random.Random) -> None:
        self.facts: Counter[str] = Counter()
        self._workers = workers
        self._rng = rng
        self._heard, self._said = _context.Pipe(duplex=False)
        self._processes: dict[int, ForkServerProcess] = {}
        self._silent: set[int] = set()
        _start_server()

    def __enter__(self) -> Storm:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.join()
        self._heard.close()
        self._said.close()

    def rage(self, kills: int, alone: Callable[[], Iterable[str]]) -> None:
        """Kill so many, one at a random moment or all at once, and start others in their place.

        Args:
            kills: How many; at last, all are killed at once.
            alone: What to check when nobody is at work; it yields facts.
        """
        everyone = range(len(self._workers))
        end = self.facts["killed"] + kills
        while self.facts["killed"] < end:
            for number in everyone:
                if number not in self._processes:
                    self._start(number)
            if end - self.facts["killed"] <= len(everyone) or self._rng.random() < 0.3:
                self._kill(everyone, alone)
            else:
                self._kill([self._rng.choice(everyone)])

    def _start(self, number: int) -> None:
        work, arguments = self._workers[number].task(self._rng)
        process = _context.Process(target=_run, args=(work, self._said, number, *arguments))
        process.start()
        self._processes[number] = process
        self._silent.add(number)

    def _listen(self, seconds: float = 0, until_all_spoke: Sequence[int] | None = None) -> None:
        """Take in what was said, and what is said during so many seconds."""
        deadline = time.monotonic() + seconds
        while self._heard.poll(max(0.0, deadline - time.monotonic())):
            if until_all_spoke is not None and self._silent.isdisjoint(until_all_spoke):
                return
            number, said = self._heard.recv()
            self._workers[number].hear(said)
            self._silent.discard(number)
            self.facts["words"] += 1

    def _kill(
        self, numbers: Sequence[int], alone: Callable[[], Iterable[str]] = lambda: ()
    ) -> None:
        if self._rng.random() < 0.8:  # else they may not have begun
            self._listen(1.0, until_all_spoke=numbers)
        self._listen(self._rng.uniform(0, LONGEST))
        victims = [self._processes.pop(number) for number in numbers]
        for process in victims:
            process.kill()
        for process in victims:
            process.join(SOON)
            assert process.exitcode == -SIGKILL  # it was at work until then
        self._listen()
        self.facts.update(alone())
        for number in numbers:
            self.facts.update(["killed", *self._workers[number].check(self._listen)])


def _run(
    work: Callable[..., None], pipe: Connection[Any, Any], number: int, *arguments: object
) -> None:
    work(lambda said: pipe.send((number, said)), *arguments)


def _start_server() -> None:
    """Start the process that all others are forked from, without what measures coverage."""
    _context.set_forkserver_preload(["tokenstore.jsonfiles", "tokenstore.repository"])
    environment = dict(os.environ)
    for name in environment.keys() - unmeasured(environment).keys():
        del os.environ[name]
    try:
        forkserver.ensure_running()
    finally:
        os.environ.update(environment)
