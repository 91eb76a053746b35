"""``tokenstore status``."""

from __future__ import annotations

import json
import re
import shlex
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.command import DAY, HOUR, Command, Ran, on_a_terminal, save
from tokenstore import TokenRepository
from tokenstore.cli.app import run
from tokenstore.models.failures import Failure
from tokenstore.testing import Answer, AuthorizationServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.helpers.refreshes import World


def test_status_shows_each_state_as_json(
    cli: Callable[..., Ran],
    database: Path,
    server: AuthorizationServer,
    providers: Path,  # noqa: ARG001 - has to be there
) -> None:
    save(database, server, "alice", expires_in=3600)
    save(database, server, "bob", expires_in=10)
    save(database, server, "carol", expires_in=10, refresh_token=None)
    save(database, server, "dave", expires_in=10)
    server.script(Answer(429, {"error": "slow_down"}, {"Retry-After": "600"}), subject="dave")
    assert cli("token", "dave").code == 4

    accounts = {a["name"]: a for a in cli("status", "--json").json["accounts"]}

    assert [(n, a["state"]) for n, a in accounts.items()] == [
        ("alice", "valid"),
        ("bob", "due"),
        ("carol", "sign_in"),
        ("dave", "retry_later"),
    ]
    assert set(accounts["alice"]) == {
        "name",
        "provider",
        "state",
        "expires_at",
        "refreshed_at",
        "last_error",
        "refresh_token_obtained_at",
        "refresh_token_expires_at",
        "refreshable",
    }
    assert accounts["alice"]["expires_at"] == pytest.approx(time.time() + 3600, abs=60)
    assert "slow_down" in accounts["dave"]["last_error"]


def test_status_of_a_database_that_is_not_there_makes_none(
    cli: Callable[..., Ran], database: Path
) -> None:
    assert cli("status", "--json").json == {"accounts": []}
    assert list(database.parent.iterdir()) == []


def test_status_prints_lines_with_tabs_when_nobody_is_looking(
    cli: Callable[..., Ran], database: Path, server: AuthorizationServer
) -> None:
    save(database, server, "alice", expires_in=3600)

    line = cli("status").out

    assert line.split("\t")[:3] == ["alice", "test", "valid"]
    assert line.count("\n") == 1


def test_status_is_a_table_on_a_terminal(database: Path, server: AuthorizationServer) -> None:
    save(database, server, "alice [bold]", expires_in=3600)

    code, shown = on_a_terminal("--database", database, "status", NO_COLOR="1")

    assert code == 0
    assert "ACCOUNT" in shown
    assert "alice [bold]" in shown
    assert "in 60 min" in shown


def test_an_empty_status_says_so_on_a_terminal(database: Path) -> None:
    assert "no accounts yet" in on_a_terminal("--database", database, "status")[1]


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


def test_status_goes_by_what_the_provider_is_configured_to_do(
    world: World, command: Command
) -> None:
    command.configure(refresh_token_lifetime=90 * DAY, refresh_token_idle=14 * DAY)
    world.sign_in("alice")
    (account,) = json.loads(command("status", "--json")[1])["accounts"]
    assert account["refresh_token_obtained_at"] == pytest.approx(time.time(), abs=60)
    assert account["refresh_token_expires_at"] == pytest.approx(time.time() + 14 * DAY, abs=60)
    assert "again within 14 d" in command.shown("status")


REFUSED = Failure(
    kind="reauthorization",
    message="dead: provider 'google' answered HTTP 400 invalid_grant; sign in again",
    client="other",
)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """Make a store in which the most urgent account is neither first nor last."""
    path = tmp_path / "tokens.db"
    now = time.time()
    with TokenRepository(path) as repository:

        def save(name: str, provider: str, expires_in: float, **more: Any) -> None:
            tokens = {"access_token": "a", "refresh_token": name, "expires_at": now + expires_in}
            repository.save(name, tokens | more, provider=provider)

        def fail(name: str, failure: Failure) -> None:
            record = repository.record(name)
            assert record is not None
            refresh = repository.journal.begin(record, provider="google", reason="due", longest=60)
            repository.journal.finish(refresh, failure, provider="google")

        save("alive", "google", 50 * HOUR)
        save("dead", "google", 5 * HOUR)
        save("due", "acme", -HOUR)
        save("dying", "acme", HOUR, refresh_token_expires_in=86400)
        save("lost", "acme", -2 * HOUR, refresh_token=None)
        save("waits", "google", -HOUR)
        fail("dead", REFUSED)
        fail(
            "waits",
            Failure(kind="transient", message="HTTP 503", client="x", retry_at=now + 500),
        )
    return path


def shown(filled: Path, *arguments: str, columns: int = 120) -> str:
    settings = {
        "TOKENSTORE_DATABASE": str(filled),
        "NO_COLOR": "1",
        "COLUMNS": str(columns),
    }
    code, text = on_a_terminal("status", *arguments, **settings)
    assert code == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r\n", "\n")


