from __future__ import annotations

import ast
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.command import COMMAND, Command
from tests.helpers.refreshes import SOON, World
from tests.helpers.sign_in import Visitor
from tokenstore import Prompt
from tokenstore.oauth.flows.prompt import Terminal, has_display
from tokenstore.testing import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLACES = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION")

# A browser, started with a file that redirects to a page, on which alice signs in.
BROWSER = """\
#!{python}
import html, os, re, sys
from pathlib import Path
from urllib.parse import urlencode, urlsplit
from urllib.request import ProxyHandler, build_opener

file = Path(urlsplit(sys.argv[1]).path)
modes = [oct(path.stat().st_mode & 0o777) for path in (file, file.parent)]
open({seen!r}, "w").write(repr((sys.argv, dict(os.environ), modes)))
url = html.unescape(re.search('http-equiv="refresh" content="0; url=([^"]+)"', file.read_text())[1])
form = {{"username": {user!r}, "password": {password!r}, "decision": "allow"}}
opener = build_opener(ProxyHandler({{}}))
page = opener.open(url, urlencode(form).encode()).read().decode()
assert "Signed in" in page
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, device_interval=1) as world:
        world.clock.now = time.time()
        yield world


@pytest.fixture
def command(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    command = Command(world, capsys)
    known = world.server.provider()
    command.configure(
        issuer=known.issuer,
        authorization_endpoint=known.authorization_endpoint,
        device_authorization_endpoint=known.device_authorization_endpoint,
        revocation_endpoint=known.revocation_endpoint,
    )
    for name, value in command.environment.items():
        monkeypatch.setenv(name, value)
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    return command


class Running:
    """The command in a process of its own, whose stderr is a terminal that is read line by line."""

    def __init__(self, world: World, *arguments: str, **environment: str) -> None:
        controller, terminal = pty.openpty()
        self._process = subprocess.Popen(
            [*COMMAND, "--database", str(world.path), *arguments],
            stdout=subprocess.PIPE,
            stderr=terminal,
            text=True,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "300", "NO_COLOR": "1"} | environment,
        )
        os.close(terminal)
        self._stderr = os.fdopen(controller, errors="replace")
        self._told = ""

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process, self._stderr:
            self._process.kill()

    def read_until(self, pattern: str) -> str:
        """Read stderr up to a line that matches; return what matched."""
        while line := self._stderr.readline():
            self._told += line
            if found := re.search(pattern, line):
                return found[0]
        raise AssertionError(self._told)

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> tuple[int, str, str]:
        """Wait for its end; return its exit code and what it printed to stdout and stderr."""
        with suppress(OSError):  # the terminal is gone
            while line := self._stderr.readline():
                self._told += line
        out, _ = self._process.communicate(timeout=SOON)
        return self._process.returncode, out, self._told


# -- login ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_login_opens_a_browser_and_stores_what_it_brings(
    world: World, command: Command, tmp_path: Path
) -> None:
    seen, browser = tmp_path / "seen", tmp_path / "browser"
    alice = {"user": "alice", "password": "wonderland"}
    browser.write_text(BROWSER.format(python=sys.executable, seen=str(seen), **alice))
    browser.chmod(0o700)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {"BROWSER": str(browser), "TMPDIR": str(temporary)}
    with Running(world, "login", "alice", "--provider", "test", **environment) as login:
        code, out, err = login.end()

    assert (code, out) == (0, "signed_in\talice\n")
    assert "The browser opens to sign in alice at test" in err
    assert "Signed in as alice@example.com." in err
    argv, _, modes = ast.literal_eval(seen.read_text())
    assert argv[1].startswith(temporary.as_uri())
    assert modes == ["0o600", "0o700"]
    assert list(temporary.iterdir()) == []
    assert "warning" not in err
    token = world.tokens()[0]
    assert token is not None
    assert command("token", "alice") == (0, f"{token}\n", "")
    [sent] = world.server.requests
    state = re.search(r"[?&]state=([\w-]+)", err)
    assert state
    assert state[1] not in seen.read_text()
    for secret in (sent.params["code_verifier"], sent.params["code"], *world.tokens()[:2]):
        assert str(secret) not in seen.read_text() + out + err


@pytest.mark.slow
def test_login_refuses_another_user_than_that_of_the_address(
    world: World, command: Command
) -> None:
    assert command.environment
    name = "alice@example.com"
    with Running(world, "login", name, "--provider", "test") as login:
        url = login.read_until(r"http://\S+/authorize\S+")
        assert "Different user" in world.server.visit(url, "bob").text
        code, out, err = login.end()
    assert (code, out) == (1, "")
    assert f"{name}: signed in as bob@example.com, but the account is named {name}" in err
    assert world.manager().load_tokens(name) is None


@pytest.mark.slow
def test_login_prints_the_address_where_no_browser_shows_up(world: World, command: Command) -> None:
    world.manager().login("alice", "test", prompt=Visitor(world))
    arguments = ("login", "alice", "--scope", "mail", "--scope", "a b", "--force", "--json")
    with Running(world, *arguments, SSH_CONNECTION="here there") as login:
        url = login.read_until(r"http://\S+/authorize\S+")
        assert "Signed in" in world.server.visit(url, "bob").text
        code, out, err = login.end()

    assert code == 0
    result = {"account_name": "alice", "outcome": "signed_in", "reason": None}
    assert json.loads(out) == {"results": [result]}
    assert "in a browser on this machine" in err
    assert "Signed in as bob@example.com." in err
    again = ["--scope=mail", "--scope=a b", "--force", "--device", "alice"]
    store = ["--database", str(world.path)]
    by_code = shlex.join(["tokenstore", *store, "login", *again])
    assert f"sign in with a code: {by_code}\n" in err
    assert "warning" not in err
    tokens = world.manager().load_tokens("alice")
    assert tokens
    assert tokens["scope"] == "openid mail a b"
    assert command("token", "alice")[0] == 0


@pytest.mark.parametrize("how", [[], ["--device"]], ids=["browser", "device"])
def test_login_ends_with_1_if_nobody_comes(world: World, command: Command, how: list[str]) -> None:
    code, out, err = command("login", "alice", "--provider", "test", "--timeout", "0.2s", *how)
    assert (code, out) == (1, "")
    assert re.search(r"^tokenstore: alice: (no sign-in within|the code expired)", err, re.MULTILINE)
    assert world.manager().load_tokens("alice") is None


@pytest.mark.slow
def test_login_ends_quietly_when_it_is_interrupted(world: World, command: Command) -> None:
    assert command.environment
    with Running(world, "login", "alice", "--provider", "test") as login:
        login.read_until(r"--device")
        login.interrupt()
        code, out, err = login.end()
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert err.replace("^C", "").strip().endswith("--provider test --device alice")


@pytest.mark.slow
def test_login_by_device_shows_the_code_and_counts_down(world: World, command: Command) -> None:
    assert command.environment
    with Running(world, "login", "alice", "--provider", "test", "--device") as login:
        url = login.read_until(r"http://\S+user_code=\S+")
        assert "Done" in world.server.visit(url).text
        code, out, err = login.end()
    assert (code, out) == (0, "signed_in\talice\n")
    assert re.search(r"^ +http://\S+/device\s+[B-Z]{4}-[B-Z]{4}$", err, re.MULTILINE)
    assert re.search(r"waiting for the sign-in, [45]:\d\d left", err)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["alice"], "bound to no provider"),
        (["alice", "--provider", "tset"], "did you mean 'test'?"),
        (
            ["alice", "--provider", "test", "--device", "--port", "1234"],
            "--device cannot be combined",
        ),
        (
            ["alice", "--provider", "test", "--device", "--no-browser"],
            "--device cannot be combined",
        ),
        (["alice", "--provider", "test", "--port", "0"], "--port"),
        (["alice", "--provider", "test", "--timeout", "soon"], "not a valid duration"),
        (["alice", "--provider", "test", "--timeout", "0"], "use more than 0, such as 5m"),
        ([], "ACCOUNT"),
    ],
    ids=" ".join,
)
def test_login_ends_with_2_if_it_cannot_begin(
    command: Command, arguments: list[str], told: str
) -> None:
    code, out, err = command("login", *arguments)
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_login_says_that_the_user_is_unknown(world: World, command: Command) -> None:
    device = world.server.provider().device_authorization_endpoint
    command.configure(device_authorization_endpoint=device, scope="mail")
    with Running(world, "login", "alice", "--provider", "test", "--device") as login:
        assert "Done" in world.server.visit(login.read_until(r"http://\S+user_code=\S+")).text
        code, out, err = login.end()
    assert (code, out) == (0, "signed_in\talice\n")
    assert "Signed in. The provider does not say as which user." in err


def test_login_ends_with_4_if_the_provider_is_out_of_order(world: World, command: Command) -> None:
    world.server.script(Answer(503), path="/device_authorization")
    code, _, err = command("login", "alice", "--provider", "test", "--device")
    assert code == 4
    assert "try again later" in err


def test_login_without_its_extra_says_what_to_install(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "authlib", None)
    code, out, err = command("login", "alice", "--provider", "test")
    assert (code, out) == (1, "")
    assert err == "tokenstore: signing in needs an extra; run: pip install 'tokenstore[login]'\n"


# -- logout ---------------------------------------------------------------------------------------


def test_logout_revokes_and_removes(world: World, command: Command) -> None:
    tokens = world.sign_in("alice", expires_in=3600)
    assert command("logout", "alice") == (0, "signed_out\talice\n", "")
    assert not world.server.is_live(tokens["access_token"])
    assert command("logout", "alice")[0] == 5


def test_logout_can_keep_the_account(world: World, command: Command) -> None:
    world.sign_in("alice", expires_in=3600)
    assert command.results("logout", "alice", "--keep-account") == {"alice": "signed_out"}
    assert command("token", "alice")[0] == 3
    _, out, _ = command("status", "--json")
    assert json.loads(out)["accounts"][0]["state"] == "sign_in"


def test_logout_that_fails_keeps_the_account(world: World, command: Command) -> None:
    world.sign_in("alice")
    world.server.script(Answer(503), path="/revoke")
    code, out, err = command("logout", "alice")
    assert (code, out) == (4, "")
    assert "alice is still stored; try again, or delete it without telling the provider" in err
    assert world.row()


def test_logout_says_so_if_the_provider_cannot_be_told(world: World, command: Command) -> None:
    world.sign_in("alice")
    command.configure()
    code, out, err = command("logout", "alice")
    assert (code, out) == (0, "signed_out\talice\n")
    assert "warning: alice: provider 'test' cannot revoke tokens" in err
    assert world.manager().load_tokens("alice") is None


# -- where a browser shows up ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "shows"),
    [
        ({}, False),
        ({"DISPLAY": ":0"}, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True),
        ({"DISPLAY": ""}, False),
        ({"DISPLAY": ":10", "SSH_CONNECTION": "here there"}, False),
        ({"BROWSER": "w3m", "SSH_CONNECTION": "here there"}, True),
    ],
    ids=str,
)
def test_a_browser_shows_up_where_there_is_a_display(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], *, shows: bool
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert has_display() is shows


def told(capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    settings: dict[str, Any] = {
        "account_name": "alice",
        "provider": "acme",
        "url": "https://acme.example/authorize?state=s",
        "expires_at": 0.0,
        "redirect_uri": "http://127.0.0.1:4321/callback",
        **changes,
    }
    Terminal()(Prompt(**settings))
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_without_a_device_grant_a_port_can_be_forwarded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "here there")
    monkeypatch.delenv("BROWSER", raising=False)
    assert "ssh -L 4321:127.0.0.1:4321" in told(capsys)
    assert "device=True" in told(capsys, has_device_grant=True)


def test_a_browser_that_cannot_be_started_leaves_the_address(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = (
        "import webbrowser; from tokenstore import Prompt\n"
        "from tokenstore.oauth.flows.prompt import Terminal\n"
        "Terminal()(Prompt('alice', 'acme', 'https://acme.example/?state=s', 0.0))\n"
    )
    environment = os.environ | {"BROWSER": str(tmp_path / "missing"), "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "https://acme.example/?state=s" in done.stderr
    assert "No browser could be started." in done.stderr
    assert capsys.readouterr() == ("", "")
