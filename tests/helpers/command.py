"""Run the command in this process, in another one, or on a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tokenstore import TokenManager
from tokenstore.cli.app import run

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.helpers.refreshes import World
    from tokenstore.testing import AuthorizationServer


COMMAND = [sys.executable, "-m", "tokenstore"]


class Ran:
    """What one command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


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


def on_a_terminal(*arguments: str | Path, keys: str = "", **environment: str) -> tuple[int, str]:
    """Run a command on a terminal of its own; return its exit code and all that it shows.

    What *keys* says is typed before it begins.
    """
    controller, terminal = pty.openpty()
    os.write(controller, keys.encode())
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


HOUR = 3600.0


DAY = 24 * HOUR


class Command:
    """The command, on a database of accounts at a strict server, by the real clock."""

    def __init__(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        self.world = world
        self._capsys = capsys
        self.environment = {
            "TOKENSTORE_PROVIDERS": str(world.path.with_name("providers.toml")),
            "TEST_CLIENT_SECRET": str(world.server.provider().client_secret),
        }
        self.configure()

    def configure(self, **settings: object) -> None:
        table = {
            "token_endpoint": self.world.server.token_endpoint,
            "client_id": "tokenstore",
            "client_secret_env": "TEST_CLIENT_SECRET",
            **settings,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        file = self.world.path.with_name("providers.toml")
        file.write_text("\n".join(["[test]", *lines, "[other]", *lines]))

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Run it; return its exit code and what it printed to stdout and stderr."""
        self._capsys.readouterr()
        code = run(["--database", str(self.world.path), *arguments])
        return code, *self._capsys.readouterr()

    def results(self, *arguments: str, code: int = 0) -> dict[str, str]:
        """Run it with --json; return what became of each account."""
        found, out, _ = self(*arguments, "--json")
        assert found == code, out
        results = json.loads(out)["results"]
        assert all(r.keys() == {"account_name", "outcome", "reason"} for r in results)
        assert len({r["account_name"] for r in results}) == len(results)
        return {r["account_name"]: r["outcome"] for r in results}

    def shown(self, *arguments: str) -> str:
        """Run it on a terminal; return all that it shows."""
        wide = {"COLUMNS": "200", "NO_COLOR": "1", **self.environment}
        code, shown = on_a_terminal("--database", str(self.world.path), *arguments, **wide)
        assert code == 0, shown
        return shown
