"""Backups: whole, private, of the newest state, and never in the place of something of value."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.requirements import needs_root
from tests.helpers.stores import (
    NOBODY,
    Process,
    holding,
    mode,
    modes,
    names,
    newer_checkout,
    python,
    raw,
    tokens,
)
from tokenstore import (
    InsecureStorageError,
    StorageError,
    TokenManager,
    TokenRepository,
    migrate,
)
from tokenstore.cli.app import run

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that is created once and copied for each test."""
    directory = tmp_path_factory.mktemp("made") / "data"
    with TokenRepository(directory / "tokens.db") as repository:
        repository.save("alice", tokens(1))
    return directory


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data")) / "tokens.db"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "backups" / "tokens.db"


def back_up(path: Path, target: Path, **options: Any) -> Path:
    with TokenManager(path) as manager:
        return manager.backup(target, **options)


def stored(path: Path) -> dict[str, Any]:
    """Return the content of a database."""
    with TokenRepository(path) as repository:
        return {a.name: repository.load(a.name) for a in repository.accounts()}


# -- the content of a backup ----------------------------------------------------------------------

WRITE = """
repository = TokenRepository(sys.argv[1], journal_mode=sys.argv[2])
number = 0
stopped = threading.Event()
threading.Thread(target=lambda: (wait(), stopped.set())).start()
while not stopped.is_set():
    number += 1
    with repository.transaction():
        repository.save("left", tokens(number))
        repository.save("right", tokens(number))
    tell(number)
"""


@pytest.mark.slow
@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_a_backup_has_all_earlier_commits_while_other_processes_write(
    tmp_path: Path, target: Path, journal_mode: str
) -> None:
    path = tmp_path / "tokens.db"
    with Process(WRITE, path, journal_mode) as writer:
        for step in range(3):
            committed = int(writer.line())
            copy = back_up(path, target.with_name(f"{step}.db"))
            found = stored(copy)
            assert found["left"] == found["right"]  # one state, no part of a transaction
            number = int(found["left"]["access_token"].removeprefix("access-"))
            assert number >= committed
        writer.go()
        while writer.line():
            pass


@pytest.mark.slow
def test_a_backup_includes_the_write_ahead_log(path: Path, target: Path) -> None:
    with Process(
        """
repository = TokenRepository(sys.argv[1])
repository.save("bob", tokens(2))
tell("saved")
wait()
        """,
        path,
    ) as other:
        assert other.line() == "saved"
        assert holding(path.parent, "refresh-2") == ["tokens.db-wal"]

        back_up(path, target)

    assert stored(target) == {"alice": tokens(1), "bob": tokens(2)}


def test_a_backup_is_private_whatever_the_umask(path: Path, target: Path) -> None:
    python(
        """
import sqlite3
target = Path(sys.argv[2])
seen = set()
def hook(event, arguments):  # while it is being written, too
    if event in {"open", "os.rename", "sqlite3.connect"} and target.parent.exists():
        seen.update((p.is_dir(), oct(p.stat().st_mode & 0o777)) for p in target.parent.rglob("*"))
sys.addaudithook(hook)
TokenRepository(sys.argv[1]).backup(target)
assert seen == {(True, "0o700"), (False, "0o600")}, seen
        """,
        path,
        target,
        umask=0,
    )

    assert modes(target.parent.parent) | {"backups": 0o700, "backups/tokens.db": 0o600} == modes(
        target.parent.parent
    )
    assert names(target.parent) == {"tokens.db"}


