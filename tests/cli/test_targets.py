"""``tokenstore token --scope --resource``, and what ``status`` and ``history`` show of it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.helpers.refreshes import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.helpers.command import Command

API = "https://api.example.com"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:

    with World(tmp_path, resources=[API]) as world:
        world.clock.now = time.time()
        tokens = world.server.sign_in("alice", scope="mail read")
        world.manager().save_tokens("alice", tokens, provider="test")
        yield world


def audience(world: World, printed: str) -> tuple[str, tuple[str, ...]]:
    return world.server.audience(printed.removesuffix("\n"))


def test_token_prints_the_token_of_a_scope_or_resource(world: World, command: Command) -> None:
    code, out, err = command("token", "alice", "--scope", "read", "--scope", "mail")
    assert (code, err) == (0, "")
    assert audience(world, out) == ("mail read", ())
    assert command("token", "alice", "--scope", "mail read")[1] == out
    assert audience(world, command("token", "alice", "--resource", API)[1])[1] == (API,)
    assert world.posts == 2
    assert command("token", "alice")[1] == f"{world.tokens()[0]}\n"


def test_token_prints_json(world: World, command: Command) -> None:
    _, out, _ = command("token", "alice", "--scope", "mail", "--json")
    found = json.loads(out)
    assert found == {
        "access_token": found["access_token"],
        "token_type": "Bearer",
        "expires_at": pytest.approx(world.clock.now + 3600, abs=60),
        "scope": "mail",
    }
    own = json.loads(command("token", "alice", "--json")[1])
    assert (own["access_token"], own["scope"]) == (world.tokens()[0], "mail read")


@pytest.mark.parametrize("option", [["--scope", ""], ["--resource", ""], ["--resource", "a b"]])
def test_an_empty_or_invalid_target_ends_with_2(
    world: World, command: Command, option: list[str]
) -> None:
    code, out, err = command("token", "alice", *option)
    assert (code, out) == (2, "")
    assert option[0] in err
    assert world.posts == 0


def test_a_refused_scope_ends_with_1_and_leaves_the_account_valid(
    world: World, command: Command
) -> None:
    code, _, err = command("token", "alice", "--scope", "admin")
    assert code == 1
    assert "invalid_scope" in err
    (account,) = json.loads(command("status", "alice", "--json")[1])["accounts"]
    assert (account["state"], account["last_error"]) == ("valid", None)
    (refused,) = account["access_tokens"]
    assert (refused["scope"], refused["expires_at"]) == ("admin", None)
    assert "invalid_scope" in refused["last_error"]
    assert world.posts == 1


def test_status_of_an_account_says_which_there_are_and_not_what(command: Command) -> None:
    tokens = [
        command("token", "alice", "--scope", "mail")[1].strip(),
        command("token", "alice", "--resource", API)[1].strip(),
    ]
    out = command("status", "alice", "--json")[1]
    (account,) = json.loads(out)["accounts"]
    assert [(t["scope"], t["resource"], t["granted_scope"]) for t in account["access_tokens"]] == [
        ("mail", [], "mail"),
        (None, [API], "mail read"),
    ]
    shown = command.shown("status", "alice")
    assert f'resource="{API}"' in shown
    assert all(token not in out + shown for token in tokens)
    assert "access_tokens" not in command("status", "--json")[1]
    assert API not in command.shown("status")


def test_history_says_which_target(world: World, command: Command) -> None:
    command("token", "alice", "--scope", "mail")
    (entry,) = json.loads(command("history", "--json")[1])["history"]
    assert entry["target"] == "mail"
    assert "due for mail" in command.shown("history")
    assert world.posts == 1