def listed(text: str) -> list[str]:
    """Return the first words of the lines of a table."""
    return [
        line.split()[0] for line in text.partition("\n\n")[0].splitlines()[1:] if line[0] != " "
    ]


def test_the_most_urgent_is_first_and_all_are_counted(filled: Path) -> None:
    text = shown(filled)

    assert listed(text) == ["lost", "dead", "waits", "due", "dying", "alive"]
    assert text.endswith("\n6 accounts: 2 sign in, 1 retry later, 1 due, 2 valid\n")


def test_it_says_what_to_do_and_why(filled: Path) -> None:
    lines = [line.rstrip() for line in shown(filled, columns=160).splitlines()]
    rows = {line.split()[0]: line for line in lines if line}
    why = {line.split()[0]: below.strip() for line, below in pairwise(lines) if line}

    assert rows["dead"].endswith(" tokenstore login dead")
    assert why["dead"] == "provider 'google' answered HTTP 400 invalid_grant"
    assert rows["lost"].endswith(" tokenstore login lost")
    assert why["lost"] == "there is no refresh token"
    assert "wait: HTTP 503" in rows["waits"]
    assert "sign in again within 24 h" in rows["dying"]
    assert rows["due"].split()[-1] == rows["alive"].split()[-1] == "-"
    assert " in 2 d " in rows["alive"]
    assert " 60 min ago " in rows["due"] or " 1 h ago " in rows["due"]


def test_the_command_that_it_names_is_one_for_a_shell(tmp_path: Path) -> None:
    filled = tmp_path / "tokens.db"
    with TokenRepository(filled) as repository:
        repository.save("it's a; name", {"access_token": "a", "expires_at": 1}, provider="acme")
        repository.save("-unbound", {"access_token": "a", "expires_at": 1})

    text = shown(filled, columns=160)
    words = [shlex.split(found[0]) for found in re.finditer("tokenstore login .*[^ \n]", text)]
    assert words == [
        ["tokenstore", "login", "--provider=PROVIDER", "--", "-unbound"],
        ["tokenstore", "login", "it's a; name"],
    ]


@pytest.mark.parametrize("options", [["--database"], ["--database", "--providers"]])
def test_it_names_the_store_if_that_was_named(filled: Path, options: list[str]) -> None:
    providers = filled.with_name("providers.toml")
    providers.touch()
    files = {"--database": str(filled), "--providers": str(providers)}
    given = [word for name in options for word in (name, files[name])]
    for columns in ("999", "60"):
        _, text = on_a_terminal(*given, "status", "dead", NO_COLOR="1", COLUMNS=columns)
        assert shlex.join(["tokenstore", *given, "login", "dead"]) in text


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_a_narrow_terminal_gets_less_and_no_line_is_too_long(filled: Path, columns: int) -> None:
    text = shown(filled, columns=columns)

    assert listed(text) == ["lost", "dead", "waits", "due", "dying", "alive"]
    assert "PROVIDER" not in text
    assert text.endswith("\nTo sign in again: tokenstore login ACCOUNT\n")
    table = text.partition("\n\n")[0]
    assert max(len(line.rstrip()) for line in table.splitlines()) <= columns


def test_many_accounts_are_summarised_unless_all_are_asked_for(tmp_path: Path) -> None:
    filled = tmp_path / "tokens.db"
    with TokenRepository(filled) as repository, repository.transaction():
        for number in range(200):
            repository.save(f"{number:03}", {"access_token": "a", "expires_in": 9000 - number})

    text = shown(filled)
    assert listed(text) == [f"{number:03}" for number in range(50)]
    assert "200 accounts: 200 valid\nShowing the 50 most urgent; use --all to show all.\n" in text
    assert len(listed(shown(filled, "--all"))) == 200


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--provider", "acme"], ["due", "dying", "lost"]),
        (["--provider", "nobody"], []),
        (["--state", "sign_in"], ["dead", "lost"]),
        (["--state", "due", "--state", "retry_later"], ["due", "waits"]),
        (["--state", "sign_in", "--provider", "acme"], ["lost"]),
        (["dead", "alive"], ["alive", "dead"]),
    ],
)
def test_accounts_are_chosen(
    filled: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    names: list[str],
) -> None:
    assert run(["--database", str(filled), "status", "--json", *arguments]) == 0
    accounts = json.loads(capsys.readouterr().out)["accounts"]
    assert [account["name"] for account in accounts] == names

    assert run(["--database", str(filled), "status", *arguments]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == names


def test_an_account_that_is_not_there_is_told(
    filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--database", str(filled), "status", "alice", "dead"]) == 5
    assert "there is no account 'alice'" in capsys.readouterr().err


def test_a_provider_that_no_account_has_is_told_with_the_nearest(
    filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--database", str(filled), "status", "--provider", "gogle"]) == 0
    assert "did you mean 'google'?" in capsys.readouterr().err
    assert run(["--database", str(filled), "status", "--provider", "google"]) == 0
    assert capsys.readouterr().err == ""
