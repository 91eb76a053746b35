from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.refreshes import SOON, World, denied, on_both_engines, until
from tokenstore import ReauthorizationRequired
from tokenstore.testing import Answer, Drop

if TYPE_CHECKING:
    from collections.abc import Iterator

# A process that does what it is told, one line a time: ACCOUNT THREADS. It says when all threads
# are about to ask for a token, and then what each of them got.
WORKER = """
import json, logging, sys, threading
from tokenstore import Provider, TokenManager, TokenStoreError

path, endpoint, journal_mode, prefix = sys.argv[1:]
test = Provider("test", endpoint, "tokenstore", client_secret="p+a/b=:%\\u00e9\\u20ac")
managers = [
    TokenManager(path, providers={"test": test}, journal_mode=journal_mode) for _ in range(4)
]

def say(*words):
    print(json.dumps(words), flush=True)

class FileLocks(logging.Handler):
    def emit(self, record):
        if "waiting" in record.getMessage():
            logging.getLogger("filelock").removeHandler(self)
            say("waits")

if prefix == "tell-of-locks":
    logging.getLogger("filelock").setLevel(logging.DEBUG)
    logging.getLogger("filelock").addHandler(FileLocks())

def work(number, account, start, results):
    start.wait(60)
    try:
        results[number] = managers[number % 4].ensure_valid_token(account)
    except TokenStoreError as error:
        results[number] = f"{type(error).__name__}: {error}"

say("ready")
for line in sys.stdin:
    account, count = line.split()
    results = [None] * int(count)
    start = threading.Barrier(len(results) + 1)
    threads = [
        threading.Thread(target=work, args=(number, account, start, results))
        for number in range(len(results))
    ]
    for thread in threads:
        thread.start()
    say("starts")
    start.wait(60)
    for thread in threads:
        thread.join()
    say("done", *results)
"""


class Worker:
    """A process of its own."""

    def __init__(self, world: World, journal_mode: str = "wal", prefix: str = "") -> None:
        arguments = [str(world.database), world.server.token_endpoint, journal_mode, prefix]
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, account: str, threads: int = 1) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{account} {threads}\n")
        self.process.stdin.flush()

    def hear(self, word: str) -> list[Any]:
        """Return what comes after *word*, which is the next thing that is said."""
        assert self.process.stdout is not None
        said, *rest = json.loads(self.process.stdout.readline())
        assert said == word
        return list(rest)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(SOON)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


pytestmark = [on_both_engines, pytest.mark.slow]


@contextmanager
def workers(world: World, count: int, *arguments: str) -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        started = [Worker(world, *arguments) for _ in range(count)]
        for worker in started:
            stack.callback(worker.close)
        for worker in started:
            worker.hear("ready")
        yield started


def race(world: World, journal_mode: str, rounds: int) -> None:
    """Let 12 processes of 16 threads ask for the token of an expired account, round by round."""
    with world.manager(journal_mode=journal_mode) as manager:
        manager.save_tokens("first", {"access_token": "x"})  # creates it in this mode
    with workers(world, 12, journal_mode) as processes:
        for number in range(rounds):
            account = f"account-{number}"
            old = world.sign_in(account, expires_in=None, expires_at=0)  # due by every clock
            hold = world.hold(account)
            for process in processes:
                process.tell(account, 16)
            for process in processes:
                process.hear("starts")
            assert hold.arrived.wait(SOON)
            hold.release.set()
            tokens = {token for process in processes for token in process.hear("done")}
            assert tokens == {world.tokens(account)[0]}
            assert tokens != {old["access_token"]}
            assert world.posts == number + 1
    assert [request.error for request in world.server.requests] == [None] * rounds
    assert world.server.reuses == 0
    if world.database == world.path:
        assert world.sql("PRAGMA journal_mode") == [(journal_mode,)]


def hear_of_waiting(world: World, processes: list[Worker]) -> None:
    """Wait until all of them wait for the lock."""
    if world.database == world.path:
        for process in processes:
            process.hear("waits")
        return
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    until(lambda: world.sql(query) == [(len(processes),)])


