"""``tokenstore demo``: the commands at work on made-up accounts, in a directory of their own."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tokenstore.cli import output
from tokenstore.cli.app import DONE, app, run

if TYPE_CHECKING:
    from tokenstore.testing import AuthorizationServer

_PROVIDERS = """\
[demo]
token_endpoint = "{endpoint}"
client_id = "tokenstore"
client_secret_env = "DEMO_CLIENT_SECRET"
"""


@app.command("demo")
def demo() -> int:
    """Show it at work: old files, an import, tokens, a dead login, an export.

    The provider is a strict one on loopback; nothing outside a temporary directory is touched.

    Example: tokenstore demo
    """
    from tokenstore.testing import AuthorizationServer

    output.demonstrate()
    if not sys.stdout.isatty():
        os.environ["COLUMNS"] = "120"
    with tempfile.TemporaryDirectory() as directory, AuthorizationServer() as server:
        home = Path(directory)
        _say(f"A strict authorization server listens on {server.issuer}.")
        _prepare(home, server)
        os.chdir(home)
        try:
            _play(server)
        finally:
            os.chdir("/")
    return DONE


def _play(server: AuthorizationServer) -> None:
    _say("Here are six files of a program that kept one per account; one of them is broken.")
    _tokenstore("import old --provider demo", {1: "Five accounts are in, the broken file is told."})
    _tokenstore("status", {0: "Bob, carol and dave are due; erin has no refresh token."})
    for name, after in _ENDS.items():
        _tokenstore(f"token {name}@example.com", after)
    _say(f"For that the provider had {len(server.requests)} requests; alice needed none.")
    _tokenstore("status", {0: "Two were refreshed; dave and erin have to sign in again."})
    _tokenstore("token dave@example.com", {3: "Dave is known to be dead: nothing was sent."})
    _say(f"The provider still had {len(server.requests)} requests.")
    _tokenstore("export new", {0: "The old program can read these; they are 0600."})


_ENDS = {
    "alice": {0: "Alice's token was still good."},
    "bob": {0: "Bob's had expired and was refreshed."},
    "carol": {0: "Carol's would have expired within five minutes and was refreshed."},
    "dave": {3: "Dave's refresh token is dead: only a new sign-in helps (exit code 3)."},
    "erin": {3: "Erin never had a refresh token: the same."},
}


def _prepare(home: Path, server: AuthorizationServer) -> None:
    provider = server.provider("demo")
    os.environ["DEMO_CLIENT_SECRET"] = provider.client_secret or ""
    os.environ["TOKENSTORE_DATABASE"] = str(home / "tokens.db")
    os.environ.pop("TOKENSTORE_PROVIDERS", None)
    (home / "providers.toml").write_text(_PROVIDERS.format(endpoint=server.token_endpoint))
    old = home / "old"
    old.mkdir(mode=0o700)
    expiries = {"alice": 3600, "bob": -3600, "carol": 120, "dave": -60, "erin": -60}
    for name, seconds in expiries.items():
        tokens = server.sign_in(name) | {"expires_at": _local_iso(time.time() + seconds)}
        if name == "erin":
            del tokens["refresh_token"]
        (old / f"{name}@example.com.json").write_text(json.dumps(tokens))
    (old / "frank@example.com.json").write_text('{"access_token": "cut off in the mid')
    server.revoke("dave")


def _tokenstore(line: str, said: dict[int, str]) -> None:
    """Run one command as a user would, and say what just happened."""
    click.secho(f"\n$ tokenstore {line}", bold=True)
    sys.stdout.flush()
    code = run(shlex.split(line))
    if code not in said:
        raise click.ClickException(f"the demo's {line!r} ended with {code}")
    _say(said[code])


def _say(text: str) -> None:
    click.secho(f"# {text}", fg="blue")
    sys.stdout.flush()


def _local_iso(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().replace(tzinfo=None).isoformat()