def test_the_absolute_path_of_a_backup_is_returned(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert back_up(path, "copy.db") == tmp_path / "copy.db"  # type: ignore[arg-type]


def test_a_deleted_secret_is_not_in_a_backup(path: Path, target: Path) -> None:
    with TokenRepository(path) as repository:
        repository.save("bob", tokens(2, padding="CANARY" * 2000))
        repository.save("alice", tokens(3))
        repository.delete("bob")
        back_up(path, target)

    assert stored(target) == {"alice": tokens(3)}
    for gone in ("CANARY", "access-2", "refresh-2", "refresh-1"):
        assert not holding(target.parent, gone)


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_a_backup_of_an_older_database_keeps_its_schema(
    path: Path, target: Path, revision: str
) -> None:
    migrate.downgrade(path, revision)

    back_up(path, target)

    with raw(path) as before, raw(target) as after:
        assert list(after.iterdump()) == list(before.iterdump())
    migrate.upgrade(target)
    assert stored(target) == {"alice": tokens(1)}


@pytest.mark.slow
def test_a_backup_of_a_newer_database_keeps_its_schema(
    path: Path, target: Path, tmp_path: Path
) -> None:
    newer = {**os.environ, "PYTHONPATH": str(newer_checkout(tmp_path))}
    python("migrate.upgrade(sys.argv[1])", path, env=newer)

    back_up(path, target)

    with raw(path) as before, raw(target) as after:
        assert list(after.iterdump()) == list(before.iterdump())


def test_a_read_only_backup_can_be_read(path: Path, target: Path) -> None:
    back_up(path, target)
    target.chmod(0o400)

    assert stored(target) == {"alice": tokens(1)}


@pytest.mark.slow
@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_a_restore_after_a_kill_is_the_backup_and_nothing_of_the_log(
    tmp_path: Path, target: Path, journal_mode: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tokens.db"
    with Process(  # dies while its log holds another state
        """
repository = TokenRepository(sys.argv[1], journal_mode=sys.argv[2])
repository.save("alice", tokens(1))
repository.backup(sys.argv[3])
with repository.transaction():
    repository.save("alice", tokens(2))
    repository.save("bob", tokens(3) | {"padding": "x" * 20_000_000})
    tell("there")
    wait()
        """,
        path,
        journal_mode,
        target,
    ) as process:
        assert process.line() == "there"
        process.kill()
    sidecars = {"-wal", "-shm"} if journal_mode == "wal" else {"-journal"}
    assert {f"tokens.db{suffix}" for suffix in sidecars} <= names(tmp_path)

    assert run(["--database", str(path), "restore", str(target)]) == 0

    assert "rotated" not in capsys.readouterr().out
    assert stored(path) == {"alice": tokens(1)}
    with raw(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# -- refused targets ------------------------------------------------------------------------------


def hard_link(path: Path, target: Path) -> Path:
    target.parent.mkdir()
    target.hardlink_to(path)
    return target


def through_a_link(path: Path, target: Path) -> Path:
    target.parent.symlink_to(path.parent)
    return target


ITSELF: dict[str, Callable[[Path, Path], Path]] = {
    "same": lambda path, _: path,
    "dots": lambda path, _: path.parent / ".." / "data" / "tokens.db",
    "hard link": hard_link,
    "linked directory": through_a_link,
}


@pytest.mark.parametrize("spelled", ITSELF.values(), ids=ITSELF)
def test_the_database_is_not_replaced_by_itself(
    path: Path, target: Path, spelled: Callable[[Path, Path], Path]
) -> None:
    with pytest.raises(StorageError, match="is the database itself"):
        back_up(path, spelled(path, target), replace=True)

    assert stored(path) == {"alice": tokens(1)}


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_the_log_of_the_database_is_not_replaced(path: Path, suffix: str) -> None:
    with TokenRepository(path) as repository:
        repository.save("alice", tokens(2))

        with pytest.raises(StorageError, match="is part of another database"):
            repository.backup(path.with_name(f"tokens.db{suffix}"), replace=True)

    assert stored(path) == {"alice": tokens(2)}


def test_an_existing_file_is_replaced_only_on_request(path: Path, target: Path) -> None:
    back_up(path, target)
    with TokenRepository(path) as repository:
        repository.save("alice", tokens(2))
    before = target.read_bytes()

    with pytest.raises(StorageError, match="already exists"):
        back_up(path, target)
    assert target.read_bytes() == before

    old = target.stat().st_ino
    back_up(path, target, replace=True)
    assert target.stat().st_ino != old  # replaced atomically: open readers keep the old file
    assert stored(target) == {"alice": tokens(2)}
    assert mode(target) == 0o600


@pytest.mark.parametrize("kind", ["symlink", "dangling", "directory", "pipe"])
def test_a_target_that_is_not_a_regular_file_is_not_replaced(
    path: Path, target: Path, kind: str
) -> None:
    target.parent.mkdir()
    other = target.with_name("other.db")
    match kind:
        case "symlink":
            other.write_text("mine")
            target.symlink_to(other)
        case "dangling":
            target.symlink_to(other)
        case "directory":
            target.mkdir()
        case "pipe":
            os.mkfifo(target)
    before = names(target.parent)

    with pytest.raises(InsecureStorageError, match=r"is (a symlink|not a regular file)"):
        back_up(path, target, replace=True)

    assert names(target.parent) == before
    assert not other.exists() or other.read_text() == "mine"


def test_a_database_in_use_is_not_replaced(path: Path, target: Path) -> None:
    with TokenRepository(target) as other:
        other.save("bob", tokens(5))

        with pytest.raises(StorageError, match="is a database in use"):
            back_up(path, target, replace=True)

        assert other.load("bob") == tokens(5)


@pytest.mark.slow
def test_a_stale_log_at_the_target_is_refused(path: Path, target: Path) -> None:
    with Process(
        """
repository = TokenRepository(sys.argv[1])
repository.save("bob", tokens(5))
tell("saved")
wait()
        """,
        target,
    ) as other:
        assert other.line() == "saved"
        other.kill()
    target.unlink()
    assert target.with_name("tokens.db-wal").stat().st_size

    with pytest.raises(StorageError, match="belongs to a database that is no longer"):
        back_up(path, target)

    assert not target.exists()


def test_a_backup_of_a_missing_database_fails_and_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no database to back up"):
        back_up(tmp_path / "data" / "tokens.db", tmp_path / "backups" / "tokens.db")

    assert not names(tmp_path)


def test_a_backup_of_another_applications_database_is_refused(path: Path, target: Path) -> None:
    with raw(path) as connection:
        connection.execute("PRAGMA application_id = 1")

    with pytest.raises(InsecureStorageError, match="not a tokenstore database"):
        back_up(path, target)

    assert not target.exists()


def test_a_backup_inside_a_transaction_is_refused(path: Path, target: Path) -> None:
    with TokenRepository(path) as repository:
        with repository.transaction():
            repository.save("alice", tokens(2))
            with pytest.raises(StorageError, match="inside a transaction"):
                repository.backup(target)
        repository.backup(target)

    assert stored(target) == {"alice": tokens(2)}


# -- errors ---------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    """Damage a page that the schema does not need."""
    with raw(path) as connection:
        name = "ix_refreshes_account_name_id"
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        page = connection.execute(query, (name,)).fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)


def test_a_damaged_database_does_not_replace_the_older_backup(path: Path, target: Path) -> None:
    back_up(path, target)
    before = target.read_bytes()
    damage(path)

    with pytest.raises(StorageError, match="damaged") as caught:
        back_up(path, target, replace=True)

    assert caught.value.path == str(path)
    assert target.read_bytes() == before
    assert names(target.parent) == {"tokens.db"}


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 6000, 30_000])
def test_a_full_disk_keeps_the_older_backup(path: Path, target: Path, size: int) -> None:
    back_up(path, target)
    with TokenRepository(path) as repository:
        repository.save("bob", tokens(2, padding="x" * 200_000))
    before = target.read_bytes()

    printed = python(
        """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
repository = TokenRepository(sys.argv[1])
repository.load("alice")  # -shm is made
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    repository.backup(sys.argv[2], replace=True)
    tell("backed up")
except StorageError as error:
    tell(type(error).__name__, error.path, error.errno is not None)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
tell(repository.load("alice") == tokens(1))
        """,
        path,
        target,
        size,
    )

    where = path if size == 0 else target
    assert printed.splitlines() in ([f"StorageError {w} True", "True"] for w in (where, target))
    assert target.read_bytes() == before
    assert names(target.parent) == {"tokens.db"}


