from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.refreshes import SOON, Call, World
from tests.helpers.requirements import needs_mount
from tests.helpers.stores import NOBODY, command, mode, modes, names, python, raw, tokens
from tokenstore import (
    InsecureStorageError,
    StorageError,
    TokenPersistError,
    TokenRepository,
    migrate,
)
from tokenstore.storage.sqlite.connector import Connector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tokenstore.storage.base import JournalMode

JOURNAL_MODES = ["wal", "delete"]


@pytest.fixture
def repository(path: Path) -> Iterator[TokenRepository]:
    with TokenRepository(path) as repository:
        yield repository


def make_store(path: Path, **accounts: dict[str, Any]) -> None:
    with TokenRepository(path) as repository:
        for name, saved in (accounts or {"alice": tokens()}).items():
            repository.save(name, saved)


# -- modes ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
@pytest.mark.parametrize("umask", [0o000, 0o022], ids=["umask-000", "umask-022"])
def test_everything_is_private_while_a_transaction_is_open(
    tmp_path: Path, umask: int, journal_mode: str
) -> None:
    printed = python(
        """
from tokenstore.storage.sqlite import schema
from tokenstore.storage.sqlite.database import SQLiteDatabase
from tokenstore.jsonfiles import export_accounts
path = Path(sys.argv[1])

def look(moment):
    for file in sorted(path.parent.parent.rglob("*")):
        tell(moment, file.relative_to(path.parent.parent), oct(file.stat().st_mode & 0o7777))

upgrade_to_head = schema.upgrade_to_head

def build(name, connection):
    upgrade_to_head(name, connection)
    look("built")

schema.upgrade_to_head = build

SQLiteDatabase(path, journal_mode=sys.argv[2]).run(lambda: None)
with TokenRepository(path, journal_mode=sys.argv[2]) as repository:
    with repository.refresh_lock("alice", timeout=1), repository.transaction():
        repository.save("alice", tokens(1))
        list(export_accounts(repository, path.parent / "new" / "files"))
        look("open")
        """,
        tmp_path / "a" / "b" / "tokens.db",
        journal_mode,
        umask=umask,
    )

    found: dict[str, dict[str, str]] = {"built": {}, "open": {}}
    for moment, name, given in map(str.split, printed.splitlines()):
        found[moment][name] = given
    sidecars = ["-wal", "-shm"] if journal_mode == "wal" else ["-journal"]
    built = [name for name in found["built"] if name.startswith("b/.tokens.db.")]
    assert {name.partition(".tmp")[2] for name in built} == {"", "/x", "/x-journal"}
    assert {f"b/tokens.db{suffix}" for suffix in ["", *sidecars]} <= found["open"].keys()
    assert len([name for name in found["open"] if name.endswith(".lock")]) == 1
    assert "b/new/files/alice.json" in found["open"]
    directories = {"b", "b/tokens.db-locks", "b/new", "b/new/files"}
    directories |= {name for name in built if name.endswith(".tmp")}
    for names_at in found.values():
        private = {name for name in names_at if name in directories}
        assert {name for name in names_at if names_at[name] == "0o700"} == private
        assert {name for name in names_at if names_at[name] == "0o600"} == names_at.keys() - private
    assert mode(tmp_path / "a") == 0o700


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o000, 0o022], ids=["umask-000", "umask-022"])
def test_the_umask_is_never_touched(tmp_path: Path, umask: int) -> None:
    printed = python(
        """
from tokenstore import TokenManager
from tokenstore.cli.app import run
from tokenstore.jsonfiles import export_accounts, import_accounts
from tokenstore.testing import AuthorizationServer
real = os.umask
def forbidden(mask):
    raise AssertionError("os.umask was called")
os.umask = forbidden

path, files = sys.argv[1], Path(sys.argv[1]).with_name("files")
migrate.upgrade(path)
with TokenRepository(path + "-other", journal_mode="delete") as repository:
    repository.save("alice", tokens())
    with repository.refresh_lock("alice", timeout=1):
        repository.delete("alice")
with AuthorizationServer() as server:
    with TokenManager(path, providers={"test": server.provider()}) as manager:
        manager.save_tokens("alice", server.sign_in("alice"), provider="test")
        manager.refresh_token("alice")
with TokenRepository(path) as repository:
    list(export_accounts(repository, files))
    list(import_accounts(repository, files, replace=True))
assert run(["--database", path, "import", str(files), "--json"]) == 0
assert run(["--database", path, "delete", "alice"]) == 0
tell(real(0))
        """,
        tmp_path / "tokens.db",
        umask=umask,
    )

    assert int(printed.splitlines()[-1]) == umask


