from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest

from tests.helpers.resource_server import Resource
from tokenstore import TokenManager
from tokenstore.cli.app import app, run

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = sorted(
    {
        line.split("$ ")[1].split("  #")[0].strip()
        for language, block in BLOCKS
        if language == "console"
        for line in block.splitlines()
    }
)


def test_the_first_example_saves_and_returns_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}

    exec(PYTHON[0], names)

    assert names["token"] == "ya29.a0…"
    assert names["states"] == [("alice@example.com", "valid")]
    assert (tmp_path / "tokens.db").stat().st_mode & 0o777 == 0o600
    assert len(PYTHON[0].splitlines()) <= 10


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_every_example_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with TokenManager("tokens.db") as manager:
        manager.save_tokens("alice@example.com", {"access_token": "a", "expires_in": 3600})

    exec(code, {})


def test_the_examples_for_other_libraries_send_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with TokenManager("tokens.db") as manager:
        manager.save_tokens("alice@example.com", {"access_token": "a", "expires_in": 3600})
    with Resource(lambda _: True) as resource:
        names: dict[str, Any] = {"url": resource.url}
        for code in PYTHON:
            if "tokenstore.integrations" in code:
                exec(code.replace("...  # await client.get(…)", "await client.get(url)"), names)
        names["session"].get(resource.url, timeout=60)
        headers: dict[str, str] = {}
        names["credentials"].before_request(None, "GET", resource.url, headers)

    assert resource.tokens == ["Bearer a"] * 2
    assert headers["authorization"] == "Bearer a"


@pytest.mark.parametrize("line", [c for c in COMMANDS if c.startswith("tokenstore ")])
def test_every_command_exists(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = re.sub(r"--database \S+", "", line)
    words = [word for word in line.split()[1:] if word.isidentifier()]
    depth = 2 if words[0] == "db" else 1

    assert run([*words[:depth], "--help"]) == 0
    assert "Usage: tokenstore" in capsys.readouterr().out


@pytest.mark.parametrize("line", [c for c in COMMANDS if c.startswith("make ")])
def test_every_target_exists(line: str) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")

    assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE)


def test_the_table_of_commands_is_that_of_the_program() -> None:
    named = set(re.findall(r"^\| `tokenstore (\w+)", README, re.MULTILINE))

    assert named == set(app.list_commands(click.Context(app)))
