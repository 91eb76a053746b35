"""No command shows a secret, whatever happens: not on stdout or stderr, not in an argument.

Each runs for real, in a process that has every logger at DEBUG on stderr; one process runs several
commands one after the other, as starting it takes most of the time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import click
import pytest

from tests.helpers.canary import LOGGERS, NEW, OLD, SECRET, Watch, echo, issued, steps, watching
from tests.helpers.refreshes import SOON, World
from tests.helpers.stores import holding, raw
from tokenstore import migrate
from tokenstore.cli.app import app, run
from tokenstore.testing import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

pytestmark = pytest.mark.slow

PROGRAM = f"""
import json, logging, os, sys
from pathlib import Path

def audit(event, arguments):
    if event in {{"subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system"}}:
        os.write(2, f"argv: {{arguments!r}}".encode("utf-8", "backslashreplace"))

sys.addaudithook(audit)
os.write(2, b"argv: " + Path("/proc/self/cmdline").read_bytes())
logging.basicConfig(level=logging.DEBUG)
for name in {LOGGERS}:
    logging.getLogger(name).setLevel(logging.DEBUG)
from tokenstore.cli.app import run
# BEFORE
for line in json.loads(sys.argv[1]):
    code = run(line)
    sys.stdout.write(f"\\x1e{{code}}\\x1e")
    sys.stdout.flush()
"""

HALF_A_SECOND = """
import inspect
from tokenstore import TokenManager
inspect.unwrap(TokenManager.__init__).__kwdefaults__["timeout"] = 0.5
"""  # the timeout of a request
SHORT_END = """
import tokenstore.lifecycle.refresh
tokenstore.lifecycle.refresh._END_PATIENCE = 1.0
"""

Line = tuple[Any, ...]


class Shell:
    """Runs commands on one database, and lets a watch see what they show.

    A line is the exit code that is expected, or None for any, and the arguments.
    """

    def __init__(self, world: World, watch: Watch, capfd: pytest.CaptureFixture[str]) -> None:
        self._world, self._watch, self._capfd = world, watch, capfd
        self.environment = {
            "TOKENSTORE_DATABASE": str(world.path),
            "TOKENSTORE_PROVIDERS": str(world.path.with_name("providers.toml")),
        }

    def command(self, *lines: Line, before: str = "") -> list[str]:
        """Return what starts a process that runs *lines*, and *before* them some Python."""
        arguments = [list(map(str, arguments)) for _, *arguments in lines]
        program = PROGRAM.replace("# BEFORE", before)
        return [sys.executable, "-P", "-W", "error", "-c", program, json.dumps(arguments)]

    def __call__(
        self, *lines: Line, before: str = "", environment: Mapping[str, str] | None = None
    ) -> str:
        """Run *lines* in a process; return what was on stderr."""
        ran = subprocess.run(
            self.command(*lines, before=before),
            env=os.environ | self.environment | dict(environment or {}),
            capture_output=True,
            check=False,
            timeout=SOON,
        )
        out, err = (
            stream.decode("utf-8", "backslashreplace") for stream in (ran.stdout, ran.stderr)
        )
        self._watch.seen.append(err)
        assert ran.returncode == 0, err
        assert err.startswith("argv: ")
        self._check(lines, out)
        return err

    def here(self, *lines: Line) -> None:
        """Run *lines* in this process, one after the other."""
        for line in lines:
            self._capfd.readouterr()
            code = run(list(map(str, line[1:])))
            out, err = self._capfd.readouterr()
            self._watch.seen.append(err)
            self._check([line], f"{out}\x1e{code}\x1e")

    def _check(self, lines: Sequence[Line], output: str) -> None:
        *told, rest = output.split("\x1e")
        outs, codes = told[::2], list(map(int, told[1::2]))
        ran = list(zip(codes, lines, strict=True))
        assert [line for code, line in ran if line[0] not in {code, None}] == [], codes
        assert rest == ""
        for out, (code, (_, *arguments)) in zip(outs, ran, strict=True):
            if code == 0 and "token" in arguments:
                given = {OLD["access_token"], NEW["access_token"], *issued(self._world)}
                assert out.removesuffix("\n") in given
                assert out.endswith("\n")
            else:
                self._watch.seen.append(out)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, client_secret=SECRET) as world:
        world.clock.now = time.time()
        yield world


@pytest.fixture
def watch(world: World, capfd: pytest.CaptureFixture[str]) -> Iterator[Watch]:
    with watching(world, capfd) as watch:
        yield watch


@pytest.fixture
def shell(
    world: World,
    watch: Watch,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Shell:
    shell = Shell(world, watch, capfd)
    configure(world)
    for name, value in shell.environment.items():
        monkeypatch.setenv(name, value)
    return shell


def configure(world: World, **settings: object) -> None:
    """Write a providers.toml with the client's secret in it."""
    table = {
        "token_endpoint": world.server.token_endpoint,
        "client_id": "tokenstore",
        "client_secret": SECRET,
        **settings,
    }
    lines = (f"{key} = {json.dumps(value)}\n" for key, value in table.items())
    world.path.with_name("providers.toml").write_text(f"[test]\n{''.join(lines)}", "utf-8")


