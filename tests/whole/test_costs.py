"""Counts the cost of operations: statements, round trips to a server, waits for the disk.

Nothing is timed here; `benchmarks` does that.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.helpers.postgresql import empty
from tests.helpers.refreshes import World
from tests.helpers.requirements import require
from tests.helpers.stores import SOON, command, tokens, unmeasured
from tokenstore import TokenManager
from tokenstore.lifecycle.jobs import Job
from tokenstore.lifecycle.refresh import RefreshProtocol
from tokenstore.lifecycle.request import Outcome, RefreshRequest
from tokenstore.storage.postgresql.database import PostgreSQLDatabase
from tokenstore.storage.sqlite.database import SQLiteDatabase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

READ = ["SELECT"]
SAVE = ["BEGIN", "SELECT", "INSERT", "COMMIT"]  # is it spent, and does it change
EMPTY_THE_LOG = ["PRAGMA"] * 3
REFRESH = [
    *["SELECT"] * 2,  # the account, before and after the lock was taken
    # the account's row, what is under way, spent tokens, what was interrupted, and what begins
    *["BEGIN", "UPDATE", "SELECT", "SELECT", "UPDATE", "INSERT", "COMMIT"],
    # is it stored, the account's row, what it holds now, the outcome, what it holds then, and the
    # history
    *["BEGIN", "SELECT", "UPDATE", "SELECT", "UPDATE", "SELECT", "UPDATE", "DELETE", "COMMIT"],
]


@contextmanager
def statements(manager: TokenManager) -> Iterator[list[str]]:
    """Yield the first word of every statement that this thread runs from now on."""
    database = manager._repository._database
    assert isinstance(database, SQLiteDatabase)
    driver = database._connections.current().driver
    assert driver is not None
    run: list[str] = []
    driver.set_trace_callback(lambda statement: run.append(statement.split(maxsplit=1)[0]))
    yield run
    driver.set_trace_callback(None)


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        pytest.param(lambda m: m.get_valid_token("alice"), READ, id="token"),
        pytest.param(lambda m: m.load_tokens("alice"), READ, id="load"),
        pytest.param(lambda m: list(m.accounts(names=["alice"])), READ, id="status of one"),
        pytest.param(lambda m: next(m.accounts()), READ, id="first page of all"),
        pytest.param(lambda m: m.save_tokens("alice", tokens(1)), SAVE, id="save"),
        pytest.param(lambda m: m.save_tokens("bob", tokens()), SAVE, id="save a new one"),
        pytest.param(
            lambda m: m.save_tokens("alice", tokens(refresh_token="another")),
            SAVE + EMPTY_THE_LOG,
            id="save another refresh token",
        ),
        pytest.param(
            lambda m: m.delete_tokens("alice"),
            ["SELECT", "BEGIN", *["DELETE"] * 3, "COMMIT", *EMPTY_THE_LOG],
            id="delete",
        ),
        pytest.param(lambda m: m.delete_tokens("bob"), READ, id="delete nothing"),
    ],
)
def test_the_number_of_statements(
    path: Path, work: Callable[[TokenManager], object], expected: list[str]
) -> None:
    with TokenManager(path, cache_ttl=0) as manager:
        manager.save_tokens("alice", tokens(refresh_token="refresh-1"))
        with statements(manager) as run:
            work(manager)
    assert run == expected


def test_a_cached_token_runs_no_statement(path: Path) -> None:
    with TokenManager(path) as manager:
        manager.save_tokens("alice", tokens())
        manager.get_valid_token("alice")
        with statements(manager) as run:
            manager.get_valid_token("alice")
    assert run == []


def refresh_here(manager: TokenManager) -> None:
    """Refresh an account in this thread, which can be watched."""
    request = RefreshRequest("due", satisfied_by=lambda _: False)
    job: Job[Outcome] = Job(lambda _: Outcome())
    context = manager._refresher._context
    assert RefreshProtocol(context, "alice", None, request, job).run().refreshed


def test_a_refresh_takes_one_request_and_two_transactions(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.sign_in()
        manager = world.manager(cache_ttl=0)
        manager.load_tokens("alice")  # opens the database
        with statements(manager) as run:
            refresh_here(manager)
        assert world.posts == 1
    assert [word for word in run if word != "PRAGMA"] == REFRESH


@pytest.mark.parametrize("accounts", [10, 1200])
def test_listing_due_accounts_reads_only_those(path: Path, accounts: int) -> None:
    with TokenManager(path) as manager:
        with manager._repository.transaction():
            for number in range(accounts):
                manager.save_tokens(f"account-{number}", tokens())
        with statements(manager) as run:
            assert list(manager.refresh_all()) == []
    assert run == ["SELECT"] * 4  # the last refresh; what expires, may have, and has no token


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        pytest.param(lambda m: m.load_tokens("alice"), 1, id="load"),
        pytest.param(lambda m: next(m.accounts()), 1, id="first page of all"),
        pytest.param(lambda m: m.save_tokens("bob", tokens()), len(SAVE), id="save"),
        # Both transactions also check that the database was not replaced; the second one is that
        # of the lock.
        pytest.param(refresh_here, len(REFRESH) + 5, id="refresh"),
    ],
)
def test_the_number_of_round_trips(
    tmp_path: Path, migrated: str, work: Callable[[TokenManager], object], expected: int
) -> None:
    trace = tmp_path / "trace"
    try:
        with World(tmp_path, migrated) as world, trace.open("w") as file:
            world.sign_in()
            manager = world.manager(cache_ttl=0)
            manager.load_tokens("alice")  # opens a connection
            database = manager._repository._database
            assert isinstance(database, PostgreSQLDatabase)
            for connections in (database._connections, database._lock_connections):
                with connections.connection() as driver:
                    driver.pgconn.trace(file.fileno())
            work(manager)
            with database._connections.connection() as driver:
                driver.pgconn.untrace()
    finally:
        empty(migrated)
    said = re.findall(r"^.*\tF\t\d+\t(\w+)", trace.read_text(), re.MULTILINE)
    assert sum(word in {"Query", "Sync"} for word in said) == expected


# -- system calls ---------------------------------------------------------------------------------

SCRIPT = """
from itertools import count
from tokenstore import TokenManager
from tokenstore.jsonfiles import export_accounts, import_accounts

