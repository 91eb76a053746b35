"""The command on a PostgreSQL server."""

from __future__ import annotations

import json
import os
import sys
from subprocess import run as run_process
from typing import TYPE_CHECKING

import pytest

from tests.helpers.command import COMMAND
from tests.helpers.requirements import needs_user_namespace
from tests.helpers.stores import SOON, tokens
from tokenstore import TokenManager
from tokenstore.cli.app import run
from tokenstore.storage.tables import REVISION

if TYPE_CHECKING:
    from pathlib import Path

PLACE = "postgresql+psycopg://myapp:CANARY@/myapp?host=/nowhere"


@pytest.mark.parametrize("command", ["db check", "db history", "db current", "status", "export d"])
def test_where_there_is_no_store_nothing_is_made_and_no_replica_blamed(
    schema: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["--database", schema, *command.split()])

    told = capsys.readouterr().err
    assert code == (1 if command in {"db check", "export d"} else 0), told
    assert "there is no database" in told
    assert "primary" not in told
    assert run(["--database", schema, "doctor", "--json"]) == 1
    assert "contains no store" in capsys.readouterr().out


@needs_user_namespace
def test_d4_a_user_without_a_home_directory_needs_no_more_than_a_url(
    schema: str, tmp_path: Path
) -> None:
    unknown = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    (tmp_path / "alice.json").write_text('{"access_token": "a"}')

    for command, code in (("import .", 0), ("token alice --provider google", 0), ("doctor", 1)):
        ran = run_process(
            [*unknown, *COMMAND, "--database", schema, *command.split()],
            env={"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == code, ran.stdout + ran.stderr
        assert "home" not in ran.stdout + ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["alice.json"]


def test_accounts_go_through_files_from_one_server_to_another(
    schema: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, directory = str(tmp_path / "tokens.db"), str(tmp_path / "leaving")
    with TokenManager(file) as manager:
        manager.save_tokens("alice", tokens(1, scope="mail"), provider="acme")
        manager.save_tokens("bob", tokens(2))
        saved = manager.load_tokens("alice")

    assert run(["--database", file, "export", directory]) == 0
    assert run(["--database", schema, "import", directory]) == 0
    capsys.readouterr()

    listed = []
    for database in (file, schema):
        assert run(["--database", database, "status", "--json"]) == 0
        accounts = json.loads(capsys.readouterr().out)["accounts"]
        listed.append([(a["name"], a["provider"], a["state"], a["expires_at"]) for a in accounts])
    assert listed[0] == listed[1]
    assert len(listed[0]) == 2
    with TokenManager(schema) as manager:
        assert manager.load_tokens("alice") == saved


def test_the_names_of_accounts_are_completed(
    schema: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with TokenManager(schema) as manager:
        manager.save_tokens("alice", tokens())
    monkeypatch.setenv("TOKENSTORE_DATABASE", schema)
    monkeypatch.setenv("_TOKENSTORE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "tokenstore token al")
    monkeypatch.setenv("COMP_CWORD", "2")

    with pytest.raises(SystemExit):
        run([])

    assert capsys.readouterr().out == "plain,alice\n"


def test_the_schema_goes_down_and_up(schema: str, capsys: pytest.CaptureFixture[str]) -> None:
    database = ["--database", schema]
    with TokenManager(schema) as manager:
        manager.save_tokens("alice", tokens())

    assert run([*database, "db", "downgrade", "0001"]) == 0
    assert run([*database, "status"]) == 1
    command = capsys.readouterr().err.partition("run: tokenstore ")[2].replace("'", "").split()
    assert run(command) == 0
    assert run([*database, "db", "current"]) == 0
    assert REVISION in capsys.readouterr().out
    assert run([*database, "token", "alice"]) == 0


def test_a_backup_is_the_servers(schema: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--database", schema, "backup", "tokens.dump"]) == 1

    told = capsys.readouterr().err
    assert "pg_dump" in told
    assert "--schema=new" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    "url",
    [
        PLACE,
        *(
            f"{PLACE.replace(':CANARY', '')}&{name}=CANARY"
            for name in ("password", "pass%77ord", "sslpassword", "oauth_client_secret")
        ),
    ],
)
def test_a_password_is_taken_from_the_environment_alone(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--database", url, "status"]) == 2
    monkeypatch.setenv("TOKENSTORE_DATABASE", url)
    assert run(["status"]) == 1  # there is nobody, as the message says

    told = capsys.readouterr().err
    assert "/nowhere" in told
    assert "CANARY" not in told


@pytest.mark.slow
@pytest.mark.parametrize("command", ["status", "doctor", "db current", "refresh --all"])
def test_without_the_driver_one_line_says_what_to_install(command: str) -> None:
    code = "import sys; sys.modules['psycopg'] = None\nfrom tokenstore.cli import main; main()"
    url = PLACE.replace(":CANARY", "")

    done = run_process(
        [sys.executable, "-c", code, "--database", url, *command.split()],
        capture_output=True,
        text=True,
        check=False,
        timeout=SOON,
    )

    assert done.returncode == 1
    told = "tokenstore: PostgreSQL needs psycopg; run: pip install 'tokenstore[postgresql]'\n"
    assert done.stderr == told
