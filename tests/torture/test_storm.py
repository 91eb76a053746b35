"""What takes minutes: many rounds of the race, and a storm of processes that are killed at work.

A storm is repeated with ``make torture SEED=…``; its seed is part of the test's name.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import sqlite3
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

import pytest

from tests.helpers.kills import SEED
from tests.helpers.refreshes import SOON, World
from tests.whole.test_concurrency import race
from tokenstore import Provider, ReauthorizationRequired, TokenManager, TransientRefreshError
from tokenstore.models.tokens import fingerprint
from tokenstore.storage.statements import HISTORY
from tokenstore.testing import Answer, AuthorizationServer, Drip, Drop, Transform, Truncate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import ForkServerProcess

ROUNDS = 50
ACCOUNTS = [f"account-{number:03}" for number in range(150)]
REFRESHES = 15  # of each account, until it is done
PROCESSES = 6
STUCK = 60.0  # seconds without a request


def test_fifty_rounds_of_the_race_are_fifty_requests(world: World) -> None:
    race(world, "wal", ROUNDS)


# -- the storm --------------------------------------------------------------------------------


def work(path: str, provider: Provider, seed: int) -> None:
    """Refresh accounts, in every way there is, until all of them are done or dead."""
    rng = random.Random(seed)
    manager = TokenManager(path, providers={"test": provider}, timeout=SOON, expiry_buffer=0)
    while names := unfinished(manager):
        rng.shuffle(names)
        with ThreadPoolExecutor(2) as pool:
            if rng.random() < 0.2:
                for _ in manager.refresh_all(idle_for=0, jobs=2):
                    pass
            for outcome in [pool.submit(refresh, manager, name) for name in names[:20]]:
                outcome.result()


def unfinished(manager: TokenManager) -> list[str]:
    """Return the accounts that are neither dead nor refreshed often enough."""
    done = Counter(e.account_name for e in manager.history() if e.outcome == "refreshed")
    living = [a.name for a in manager.accounts() if a.provider and a.state != "sign_in"]
    return [name for name in living if done[name] < REFRESHES]


def refresh(manager: TokenManager, name: str) -> None:
    tokens = manager.load_tokens(name) or {}
    with suppress(ReauthorizationRequired, TransientRefreshError):
        manager.refresh_token(name, rejected=tokens["access_token"])


def trouble(rng: random.Random) -> Iterator[object]:
    """Yield what a network and a provider may do to a request."""
    fine, slow, lost = Transform(dict), Drip(0.0005), Drop(spent=False)
    while True:
        yield rng.choices(
            [fine, slow, lost, Drop(spent=True), Answer(503), Answer(429), Truncate(5)],
            [100, 3, 2, 0.2, 4, 2, 0.2],
        )[0]


def storm(world: World, provider: Provider, rng: random.Random) -> int:
    """Let processes work, and kill one of them after some requests; return how many were killed.

    It is requests that count, so that a slow machine does not kill more than a fast one.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    steps = trouble(rng)
    killed = next_kill = 0
    seen, deadline = -1, 0.0

    def start() -> ForkServerProcess:
        seed = rng.randrange(2**32)
        process = context.Process(target=work, args=(str(world.path), provider, seed))
        process.start()
        return process

    running = [start() for _ in range(PROCESSES)]
    try:
        while running:
            if world.posts > seen:
                seen, deadline = world.posts, time.monotonic() + STUCK
            assert time.monotonic() < deadline
            if len(world.server._script) < 200:
                world.server.script(*(next(steps) for _ in range(200)))  # type: ignore[arg-type]
            wait([process.sentinel for process in running], timeout=rng.uniform(0, 0.1))
            for process in [each for each in running if each.exitcode is not None]:
                assert process.exitcode == 0
                running.remove(process)
            if len(running) == PROCESSES and world.posts >= next_kill:
                next_kill = world.posts + rng.randrange(10, 60)
                victim = running.pop(rng.randrange(len(running)))
                victim.kill()
                victim.join()
                killed += 1
                running.append(start())
    finally:
        for process in running:
            process.kill()
            process.join()
    return killed


def check(world: World, server: AuthorizationServer, account: str) -> bool:
    """Return whether an account lives; if it is dead, nobody could have kept it."""
    manager = world.manager(clock=time.time)
    stored = world.tokens(account)[1] or ""
    history = list(manager.history(account))
    assert len(history) < HISTORY  # all of it is there
    refreshed = sum(entry.outcome == "refreshed" for entry in history)
    try:
        manager.refresh_token(account)
    except ReauthorizationRequired:
        mine = [entry for entry in history if entry.sent == fingerprint(stored)]
        assert any(e.outcome in {"interrupted", None} or e.maybe_spent for e in mine), account
        assert server.refreshes(account) == refreshed + 1, account  # one answer was lost
        return False
    assert server.refreshes(account) == refreshed + 1, account  # this one; none was lost
    return True


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
@pytest.mark.parametrize("seed", [SEED], ids="seed {}".format)
def test_a_storm_costs_no_login_that_could_be_kept(
    world: World, seed: int, journal_mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(seed)
    world.clock.now = time.time()
    world.manager(journal_mode=journal_mode).save_tokens("first", {"access_token": "x"})
    for account in ACCOUNTS:
        world.sign_in(account, expires_in=3600)
    killed = storm(world, world.server.provider(), rng)
    world.server._script.clear()
    alive = [account for account in ACCOUNTS if check(world, world.server, account)]
    facts = {
        "killed": killed,
        "alive": len(alive),
        "requests": world.posts,
        "outcomes": Counter(outcome for account in ACCOUNTS for outcome in world.outcomes(account)),
    }
    with capsys.disabled():
        sys.stdout.write(f" {json.dumps(facts)} ")
    assert killed >= 10, facts
    assert facts["outcomes"]["interrupted"] >= 5, facts  # type: ignore[index]
    assert len(alive) >= len(ACCOUNTS) // 4, facts
    with closing(sqlite3.connect(world.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA journal_mode").fetchall() == [(journal_mode,)]
