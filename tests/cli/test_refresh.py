"""``tokenstore refresh``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.helpers.command import COMMAND, DAY, HOUR, Command, Ran, save
from tests.helpers.refreshes import SOON, Call, World, until
from tokenstore.testing import AuthorizationServer, Transform

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_refresh_of_several_goes_on_after_a_failure_and_ends_with_1(
    cli: Callable[..., Ran],
    database: Path,
    server: AuthorizationServer,
    providers: Path,  # noqa: ARG001 - has to be there
) -> None:
    save(database, server, "alice", expires_in=3600)
    save(database, server, "bob", expires_in=3600)
    server.revoke("alice")

    ran = cli("refresh", "alice", "bob", "--json")

    assert ran.code == 1
    assert [(r["account_name"], r["outcome"]) for r in ran.json["results"]] == [
        ("alice", "failed"),
        ("bob", "refreshed"),
    ]
    assert "invalid_grant" in ran.json["results"][0]["reason"]
    assert ran.json["results"][1]["reason"] is None


def test_refresh_all_takes_those_that_are_due_and_not_known_to_be_dead(
    cli: Callable[..., Ran],
    database: Path,
    server: AuthorizationServer,
    providers: Path,  # noqa: ARG001 - has to be there
) -> None:
    save(database, server, "alice", expires_in=3600)
    save(database, server, "bob", expires_in=10)
    save(database, server, "carol", expires_in=10)
    server.revoke("carol")
    assert cli("token", "carol").code == 3

    ran = cli("refresh", "--all")

    assert ran.code == 0
    assert ran.out == "refreshed\tbob\n"
    assert server.refreshes() == 1


@pytest.mark.parametrize("arguments", [["refresh"], ["refresh", "alice", "--all"]])
def test_refresh_wants_either_accounts_or_all(
    cli: Callable[..., Ran], arguments: list[str]
) -> None:
    assert cli(*arguments).code == 2


def test_all_takes_what_is_due_and_within_what_becomes_so(world: World, command: Command) -> None:
    world.sign_in("due")
    world.sign_in("soon", expires_in=HOUR / 2)
    world.sign_in("later", expires_in=5 * HOUR)
    assert command.results("refresh", "--all") == {"due": "refreshed"}
    assert command.results("refresh", "--all", "--within", "45m") == {"soon": "refreshed"}
    assert command.results("refresh", "--all") == {}
    assert world.posts == 2


def test_idle_for_takes_what_was_not_used_for_so_long(world: World, command: Command) -> None:
    world.clock.now -= 31 * DAY
    world.sign_in("idle", expires_in=400 * DAY)
    world.clock.now += 2 * DAY
    world.sign_in("used", expires_in=400 * DAY)
    assert command.results("refresh", "--idle-for", "30d") == {"idle": "refreshed"}
    assert command.results("refresh", "--all", "--idle-for", "30d") == {}
    assert command.results("refresh", "--idle-for", "28d") == {"used": "refreshed"}


def test_provider_takes_those_of_one(world: World, command: Command) -> None:
    world.sign_in("alice")
    world.sign_in("bob", provider="other")
    assert command.results("refresh", "--all", "--provider", "other") == {"bob": "refreshed"}
    assert world.posts == 1


def test_a_dry_run_sends_nothing(world: World, command: Command) -> None:
    world.sign_in("alice")
    world.sign_in("bob", expires_in=5 * HOUR)
    assert command.results("refresh", "--all", "--dry-run") == {"alice": "skipped"}
    code, out, _ = command("refresh", "--all", "--dry-run")
    assert (code, out) == (0, "skipped\talice\tdry run\n")
    assert world.posts == 0


def test_one_that_fails_stops_nothing_and_the_exit_code_says_so(
    world: World, command: Command
) -> None:
    for name in ("alice", "bob", "carol"):
        world.sign_in(name)
    world.server.revoke("bob")
    expected = {"alice": "refreshed", "bob": "failed", "carol": "refreshed"}
    assert command.results("refresh", "--all", "--jobs", "2", code=1) == expected
    assert command.results("refresh", "--all") == {}  # the dead one is known


def test_jobs_bounds_what_is_under_way(world: World, command: Command) -> None:
    holds = {name: world.hold(name) for name in ("alice", "bob", "carol") if world.sign_in(name)}
    call = Call(command.results, "refresh", "--all", "--jobs", "1")
    for number in range(1, 4):
        while not (arrived := [n for n, h in holds.items() if h.arrived.is_set()]):
            next(iter(holds.values())).arrived.wait(0.01)
        assert len(arrived) == 1
        assert world.posts == number
        holds.pop(arrived[0]).release.set()
    assert call.result() == dict.fromkeys(("alice", "bob", "carol"), "refreshed")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--all", "--jobs", "0"],
        ["--all", "--jobs", "many"],
        ["--all", "--within", "soon"],
        ["--all", "--within", "-1"],
        ["--idle-for", "1w"],
        ["--idle-for", "30d", "--within", "1h"],
        ["--idle-for", "30d", "alice"],
        ["--within", "1h"],
        ["--dry-run"],
        ["alice", "--within", "1h"],
        ["alice", "--dry-run"],
    ],
    ids=" ".join,
)
def test_options_that_do_not_go_together_end_with_2(
    world: World, command: Command, arguments: list[str]
) -> None:
    world.sign_in()
    code, out, err = command("refresh", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("tokenstore: ")
    assert err.count("\n") == 1
    assert world.posts == 0


def test_two_commands_at_once_share_the_work(world: World, command: Command) -> None:
    names = [f"account-{number}" for number in range(8)]
    for name in names:
        world.sign_in(name)
    hold = world.hold()
    with subprocess.Popen(
        [*COMMAND, "--database", str(world.path), "refresh", "--all", "--jobs", "1", "--json"],
        stdout=subprocess.PIPE,
        env=os.environ | command.environment,
    ) as other:
        assert hold.arrived.wait(SOON)
        held = world.server.requests[0].subject or ""
        ours = command.results("refresh", "--all")
        hold.release.set()
        out, _ = other.communicate(timeout=SOON)
    assert ours == {**dict.fromkeys(names, "refreshed"), held: "skipped"}
    theirs = {r["account_name"]: r["outcome"] for r in json.loads(out)["results"]}
    assert theirs == {**dict.fromkeys(names, "skipped"), held: "refreshed"}
    assert sorted(r.subject or "" for r in world.server.requests) == names


def test_a_run_shows_its_progress_on_a_terminal(world: World, command: Command) -> None:
    world.sign_in("alice")
    shown = command.shown("refresh", "--all")
    assert "refreshing" in shown
    assert "refreshed  alice" in shown


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_f10_ctrl_c_ends_a_run_with_a_line(world: World, command: Command, again: bool) -> None:
    for name in ("alice", "bob"):
        world.sign_in(name)
    hold = world.hold()
    run = Worker(command, "--jobs", "1").process
    assert run.stderr is not None
    assert hold.arrived.wait(SOON)
    run.send_signal(signal.SIGINT)
    said = run.stderr.readline()
    if again:
        run.send_signal(signal.SIGINT)
    else:
        hold.release.set()

    out, err = run.communicate(timeout=SOON)

    assert said == "tokenstore: finishing 1 request; press Ctrl-C again to abandon them\n"
    assert (run.returncode, out) == (130, "")
    assert ("tokenstore: abandoned; a login may be lost\n" in err) == again
    assert world.posts == 1
    if not again:
        assert [*world.outcomes("alice"), *world.outcomes("bob")] == ["refreshed"]


class Worker:
    """``tokenstore refresh --all --every …`` in a process of its own."""

    def __init__(self, command: Command, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "--database", str(command.world.path), "refresh", "--all", *arguments],
            env={**os.environ, **command.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Let it end; return its exit code and what it had printed."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=SOON)
        return self.process.returncode, out, err


def test_every_goes_on_with_what_becomes_due(world: World, command: Command) -> None:
    world.sign_in("alice")
    worker = Worker(command, "--every", "0.2s", "--json")
    until(lambda: world.outcomes("alice") == ["refreshed"])
    world.sign_in("bob")
    until(lambda: world.outcomes("bob") == ["refreshed"])

    code, out, err = worker.stop()

    assert (code, err) == (0, "")
    told = [result for line in out.splitlines() for result in json.loads(line)["results"]]
    assert [(r["account_name"], r["outcome"]) for r in told] == [
        ("alice", "refreshed"),
        ("bob", "refreshed"),
    ]
    assert world.posts == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_worker_that_is_stopped_finishes_what_it_began_and_begins_nothing(
    world: World, command: Command, number: signal.Signals
) -> None:
    for name in ("alice", "bob"):
        world.sign_in(name)
    hold = world.hold()
    worker = Worker(command, "--every", "1h", "--jobs", "1")
    assert hold.arrived.wait(SOON)
    worker.process.send_signal(number)
    hold.release.set()

    out, err = worker.process.communicate(timeout=SOON)

    assert worker.process.returncode == 0
    assert (out.count("refreshed"), err) == (1, "1 refreshed\n")
    outcomes = [*world.outcomes("alice"), *world.outcomes("bob")]
    assert outcomes == ["refreshed"]


def test_a_worker_outlives_a_store_that_is_away_for_a_while(world: World, command: Command) -> None:
    world.sign_in("alice", expires_in=5 * HOUR)
    away = world.path.with_name("away")
    worker = Worker(command, "--every", "0.1s")
    world.path.rename(away)
    assert worker.process.stderr is not None
    told = worker.process.stderr.readline()
    away.rename(world.path)
    world.sign_in("bob")
    until(lambda: world.outcomes("bob") == ["refreshed"])

    assert worker.stop()[0] == 0
    assert str(world.path) in told


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--all", "--every", "0s"], id="no time"),
        pytest.param(["--all", "--every", "60s", "--dry-run"], id="nothing to do"),
        pytest.param(["alice", "--every", "60s"], id="one account"),
    ],
)
def test_every_is_for_a_fleet(command: Command, arguments: list[str]) -> None:
    assert command("refresh", *arguments)[0] == 2


def test_a_result_is_told_before_the_next_is_known(world: World, command: Command) -> None:
    for name in ("alice", "bob"):
        world.sign_in(name)
    world.server.script(Transform(dict))
    hold = world.hold()
    process = subprocess.Popen(
        [*COMMAND, "--database", str(world.path), "refresh", "--all", "--jobs", "1"],
        env={**os.environ, **command.environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    hold.release.set()
    rest, _ = process.communicate(timeout=SOON)

    assert first.startswith("refreshed")
    assert rest.startswith("refreshed")


def test_what_was_under_way_at_the_stop_is_told_of_all(world: World, command: Command) -> None:
    names = ["alice", "bob", "carol"]
    holds = []
    for name in names:
        world.sign_in(name)
        holds.append(world.hold(name))
    worker = Worker(command, "--every", "1h", "--jobs", "3", "--json")
    for hold in holds:
        assert hold.arrived.wait(SOON)
    worker.process.send_signal(signal.SIGTERM)
    for hold in holds:
        hold.release.set()

    out, err = worker.process.communicate(timeout=SOON)

    assert (worker.process.returncode, err) == (0, "")
    (line,) = out.splitlines()
    assert sorted(r["account_name"] for r in json.loads(line)["results"]) == names
