"""``tokenstore token``, ``history`` and ``delete``."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.command import Command, Ran, save
from tests.helpers.refreshes import SOON, Call, World
from tokenstore.testing import Answer, AuthorizationServer, Transform

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_token_prints_the_token_and_nothing_else_on_stdout(
    cli: Callable[..., Ran],
    database: Path,
    server: AuthorizationServer,
    providers: Path,  # noqa: ARG001 - has to be there
) -> None:
    save(database, server, "alice", expires_in=10)

    ran = cli("token", "alice")

    assert ran.code == 0
    assert server.is_live(ran.out.removesuffix("\n"))
    assert ran.err == ""
    assert len(server.requests) == 1


def test_token_refreshes_what_does_not_live_long_enough(
    cli: Callable[..., Ran],
    database: Path,
    server: AuthorizationServer,
    providers: Path,  # noqa: ARG001 - has to be there
) -> None:
    save(database, server, "alice", expires_in=1800)

    assert cli("token", "alice", "--min-ttl", "600").code == 0
    assert len(server.requests) == 0
    assert cli("token", "alice", "--min-ttl", "2000").code == 0
    assert len(server.requests) == 1


@pytest.mark.parametrize("command", ["token", "refresh", "delete"])
def test_an_unknown_account_ends_with_5_and_names_the_nearest(
    cli: Callable[..., Ran], database: Path, server: AuthorizationServer, command: str
) -> None:
    save(database, server, "alice@example.com", expires_in=3600)

    ran = cli(command, "alice@example.org")

    assert ran.code == 5
    assert ran.out == ""
    assert "alice@example.com" in ran.err


def test_an_unknown_provider_ends_with_2(
    cli: Callable[..., Ran], database: Path, server: AuthorizationServer
) -> None:
    save(database, server, "alice", expires_in=10)

    ran = cli("token", "alice")

    assert ran.code == 2
    assert "unknown provider 'test'" in ran.err


def test_delete_removes_the_account(
    cli: Callable[..., Ran], database: Path, server: AuthorizationServer
) -> None:
    save(database, server, "alice", expires_in=3600)
    save(database, server, "bob", expires_in=3600)

    assert cli("delete", "alice").out == "deleted\talice\n"
    assert cli("delete", "bob", "--json").json == {
        "results": [{"account_name": "bob", "outcome": "deleted", "reason": None}]
    }
    assert cli("status", "--json").json == {"accounts": []}


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


def test_the_history_of_nobody_and_of_nothing(world: World, command: Command) -> None:
    world.sign_in("alice")
    assert command("history", "alice")[:2] == (0, "")
    assert entries(command, "alice") == []
    code, out, err = command("history", "alise")
    assert (code, out) == (5, "")
    assert "did you mean 'alice'?" in err
    assert command("history", "--limit", "0")[0] == 2
    assert "no refreshes yet" in command.shown("history")
