"""The command as a whole: what it imports, and the options before the command."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.command import COMMAND, Ran, save

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokenstore.testing import AuthorizationServer


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