@pytest.mark.parametrize(
    ("database", "journal_mode", "rounds"),
    [("sqlite", "wal", 2), ("sqlite", "delete", 1), ("postgresql", "wal", 2)],
    indirect=["database"],
)
def test_twelve_processes_of_sixteen_threads_refresh_an_account_once(
    world: World, journal_mode: str, rounds: int
) -> None:
    race(world, journal_mode, rounds)


def test_processes_that_wait_share_the_failure_of_the_first(world: World) -> None:
    world.sign_in(expires_in=None, expires_at=0)
    world.server.script(*[Answer(503)] * 20)
    with workers(world, 3, "wal", "tell-of-locks") as processes:
        with world.manager()._repository.refresh_lock("alice", timeout=SOON):
            for process in processes:
                process.tell("alice")
                process.hear("starts")
            hear_of_waiting(world, processes)
        (error,) = {error for process in processes for error in process.hear("done")}
    assert error.startswith("TransientRefreshError: alice: provider 'test' answered HTTP 503")
    assert world.posts == 2  # the first one's request and its one retry


def test_a_verdict_is_known_to_every_process(world: World) -> None:
    world.sign_in(expires_in=None, expires_at=0)
    world.server.script(denied())
    with pytest.raises(ReauthorizationRequired) as caught:
        world.manager().ensure_valid_token("alice")
    with workers(world, 1) as (process,):
        process.tell("alice", 4)
        process.hear("starts")
        assert set(process.hear("done")) == {f"ReauthorizationRequired: {caught.value}"}
    assert world.posts == 1


def test_a_killed_process_holds_up_nobody(world: World) -> None:
    world.sign_in(expires_in=None, expires_at=0)
    hold = world.hold()
    with workers(world, 1) as (process,):
        process.tell("alice")
        assert hold.arrived.wait(SOON)
        process.kill()
        began = time.monotonic()
        token = world.manager().get_valid_token("alice")
        assert time.monotonic() - began < SOON / 4
    assert token is not None
    assert world.server.is_live(token)
    assert world.outcomes() == ["interrupted", "refreshed"]
    assert world.posts == 2


def test_a_lost_login_is_explained_by_the_process_that_was_killed(world: World) -> None:
    world.sign_in(expires_in=None, expires_at=0)
    hold = world.hold()
    with workers(world, 1) as (process,):
        process.tell("alice")
        assert hold.arrived.wait(SOON)
        process.kill()
    hold.release.set()
    until(lambda: world.server.refreshes() == 1)  # the token of the dead process is spent
    with pytest.raises(ReauthorizationRequired) as caught:
        world.manager().ensure_valid_token("alice")
    assert f"a refresh was interrupted on {os.uname().nodename} at " in str(caught.value)
    assert world.posts == 2


def test_a_process_that_refreshes_one_account_does_not_hold_up_another(world: World) -> None:
    world.sign_in("alice", expires_in=None, expires_at=0)
    world.sign_in("bob", expires_in=None, expires_at=0)
    manager = world.manager()
    hold = world.hold("alice")
    with workers(world, 2) as (first, second):
        first.tell("alice", 4)
        first.hear("starts")
        assert hold.arrived.wait(SOON)
        assert manager.get_valid_token("bob") is not None
        manager.save_tokens("bob", {**world.server.sign_in("bob"), "expires_at": 1})
        second.tell("bob", 4)
        second.hear("starts")
        (token,) = set(second.hear("done"))
        assert world.tokens("bob")[0] == token
        assert [account.name for account in manager.accounts()] == ["alice", "bob"]
        assert manager.delete_tokens("bob")
        assert not hold.release.is_set()
        hold.release.set()
        assert set(first.hear("done")) == {world.tokens("alice")[0]}
    assert world.server.refreshes("alice") == 1
    assert world.server.refreshes("bob") == 2


def test_a_lost_answer_is_not_asked_for_again_by_those_who_waited(world: World) -> None:
    world.sign_in(expires_in=None, expires_at=0)
    world.server.script(Drop(spent=True))
    with workers(world, 2, "wal", "tell-of-locks") as processes:
        with world.manager()._repository.refresh_lock("alice", timeout=SOON):
            for process in processes:
                process.tell("alice", 2)
                process.hear("starts")
            hear_of_waiting(world, processes)
        (error,) = {error for process in processes for error in process.hear("done")}
    assert "the refresh token may have been spent" in error
    assert (world.posts, world.server.reuses) == (1, 0)