@pytest.mark.parametrize(
    "loose", [0o644, 0o640, 0o666, 0o660, 0o755], ids=lambda loose: f"{loose:04o}"
)
def test_the_permissions_of_a_database_are_restricted_with_a_warning(
    path: Path, loose: int, caplog: pytest.LogCaptureFixture
) -> None:
    make_store(path)
    path.chmod(loose)

    with TokenRepository(path) as repository:
        assert repository.load("alice") == tokens()

    assert mode(path) == loose & 0o700
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert f"{path} was accessible to other users (mode {loose:04o}); fixed" in warnings


def test_stricter_permissions_are_kept(path: Path) -> None:
    make_store(path)
    path.chmod(0o400)

    with TokenRepository(path) as repository:
        assert repository.load("alice") == tokens()

    assert mode(path) == 0o400


def test_the_permissions_of_sidecars_are_restricted_too(path: Path) -> None:
    make_store(path)

    with raw(path) as other:
        other.execute("SELECT * FROM accounts").fetchall()
        other.execute("BEGIN IMMEDIATE")
        for file in ("tokens.db", "tokens.db-wal", "tokens.db-shm"):
            path.with_name(file).chmod(0o644)
        with TokenRepository(path) as repository:
            repository.load("alice")
            found = modes(path.parent)

    files = {"tokens.db", "tokens.db-wal", "tokens.db-shm"}
    assert {name for name in found if found[name] == 0o600} >= files


@pytest.mark.parametrize("given", [0o755, 0o777, 0o1777, 0o500], ids=lambda given: f"{given:04o}")
def test_an_existing_directory_keeps_its_mode(tmp_path: Path, given: int) -> None:
    directory = tmp_path / "there"
    directory.mkdir()
    make_store(directory / "tokens.db")
    directory.chmod(given)

    with TokenRepository(directory / "tokens.db") as repository:
        repository.load("alice")
        if os.geteuid() == 0 or given != 0o500:
            repository.save("bob", tokens())

    assert mode(directory) == given


# -- refused files --------------------------------------------------------------------------------


def test_a_database_of_another_owner_is_refused(path: Path) -> None:
    if os.geteuid() == 0:
        make_store(path)
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o666)
        foreign = path
    else:
        foreign = type(path)("/etc/passwd")  # everybody's system has this file of root's
    before = foreign.stat()

    for use in (migrate.upgrade, lambda path: TokenRepository(path).load("alice")):
        with pytest.raises(InsecureStorageError, match=f"uid {before.st_uid}"):
            use(foreign)

    assert foreign.stat().st_mode == before.st_mode


def link(path: Path) -> Path:
    other = path.with_name("other.db")
    other.hardlink_to(path)
    return other


def test_a_database_with_two_names_is_read_and_not_written(path: Path) -> None:
    """S9: each name would have a log of its own, and acknowledged saves would be lost."""
    make_store(path)
    other = link(path)

    for name in (path, other):
        with TokenRepository(name) as repository:
            assert repository.load("alice") == tokens()
            with pytest.raises(InsecureStorageError, match=r"2 names.*find .* -samefile"):
                repository.save("bob", tokens(2))
            copy = repository.backup(path.with_name(f"{name.name}-copy"))
        with pytest.raises(InsecureStorageError, match="2 names"):
            migrate.downgrade(name)
        make_store(copy, bob=tokens(2))
    assert not path.with_name("other.db-wal").exists()
    other.unlink()
    make_store(path, bob=tokens(2))


def test_a_database_with_two_names_and_a_log_is_refused(path: Path) -> None:
    """The other name may have a log as well: which one is right cannot be known."""
    with TokenRepository(path) as repository:
        repository.save("alice", tokens())
        link(path)
        with TokenRepository(path) as another, pytest.raises(InsecureStorageError, match="2 names"):
            another.load("alice")
        repository.save("bob", tokens(2))  # it was open before the link


@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
@pytest.mark.parametrize("kind", ["symlink", "pipe", "directory", "link"])
def test_a_planted_sidecar_is_refused_before_sqlite_opens_it(
    path: Path, suffix: str, kind: str, journal_mode: JournalMode
) -> None:
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        repository.save("alice", tokens())
    (other := path.with_name("other")).touch()
    sidecar = path.with_name(path.name + suffix)
    match kind:
        case "symlink":
            sidecar.symlink_to(other)
        case "pipe":
            os.mkfifo(sidecar)
        case "directory":
            sidecar.mkdir()
        case "link":
            sidecar.hardlink_to(other)
    before = names(path.parent)

    for create in (False, True):
        if create:
            path.unlink()
        with TokenRepository(path, journal_mode=journal_mode) as repository:
            with pytest.raises(InsecureStorageError) as caught:
                repository.save("bob", tokens(2))
            with pytest.raises(InsecureStorageError):
                repository.load("alice")
        assert caught.value.path == str(sidecar)
    assert other.read_bytes() == b""
    assert names(path.parent) - {"tokens.db-locks/schema", "tokens.db-locks"} == before - {
        "tokens.db",
        "tokens.db-locks/schema",
        "tokens.db-locks",
    }


