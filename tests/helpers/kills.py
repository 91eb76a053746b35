"""Processes at work that are killed at random moments, and what they had said until then.

A worker says what it is about to do, and again when the call has returned. All of them speak into
one pipe, so there is one order of what was said. A worker that was killed has said less than it
did, never more.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from multiprocessing import forkserver
from signal import SIGKILL
from typing import TYPE_CHECKING, Any

from tests.helpers.stores import SOON, unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess

# Of tests that run in several processes, all have to have the same names.
_run_id = os.environ.get("PYTEST_XDIST_TESTRUNUID")
SEED = int(os.environ.get("SEED") or random.Random(_run_id).randrange(10**6))
LONGEST = 0.05  # seconds that somebody works before the next is killed, or all

_context = multiprocessing.get_context("forkserver")


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
    # Whoever had to import something first would be killed before the work has begun.
    modules = [
        "tokenstore.storage.sqlite.database",
        "tokenstore.jsonfiles",
        "tokenstore.storage.repository",
    ]
    _context.set_forkserver_preload(modules)
    environment = dict(os.environ)
    for name in environment.keys() - unmeasured(environment).keys():
        del os.environ[name]
    try:
        forkserver.ensure_running()
    finally:
        os.environ.update(environment)
