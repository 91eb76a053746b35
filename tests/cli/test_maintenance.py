"""``tokenstore doctor``: exit codes and output."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.helpers.command import on_a_terminal
from tests.helpers.doctor import tokens
from tokenstore import TokenRepository
from tokenstore.cli.app import run
from tokenstore.files import create_temporary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with two accounts."""
    path = tmp_path / "data" / "tokens.db"
    with TokenRepository(path) as repository:
        repository.save("alice", tokens(1))
        repository.save("bob", tokens(2))
    return path


@pytest.fixture
def command(path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def command(*arguments: str) -> tuple[int, str]:
        code = run(["--database", str(path), "doctor", *arguments])
        out, err = capsys.readouterr()
        assert "CANARY" not in out + err
        return code, out

    return command


def test_exit_codes_are_for_cron(command: Callable[..., tuple[int, str]], path: Path) -> None:
    assert command()[0] == 0
    with TokenRepository(path) as repository:
        repository.save("carol", {"access_token": "CANARY", "expires_in": -1})
    assert command()[0] == 3
    create_temporary(path)
    assert command()[0] == 1
    assert command("--fix")[0] == 3
    with TokenRepository(path) as repository:
        repository.delete("carol")
    assert command()[0] == 0


def test_json_has_the_same_keys_for_every_finding(
    command: Callable[..., tuple[int, str]], path: Path
) -> None:
    create_temporary(path)

    code, out = command("--json")

    assert code == 1
    [(key, findings)] = json.loads(out).items()
    assert key == "findings"
    assert len(findings) >= 10
    for finding in findings:
        assert list(finding) == ["check", "severity", "message", "hint", "accounts", "fixed"]
        assert finding["severity"] in {"ok", "info", "warning", "error"}
        assert isinstance(finding["accounts"], list)
    assert [f["check"] for f in findings if f["severity"] == "warning"] == ["leftovers"]


def test_a_pipe_gets_one_line_for_each(command: Callable[..., tuple[int, str]], path: Path) -> None:
    create_temporary(path)
    with TokenRepository(path) as repository:
        repository.save("carol", tokens(1))

    lines = [line.split("\t") for line in command("--fix")[1].splitlines()]

    assert all(line[0] in {"ok", "info", "warning", "error"} for line in lines)
    by_check = {line[1]: line for line in lines}
    assert by_check["leftovers"][3:] == ["fixed"]
    assert by_check["shared tokens"][4:] == ["alice", "carol"]


def test_many_names_are_cut_for_people_and_whole_for_programs(
    command: Callable[..., tuple[int, str]], path: Path
) -> None:
    accounts = [f"account-{number:03}" for number in range(200)]
    with TokenRepository(path) as repository, repository.transaction():
        for name in accounts:
            repository.save(name, tokens(7))

    found = {f["check"]: f for f in json.loads(command("--json")[1])["findings"]}
    assert found["shared tokens"]["accounts"] == accounts
    code, shown = on_a_terminal("--database", path, "doctor", NO_COLOR="1")
    assert code == 1
    assert "and 195 more" in shown
    assert "account-005" not in shown


def test_a_terminal_gets_a_table_with_what_to_do_below_what_was_found(path: Path) -> None:
    create_temporary(path)
    with TokenRepository(path) as repository:
        repository.save("evil\u202ename [bold]", tokens(1))

    code, shown = on_a_terminal("--database", path, "doctor", NO_COLOR="1", COLUMNS="80")

    assert code == 1
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert lines[0].split()[:2] == ["CHECK", "FINDING"]
    assert max(map(len, lines)) <= 80
    assert any(line.strip().startswith("→ run the doctor again with --fix") for line in lines)
    assert "\u202e" not in shown
    assert "[bold]" in shown
