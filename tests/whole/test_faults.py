"""Every fault of a database is an error that names the remedy, loses nothing and shows no secret.

Every fault (see faulty.py) meets every operation, of the library and of the command.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.broken_stores import CALLS, COMMANDS, FAULTS, NEW, Outcome, Runner
from tests.helpers.refreshes import SOON, World
from tests.helpers.requirements import require
from tests.helpers.stores import LATER, python
from tests.helpers.temporary import open_directory, remove
from tokenstore import TokenManager, TokenRepository
from tokenstore.storage.tables import REVISION
from tokenstore.testing import Answer, AuthorizationServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Set

    from tokenstore.storage.base import JournalMode

# -- expectations ---------------------------------------------------------------------------------

READS = {
    "load",
    "accounts",
    "get_valid_token",
    "tokenstore status",
    "tokenstore token",
    "tokenstore history",
    "tokenstore export",
    "tokenstore db current",
    "tokenstore db check",
}
VARIANTS = {"save, delete mode", "delete, upgrade"}
ALL = {*CALLS, *COMMANDS}
MOST = ALL - VARIANTS
WRITES = MOST - READS - {"tokenstore db upgrade"}  # which has nothing to do at head
SOME = {
    "load",
    "get_valid_token",
    "save",
    "refresh_token",
    "tokenstore status",
    "tokenstore token, due",
    "tokenstore db upgrade",
}
DAMAGED = "(is|are) damaged; (keep (this file|the database) and )?restore a backup"
LISTS = {"load", "accounts", "tokenstore status", "tokenstore export", "refresh_token"}


@dataclass(frozen=True)
class Expected:
    """The expected results of operations. One that is in no set may work or be refused.

    Attributes:
        done: The operations that work.
        refused: The operations that raise an error.
        absent: Whether operations behave as if there were no database.
        error: The class of the error.
        tells: A pattern for its message.
        of: The operations to run.
        foreign: Whether it is not a tokenstore database, so that not even a lock file is created.
        repairs: Whether SQLite repairs the fault, so that even reading may change files.
        again: The result of repeating the call.
    """

    done: Set[str] = frozenset()
    refused: Set[str] = frozenset()
    absent: bool = False
    error: str = "StorageError"
    tells: str = DAMAGED
    of: Set[str] = frozenset(MOST)
    foreign: bool = False
    repairs: bool = False
    again: str | None = None


def readable(tells: str, **more: Any) -> Expected:
    return Expected(READS, WRITES, tells=tells, **more)


def closed(tells: str, **more: Any) -> Expected:
    return Expected(refused=ALL, tells=tells, **more)


def not_ours(tells: str, of: Set[str] = ALL) -> Expected:
    of = {*of, *VARIANTS, "tokenstore db current"}
    return closed(tells, of=of, error="InsecureStorageError", foreign=True)


def damaged(*refused: str, **more: Any) -> Expected:
    return Expected(refused=set(refused), **more)


def damaged_row(*refused: str, **more: Any) -> Expected:
    return damaged("load", *refused, done={"save", "delete", "tokenstore delete"}, **more)


def repaired(**more: Any) -> Expected:
    return Expected(done=ALL, repairs=True, **more)


def gone(again: str) -> Expected:
    tells = "removed or replaced while it was open.* Restore it, or repeat the call"
    return closed(tells, of=set(CALLS), again=again)


UNWRITABLE = "cannot be written by uid .*; the file and its directory must be writable"
NO_SPACE = "(no space is left on the disk|too little to store new tokens); free some"
CHANGED = "the tables are not those of its schema .*, run: tokenstore --database .* db check"
NOT_A_STORE = "is not a tokenstore database; choose another file"

EXPECTED = {
    "read-only file": readable(UNWRITABLE),
    "read-only file, delete mode": readable(UNWRITABLE, of=SOME),
    "read-only directory": readable(UNWRITABLE),
    "read-only directory, delete mode": readable(UNWRITABLE, of=SOME),
    "unreadable file": closed("must be writable"),
    "unreachable directory": closed("Permission denied; .*permissions|has to be writable"),
    "file of another owner": not_ours("belongs to uid .*; run as its owner"),
    "full disk": Expected(refused=WRITES, tells=NO_SPACE),
    "full disk, delete mode": readable(NO_SPACE),
    "disk with space for readers": readable(NO_SPACE, of=SOME),
    "files that may not grow": readable("the disk reported an error; check it", of=SOME),
    "cut to nothing": Expected(absent=True, of=SOME),
    "cut to nothing beside its log": closed("belongs to a database.*; .*move this file away"),
    "cut to half a page": closed(DAMAGED, of=SOME),
    "cut to half its pages": closed(DAMAGED),
    "log cut to nothing": repaired(of=SOME),
    "log cut to half a page": repaired(of=SOME),
    "log cut to half its pages": repaired(),
    "log of garbage": repaired(of=SOME),
    "index of the log of garbage": repaired(of=SOME),
    "header: magic": not_ours(NOT_A_STORE),
    "header: page size": closed(DAMAGED, of=SOME),
    "header: write version": readable(f"{DAMAGED}|{UNWRITABLE}", of=SOME),
    "header: read version": not_ours(NOT_A_STORE, of=SOME),
    "header: schema format": closed("SQLite .* cannot read this file.* restore a backup", of=SOME),
    "header: encoding": closed(DAMAGED, of=SOME),
    "header: application": not_ours(NOT_A_STORE, of=SOME),
    "page of the schema": closed(DAMAGED),
    "text of the schema": closed(DAMAGED, of=SOME),
    "word of the schema": closed(DAMAGED, of=SOME),
    "column of the schema": damaged(
        "load", "save", "refresh_token", of=SOME, tells=f"{CHANGED}|{DAMAGED}"
    ),
    "page of accounts": damaged("load", "save", "refresh_token", "tokenstore export"),
    "page of names": damaged("load", "save", "refresh_token", of=SOME),
    "page of refreshes": damaged("refresh_token", "tokenstore history"),
    "page of the revision": closed(DAMAGED),
    "access token: no UTF-8": damaged_row("get_valid_token", "tokenstore token"),
    "refresh token: no UTF-8": damaged_row(of={*SOME, "delete"}),
    "extra: no UTF-8": damaged_row(of={*SOME, "delete"}),
    "extra: no JSON": damaged_row(),
    "failure: no UTF-8": damaged(of=LISTS),
    "failure: no JSON": damaged(of=LISTS),
    "failure: another key": damaged(of=LISTS),
    "JSON": not_ours(NOT_A_STORE),
    "text": not_ours(NOT_A_STORE, of=SOME),
    "zeros": not_ours(NOT_A_STORE, of=SOME),
    "magic alone": not_ours(NOT_A_STORE, of=SOME),
    "another application": not_ours(NOT_A_STORE, of=SOME),
    "another application with alembic": not_ours(NOT_A_STORE),
    "another application that was killed": not_ours(NOT_A_STORE, of=SOME),
    "directory": not_ours("is not a regular file; use the path of a file"),
    "FIFO": not_ours("is not a regular file; use the path of a file", of=SOME),
    "symlink": not_ours("is a symlink; use the path of the file that it points to"),
    "dangling symlink": not_ours(
        "is a symlink; use the path of the file that it points to", of=SOME
    ),
    "no directory": Expected(absent=True),
    "file for a directory": closed("Not a directory; check the path|is not a directory"),
    "vanished": gone("absent"),
    "replaced by a store": gone("eve"),
    "replaced by another application": gone("InsecureStorageError"),
    "replaced by garbage": gone("InsecureStorageError"),
    "replaced by a directory": gone("InsecureStorageError"),
    "replaced by a symlink": gone("InsecureStorageError"),
}
CASES = [
    (f, o) for f, expected in EXPECTED.items() for o in [*CALLS, *COMMANDS] if o in expected.of
]


# -- the sound databases --------------------------------------------------------------------------


class Ward:
    """A provider, sound databases, and a process that runs operations on damaged copies of them.

    Attributes:
        stored: What was saved, by account.
    """

    def __init__(self, directory: Path, server: AuthorizationServer) -> None:
        self._directory = directory
        self._server = server
        self._stores = directory / "stores"
        self.stored: dict[str, dict[str, Any]] = {}
        self._make("closed", "wal")
        self._make("delete", "delete")
        self._make_killed()
        with TokenRepository(self._stores / "another" / "tokens.db") as another:
            another.save("eve", NEW)

    def _make(self, name: str, journal_mode: JournalMode) -> None:
        stored = {
            f"one-of-many-{number}": {
                "access_token": f"CANARY-access-{number}",
                "refresh_token": f"CANARY-refresh-{number}" + 800 * "x",
                "expires_at": LATER,
            }
            for number in range(20)  # so that the table has several pages
        }
        stored["alice"] = {
            "access_token": "CANARY-access-alice",
            "refresh_token": "CANARY-refresh-alice",
            "expires_at": LATER,
            "id_token": "CANARY-id-alice",
        }
        for account in ("bob", "carol"):
            stored[account] = {**self._server.sign_in(account), "expires_in": -1}
        path = self._stores / name / "tokens.db"
        providers = {"test": self._server.provider()}
        with TokenManager(path, providers=providers, journal_mode=journal_mode) as manager:
            for account, tokens in stored.items():
                manager.save_tokens(account, tokens, provider="test")
            self._server.script(Answer(503, ""), Answer(503, ""), subject="carol")
            assert manager.get_valid_token("carol") is None  # so that its failure is stored
            self.stored |= {a: manager.load_tokens(a) or {} for a in stored}

    def _make_killed(self) -> None:
        shutil.copytree(self._stores / "closed", self._stores / "killed")
        python(
            """
