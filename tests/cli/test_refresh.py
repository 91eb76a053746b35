from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.test_app import COMMAND, on_a_terminal
from tests.helpers.refreshes import SOON, Call, World, until
from tokenstore.cli.app import run
from tokenstore.testing import Answer, Transform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOUR = 3600.0
DAY = 24 * HOUR


class Command:
    """The command, on a database of accounts at a strict server, by the real clock."""

    def __init__(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        self.world = world
        self._capsys = capsys
        self.environment = {
            "TOKENSTORE_PROVIDERS": str(world.path.with_name("providers.toml")),
            "TEST_CLIENT_SECRET": str(world.server.provider().client_secret),
        }
        self.configure()

    def configure(self, **settings: object) -> None:
        table = {
            "token_endpoint": self.world.server.token_endpoint,
            "client_id": "tokenstore",
            "client_secret_env": "TEST_CLIENT_SECRET",
            **settings,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        file = self.world.path.with_name("providers.toml")
        file.write_text("\n".join(["[test]", *lines, "[other]", *lines]))

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Run it; return its exit code and what it printed to stdout and stderr."""
        self._capsys.readouterr()
        code = run(["--database", str(self.world.path), *arguments])
        return code, *self._capsys.readouterr()

    def results(self, *arguments: str, code: int = 0) -> dict[str, str]:
        """Run it with --json; return what became of each account."""
        found, out, _ = self(*arguments, "--json")
        assert found == code, out
        results = json.loads(out)["results"]
        assert all(r.keys() == {"account_name", "outcome", "reason"} for r in results)
        assert len({r["account_name"] for r in results}) == len(results)
        return {r["account_name"]: r["outcome"] for r in results}

    def shown(self, *arguments: str) -> str:
        """Run it on a terminal; return all that it shows."""
        wide = {"COLUMNS": "200", "NO_COLOR": "1", **self.environment}
        code, shown = on_a_terminal("--database", str(self.world.path), *arguments, **wide)
        assert code == 0, shown
        return shown


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        world.clock.now = time.time()
        yield world


@pytest.fixture
def command(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    command = Command(world, capsys)
    for name, value in command.environment.items():
        monkeypatch.setenv(name, value)
    return command


# -- refresh --all ----------------------------------------------------------------------------


def test_all_takes_what_is_due_and_within_what_becomes_so(world: World, command: Command) -> None:
    world.sign_in("due")
    world.sign_in("soon", expires_in=HOUR / 2)
    world.sign_in("later", expires_in=5 * HOUR)
    assert command.results("refresh", "--all") == {"due": "refreshed"}
    assert command.results("refresh", "--all", "--within", "45m") == {"soon": "refreshed"}
    assert command.results("refresh", "--all") == {}
    assert world.posts == 2


def test_unused_for_takes_what_was_not_used_for_so_long(world: World, command: Command) -> None:
    world.clock.now -= 31 * DAY
    world.sign_in("idle", expires_in=400 * DAY)
    world.clock.now += 2 * DAY
    world.sign_in("used", expires_in=400 * DAY)
    assert command.results("refresh", "--unused-for", "30d") == {"idle": "refreshed"}
    assert command.results("refresh", "--all", "--unused-for", "30d") == {}
    assert command.results("refresh", "--unused-for", "28d") == {"used": "refreshed"}


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
        ["--unused-for", "1w"],
        ["--unused-for", "30d", "--within", "1h"],
        ["--unused-for", "30d", "alice"],
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_shows_its_progress_on_a_terminal(world: World, command: Command) -> None:
    world.sign_in("alice")
    shown = command.shown("refresh", "--all")
    assert "refreshing" in shown
    assert "refreshed  alice" in shown


# -- status -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_status_says_by_when_a_sign_in_is_needed(world: World, command: Command) -> None:
    world.sign_in("alice", refresh_token_expires_in=6 * DAY + HOUR)
    world.sign_in("bob", refresh_token=None)
    world.sign_in("carol", refresh_token_expires_in=1e30)
    world.clock.now -= 3 * DAY
    world.sign_in("dave", refresh_token_expires_in=2 * DAY)
    lines = {line.split()[0]: line for line in command.shown("status").splitlines() if line}
    assert "again within 6 d" in lines["alice"]
    assert " login bob" in lines["bob"]
    assert "within" not in lines["carol"] + lines["dave"]
    assert " login dave" in lines["dave"]  # its time is over
    assert "again" not in lines["carol"]
    accounts = json.loads(command("status", "--json")[1])["accounts"]
    assert [a["refresh_token_expires_at"] for a in accounts] == [
        pytest.approx(time.time() + 6 * DAY + HOUR, abs=60),
        None,
        None,
        pytest.approx(time.time() - DAY, abs=60),
    ]
    assert [a["refreshable"] for a in accounts] == [True, False, True, True]


@pytest.mark.slow
def test_status_goes_by_what_the_provider_is_configured_to_do(
    world: World, command: Command
) -> None:
    command.configure(refresh_token_lifetime=90 * DAY, refresh_token_idle=14 * DAY)
    world.sign_in("alice")
    (account,) = json.loads(command("status", "--json")[1])["accounts"]
    assert account["refresh_token_obtained_at"] == pytest.approx(time.time(), abs=60)
    assert account["refresh_token_expires_at"] == pytest.approx(time.time() + 14 * DAY, abs=60)
    assert "again within 14 d" in command.shown("status")


# -- history ----------------------------------------------------------------------------------


def entries(command: Command, *arguments: str) -> list[dict[str, Any]]:
    code, out, _ = command("history", *arguments, "--json")
    assert code == 0
    found: list[dict[str, Any]] = json.loads(out)["history"]
    return found


def test_history_tells_every_refresh_the_newest_first(world: World, command: Command) -> None:
    world.sign_in("alice")
    world.sign_in("bob")
    world.server.revoke("bob")
    assert command("refresh", "alice")[0] == 0
    assert command("refresh", "--all")[0] == 1
    assert command("refresh", "alice")[0] == 0
    told = [(e["account_name"], e["reason"], e["outcome"], e["error"]) for e in entries(command)]
    assert told == [
        ("alice", "forced", "refreshed", None),
        ("bob", "due", "reauthorization", "invalid_grant"),
        ("alice", "forced", "refreshed", None),
    ]
    assert [e["account_name"] for e in entries(command, "alice")] == ["alice", "alice"]
    assert [e["account_name"] for e in entries(command, "--limit", "2")] == ["alice", "bob"]
    assert [e["account_name"] for e in entries(command, "bob", "--limit", "9")] == ["bob"]


def test_an_entry_of_history_has_these_facts(world: World, command: Command) -> None:
    world.sign_in("alice")
    command("refresh", "alice")
    (entry,) = entries(command)
    assert entry.keys() >= {
        "id", "account_name", "provider", "reason", "host", "pid", "started_at", "finished_at",
        "duration", "outcome", "sent", "received", "status_code", "error", "maybe_spent",
    }  # fmt: skip
    assert (entry["pid"], entry["provider"]) == (os.getpid(), "test")
    assert entry["duration"] == pytest.approx(entry["finished_at"] - entry["started_at"])
    assert entry["started_at"] == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("shown_to", ["program", "person"])
def test_history_shows_no_secret(world: World, command: Command, shown_to: str) -> None:
    secrets = [world.sign_in("alice")]
    world.server.script(Transform(lambda answer: secrets.append(answer) or answer))  # type: ignore[func-returns-value]
    command("refresh", "alice")
    if shown_to == "person":
        shown = command.shown("history")
        assert "ACCOUNT" in shown
        assert "forced" in shown
        assert "refreshed" in shown
    else:
        shown = command("history")[1]
        assert shown.split("\t")[1:4] == ["alice", "test", "forced"]
        assert shown.count("\n") == 1
    assert len(secrets) == 2
    for tokens in secrets:
        for name in ("access_token", "refresh_token"):
            assert tokens[name] not in shown


@pytest.mark.slow
def test_the_history_of_a_running_and_of_a_failed_refresh_is_readable(
    world: World, command: Command
) -> None:
    world.sign_in("alice")
    world.sign_in("bob [bold]")
    world.server.script(Answer(503), Answer(503), subject="bob [bold]")
    command("token", "bob [bold]")
    hold = world.hold("alice")
    call = Call(world.manager().refresh_token, "alice")
    assert hold.arrived.wait(SOON)
    shown = command.shown("history")
    hold.release.set()
    call.result()
    assert "running" in shown
    assert "transient" in shown
    assert "bob [bold]" in shown


@pytest.mark.slow
def test_the_history_of_nobody_and_of_nothing(world: World, command: Command) -> None:
    world.sign_in("alice")
    assert command("history", "alice")[:2] == (0, "")
    assert entries(command, "alice") == []
    code, out, err = command("history", "alise")
    assert (code, out) == (5, "")
    assert "did you mean 'alice'?" in err
    assert command("history", "--limit", "0")[0] == 2
    assert "no refreshes yet" in command.shown("history")


# -- refresh --every ----------------------------------------------------------------------------


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
