"""Process startup: an import and a command."""

from __future__ import annotations

import compileall
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import tokenstore
from benchmarks.measure import Contender, Row, Target, interleaved
from benchmarks.sample_data import name, reads, tokens
from tokenstore import TokenManager

if TYPE_CHECKING:
    from collections.abc import Iterator

_OURS = "tokenstore"
_LIBRARIES = ("globus_sdk", "msal", "authlib.integrations.requests_client", "google.auth")


def rows(directory: Path) -> Iterator[Row]:
    """Measure in an empty directory."""
    compileall.compile_dir(tokenstore.__path__[0], quiet=2)  # as installed packages are
    yield Row(
        '`python -c "import tokenstore"`',
        interleaved(
            [
                _python(_OURS, "import tokenstore"),
                _python("bare interpreter", "pass"),
                *(
                    _python(library.partition(".")[0], f"import {library}")
                    for library in _LIBRARIES
                ),
            ],
            rounds=15,
        ),
        [Target(_OURS, "bare interpreter", 1.5)],
    )
    database = directory / "tokens.db"
    with TokenManager(database) as manager:
        manager.save_tokens(name(0), tokens())
    program = str(Path(sys.executable).with_name("tokenstore"))
    yield Row(
        "`tokenstore token ACCOUNT`, fresh token",
        interleaved(
            [
                _command(_OURS, program, "--database", str(database), "token", name(0)),
                _python("import sqlalchemy", "import sqlalchemy"),
            ],
            rounds=20,
        ),
        [Target(_OURS, "import sqlalchemy", 1.25)],
    )


def _python(contender: str, code: str) -> Contender:
    return _command(contender, sys.executable, "-c", code)


def _command(contender: str, *words: str) -> Contender:
    def run(_: str) -> None:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

    return Contender(contender, run, reads([""]))