@pytest.mark.slow
@needs_root
def test_a_backup_to_an_unwritable_directory_fails() -> None:
    printed = python(
        """
import logging, shutil, tempfile
logging.getLogger("tokenstore").addHandler(logging.NullHandler())
directory = Path(tempfile.mkdtemp())
path, target = directory / "tokens.db", directory / "backups" / "tokens.db"
with TokenRepository(path) as repository:
    repository.save("alice", tokens())
    repository.backup(target)
for file in (directory, *directory.rglob("*")):
    os.chown(file, 65534, 65534)
target.parent.chmod(0o500)

def work(number):
    become_nobody()
    with TokenRepository(path) as repository:
        for name in ("tokens.db", "other.db", "deeper/tokens.db"):
            try:
                repository.backup(target.parent / name, replace=True)
                tell("backed up")
            except StorageError as error:
                tell(error.errno, str(error).removeprefix(str(target.parent)))
        repository.backup(directory / "sound.db")
forked(1, work)
tell(sorted(p.name for p in target.parent.iterdir()), (directory / "sound.db").exists())
shutil.rmtree(directory)
        """
    ).splitlines()

    why = "Permission denied; check the path and its permissions"
    assert printed == [
        f"13 /tokens.db: {why}",
        f"13 /other.db: {why}",
        f"13 /deeper: {why}",
        "['tokens.db'] True",
    ]
    assert NOBODY == 65534