# -- files ----------------------------------------------------------------------------------------

GOOGLE = {"client_id": "tokenstore", "client_secret": SECRET, "scopes": ["CANARY-scope"]}
SHAPES: dict[str, Any] = {
    "old": OLD,
    "refresh only": {"refresh_token": "CANARY-refresh"},
    "google": {"token": "CANARY-access", "expiry": "2020-01-01T00:00:00Z", **GOOGLE},
    "oauth2client": {
        "access_token": "CANARY-access",
        "token_expiry": "2020-01-01T00:00:00Z",
        "token_response": {"access_token": "CANARY-access", "id_token": "CANARY-id"},
        **GOOGLE,
    },
    "camel": {"accessToken": "CANARY-access", "refreshToken": "CANARY-refresh", "expiresAt": 1},
    "odd expiry": {**OLD, "expires_at": "CANARY"},
    "exported": {
        **OLD,
        "expires_at": None,
        "tokenstore": {"account_name": "a/b", "provider": "test", "expires_at": None},
    },
    # ten that cannot be imported
    "half": '{"refresh_token": "CANARY',
    "HTML": "<html>CANARY</html>",
    "list": [OLD],
    "text": "CANARY",
    "no token": {"id_token": "CANARY", "client_secret": SECRET},
    "odd token": {"access_token": ["CANARY"]},
    "line break": {"refresh_token": "CANARY\n"},
    "surrogate": '{"refresh_token": "CANARY\\ud800"}',
    "endless": '{"access_token": "CANARY", "n": 1e999}',
    "odd name": {**OLD, "tokenstore": {"account_name": "\n", "expires_at": None}},
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "files"
    directory.mkdir()
    for name, content in SHAPES.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / f"{name}.json").write_text(text)
    (directory / "not UTF-8.json").write_bytes(b'{"refresh_token": "CANARY\xff"}')
    (directory / "directory.json").mkdir()
    (directory / "nowhere.json").symlink_to("gone")
    return directory


def test_importing_and_exporting_show_no_secret(
    shell: Shell, watch: Watch, files: Path, tmp_path: Path
) -> None:
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "old.json").symlink_to(files / "old.json")
    (tmp_path / "busy" / "camel.json").mkdir()
    shell(
        (1, "import", files),
        (1, "import", files, "--json"),
        (1, "import", files, "--replace", "--provider", "test"),
        (1, "import", files, "--newer", "--json"),
        (2, "import", tmp_path / "gone"),
        (0, "export", tmp_path / "new"),
        (0, "export", tmp_path / "new", "--json"),
        (0, "import", tmp_path / "new"),
        (1, "export", tmp_path / "busy"),
        (1, "export", tmp_path / "busy", "--json"),
        (2, "export", files / "old.json"),
        (1, "export", files / "old.json" / "new"),
        (0, "status"),
        (0, "status", "--json"),
    )
    assert len(holding(tmp_path / "new", "CANARY")) == 7
    assert "not valid JSON" in "".join(watch.seen)


# -- tokens ---------------------------------------------------------------------------------------


