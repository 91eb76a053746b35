"""Errors and warnings of the command, each one line on stderr."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.command import COMMAND, Ran, save
from tests.helpers.requirements import needs_full_device
from tokenstore import TokenManager
from tokenstore.cli.app import run
from tokenstore.testing import Answer, AuthorizationServer

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("answer", "code", "word"),
    [
        pytest.param(Answer(400, {"error": "invalid_grant"}), 3, "sign in", id="dead"),
        pytest.param(Answer(429, ""), 4, "later", id="busy"),
        pytest.param(Answer(401, {"error": "invalid_client"}), 1, "configuration", id="rejected"),
    ],
)
@pytest.mark.parametrize("command", ["token", "refresh"])
def test_the_exit_code_for_one_account_is_that_of_its_error(
    cli: Callable[..., Ran],
    database: Path,
    server: AuthorizationServer,
    providers: Path,  # noqa: ARG001 - has to be there
    command: str,
    answer: Answer,
    code: int,
    word: str,
) -> None:
    save(database, server, "alice", expires_in=10)
    server.script(answer)

    ran = cli(command, "alice")

    assert ran.code == code
    assert word in ran.out + ran.err
    assert ran.err.endswith(" login alice\n") == (command == "token" and code == 3)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["nonsense"], id="unknown command"),
        pytest.param(["status", "--nonsense"], id="unknown option"),
        pytest.param(["token"], id="no account"),
        pytest.param(["token", ""], id="empty account"),
        pytest.param(["token", "a", "--min-ttl", "-1"], id="negative seconds"),
        pytest.param(["import", "/nowhere/at/all"], id="no such path"),
        pytest.param(["--providers", "/nowhere/at/all", "status"], id="no such file"),
        pytest.param(["--database", "mysql://h/d", "status"], id="unsupported database"),
        pytest.param(["--database", "postgresql://u:p@h/d", "status"], id="password"),
        pytest.param(["--database", ":memory:", "db", "current"], id="no file"),
        pytest.param(["import", ".", "--replace", "--newer"], id="contradiction"),
    ],
)
def test_wrong_usage_ends_with_2_and_one_line(
    cli: Callable[..., Ran], arguments: list[str]
) -> None:
    ran = cli(*arguments)

    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("tokenstore: ")
    assert ran.err.count("\n") == 1


def test_a_looser_database_is_tightened_and_the_user_is_told(
    cli: Callable[..., Ran], database: Path, server: AuthorizationServer
) -> None:
    save(database, server, "alice", expires_in=3600)
    database.chmod(0o644)

    ran = cli("status")

    assert ran.code == 0
    assert "warning" in ran.err
    assert database.stat().st_mode & 0o777 == 0o600


def test_a_bug_is_told_in_one_line_without_what_it_says(
    cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: TokenManager, **__: object) -> None:
        raise KeyError("canary")

    monkeypatch.setattr(TokenManager, "accounts", fail)
    ran = cli("status")

    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert "this is a bug: KeyError in test_errors.py:" in ran.err
    assert "canary" not in ran.err
    monkeypatch.setenv("TOKENSTORE_TRACEBACK", "1")
    with pytest.raises(KeyError):
        cli("status")


@pytest.mark.parametrize("limit", [5, 6, 7])
@pytest.mark.parametrize("command", ["refresh alice", "backup copy.db"])
def test_too_many_open_files_are_no_bug(
    database: Path, server: AuthorizationServer, command: str, limit: int
) -> None:
    save(database, server, "alice", expires_in=10)

    ran = subprocess.run(
        ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *COMMAND, *command.split()],
        env={**os.environ, "TOKENSTORE_DATABASE": str(database)},
        cwd=database.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    assert ran.returncode == 1
    assert "too many" in ran.stdout.lower()
    assert "this is a bug" not in ran.stdout


@needs_full_device
@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_an_output_that_cannot_be_written_is_no_bug(
    database: Path, server: AuthorizationServer, buffered: str
) -> None:
    save(database, server, "alice", expires_in=3600)
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [*COMMAND, "--database", str(database), "status", "--json"],
            env={**os.environ, "PYTHONUNBUFFERED": buffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    told = f"tokenstore: cannot write the output: {os.strerror(errno.ENOSPC)}\n"
    assert (ran.returncode, ran.stderr) == (1, told)


def test_a_broken_pipe_is_quiet(database: Path, server: AuthorizationServer) -> None:
    with TokenManager(database) as manager:
        for number in range(2000):
            manager.save_tokens(f"account {number}", server.sign_in("alice"), provider="test")
    read_end, write_end = os.pipe()
    os.close(read_end)  # whoever was to read is gone

    ran = subprocess.run(
        [*COMMAND, "--database", database, "status"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write_end)

    assert (ran.returncode, ran.stderr) == (1, "")


def test_an_error_that_is_logged_and_raised_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()

    assert run(["--database", str(tmp_path / "file" / "tokens.db"), "status"]) == 1

    _, err = capsys.readouterr()
    assert [record.levelno for record in caplog.records if hasattr(record, "raised")] == [
        logging.ERROR
    ]
    assert err.startswith(f"tokenstore: {tmp_path / 'file' / 'tokens.db'}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("extra", "printed"),
    [
        ({}, "tokenstore: warning: something is odd\n"),
        ({"operation": "refresh_all"}, ""),
        ({"raised": True}, ""),
    ],
    ids=str,
)
def test_a_warning_is_printed_unless_the_command_reports_it(
    extra: dict[str, object], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["--version"])
    capsys.readouterr()

    logging.getLogger("tokenstore.some.module").warning("something is %s", "odd", extra=extra)

    assert capsys.readouterr().err == printed