directory = Path(sys.argv[1])
manager = TokenManager(directory / "tokens.db")
uncached = TokenManager(directory / "tokens.db", cache_ttl=0)
repository = manager._repository
numbers = count()

def counted(name, work, times=REPEATED):
    os.access(f"/begin/{name}", os.F_OK)  # a mark in the trace
    for _ in range(times):
        result = work()
    os.access("/end", os.F_OK)
    return result

def save():
    manager.save_tokens("alice", tokens(next(numbers)) | {"refresh_token": "the same"})

def rotate():
    manager.save_tokens("alice", tokens(next(numbers)))

with repository.transaction():
    for number in range(FILES):
        manager.save_tokens(f"account-{number}", tokens(number))
save()
for read in (manager.get_valid_token, uncached.get_valid_token, uncached.load_tokens):
    read("alice")
counted("cached", lambda: manager.get_valid_token("alice"))
counted("token", lambda: uncached.get_valid_token("alice"))
counted("load", lambda: uncached.load_tokens("alice"))
counted("save", save)
counted("rotate", rotate)
uncached.close()
exported = counted("export", lambda: list(export_accounts(repository, directory / "out")), 1)
imported = counted(
    "import", lambda: list(import_accounts(repository, directory / "out", replace=True)), 1
)
tell(len(exported), len(imported))
"""
REPEATED = 10
FILES = 2100  # more than two transactions of them

CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)$")
WAITS = ("fsync", "fdatasync")


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    """The system calls of each operation, counted."""
    require("strace")
    directory = tmp_path_factory.mktemp("traced")
    trace = directory / "trace"
    code = SCRIPT.replace("REPEATED", str(REPEATED)).replace("FILES", str(FILES))
    traced = ["strace", "-f", "-qq", "-s", "64", "-o", str(trace), *command(code, directory)]
    done = subprocess.run(
        traced,
        check=False,
        capture_output=True,
        text=True,
        timeout=3 * SOON,
        env=unmeasured(dict(os.environ)),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(FILES + 1)] * 2
    found: dict[str, Counter[str]] = {}
    counted: Counter[str] | None = None
    for line in trace.read_text().splitlines():
        matched = CALL.match(line)
        if matched is None:
            continue
        call, rest = matched.groups()
        if rest.startswith('"/begin/'):
            counted = found[rest.split('"')[1].removeprefix("/begin/")] = Counter()
        elif rest.startswith('"/end"'):
            counted = None
        elif counted is not None:
            counted[call] += 1
    return found


def of(calls: Counter[str], *names: str) -> int:
    return sum(calls[name] for name in names)


def test_a_cached_token_makes_no_system_call(calls: dict[str, Counter[str]]) -> None:
    assert calls["cached"].total() == 0


@pytest.mark.parametrize("read", ["token", "load"])
def test_a_read_opens_and_writes_nothing(calls: dict[str, Counter[str]], read: str) -> None:
    assert of(calls[read], "openat", "write", "pwrite64", *WAITS) == 0
    looks = of(calls[read], "stat", "lstat", "newfstatat")
    assert looks == REPEATED  # whether the database is still the same file


def test_a_save_syncs_once(calls: dict[str, Counter[str]]) -> None:
    assert of(calls["save"], *WAITS) == REPEATED
    assert of(calls["save"], "openat") == 0


def test_a_save_that_empties_the_log_syncs_a_few_times_more(calls: dict[str, Counter[str]]) -> None:
    # For the transaction and for the log that begins with it; for the log, for the database.
    assert of(calls["rotate"], *WAITS) <= 5 * REPEATED


def test_an_import_syncs_once_per_thousand_accounts(calls: dict[str, Counter[str]]) -> None:
    assert of(calls["import"], "openat") <= FILES + 10  # each file once
    assert of(calls["import"], *WAITS) <= 10


def test_an_export_syncs_each_file(calls: dict[str, Counter[str]]) -> None:
    assert FILES <= of(calls["export"], *WAITS) <= FILES + 10