def test_no_command_shows_a_secret_when_all_goes_well(
    world: World, shell: Shell, watch: Watch
) -> None:
    manager = world.manager()
    for name in ("alice", "bob", "carol"):
        own = {"refresh_token": f"{OLD['refresh_token']}-{name}", "client_id": "tokenstore"}
        manager.save_tokens(name, OLD | own, provider="test")
    world.sign_in("dave", expires_in=3600)
    world.server.script(*[Answer(200, NEW)] * 9)
    shell(
        (0, "token", "dave"),
        (0, "token", "dave", "--min-ttl", "7200"),
        (0, "token", "alice"),
        (0, "token", "alice", "--provider", "test"),
        (0, "refresh", "alice"),
        (0, "refresh", "--all", "--dry-run"),
        (0, "refresh", "--all"),
        (0, "refresh", "--idle-for", "0s", "--json"),
        (0, "status"),
        (0, "status", "--json"),
        (0, "history"),
        (0, "history", "alice", "--json"),
        (0, "delete", "alice"),
        (0, "delete", "bob", "--json"),
        (0, "--help"),
        (0, "--version"),
    )
    err = watch.seen[0]
    for logger in ("tokenstore", "sqlalchemy.pool.impl.NullPool", "urllib3.connectionpool"):
        assert f"DEBUG:{logger}:" in err  # or nothing was tried here
    assert [r.params["client_secret"] for r in world.server.requests] == [SECRET] * world.posts
    assert world.tokens("carol")[:2] == (NEW["access_token"], NEW["refresh_token"])


CODES = {
    "invalid_grant": 3,
    "unknown error": 4,
    "nested error": 4,
    "HTML": 4,
    "server error": 4,
    "to wait": 4,
    "no token": 4,
    "token that is none": 4,
    "redirect": 1,
    "no answer": 4,
    "cut short": 4,
}


