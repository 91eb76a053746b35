"""Ten operations, each with a fault at one of its system calls. `make torture` tries every call.

Whatever happens: what was acknowledged is stored, what was not is stored or is not, nobody else can
read a file, the error is one of tokenstore's, and the same operation succeeds the next time.
"""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.requirements import needs_tracing
from tests.helpers.stores import ROOT, is_sound, raw
from tests.helpers.system_calls import KILL, Fault, Run, faults_of, run
from tokenstore import ReauthorizationRequired, TokenManager, TokenRepository, migrate
from tokenstore.jsonfiles import export_accounts, import_accounts
from tokenstore.storage.tables import REVISION
from tokenstore.testing import AuthorizationServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tokenstore.storage.base import JournalMode

pytestmark = [pytest.mark.slow, needs_tracing]

OLD, NEW, BOB = (
    {"access_token": f"access-{name}", "refresh_token": f"refresh-{name}"}
    for name in ("old", "new", "bob")
)
CONNECTION = {"socket", "connect", "setsockopt", "sendto", "recvfrom"}


@dataclass(frozen=True)
class Trial:
    """What became of an operation with a fault.

    Attributes:
        outcome: As of `Run`.
        value: As of `Run`.
        call: The system call that the fault was at.
    """

    outcome: str
    value: Any
    call: str

    def told_of(self, name: str) -> str:
        """Return what it said of one account of several."""
        return self.value.get(name, "failed") if self.outcome == "done" else self.outcome


def require_old_or_new(found: object, outcome: str, old: object, new: object) -> None:
    """Fail unless *found* is new; or old, if that was not reported as done."""
    assert found == new or (outcome != "done" and found == old), found


class Operation(ABC):
    """An operation on the store in a directory, and what may be there afterwards.

    Attributes:
        journal_mode: Of the store that it works on.
    """

    def __init__(self, journal_mode: JournalMode = "wal") -> None:
        self.journal_mode: JournalMode = journal_mode

    def open(self, place: Path) -> TokenRepository:
        return TokenRepository(place / "tokens.db", journal_mode=self.journal_mode)

    def prepare(self, place: Path) -> None:
        """Make what the operation works on."""
        with self.open(place) as repository:
            repository.save("alice", OLD)
            repository.save("bob", BOB)

    @abstractmethod
    def work(self, place: Path) -> object:
        """Do it. What it returns is what it acknowledges."""

    @abstractmethod
    def verify(self, place: Path, trial: Trial) -> None:
        """Fail unless what was acknowledged is stored, and nothing else was lost."""

    def stored(self, place: Path) -> dict[str, Any] | None:
        """Return the tokens of alice, and see that bob has his."""
        with self.open(place) as repository:
            assert _tokens_of(repository.load("bob")) == BOB
            return _tokens_of(repository.load("alice"))


class Save(Operation):
    """A new refresh token, so that the old one has to leave the files."""

    def work(self, place: Path) -> None:
        with self.open(place) as repository:
            repository.save("alice", NEW)

    def verify(self, place: Path, trial: Trial) -> None:
        require_old_or_new(self.stored(place), trial.outcome, OLD, NEW)


class Transaction(Operation):
    """Two changes that belong together."""

    def work(self, place: Path) -> None:
        with self.open(place) as repository, repository.transaction():
            repository.save("alice", NEW)
            repository.save("carol", NEW)

    def verify(self, place: Path, trial: Trial) -> None:
        with self.open(place) as repository:
            found = repository.load("alice"), repository.load("carol")
        require_old_or_new(found, trial.outcome, (OLD, None), (NEW, NEW))


class Delete(Operation):
    def work(self, place: Path) -> None:
        with self.open(place) as repository:
            repository.delete("alice")

    def verify(self, place: Path, trial: Trial) -> None:
        require_old_or_new(self.stored(place), trial.outcome, OLD, None)


class Create(Operation):
    def prepare(self, place: Path) -> None:
        pass

    def work(self, place: Path) -> None:
        with self.open(place / "made") as repository:
            repository.save("alice", NEW)

    def verify(self, place: Path, trial: Trial) -> None:
        with self.open(place / "made") as repository:
            require_old_or_new(repository.load("alice"), trial.outcome, None, NEW)


