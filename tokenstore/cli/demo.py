"""``tokenstore demo``: run the commands on made-up accounts in a temporary directory."""

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
from tokenstore.cli.context import DONE
from tokenstore.cli.errors import run_command
from tokenstore.files import atomic_write

if TYPE_CHECKING:
    from tokenstore.testing import AuthorizationServer

_PROVIDERS = """\
[demo]
token_endpoint = "{endpoint}"
client_id = "tokenstore"
client_secret_env = "DEMO_CLIENT_SECRET"
"""


@click.command("demo")
def demo() -> int:
    """Run a demonstration with made-up accounts.

    Imports old files, gets tokens, shows a revoked token and exports the accounts. The provider
    is a test server on this machine; only a temporary directory is written to.

    Example: tokenstore demo
    """
    from tokenstore.testing import AuthorizationServer

    output.force_terminal()
    if not sys.stdout.isatty():
        os.environ["COLUMNS"] = "120"
    with _directory() as directory, AuthorizationServer() as server:
        home = Path(directory)
        _say(f"A test authorization server listens on {server.issuer}.")
        _prepare(home, server)
        os.chdir(home)
        try:
            _run(server)
        finally:
            os.chdir("/")
    return DONE


def _directory() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory()
    except OSError as error:
        raise click.ClickException(
            f"cannot create a temporary directory: {error.strerror}; set TMPDIR to a directory "
            "that can be written"
        ) from None


def _run(server: AuthorizationServer) -> None:
    _say("Another program left six token files, one for each account; one of them is broken.")
    imported = "Five accounts imported; the broken file was reported."
    _tokenstore("import old --provider demo", {1: imported})
    _tokenstore("status", {0: "Bob, carol and dave are due; erin has no refresh token."})
    for name, comments in _OUTCOMES.items():
        _tokenstore(f"token {name}@example.com", comments)
    _say(f"The provider received {len(server.requests)} requests; alice needed none.")
    _tokenstore("status", {0: "Two were refreshed; dave and erin need a new sign-in."})
    _tokenstore("token dave@example.com", {3: "Dave is known to need a sign-in: nothing was sent."})
    _say(f"The provider has still received {len(server.requests)} requests.")
    _tokenstore("export new", {0: "The other program can read these files; their mode is 0600."})


_OUTCOMES = {
    "alice": {0: "Alice's token was still valid."},
    "bob": {0: "Bob's had expired and was refreshed."},
    "carol": {0: "Carol's would have expired within five minutes and was refreshed."},
    "dave": {3: "Dave's refresh token was revoked: he needs a new sign-in (exit code 3)."},
    "erin": {3: "Erin never had a refresh token and needs a new sign-in, too."},
}


def _prepare(home: Path, server: AuthorizationServer) -> None:
    provider = server.provider("demo")
    os.environ["DEMO_CLIENT_SECRET"] = provider.client_secret or ""
    os.environ["TOKENSTORE_DATABASE"] = str(home / "tokens.db")
    os.environ.pop("TOKENSTORE_PROVIDERS", None)
    with atomic_write(home / "providers.toml") as file:  # not 0664, which is refused
        file.write(_PROVIDERS.format(endpoint=server.token_endpoint).encode())
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


def _tokenstore(line: str, comments: dict[int, str]) -> None:
    """Run one command as a user would, and print the comment for its exit code."""
    output.print_line(f"\n$ tokenstore {line}", bold=True)
    sys.stdout.flush()
    program = click.get_current_context().find_root().command
    code = run_command(program, shlex.split(line))
    if code not in comments:
        raise click.ClickException(f"the demo failed: {line!r} ended with exit code {code}")
    _say(comments[code])


def _say(text: str) -> None:
    output.print_line(f"# {text}", fg="blue")
    sys.stdout.flush()


def _local_iso(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp).astimezone().replace(tzinfo=None).isoformat()