def at_opening(
    patch: pytest.MonkeyPatch, *, before: Callable[[], object], after: Callable[[], object]
) -> None:
    """Do something just before and just after SQLite opens a database."""
    connect = Connector._connect_to_any

    def connect_to_any(self: Connector) -> Any:
        before()
        connected = connect(self)
        after()
        return connected

    patch.setattr(Connector, "_connect_to_any", connect_to_any)


@pytest.mark.parametrize("removed", [False, True], ids=["stays", "removed"])
def test_a_log_that_is_planted_while_the_database_is_opened_is_refused(
    path: Path, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(path)
    (other := path.with_name("other")).touch()
    wal = path.with_name("tokens.db-wal")
    at_opening(
        monkeypatch,
        before=lambda: wal.hardlink_to(other),
        after=lambda: wal.unlink() if removed else None,
    )

    said = "was removed while it was opened" if removed else "2 names"
    with TokenRepository(path) as repository, pytest.raises(InsecureStorageError, match=said):
        repository.save("bob", tokens(2))

    assert b"refresh-2" not in other.read_bytes()


def test_a_journal_is_looked_at_before_each_transaction(path: Path) -> None:
    with TokenRepository(path, journal_mode="delete") as repository:
        repository.save("alice", tokens())
        (journal := path.with_name("tokens.db-journal")).symlink_to("other")

        with pytest.raises(InsecureStorageError, match=r"tokens.db-journal is a symlink"):
            repository.save("bob", tokens(2))

        journal.unlink()
        repository.save("bob", tokens(2))


@needs_mount
@pytest.mark.parametrize("mounted", ["tokens.db", "tokens.db-wal", "tokens.db-locks"])
def test_a_file_that_is_mounted_without_its_directory_is_refused(
    path: Path, tmp_path: Path, mounted: str
) -> None:
    code = """
import subprocess
source, target = Path(sys.argv[1]), Path(sys.argv[2])
subprocess.run(["mount", "--bind", source, target], check=True)
with TokenRepository(target.with_name("tokens.db")) as repository:
    for attempt in (lambda: repository.load("alice"), lambda: repository.save("bob", tokens())):
        try:
            attempt()
        except InsecureStorageError as error:
            tell(error)
"""
    make_store(path)
    source, target = path.with_name(mounted), tmp_path / "inside" / mounted
    make_store(target.with_name("tokens.db"))
    for file in (source, target):
        if not file.exists():
            file.touch()
    unshare = str(shutil.which("unshare"))
    done = subprocess.run(
        [unshare, "--mount", *command(code, source, target)],
        check=True,
        capture_output=True,
        text=True,
    )

    assert done.stdout.count(f"{target} is mounted by itself") == 2
    assert done.stdout.count("mount its directory instead") == 2


def test_nothing_is_created_in_a_directory_that_others_can_write_to(path: Path) -> None:
    path.parent.chmod(0o777)

    for create in (make_store, migrate.upgrade):
        with pytest.raises(InsecureStorageError, match="chmod go-w"):
            create(path)

    assert names(path.parent) == set()


# -- new databases --------------------------------------------------------------------------------


def test_an_empty_file_is_a_new_database(path: Path) -> None:
    path.touch(0o644)

    with TokenRepository(path) as repository:
        assert repository.load("alice") is None
        assert list(repository.accounts()) == []
        assert path.stat().st_size == 0
        repository.save("alice", tokens())
        assert repository.load("alice") == tokens()

    assert mode(path) == 0o600


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_the_log_of_a_lost_database_is_not_replayed_into_a_new_one(path: Path, suffix: str) -> None:
    leftover = path.with_name(path.name + suffix)
    leftover.write_bytes(b"the only copy of something")
    repository = TokenRepository(path)

    with pytest.raises(StorageError, match="belongs to a database") as caught:
        repository.save("alice", tokens())

    assert caught.value.path == str(leftover)
    assert leftover.read_bytes() == b"the only copy of something"
    assert not path.exists()
    leftover.unlink()
    repository.save("alice", tokens())
    repository.close()


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_an_empty_stale_log_is_ignored(path: Path, suffix: str) -> None:
    path.with_name(path.name + suffix).touch()

    make_store(path)

    with TokenRepository(path) as repository:
        assert repository.load("alice") == tokens()


@pytest.mark.parametrize(
    "read",
    [
        lambda path: TokenRepository(path).load("alice"),
        lambda path: list(TokenRepository(path).accounts()),
        lambda path: TokenRepository(path).delete("alice"),
        lambda path: TokenRepository(path).access_token("alice"),
        lambda path: TokenRepository(path).record("alice"),
        lambda path: list(TokenRepository(path).listing.records()),
        lambda path: TokenRepository(path).journal.last_begun("alice"),
        lambda path: TokenRepository(path).close(),
        lambda path: TokenRepository(path, upgrade=True, journal_mode="delete").load("alice"),
        migrate.current,
        migrate.history,
    ],
    ids=[
        "load",
        "accounts",
        "delete",
        "access",
        "record",
        "records",
        "last-refresh",
        "close",
        "load-upgrade",
        "current",
        "history",
    ],
)
def test_reading_creates_nothing(tmp_path: Path, read: Callable[[Path], object]) -> None:
    read(tmp_path / "missing" / "tokens.db")

    assert names(tmp_path) == set()


def test_a_failed_first_write_leaves_no_file(tmp_path: Path) -> None:
    repository = TokenRepository(tmp_path / "tokens.db")

    with pytest.raises(ValueError, match="access_token"):
        repository.save("alice", {"access_token": ""})

    assert names(tmp_path) == set()


# -- a file that goes away ------------------------------------------------------------------------


@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
@pytest.mark.parametrize("first", ["load", "save"])
def test_a_removed_file_raises_once_and_then_there_is_no_database(
    path: Path, journal_mode: Any, first: str
) -> None:
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        repository.save("alice", tokens())
        for file in path.parent.glob("tokens.db*"):
            if file.is_file():
                file.unlink()

        with pytest.raises(StorageError, match="removed or replaced") as caught:
            repository.load("alice") if first == "load" else repository.save("bob", tokens())
        assert caught.value.path == str(path)

        assert repository.load("alice") is None
        repository.save("bob", tokens())
        assert [account.name for account in repository.accounts()] == ["bob"]


@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
@pytest.mark.parametrize("first", ["load", "save"])
def test_a_replaced_file_raises_once_and_is_then_used(
    tmp_path: Path, path: Path, journal_mode: Any, first: str
) -> None:
    make_store(tmp_path / "backup.db", carol=tokens(7))
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        repository.save("alice", tokens())
        for file in path.parent.glob("tokens.db-*"):
            if file.is_file():
                file.unlink()
        (tmp_path / "backup.db").replace(path)

        with pytest.raises(StorageError, match="removed or replaced"):
            repository.load("alice") if first == "load" else repository.save("bob", tokens())

        assert repository.load("carol") == tokens(7)
        repository.save("bob", tokens())
        assert [account.name for account in repository.accounts()] == ["bob", "carol"]


def test_a_file_that_vanishes_inside_a_transaction_fails_it(path: Path) -> None:
    with TokenRepository(path) as repository:
        repository.save("alice", tokens())

        def save_and_lose() -> None:
            with repository.transaction():
                repository.save("bob", tokens())
                path.unlink()

        with pytest.raises(StorageError, match="removed or replaced"):
            save_and_lose()


def test_every_thread_gets_an_error_for_a_replaced_file(path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with TokenRepository(path) as repository, ThreadPoolExecutor(1) as other:
        repository.save("alice", tokens())
        other.submit(repository.load, "alice").result()
        for file in path.parent.glob("tokens.db*"):
            if file.is_file():
                file.unlink()
        make_store(path, carol=tokens())

        with pytest.raises(StorageError, match="removed or replaced"):
            repository.load("alice")
        with pytest.raises(StorageError, match="removed or replaced"):
            other.submit(repository.load, "alice").result()
        assert other.submit(repository.load, "carol").result() == tokens()


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_a_store_that_is_gone_frees_what_waited_for_it(
    tmp_path: Path, journal_mode: JournalMode
) -> None:
    """R15: a response that can be stored nowhere is told, and the lock is free."""
    with World(tmp_path) as world:
        with TokenRepository(world.path, journal_mode=journal_mode) as repository:
            repository.save("alice", tokens())
        world.sign_in()
        hold = world.hold()
        manager = world.manager()
        call = Call(manager.get_valid_token, "alice")
        assert hold.arrived.wait(SOON)
        world.manager()._repository.close()
        for file in world.path.parent.glob("tokens.db*"):
            if file.is_file():
                file.unlink()
        hold.release.set()
        error = call.error()
        assert isinstance(error, TokenPersistError)
        assert error.errno == errno.ESTALE
        assert error.tokens is not None

        manager.save_tokens("alice", error.tokens, provider="test")
        assert manager.get_valid_token("alice") == error.tokens["access_token"]
        assert manager.refresh_token("alice")["access_token"] != error.tokens["access_token"]