class Refresh(Operation):
    """At a provider that takes a refresh token once."""

    def __init__(self, server: AuthorizationServer, journal_mode: JournalMode = "wal") -> None:
        super().__init__(journal_mode)
        self._server = server

    def manager(self, place: Path) -> TokenManager:
        return TokenManager(
            place / "tokens.db",
            providers={"test": self._server.provider()},
            timeout=2.0,  # for a request that is lost
            journal_mode=self.journal_mode,
        )

    def prepare(self, place: Path) -> None:
        super().prepare(place)
        with self.manager(place) as manager:
            manager.save_tokens("alice", self._server.sign_in("alice"), provider="test")

    def work(self, place: Path) -> str:
        with self.manager(place) as manager:
            return str(manager.refresh_token("alice")["refresh_token"])

    def verify(self, place: Path, trial: Trial) -> None:
        found = self.stored(place)
        if trial.outcome == "done":
            assert found is not None
            assert found["refresh_token"] == trial.value
        with self.manager(place) as manager:
            try:
                manager.refresh_token("alice")
            except ReauthorizationRequired as refused:
                require_lost_response(trial, refused)
                manager.save_tokens("alice", self._server.sign_in("alice"), provider="test")


def require_lost_response(trial: Trial, refused: ReauthorizationRequired) -> None:
    """Fail unless the response was lost with the process or the connection, and that is told."""
    assert trial.outcome == KILL or trial.call in CONNECTION, refused
    assert "the provider had already rotated the token" in str(refused)


class Import(Operation):
    def prepare(self, place: Path) -> None:
        super().prepare(place)
        old = place / "old"
        old.mkdir()
        for name in ("alice", "carol", "dave"):
            (old / f"{name}.json").write_text(json.dumps(NEW))

    def work(self, place: Path) -> dict[str, str]:
        with self.open(place) as repository:
            results = import_accounts(repository, place / "old", replace=True)
            return {result.path.stem: result.outcome for result in results}

    def verify(self, place: Path, trial: Trial) -> None:
        before = {"alice": OLD, "carol": None, "dave": None}
        with self.open(place) as repository:
            assert _tokens_of(repository.load("bob")) == BOB
            for name, old in before.items():
                told = trial.told_of(name)
                as_told = "done" if told in {"imported", "replaced"} else told
                require_old_or_new(_tokens_of(repository.load(name)), as_told, old, NEW)


class Export(Operation):
    def prepare(self, place: Path) -> None:
        super().prepare(place)
        (place / "files").mkdir(mode=0o700)
        with self.open(place) as repository:
            for _ in export_accounts(repository, place / "files"):
                pass
            repository.save("alice", NEW)
            repository.save("carol", NEW)

    def work(self, place: Path) -> dict[str, str]:
        with self.open(place) as repository:
            results = export_accounts(repository, place / "files")
            return {result.path.stem: result.outcome for result in results}

    def verify(self, place: Path, trial: Trial) -> None:
        for name, old in {"alice": OLD, "bob": BOB, "carol": None}.items():
            file = place / "files" / f"{name}.json"
            told = trial.told_of(name)
            found = json.loads(file.read_text()) if file.exists() else None
            new = BOB if name == "bob" else NEW
            as_told = "done" if told == "exported" else told
            require_old_or_new(_tokens_of(found), as_told, *map(_tokens_of, (old, new)))


class WithCopy(Operation):
    """One that works on a store and on an older copy of it."""

    def prepare(self, place: Path) -> None:
        super().prepare(place)
        with self.open(place) as repository:
            repository.backup(place / "copy.db")
            repository.save("alice", NEW)


class Backup(WithCopy):
    def work(self, place: Path) -> None:
        with self.open(place) as repository:
            repository.backup(place / "copy.db", replace=True)

    def verify(self, place: Path, trial: Trial) -> None:
        assert self.stored(place) == NEW
        assert is_sound(place / "copy.db")
        with TokenRepository(place / "copy.db") as copy:
            assert _tokens_of(copy.load("bob")) == BOB
            require_old_or_new(copy.load("alice"), trial.outcome, OLD, NEW)


