from __future__ import annotations

import errno
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.requirements import needs_full_device
from tokenstore import TokenManager, TokenRepository
from tokenstore.cli.app import run
from tokenstore.storage.tables import REVISION
from tokenstore.testing import Answer, AuthorizationServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Run = "Callable[..., Ran]"
COMMAND = [sys.executable, "-m", "tokenstore"]


class Ran:
    """What one command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "tokens.db"


@pytest.fixture
def server() -> Iterator[AuthorizationServer]:
    with AuthorizationServer() as server:
        yield server


@pytest.fixture
def providers(tmp_path: Path, server: AuthorizationServer) -> Path:
    """A providers.toml with the strict server as "test", beside the database."""
    file = tmp_path / "providers.toml"
    file.write_text(
        f'[test]\ntoken_endpoint = "{server.token_endpoint}"\nclient_id = "tokenstore"\n'
        'client_secret_env = "TEST_CLIENT_SECRET"\n'
    )
    return file


@pytest.fixture
def cli(
    database: Path,
    server: AuthorizationServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Ran]:
    """Run a command in this process."""
    monkeypatch.setenv("TEST_CLIENT_SECRET", str(server.provider().client_secret))
    monkeypatch.setenv("TOKENSTORE_PROVIDERS", "")

    def cli(*arguments: str | Path) -> Ran:
        capsys.readouterr()
        code = run(["--database", str(database), *map(str, arguments)])
        return Ran(code, *capsys.readouterr())

    return cli


def save(
    database: Path, server: AuthorizationServer, name: str, *, expires_in: float, **changes: Any
) -> None:
    tokens = server.sign_in(name) | {"expires_in": expires_in} | changes
    with TokenManager(database) as manager:
        manager.save_tokens(name, tokens, provider="test")


def old_files(directory: Path) -> Path:
    directory.mkdir()
    (directory / "good.json").write_text('{"access_token": "a", "refresh_token": "r"}')
    (directory / "broken.json").write_text('{"access_token": "cut o')
    return directory


# -- import and export -------------------------------------------------------------------------


def test_import_reports_every_file_and_ends_with_1_if_one_failed(
    cli: Callable[..., Ran], tmp_path: Path
) -> None:
    old = old_files(tmp_path / "old")

    ran = cli("import", old, "--json")

    assert ran.code == 1
    assert ran.json == {
        "results": [
            {
                "account_name": None,
                "path": str(old / "broken.json"),
                "outcome": "failed",
                "reason": "not valid JSON",
            },
            {
                "account_name": "good",
                "path": str(old / "good.json"),
                "outcome": "imported",
                "reason": None,
            },
        ]
    }


def test_import_reports_every_account_of_a_file_that_holds_many(
    cli: Callable[..., Ran], tmp_path: Path
) -> None:
    file = tmp_path / "alice.json"
    tokens = {"auth.globus.org": {"access_token": "a"}, "broken": {}, "x": {"refresh_token": "r"}}
    file.write_text(
        json.dumps({"by_rs": tokens, "format_version": "1.0", "globus-sdk.version": "3.0.0"})
    )

    ran = cli("import", file, "--json")

    assert ran.code == 1
    assert [(r["account_name"], r["path"], r["outcome"]) for r in ran.json["results"]] == [
        ("alice:auth.globus.org", str(file), "imported"),
        ("alice:broken", str(file), "failed"),
        ("alice:x", str(file), "imported"),
    ]


def test_importing_twice_skips_what_is_stored_and_is_no_failure(
    cli: Callable[..., Ran], tmp_path: Path
) -> None:
    file = old_files(tmp_path / "old") / "good.json"
    assert cli("import", file).code == 0

    ran = cli("import", file)

    assert ran.code == 0
    assert ran.out == f"skipped\tgood\t{file}\talready stored\n"
    assert ran.err == "1 skipped\n"


def test_import_binds_the_accounts_to_the_provider_that_is_named(
    cli: Callable[..., Ran], tmp_path: Path
) -> None:
    cli("import", old_files(tmp_path / "old"), "--provider", "google")

    assert cli("status", "--json").json["accounts"][0]["provider"] == "google"


def test_import_replaces_an_account_only_when_told(
    cli: Callable[..., Ran], tmp_path: Path, database: Path
) -> None:
    file = old_files(tmp_path / "old") / "good.json"
    cli("import", file)
    file.write_text('{"access_token": "b", "expires_at": 4102444800}')

    cli("import", file)
    with TokenRepository(database) as repository:
        assert repository.load("good") == {"access_token": "a", "refresh_token": "r"}

    assert cli("import", file, "--newer").out.startswith("imported")
    with TokenRepository(database) as repository:
        assert repository.load("good") == {"access_token": "b", "expires_at": 4102444800.0}

    file.write_text('{"access_token": "c", "expires_at": 4102444799}')
    assert cli("import", file, "--newer").out.startswith("skipped")
    assert cli("import", file, "--replace").out.startswith("imported")


def test_export_writes_private_files(
    cli: Callable[..., Ran], tmp_path: Path, database: Path, server: AuthorizationServer
) -> None:
    save(database, server, "alice", expires_in=3600)
    target = tmp_path / "new"

    ran = cli("export", target, "--json")

    assert ran.code == 0
    assert ran.json["results"] == [
        {
            "account_name": "alice",
            "path": str(target / "alice.json"),
            "outcome": "exported",
            "reason": None,
        }
    ]
    assert (target / "alice.json").stat().st_mode & 0o777 == 0o600
    assert target.stat().st_mode & 0o777 == 0o700


# -- status ------------------------------------------------------------------------------------


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


def on_a_terminal(*arguments: str | Path, **environment: str) -> tuple[int, str]:
    """Run a command on a terminal of its own; return its exit code and all that it shows."""
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"} | environment,
    ) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                chunk = os.read(controller, 4096)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            shown += chunk
        code = process.wait()
    os.close(controller)
    return code, shown.decode()


def test_status_is_a_table_on_a_terminal(database: Path, server: AuthorizationServer) -> None:
    save(database, server, "alice [bold]", expires_in=3600)

    code, shown = on_a_terminal("--database", database, "status", NO_COLOR="1")

    assert code == 0
    assert "ACCOUNT" in shown
    assert "alice [bold]" in shown
    assert "in 60 min" in shown


def test_an_import_shows_its_progress_on_a_terminal(database: Path, tmp_path: Path) -> None:
    code, shown = on_a_terminal("--database", database, "import", old_files(tmp_path / "old"))

    assert code == 1
    assert "importing" in shown
    assert "not valid JSON" in shown


def test_an_empty_status_says_so_on_a_terminal(database: Path) -> None:
    assert "no accounts yet" in on_a_terminal("--database", database, "status")[1]


# -- token and refresh -------------------------------------------------------------------------


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


# -- the schema --------------------------------------------------------------------------------


def test_db_runs_alembics_commands_on_the_database(cli: Callable[..., Ran], database: Path) -> None:
    assert cli("db", "upgrade").code == 0
    assert database.exists()
    assert f"{REVISION} (head)" in cli("db", "current").out
    assert f"{REVISION} (head) (current)" in cli("db", "history").out
    assert cli("db", "check").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["db", "downgrade", "base", "-x", "destroy=yes"], id="after the command"),
        pytest.param(["db", "-x", "destroy=yes", "downgrade", "base"], id="as alembic has it"),
    ],
)
def test_a_downgrade_to_base_drops_accounts_only_when_told(
    cli: Callable[..., Ran], database: Path, server: AuthorizationServer, arguments: list[str]
) -> None:
    save(database, server, "alice", expires_in=3600)

    refused = cli("db", "downgrade", "base")

    assert refused.code == 1
    assert "destroy=yes" in refused.err
    assert cli("status", "--json").json["accounts"]
    assert cli(*arguments).code == 0
    outdated = cli("status")
    assert outdated.code == 1
    assert f"tokenstore --database '{database}' db upgrade" in outdated.err


# -- what a user can get wrong ------------------------------------------------------------------


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


def test_the_providers_file_is_the_one_that_is_named(
    cli: Callable[..., Ran],
    database: Path,
    server: AuthorizationServer,
    providers: Path,
    tmp_path: Path,
) -> None:
    save(database, server, "alice", expires_in=10)
    elsewhere = tmp_path / "elsewhere.toml"
    providers.rename(elsewhere)

    assert cli("--providers", elsewhere, "token", "alice").code == 0


def test_a_bug_is_told_in_one_line_without_what_it_says(
    cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: TokenManager, **__: object) -> None:
        raise KeyError("canary")

    monkeypatch.setattr(TokenManager, "accounts", fail)
    ran = cli("status")

    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert "this is a bug: KeyError in test_app.py:" in ran.err
    assert "canary" not in ran.err
    monkeypatch.setenv("TOKENSTORE_TRACEBACK", "1")
    with pytest.raises(KeyError):
        cli("status")


# -- as a process ------------------------------------------------------------------------------


@needs_full_device
@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_an_output_that_cannot_be_written_is_no_bug(database: Path, buffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [*COMMAND, "--database", str(database), "status", "--json"],
            env={**os.environ, "PYTHONUNBUFFERED": buffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    told = f"tokenstore: the output could not be written: {os.strerror(errno.ENOSPC)}\n"
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


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        pytest.param(["--help"], {"sqlalchemy", "alembic", "requests", "rich"}, id="help"),
        pytest.param(["--version"], {"sqlalchemy", "alembic", "requests", "rich"}, id="version"),
        pytest.param(
            ["token", "alice"],
            {"alembic", "platformdirs", "requests", "rich", "sqlalchemy.dialects.postgresql"},
            id="fresh token",
        ),
    ],
)
def test_a_command_imports_only_what_it_needs(
    database: Path, server: AuthorizationServer, arguments: list[str], heavy: set[str]
) -> None:
    save(database, server, "alice", expires_in=3600)
    program = (
        "import sys; from tokenstore.cli.app import run\n"
        f"run(['--database', {str(database)!r}, *{arguments!r}])\n"
        f"sys.exit(','.join({heavy!r} & sys.modules.keys()) or 0)"
    )

    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert (ran.returncode, ran.stderr) == (0, "")


def test_without_its_extra_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'click'\", name='click')"
    )

    ran = subprocess.run(
        [*COMMAND, "status"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert "tokenstore[cli]" in ran.stderr


def test_the_demo_runs_to_its_end_and_leaves_nothing(tmp_path: Path) -> None:
    ran = subprocess.run(
        [*COMMAND, "demo"],
        env=os.environ | {"TMPDIR": str(tmp_path), "HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "exported" in ran.stdout
    assert list(tmp_path.iterdir()) == []
