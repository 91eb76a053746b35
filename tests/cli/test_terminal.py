"""Characters that a terminal obeys: whoever they come from, none of them reaches it."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
from typing import TYPE_CHECKING

import pytest

from tests.helpers.command import Ran, on_a_terminal, save
from tokenstore import TokenManager
from tokenstore.testing import Answer, AuthorizationServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOSTILE = "\x1b]0;owned\x07\x9b2J\u202e\u2066\u2028"
NAME = "eve\u202e\u2066"  # control characters are no part of an account's name


def hostile(text: str) -> set[str]:
    return {c for c in text if not c.isprintable() and c not in "\n\t"}


def change(database: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(database)
    with connection:
        connection.execute(statement, values)
    connection.close()


@pytest.fixture
def store(database: Path, server: AuthorizationServer, providers: Path) -> Path:
    """A store with a name and a recorded failure that somebody else wrote."""
    assert providers.exists()
    save(database, server, NAME, expires_in=-1)
    with TokenManager(database, providers={"test": server.provider()}) as manager:
        server.script(Answer(400, {"error": "invalid_grant"}))
        manager.get_valid_token(NAME)
    change(
        database,
        "UPDATE accounts SET failure = replace(failure, 'HTTP 400', ?)",
        json.dumps(HOSTILE)[1:-1],
    )
    change(database, "UPDATE refreshes SET host = ?, error = ?", HOSTILE, HOSTILE)
    return database


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["status"],
            ["history"],
            ["doctor"],
            ["token", NAME],
            ["refresh", NAME],
            ["export", "out"],
        ),
        *(["delete", NAME], ["token", f"{NAME}x"], ["refresh", f"--{NAME}"], [NAME]),
        *(["status", "--json"], ["history", "--json"], ["doctor", "--json"]),
        *(["refresh", NAME, "--json"], ["export", "out", "--json"], ["delete", NAME, "--json"]),
    ],
    ids=ascii,
)
def test_a_stores_text_is_printable_in_a_pipe(
    cli: Callable[..., Ran],
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    assert store.exists()
    monkeypatch.chdir(tmp_path)

    ran = cli(*arguments)

    assert ran.out or ran.err
    assert hostile(ran.out + ran.err) == set()
    if arguments in (["status", "--json"], ["history", "--json"]):  # and nothing is lost
        assert NAME in json.dumps(ran.json, ensure_ascii=False)


@pytest.mark.parametrize("command", ["status", "history", "doctor", "token"])
@pytest.mark.slow
def test_a_stores_text_is_printable_on_a_terminal(
    store: Path, server: AuthorizationServer, command: str
) -> None:
    secret = str(server.provider().client_secret)

    _, shown = on_a_terminal(
        "--database",
        store,
        *([command, NAME] if command == "token" else [command]),
        COLUMNS="300",
        TEST_CLIENT_SECRET=secret,
    )

    assert "owned" in shown or command == "doctor"
    styles = re.compile(r"\x1b\[[0-9;]*m")
    assert hostile(styles.sub("", shown).replace("\r\n", "\n")) == set()


@pytest.mark.parametrize("command", ["status", "token x", "db current", "doctor"])
def test_a_revision_that_somebody_wrote_is_printable(
    cli: Callable[..., Ran], store: Path, command: str
) -> None:
    change(store, "UPDATE tokenstore_alembic_version SET version_num = ?", "9" + HOSTILE)

    ran = cli(*command.split())

    assert ran.code == 1
    assert hostile(ran.out + ran.err) == set()


def test_a_warning_of_the_library_is_printable(
    cli: Callable[..., Ran], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("status").code == 0  # the command prints warnings from now on

    logging.getLogger("tokenstore.storage").warning("line\n%s", HOSTILE)

    err = capsys.readouterr().err
    assert "owned" in err
    assert err.count("\n") == 1
    assert hostile(err) == set()


def test_a_file_name_is_printable_and_a_command_for_it_works(
    cli: Callable[..., Ran], tmp_path: Path
) -> None:
    file = tmp_path / f"a  b{HOSTILE}.json"
    file.write_text("{")

    ran = cli("import", str(file))

    assert ran.code == 1
    assert "a  b" in ran.out  # both spaces
    assert hostile(ran.out + ran.err) == set()


def test_metadata_with_such_characters_is_refused_and_printable(
    cli: Callable[..., Ran], server: AuthorizationServer, providers: Path
) -> None:
    url = json.dumps(f"{server.issuer}/a{HOSTILE}")
    with providers.open("a") as file:
        file.write(f"authorization_endpoint = {url}\n")

    ran = cli("--providers", providers, "login", "a", "--provider", "test", "--no-browser")

    assert ran.code == 2
    assert "authorization_endpoint" in ran.err
    assert hostile(ran.err) == set()