class Upgrade(Operation):
    def prepare(self, place: Path) -> None:
        shutil.copyfile(ROOT / "tests" / "frozen" / "0003.db", place / "tokens.db")
        (place / "tokens.db").chmod(0o600)

    def work(self, place: Path) -> None:
        migrate.upgrade(place / "tokens.db")

    def verify(self, place: Path, trial: Trial) -> None:
        copies = list(place.glob("tokens.db-backup-*"))
        with raw(place / "tokens.db") as database:
            [(revision,)] = database.execute("SELECT * FROM tokenstore_alembic_version").fetchall()
        assert revision == REVISION or (trial.outcome != "done" and revision == "0003")
        if trial.outcome != KILL:
            assert len(copies) == (revision == REVISION), copies
        with TokenRepository(place / "tokens.db", upgrade=True) as repository:
            found = {
                account.name: repository.load(account.name) for account in repository.accounts()
            }
        expected = json.loads((ROOT / "tests" / "frozen" / "0003.json").read_text("utf-8"))
        assert found == expected["tokens"]


class Restore(WithCopy):
    def work(self, place: Path) -> None:
        with self.open(place) as repository:
            repository.restore(place / "copy.db")

    def verify(self, place: Path, trial: Trial) -> None:
        require_old_or_new(self.stored(place), trial.outcome, NEW, OLD)


OPERATIONS: dict[str, Callable[[AuthorizationServer], Operation]] = {
    "save": lambda _: Save(),
    "save, delete mode": lambda _: Save("delete"),
    "transaction": lambda _: Transaction(),
    "delete": lambda _: Delete(),
    "create": lambda _: Create(),
    "create, delete mode": lambda _: Create("delete"),
    "refresh": Refresh,
    "refresh, delete mode": lambda server: Refresh(server, "delete"),
    "import": lambda _: Import(),
    "export": lambda _: Export(),
    "backup": lambda _: Backup(),
    "upgrade": lambda _: Upgrade(),
    "restore": lambda _: Restore(),
}


@pytest.fixture(scope="module")
def server() -> Iterator[AuthorizationServer]:
    with AuthorizationServer() as server:
        yield server


def try_calls(operation: Operation, directory: Path, *, step: int = 1, first: int = 0) -> int:
    """Try the operation with each fault at every *step*-th of its calls; return how many.

    Raises:
        AssertionError: What went wrong, for each fault.
    """
    problems, count = [], 0
    made = directory / "made"
    made.mkdir()
    operation.prepare(made)
    for where in ("first", "second"):  # what is imported late is imported now
        shutil.copytree(made, directory / where)
        operation.prepare(_emptied(directory / where))
        calls = run(lambda: operation.work(directory / where)).calls  # noqa: B023
        operation.work(directory / where)
    for at in range(first, len(calls), step):
        for fault in faults_of(calls[at]):
            count += 1
            place = directory / "place"
            place.mkdir()
            operation.prepare(place)
            done = run(lambda: operation.work(place), at=at, fault=fault)  # noqa: B023
            try:
                _verify(operation, place, done, at, fault)
            except Exception as error:  # noqa: BLE001
                told = f"{done.outcome} {done.value}: {type(error).__name__} {error}"
                problems.append(f"{at} {calls[at]} {fault}: {told}")
            shutil.rmtree(place)
    assert not problems, "\n".join([f"{len(problems)} of {count}:", *problems])
    return count


def _tokens_of(fields: dict[str, Any] | None) -> dict[str, Any] | None:
    return fields and {name: fields[name] for name in ("access_token", "refresh_token")}


def _emptied(directory: Path) -> Path:
    shutil.rmtree(directory)
    directory.mkdir()
    return directory


def _verify(operation: Operation, place: Path, done: Run, at: int, fault: Fault) -> None:
    assert done.is_typed, "not an error of tokenstore's"
    assert done.outcome != KILL or fault == KILL, "ended without an error"
    for path in place.rglob("*"):
        if path.is_file() and path.parent.name != "old":
            assert path.stat().st_mode & 0o077 == 0, path.name
    call = done.calls[at] if at < len(done.calls) else "none"
    operation.verify(place, Trial(done.outcome, done.value, call))
    operation.work(place)
    left = list(place.rglob("*.tmp*"))
    # A process that is killed when its work is done leaves a directory, without anything in it.
    emptied = [path for path in left if path.is_dir() and not list(path.iterdir())]
    assert left == (emptied if done.outcome == KILL else []), left


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_fault_at_some_system_calls(
    name: str, server: AuthorizationServer, tmp_path: Path
) -> None:
    assert try_calls(OPERATIONS[name](server), tmp_path, step=97, first=3) > 1
