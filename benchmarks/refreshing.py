"""Many who want the token of one expired account, and many accounts that have expired."""

from __future__ import annotations

import gc
import multiprocessing
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks.measure import Row, Target
from benchmarks.provider import Remote, provider
from tokenstore import Provider, TokenManager

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

_PROCESSES, _THREADS, _RACES = 12, 16, 5
_ACCOUNTS, _DELAY, _JOBS, _ROUNDS = 200, 0.1, 16, 5
_OURS = "tokenstore"


def rows(directory: Path) -> Iterator[Row]:
    """Measure in an empty directory."""
    gc.collect()
    gc.freeze()  # what was imported to measure other libraries is nothing to look through here
    with provider() as server:
        yield Row(
            f"one expired account, {_PROCESSES} processes x {_THREADS} threads",
            {_OURS: list(_races(directory / "one.db", server)), "the least": [1.0] * _RACES},
            [Target(_OURS, "the least", 1, exactly=True)],
            unit="requests",
        )
        ideal = _ACCOUNTS * _DELAY / _JOBS
        yield Row(
            f"{_ACCOUNTS} accounts expired, answers in {_DELAY * 1000:.0f} ms, {_JOBS} jobs",
            {
                _OURS: list(_fleets(directory / "many.db", server)),
                "ideal": [ideal] * _ROUNDS,
                "one after another": [_ACCOUNTS * _DELAY] * _ROUNDS,
            },
            [Target(_OURS, "ideal", 1.3)],
            note=f"ideal: {_ACCOUNTS} x {_DELAY} s / {_JOBS}; both others are computed",
        )


def _fleets(path: Path, server: Remote) -> Iterator[float]:
    with TokenManager(path, providers={"test": server.provider}) as manager:
        for number in range(_ROUNDS + 1):
            names = [f"{number}-{which}" for which in range(_ACCOUNTS)]
            with manager._repository.transaction() as repository:  # noqa: SLF001 - one commit
                for name in names:
                    repository.save(name, server.sign_in(name), provider="test")
            server.ask("delay", _ACCOUNTS, _DELAY)
            began = time.perf_counter()
            refreshed = [result.outcome for result in manager.refresh_all(jobs=_JOBS)]
            took = time.perf_counter() - began
            if refreshed != ["refreshed"] * _ACCOUNTS:
                raise AssertionError(set(refreshed))
            if number:
                yield took


def _races(path: Path, server: Remote) -> Iterator[float]:
    context = multiprocessing.get_context("spawn")
    with TokenManager(path) as manager, ExitStack() as stack:
        manager.save_tokens("first", {"access_token": "x"})
        pipes: list[Connection] = []
        for _ in range(_PROCESSES):
            ours, its = context.Pipe()
            process = context.Process(target=_work, args=(its, path, server.provider))
            process.start()
            stack.callback(process.join)
            stack.callback(ours.send, None)
            pipes.append(ours)
        for number in range(_RACES):
            account = f"account-{number}"
            manager.save_tokens(account, server.sign_in(account), provider="test")
            before = server.requests
            server.ask("hold")
            for pipe in pipes:
                pipe.send(account)
            for pipe in pipes:
                pipe.recv()  # all threads are about to ask
            server.ask("await")
            server.ask("release")
            found = {token for pipe in pipes for token in pipe.recv()}
            if len(found) != 1 or None in found:
                raise AssertionError(f"{len(found)} different tokens")
            yield float(server.requests - before)


def _work(pipe: Connection, path: Path, test: Provider) -> None:
    managers = [TokenManager(path, providers={"test": test}) for _ in range(4)]
    while (account := pipe.recv()) is not None:
        results: list[str | None] = [None] * _THREADS
        start = threading.Barrier(_THREADS + 1)
        threads = [
            threading.Thread(target=_ask, args=(managers[n % 4], account, start, results, n))
            for n in range(_THREADS)
        ]
        for thread in threads:
            thread.start()
        start.wait()
        pipe.send("asks")
        for thread in threads:
            thread.join()
        pipe.send(results)


def _ask(
    manager: TokenManager,
    account: str,
    start: threading.Barrier,
    results: list[str | None],
    number: int,
) -> None:
    start.wait()
    results[number] = manager.get_valid_token(account)