@pytest.mark.parametrize("method", ["client_secret_post", "client_secret_basic"])
def test_no_command_shows_a_secret_when_a_refresh_fails(
    world: World, shell: Shell, watch: Watch, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    world.server.register("tokenstore", SECRET, method)
    configure(world, token_endpoint_auth_method=method)
    lines: list[Line] = []
    for name, code in CODES.items():
        for command in (["token"], ["refresh", "--json"]):
            account = f"{name}, {command[0]}"
            tokens = world.sign_in(account)
            step = steps(echo(tokens["refresh_token"]))[name]
            world.server.script(step, step, subject=account)  # some are tried twice
            lines.append((code, *command, account))
    shell(*lines, (0, "status"), (0, "status", "--json"), (0, "history"), (0, "history", "--json"))
    assert len({r.subject for r in world.server.requests}) == len(lines)
    tokens = world.sign_in("last")
    world.server.script(steps(echo(tokens["refresh_token"]))["to wait"], subject="last")
    monkeypatch.setattr("tokenstore.cli.output._forced_terminal", True)  # what a person would see
    shell.here((1, "refresh", "--all"), (0, "status"), (0, "history"))
    assert "redacted" in "".join(watch.seen)


def test_no_command_shows_a_secret_when_no_answer_comes(world: World, shell: Shell) -> None:
    for name in ("alice", "bob", "carol"):
        world.sign_in(name)
        world.server.script(steps("")["dripping"], subject=name)
    lines = (4, "token", "alice"), (4, "refresh", "bob", "--json"), (1, "refresh", "--all")
    err = shell(*lines, before=HALF_A_SECOND)
    assert "no complete response from provider 'test' within 0.5 s" in err


def test_no_command_shows_a_secret_when_it_is_interrupted(
    world: World, shell: Shell, watch: Watch
) -> None:
    """R1: nor is the answer lost that was under way."""
    old = world.sign_in("alice")
    hold = world.hold()
    with subprocess.Popen(
        shell.command((130, "token", "alice")),
        env=os.environ | shell.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert hold.arrived.wait(SOON)
        process.send_signal(signal.SIGINT)
        hold.release.set()
        out, err = process.communicate(timeout=SOON)
    watch.seen += [out, err]
    assert out == "\x1e130\x1e"
    assert world.tokens()[1] not in {None, old["refresh_token"]}
    assert world.outcomes() == ["refreshed"]


# -- what a user can get wrong --------------------------------------------------------------------

BROKEN = {
    "half a string": 'client_secret = "CANARY',
    "no quotes": "client_secret = CANARY secret",
    "no equals sign": 'client_secret "CANARY"',
    "twice": 'client_secret = "CANARY"\nclient_secret = "CANARY"',
    "bad escape": r'client_secret = "CANARY\q"',
    "control character": 'client_secret = "CANARY\x00"',
    "something after it": 'client_secret = "CANARY" "CANARY"',
    "not UTF-8": 'client_secret = "CANARY\udcff"',
    "no string": 'client_secret = ["CANARY"]',
    "in two places": 'client_secret = "CANARY"\nclient_secret_env = "NAME"',
    "misspelt key": 'client_secrt = "CANARY"',
    "odd parameters": 'extra_params = "CANARY"',
    "odd parameter": 'extra_params = { assertion = ["CANARY"] }',
    "unknown method": 'token_endpoint_auth_method = "CANARY"',
    "unknown body": 'body_format = "CANARY"',
    "password in the URL": 'token_endpoint = "https://me:CANARY@provider.example/token"',
    "password in a plain URL": 'token_endpoint = "http://me:CANARY@provider.example/token"',
    "password and no scheme": 'token_endpoint = "me:CANARY@provider.example"',
    "password and no URL": 'token_endpoint = "https://me:CANARY@[/"',
    "password and no port": 'token_endpoint = "https://me:CANARY@provider.example:CANARY/"',
    "password of the issuer": 'issuer = "https://me:CANARY@provider.example/"',
}


def test_no_broken_providers_file_shows_a_secret(world: World, shell: Shell, watch: Watch) -> None:
    world.sign_in("alice")
    lines: list[Line] = []
    for name, text in BROKEN.items():
        file = world.path.with_name(f"{name}.toml")
        known = (
            "" if "endpoint =" in text else f'token_endpoint = "{world.server.token_endpoint}"\n'
        )
        table = f'[test]\nclient_id = "tokenstore"\n{known}{text}\n'
        file.write_text(table, "utf-8", "surrogateescape")
        lines.append((2, "--providers", file, "token", "alice"))
        lines.append((2, "--providers", file, "refresh", "alice", "--json"))
        lines.append((0, "--providers", file, "status"))
    table_of_that_name = world.path.with_name("no table.toml")
    table_of_that_name.write_text('test = "CANARY"')
    err = shell(
        *lines,
        (2, "--providers", table_of_that_name, "refresh", "alice"),
        (2, "token", "alice", "--provider", "unknown"),
        (5, "token", "bob"),
        (2, "token", "alice", "--min-ttl", "long"),
    )
    assert "not valid TOML" in err
    assert world.posts == 0
    assert any(f"provider 'test' in {table_of_that_name}" in text for text in watch.seen)


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_no_proxy_shows_its_password(world: World, shell: Shell, variable: str) -> None:
    world.sign_in("alice")
    configure(world, token_endpoint="https://provider.example/token")
    proxies = {variable: "http://me:CANARY@127.0.0.1:1", "NO_PROXY": "", "no_proxy": ""}
    err = shell((4, "token", "alice"), environment=proxies)
    assert "the proxy could not be used" in err
    assert world.posts == 0


URLS = {
    "another database": "mysql://me:CANARY@db.example/tokens",
    "no port": "postgresql://me:CANARY@db.example:CANARY/tokens",
    "no URL": "://me:CANARY@db.example",
    "host": "sqlite://me:CANARY@db.example/tokens.db",
    "query": "sqlite:///tokens.db?key=CANARY",
    "memory": "sqlite://?key=CANARY",
}


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_no_database_url_shows_its_password(
    shell: Shell, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = (["status"], ["token", "alice"], ["db", "current"], ["db", "upgrade"], ["history"])
    shell.here(*((2, "--database", url, *command) for command in commands))
    monkeypatch.setenv("TOKENSTORE_DATABASE", url)
    shell.here(*((2, *command) for command in commands))


# -- databases ------------------------------------------------------------------------------------

EVERY: list[Line] = [
    (1, "status"),
    (1, "token", "alice"),
    (1, "refresh", "alice", "--json"),
    (1, "refresh", "--all"),
    (1, "history", "alice"),
    (1, "delete", "alice"),
]


def migrating(*codes: int) -> list[Line]:
    """Return the commands on the schema with the exit codes that are expected of them."""
    names = ("current", "history", "check", "upgrade")
    return [(code, "db", name) for name, code in zip(names, codes, strict=True)]


def test_no_schema_command_shows_a_secret(world: World, shell: Shell) -> None:
    world.manager().save_tokens("alice", OLD)
    shell(
        *migrating(0, 0, 0, 0),
        (1, "db", "upgrade", "CANARY"[:2]),
        (1, "db", "downgrade", "base"),
        (0, "db", "downgrade", "0001"),
        *EVERY,
        *migrating(0, 0, 1, 0),
        (0, "status"),
        (0, "db", "-x", "destroy=yes", "downgrade", "base"),
        *migrating(0, 0, 1, 0),
    )
    backups = world.path.parent.glob("tokens.db-backup-*")
    assert any("CANARY" in path.read_bytes().decode("latin-1") for path in backups)


def test_no_failed_migration_shows_a_secret(world: World, shell: Shell) -> None:
    world.manager().save_tokens("alice", OLD)
    migrate.downgrade(world.path, "0001")
    world.sql("ALTER TABLE accounts ADD COLUMN refresh_token_expires_at TEXT")
    world.sql("UPDATE accounts SET refresh_token_expires_at = 'CANARY'")
    err = shell(*migrating(0, 0, 1, 1), *EVERY)
    assert "duplicate column name" in err


def test_no_locked_database_shows_a_secret(world: World, shell: Shell, files: Path) -> None:
    world.manager().save_tokens("alice", OLD, provider="test")
    impatient = "from tokenstore.storage.sqlite import engine\nengine.BUSY_TIMEOUT = 0.05"
    with raw(world.path) as writer:
        writer.execute("BEGIN IMMEDIATE")
        err = shell(
            (1, "token", "alice"),
            (1, "refresh", "alice"),
            (1, "refresh", "--all", "--json"),
            (1, "delete", "alice"),
            (1, "import", files),
            (1, "db", "downgrade", "0001"),
            (0, "status"),
            before=impatient,
        )
    assert "stayed locked by another process" in err
    assert world.posts == 0


def test_no_refused_write_shows_a_secret(world: World, shell: Shell, files: Path) -> None:
    world.manager().save_tokens("alice", OLD, provider="test")
    world.refuse("INSERT ON refreshes")
    shell.here((1, "token", "alice"), (1, "refresh", "alice", "--json"), (1, "refresh", "--all"))
    world.accept()
    world.refuse("INSERT ON accounts")
    shell.here((1, "import", files), (1, "import", files, "--replace", "--json"))
    world.accept()
    world.refuse("UPDATE ON accounts")
    shell((1, "token", "alice"), (1, "refresh", "alice", "--json"), (1, "refresh", "--all"))
    assert world.posts == 0
    world.refuse("UPDATE OF access_token ON accounts")
    world.server.script(Answer(200, NEW))
    shell((1, "token", "alice"), before=HALF_A_SECOND + SHORT_END)
    world.accept()
    world.refuse("DELETE ON accounts")
    shell.here((1, "delete", "alice"))
    assert world.posts == 1


DAMAGES: dict[str, str] = {
    "token that is no UTF-8": "UPDATE accounts SET access_token = CAST(x'43414e415259ff' AS TEXT)",
    "fields that are no UTF-8": "UPDATE accounts SET extra = CAST(x'43414e415259ff' AS TEXT)",
    "fields that are no JSON": "UPDATE accounts SET extra = '{\"CANARY'",
    "failure that is no JSON": "UPDATE accounts SET failure = '{\"CANARY'",
    "failure of another kind": "UPDATE accounts SET failure = '{\"CANARY\": 1}'",
    "moment that is none": "UPDATE accounts SET expires_at = 'CANARY'",
    "token of another kind": "UPDATE accounts SET access_token = x'43414e415259'",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_no_damaged_row_shows_a_secret(
    world: World, shell: Shell, tmp_path: Path, damage: str
) -> None:
    world.manager().save_tokens("alice", {**OLD, "expires_in": 3600}, provider="test")
    world.sql(damage)
    world.server.script(Answer(200, NEW))
    shell.here(
        (None, "status"),
        (None, "status", "--json"),
        (None, "token", "alice"),
        (None, "export", tmp_path / "new"),
        (None, "refresh", "alice"),
        (None, "refresh", "--all"),
        (None, "history", "alice"),
        (0, "delete", "alice"),
    )


@pytest.mark.parametrize("keep", [100, 4096])
def test_no_damaged_file_shows_a_secret(world: World, shell: Shell, keep: int) -> None:
    manager = world.manager(journal_mode="delete")
    for number in range(40):
        manager.save_tokens(f"account {number}", {**OLD, "padding": "CANARY" * 100})
    manager.close()
    with world.path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(keep)
        file.write((b"CANARY" * size)[: size - keep])
    shell.here(*EVERY, *migrating(1, 1, 1, 1))


FOREIGN = {
    "JSON": json.dumps(OLD).encode() * 20,
    "text": b"CANARY " * 200,
    "a start alone": b"SQLite format 3\0CANARY",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_no_foreign_file_shows_a_secret(
    world: World, shell: Shell, content: bytes, files: Path, tmp_path: Path
) -> None:
    world.path.write_bytes(content)
    shell.here(*EVERY, *migrating(1, 1, 1, 1), (1, "import", files), (1, "export", tmp_path / "n"))
    assert world.path.read_bytes() == content


def test_no_foreign_database_shows_a_secret(world: World, shell: Shell) -> None:
    world.sql("CREATE TABLE accounts (CANARY TEXT)")
    world.sql("INSERT INTO accounts VALUES ('CANARY')")
    shell(*EVERY, *migrating(1, 1, 1, 1))
    world.path.rename(world.path.with_name("elsewhere.db"))
    world.path.symlink_to("elsewhere.db")
    shell.here(*EVERY, *migrating(1, 1, 1, 1))


# -- the rest -------------------------------------------------------------------------------------

WATCHED = {"import", "export", "status", "token", "refresh", "history", "delete", "db"}
WATCHED |= {"backup", "restore", "doctor", "completion", "login", "logout", "providers"}


def test_keeping_a_store_in_order_shows_no_secret(
    world: World, shell: Shell, tmp_path: Path
) -> None:
    manager = world.manager()
    for name in ("alice", "bob"):  # with the same refresh token
        manager.save_tokens(name, OLD, provider="test")
    manager.save_tokens("carol", {**OLD, "refresh_token": "CANARY-carol"}, provider="test")
    manager.close()
    shell(
        (0, "backup", tmp_path / "copy.db"),
        (1, "backup", tmp_path / "copy.db"),
        (0, "providers"),
        (0, "providers", "test", "--json"),
        (0, "backup", tmp_path / "copy.db", "--replace", "--json"),
        (1, "backup", world.path),
        (0, "restore", tmp_path / "copy.db"),
        (0, "restore", tmp_path / "copy.db", "--json"),
        (1, "restore", world.path),
        (None, "doctor"),
        (None, "doctor", "--json", "--online", "--fix"),
        (0, "completion", "bash"),
    )
    world.sql("UPDATE accounts SET refresh_token = 'CANARY-damaged' WHERE account_name = 'carol'")
    shell((1, "doctor"), (1, "doctor", "--json"), (1, "refresh", "carol"), (0, "delete", "carol"))


def test_a_sign_in_that_comes_to_nothing_shows_no_secret(world: World, shell: Shell) -> None:
    manager = world.manager()
    manager.save_tokens("alice", OLD, provider="test")
    manager.close()
    shell(
        (2, "login", "alice", "--provider", "test"),  # it has no authorization endpoint
        (2, "login", "alice", "--provider", "test", "--device"),
        (None, "logout", "alice"),
        (5, "logout", "nobody"),
    )


def test_every_command_is_watched_here() -> None:
    """The demo is left out: it shows made-up tokens on purpose."""
    assert set(app.list_commands(click.Context(app))) == WATCHED | {"demo"}