def test_a_backup_of_a_locked_database_times_out(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokens.db"
    with TokenRepository(path, journal_mode="delete") as repository:
        repository.save("alice", tokens(1))
    back_up(path, target)
    monkeypatch.setattr("tokenstore.storage.sqlite.engine.BUSY_TIMEOUT", 0.05)
    with raw(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match="stayed locked"):
            back_up(path, target, replace=True)
        other.execute("ROLLBACK")

    assert stored(target) == {"alice": tokens(1)}
    assert names(target.parent) == {"tokens.db"}


def test_a_backup_below_a_file_fails(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match="file"):
        back_up(path, tmp_path / "file" / "tokens.db")


def test_a_backup_deletes_the_temporary_files_of_a_killed_one(path: Path, target: Path) -> None:
    with Process(
        """
import tokenstore.storage.sqlite.backup
def killed(*_):
    tell("here")
    wait()
tokenstore.storage.sqlite.backup._require_sound = killed
TokenRepository(sys.argv[1]).backup(sys.argv[2])
        """,
        path,
        target,
    ) as process:
        assert process.line() == "here"
        left = names(target.parent)
        assert len(left) == 2  # a directory, and the copy in it
        back_up(path, target)  # while the other is at work nothing is swept
        assert names(target.parent) == {"tokens.db", *left}
        process.kill()

    back_up(path, target, replace=True)

    assert names(target.parent) == {"tokens.db"}


# -- the command ----------------------------------------------------------------------------------


def test_the_backup_command_prints_its_result(
    path: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*arguments: str) -> tuple[int, str, str]:
        code = run(["--database", str(path), "backup", str(target), *arguments])
        return code, *capsys.readouterr()

    assert command() == (0, f"backed up\t{target}\n", "")
    code, out, err = command()
    assert (code, out) == (1, "")
    assert err.endswith(
        f"tokenstore: {target} already exists; choose another file, or replace it\n"
    )
    code, out, err = command("--replace", "--json")
    assert (code, json.loads(out), err) == (0, {"backup": {"path": str(target)}}, "")
    assert stored(target) == {"alice": tokens(1)}


def test_the_backup_command_requires_a_file(path: Path, tmp_path: Path) -> None:
    assert run(["--database", str(path), "backup"]) == 2
    assert run(["--database", str(path), "backup", str(tmp_path)]) == 2
    assert run(["--database", str(tmp_path / "no.db"), "backup", str(tmp_path / "x")]) == 1
    assert names(tmp_path) == {"data", *(f"data/{name}" for name in names(path.parent))}
