from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokenstore import TokenRepository

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
BASH = """
eval "$(tokenstore completion bash)"
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_tokenstore_completion tokenstore
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.db"
    with TokenRepository(path) as repository:
        for name in ("alice@example.com", "alfred", "bob", "zoë"):
            repository.save(name, {"access_token": "a"})
    (tmp_path / "providers.toml").write_text("[gitlab]\n")
    return path


def complete(database: Path, words: str) -> list[str]:
    """Return what a real bash suggests for the last of *words*."""
    ran = subprocess.run(
        ["bash", "--norc", "-c", BASH.format(words=words)],
        env=os.environ
        | {"PATH": f"{BIN}:{os.environ['PATH']}", "TOKENSTORE_DATABASE": str(database)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tokenstore tok", ["token"]),
        ("tokenstore token al", ["alfred", "alice@example.com"]),
        ("tokenstore refresh bob zo", ["zoë"]),
        ("tokenstore delete nobody", []),
        ("tokenstore refresh --provider gi", ["github", "gitlab"]),
        ("tokenstore status --state si", ["sign_in"]),
        ("tokenstore history --js", ["--json"]),
        ("tokenstore completion f", ["fish"]),
    ],
)
def test_a_shell_completes(database: Path, words: str, expected: list[str]) -> None:
    assert complete(database, words) == expected


def test_a_name_that_a_shell_would_obey_is_not_suggested(database: Path) -> None:
    with TokenRepository(database) as repository:
        for name in ("al$(touch pwned)", "al;ls", "al ice", "al`x`", "-al", "al'"):
            repository.save(name, {"access_token": "a"})

    assert complete(database, "tokenstore token al") == ["alfred", "alice@example.com"]


def test_the_database_may_be_named_on_the_line(database: Path, tmp_path: Path) -> None:
    assert complete(tmp_path / "other.db", f"tokenstore --database {database} token b") == ["bob"]


def test_a_database_that_cannot_be_read_suggests_nothing(database: Path, tmp_path: Path) -> None:
    database.write_text("no database at all, and longer than the header of one is")

    assert complete(database, "tokenstore token a") == []
    assert complete(tmp_path / "missing.db", "tokenstore token a") == []
    assert not (tmp_path / "missing.db").exists()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_their_scripts(shell: str) -> None:
    script = subprocess.check_output([BIN / "tokenstore", "completion", shell], text=True)

    assert f"_TOKENSTORE_COMPLETE={shell}_complete" in script


def test_names_come_by_their_beginning(database: Path) -> None:
    with TokenRepository(database) as repository:
        assert repository.listing.names("al", limit=9) == ["alfred", "alice@example.com"]
        assert repository.listing.names("", limit=2) == ["alfred", "alice@example.com"]
        assert repository.listing.names("zo", limit=9) == ["zoë"]