repository = TokenRepository(sys.argv[1])
for number in range(20):
    repository.save("frank", {"access_token": f"CANARY-access-{number}"})
os._exit(0)
            """,
            self._stores / "killed" / "tokens.db",
        )

    def __enter__(self) -> Ward:
        self.runner = Runner(self._stores, str(self._server.provider().client_secret))
        self.runner.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.__exit__()

    def place(self) -> Path:
        """Return a new directory that other users can reach, with the files of the commands."""
        place = Path(tempfile.mkdtemp(dir=self._directory))
        place.chmod(0o755)
        (place / "old").mkdir()
        (place / "old" / "dora.json").write_text(json.dumps(NEW))
        (place / "providers.toml").write_text(providers_toml(self._server))
        return place

    def do(self, place: Path, fault: str, operation: str) -> Outcome:
        before = len(self._server.requests)
        outcome = self.runner(place, fault, operation)
        outcome.posts = len(self._server.requests) - before
        return outcome

    def secrets(self) -> set[str]:
        """Return the secrets that must not be shown."""
        fields = ("access_token", "refresh_token", "id_token")
        stored = {t[f] for t in self.stored.values() for f in fields if f in t}
        return {"CANARY", str(self._server.provider().client_secret), *stored}

    def is_live(self, token: object) -> bool:
        return isinstance(token, str) and self._server.is_live(token)


def providers_toml(server: AuthorizationServer) -> str:
    return (
        f'[test]\ntoken_endpoint = "{server.token_endpoint}"\nclient_id = "tokenstore"\n'
        'client_secret_env = "TEST_CLIENT_SECRET"\n'
    )


@pytest.fixture(scope="module")
def ward() -> Iterator[Ward]:
    directory = open_directory()
    with AuthorizationServer(rotate=False) as server, Ward(directory, server) as ward:
        yield ward
    remove(directory)


# -- every fault meets every operation ------------------------------------------------------------


@pytest.mark.parametrize(("fault", "operation"), CASES, ids=map(": ".join, CASES))
def test_a_fault_is_an_error_and_loses_nothing(ward: Ward, fault: str, operation: str) -> None:
    expected = EXPECTED[fault]
    if fault == "file of another owner":
        require("root")
    if FAULTS[fault].space is not None:
        require("mount")
    place = ward.place()

    outcome = ward.do(place, fault, operation)

    shows_no_secret(ward, operation, outcome)
    if expected.absent:
        is_as_without_a_store(operation, outcome)
    elif operation in expected.refused or (operation not in expected.done and outcome.code):
        is_refused(expected, place, outcome)
    else:
        is_done(ward, operation, outcome)
    if expected.again is not None:
        goes_on_with_what_is_there(expected, operation, outcome)
    if not expected.repairs and (outcome.code or operation in READS):
        is_kept(expected, outcome.before, outcome.after)


def shows_no_secret(ward: Ward, operation: str, outcome: Outcome) -> None:
    texts = [*outcome.shown, outcome.err]
    if outcome.code or "token" not in operation.split()[1:]:
        texts.append(outcome.out)
    for text in texts:
        assert [secret for secret in ward.secrets() if secret in text] == []


def is_refused(expected: Expected, place: Path, outcome: Outcome) -> None:
    assert outcome.code == 1
    assert outcome.posts == 0
    if outcome.error is not None:
        assert outcome.error["types"][0] == expected.error
        assert {"StorageError", "OSError"} <= set(outcome.error["types"])
        assert (outcome.error["path"] or "").startswith(str(place / "store"))
        text = outcome.error["text"]
    elif outcome.out:
        results = json.loads(outcome.out)["results"]
        [text] = [result["reason"] for result in results if result["outcome"] == "failed"]
        assert outcome.err == ""
    else:
        assert re.fullmatch(r"tokenstore: [^\n]+\n", outcome.err)
        text = outcome.err
    if "exported" not in outcome.out:  # an export reports one account of many
        assert str(place / "store") in text
    assert re.search(expected.tells, text)


def is_done(ward: Ward, operation: str, outcome: Outcome) -> None:
    assert (outcome.error, outcome.err, outcome.code) == (None, "", 0)
    assert is_right(ward, operation, outcome)
    assert outcome.posts == int("due" in operation or "refresh" in operation)


def is_right(ward: Ward, operation: str, outcome: Outcome) -> bool:
    """Return whether the result is that of a sound database."""
    out = outcome.out
    data = json.loads(out) if out.startswith("{") else {}
    results = [result["outcome"] for result in data.get("results", [])]
    names = {account["name"] for account in data.get("accounts", [])}
    alice = ward.stored["alice"]
    answers: dict[str, Callable[[], bool]] = {
        "load": lambda: outcome.result == alice,
        "accounts": lambda: set(outcome.result) - {"frank"} == set(ward.stored),
        "get_valid_token": lambda: outcome.result == alice["access_token"],
        "save": lambda: outcome.result is None,
        "delete": lambda: outcome.result is True,
        "transaction": lambda: outcome.result is None,
        "get_valid_token, due": lambda: ward.is_live(outcome.result),
        "refresh_token": lambda: ward.is_live(outcome.result),
        "tokenstore status": lambda: names - {"frank"} == set(ward.stored),
        "tokenstore token": lambda: out == alice["access_token"] + "\n",
        "tokenstore token, due": lambda: ward.is_live(out.removesuffix("\n")),
        "tokenstore history": lambda: {e["account_name"] for e in data["history"]} == {"carol"},
        "tokenstore export": lambda: (
            {*results} == {"exported"} and len(results) >= len(ward.stored)
        ),
        "tokenstore db current": lambda: out == f"{REVISION} (head)\n",
        "tokenstore db check": lambda: True,
        "tokenstore refresh": lambda: results == ["refreshed"],
        "tokenstore delete": lambda: out == "deleted\talice\n",
        "tokenstore import": lambda: results == ["imported"],
        "tokenstore db upgrade": lambda: True,
    }
    return answers[operation]()


def is_as_without_a_store(operation: str, outcome: Outcome) -> None:
    assert outcome.posts == 0
    if operation in {"tokenstore token", "tokenstore token, due", "tokenstore delete"}:
        assert (outcome.code, outcome.err.count("\n")) == (5, 1)
    elif operation == "tokenstore refresh":
        assert outcome.code == 5
    elif operation == "tokenstore db check":
        assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    elif operation == "refresh_token":
        assert outcome.error is not None
        assert outcome.error["types"][0] == "ReauthorizationRequired"
    else:
        assert (outcome.code, outcome.error) == (int(operation == "tokenstore export"), None)
        assert not outcome.result
        if operation in {"tokenstore status", "tokenstore history", "tokenstore export"}:
            assert [*json.loads(outcome.out).values()] == [[]]


def goes_on_with_what_is_there(expected: Expected, operation: str, outcome: Outcome) -> None:
    """Check that repeating the call uses the current file, without mixing the two."""
    assert outcome.again is not None
    error = outcome.again.get("error")
    if expected.again == "InsecureStorageError":
        assert error is not None
        assert error["types"][0] == expected.again
    elif error is not None and error["types"][0] == "StorageError":
        assert "belongs to the database that was at" in error["text"]
    elif operation == "refresh_token":
        assert error is not None
        assert error["types"][0] == "ReauthorizationRequired"
    else:
        assert error is None
        assert outcome.again["result"] in (None, False, [], [expected.again])
    if operation in READS or error is not None:
        is_kept(expected, outcome.before, outcome.end)


def is_kept(expected: Expected, before: dict[str, str], after: dict[str, str]) -> None:
    """Check that every file is unchanged, and that there is no new one."""

    def known(found: dict[str, str]) -> dict[str, str]:
        return {name: told for name, told in found.items() if not may_change(name)}

    def may_change(name: str) -> bool:
        ours = "tokens.db-locks" in name or name.endswith(("-shm", "-wal"))
        return name.startswith("new") or (ours and not expected.foreign)

    assert known(after) == known(before)


# -- beyond the matrix ----------------------------------------------------------------------------


def test_reading_a_read_only_file_leaves_no_sidecars(ward: Ward) -> None:
    outcome = ward.do(ward.place(), "read-only file", "tokenstore status")

    assert outcome.code == 0
    assert outcome.after == outcome.before


@pytest.mark.parametrize("command", [["token", "alice"], ["refresh", "alice"]], ids=" ".join)
def test_a_command_whose_database_is_removed_during_its_request_fails(
    tmp_path: Path, command: list[str]
) -> None:
    with World(tmp_path) as world:
        world.clock.now = time.time()
        world.sign_in()
        with TokenRepository(tmp_path / "another.db") as another:
            another.save("eve", NEW)
        (tmp_path / "providers.toml").write_text(providers_toml(world.server))
        hold = world.hold()
        with subprocess.Popen(
            [sys.executable, "-m", "tokenstore", "--database", world.path, *command],
            env={
                **os.environ,
                "TOKENSTORE_PROVIDERS": str(tmp_path / "providers.toml"),
                "TEST_CLIENT_SECRET": str(world.server.provider().client_secret),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert hold.arrived.wait(SOON)
            (tmp_path / "another.db").replace(world.path)
            before = world.path.read_bytes()
            hold.release.set()
            out, err = process.communicate(timeout=SOON)

        assert process.returncode == 1
        assert (out + err).count("\n") == 1
        assert re.search(f"{world.path}(-wal)? (was removed or replaced|belongs to)", out + err)
        assert "CANARY" not in out + err
        assert not [t for t in tokens_in(out + err) if world.server.is_live(t)]
        assert world.posts == 1
        assert world.path.read_bytes() == before


def tokens_in(text: str) -> list[str]:
    return re.findall(r"[\w-]{20,}", text)
