from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.helpers.command import Command, Ran
from tests.helpers.refreshes import World
from tokenstore.cli.app import run
from tokenstore.testing import AuthorizationServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


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


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        world.clock.now = time.time()
        yield world


@pytest.fixture
def command(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    command = Command(world, capsys)
    for name, value in command.environment.items():
        monkeypatch.setenv(name, value)
    return command
