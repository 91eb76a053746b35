"""Many callers of one expired account, and many expired accounts."""

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
    gc.freeze()  # keep the modules of the other benchmarks out of garbage collection
    with provider() as server:
        yield Row(
            f"one expired account, {_PROCESSES} processes x {_THREADS} threads",
            {_OURS: list(_races(directory / "one.db", server)), "lower bound": [1.0] * _RACES},
            [Target(_OURS, "lower bound", 1, exactly=True)],
            unit="requests",
        )
        ideal = _ACCOUNTS * _DELAY / _JOBS
        yield Row(
            f"{_ACCOUNTS} expired accounts, responses in {_DELAY * 1000:.0f} ms, {_JOBS} jobs",
            {
                _OURS: list(_bulk_refreshes(directory / "many.db", server)),
                "ideal": [ideal] * _ROUNDS,
                "sequential": [_ACCOUNTS * _DELAY] * _ROUNDS,
            },
            [Target(_OURS, "ideal", 1.3)],
            note=f"ideal: {_ACCOUNTS} x {_DELAY} s / {_JOBS}; ideal and sequential are computed",
        )


def _bulk_refreshes(path: Path, server: Remote) -> Iterator[float]:
    with TokenManager(path, providers={"test": server.provider}) as manager:
        for number in range(_ROUNDS + 1):
            names = [f"{number}-{index}" for index in range(_ACCOUNTS)]
            with manager._repository.transaction() as repository:  # noqa: SLF001 - one commit
                for name in names:
                    repository.save(name, server.sign_in(name), provider="test")
            server.call("delay", _ACCOUNTS, _DELAY)
            began = time.perf_counter()
            refreshed = [result.outcome for result in manager.refresh_all(jobs=_JOBS)]
            seconds = time.perf_counter() - began
            if refreshed != ["refreshed"] * _ACCOUNTS:
                raise AssertionError(set(refreshed))
            if number:
                yield seconds


def _races(path: Path, server: Remote) -> Iterator[float]:
    context = multiprocessing.get_context("spawn")
    with TokenManager(path) as manager, ExitStack() as stack:
        manager.save_tokens("first", {"access_token": "x"})
        pipes: list[Connection] = []
        for _ in range(_PROCESSES):
            parent, child = context.Pipe()
            process = context.Process(target=_work, args=(child, path, server.provider))
            process.start()
            stack.callback(process.join)
            stack.callback(parent.send, None)
            pipes.append(parent)
        for number in range(_RACES):
            account = f"account-{number}"
            manager.save_tokens(account, server.sign_in(account), provider="test")
            before = server.requests
            server.call("hold")
            for pipe in pipes:
                pipe.send(account)
            for pipe in pipes:
                pipe.recv()  # all threads are ready
            server.call("await")
            server.call("release")
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
            threading.Thread(target=_get_token, args=(managers[n % 4], account, start, results, n))
            for n in range(_THREADS)
        ]
        for thread in threads:
            thread.start()
        start.wait()
        pipe.send("ready")
        for thread in threads:
            thread.join()
        pipe.send(results)


def _get_token(
    manager: TokenManager,
    account: str,
    start: threading.Barrier,
    results: list[str | None],
    number: int,
) -> None:
    start.wait()
    results[number] = manager.get_valid_token(account)
