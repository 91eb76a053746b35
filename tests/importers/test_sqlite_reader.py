"""SQLite files of other programs, in every state in which they may be found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from globus_sdk.token_storage import SQLiteTokenStorage, TokenStorageData

from tests.helpers.stores import Process, names, open_files, python, raw, tokens
from tokenstore import TokenRepository
from tokenstore.importers import sqlite_reader
from tokenstore.importers.detect import read
from tokenstore.importers.formats import TokenFile, UnreadableError
from tokenstore.importers.sqlite_reader import NotSQLiteError, reading
from tokenstore.jsonfiles import find_files, import_accounts

ACCOUNT = "storage:x"
SECRET = "canary-77d0"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "storage.db"
    with closing(SQLiteTokenStorage(path)) as storage:
        data = TokenStorageData("x", None, "openid", SECRET, None, 1_800_000_000, None)
        storage.store_token_data_by_resource_server({"x": data})
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A storage of globus-sdk that nobody has open, in a directory of its own."""
    directory = tmp_path / "files"
    directory.mkdir()
    return copied(made, directory / "storage.db")


def copied(path: Path, target: Path) -> Path:
    shutil.copy(path, target)
    return target


def scope(path: Path) -> str:
    """Return what the one account of a storage says of its scope."""
    (account,) = read(path)
    assert isinstance(account, TokenFile)
    assert account.account_name == ACCOUNT
    return str(account.tokens.extra["scope"])


def reason(path: Path) -> str:
    (account,) = read(path)
    assert not isinstance(account, TokenFile)
    assert SECRET not in account.reason
    return account.reason


def contents(path: Path) -> str:
    """Tell all that lies in the directory; by another process, as opening a file drops locks."""
    paths = sorted(p for p in path.parent.iterdir() if not p.name.endswith("-shm"))
    done = subprocess.run(["cksum", *paths], check=True, capture_output=True, text=True)
    return done.stdout + "".join(str(p.stat().st_mtime_ns) for p in paths)


CHANGE = "UPDATE token_storage SET token_data_json = json_set(token_data_json, '$.scope', ?)"
PROGRAM = f"""
import sqlite3
CHANGE = {CHANGE!r}
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = " + sys.argv[2])
connection.execute(CHANGE, ("new",))
"""
END = """
tell("ready")
wait()
"""
KILLED = """
os.kill(os.getpid(), signal.SIGKILL)
"""
UNCOMMITTED = """
connection.execute("BEGIN IMMEDIATE")
connection.execute(CHANGE, ("never",))
"""
MODES = ["delete", "persist", "wal"]


def used(path: Path, journal_mode: str) -> Path:
    """Use a storage as a program does that then ends."""
    with raw(path) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.execute(CHANGE, ("new",))
    return path


def killed(path: Path, journal_mode: str, then: str = "") -> Path:
    """Use a storage as a program does that is killed."""
    with Process(PROGRAM + then + KILLED, path, journal_mode) as process:
        process.end()
    return path


# -- it can be read -------------------------------------------------------------------------------


@pytest.mark.parametrize("journal_mode", MODES)
def test_a_file_that_nobody_has_open_is_read_and_left_as_it_is(
    journal_mode: str, path: Path
) -> None:
    used(path, journal_mode)
    before = contents(path), names(path.parent)

    assert scope(path) == "new"
    assert (contents(path), names(path.parent)) == before
    assert open_files(path) == 0


@pytest.mark.parametrize("then", ["", UNCOMMITTED], ids=["idle", "writing"])
@pytest.mark.parametrize("journal_mode", MODES)
def test_a_file_that_a_program_has_open_is_read_and_left_as_it_is(
    journal_mode: str, then: str, path: Path
) -> None:
    with Process(PROGRAM + then + END, path, journal_mode) as program:
        assert program.line() == "ready"
        before = contents(path), names(path.parent)

        assert scope(path) == "new"
        assert (contents(path), names(path.parent)) == before


@pytest.mark.parametrize("then", ["", UNCOMMITTED], ids=["idle", "writing"])
def test_a_log_that_a_killed_program_left_is_read_and_left_as_it_is(then: str, path: Path) -> None:
    killed(path, "wal", then)
    before = contents(path), names(path.parent)

    assert scope(path) == "new"
    assert (contents(path), names(path.parent)) == before


def test_all_that_is_read_is_of_one_state(path: Path) -> None:
    again = "wait()\nconnection.execute(CHANGE, ('newer',))\n"
    query = "SELECT json_extract(token_data_json, '$.scope') FROM token_storage"
    with Process(PROGRAM + 'tell("ready")\n' + again + END, path, "wal") as program:
        assert program.line() == "ready"
        with reading(path) as connection:
            program.go()
            assert program.line() == "ready"
            assert connection.execute(query).fetchone() == ("new",)
        assert scope(path) == "newer"


@pytest.mark.parametrize("journal_mode", MODES)
def test_a_file_that_this_process_has_open_keeps_its_locks(journal_mode: str, path: Path) -> None:
    with raw(path) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.execute("BEGIN IMMEDIATE")

        assert scope(path) == "openid"

        assert is_locked(path)


def is_locked(path: Path) -> bool:
    code = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    connection.execute("BEGIN IMMEDIATE")
    tell("free")
except sqlite3.OperationalError as error:
    tell(error)
"""
    return python(code, path) == "database is locked\n"


def test_what_lies_behind_a_link_is_read_with_its_log(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with Process(PROGRAM + END, path, "wal") as program:
        assert program.line() == "ready"

        (account,) = read(link)

    assert isinstance(account, TokenFile)
    assert (account.account_name, account.tokens.extra["scope"]) == ("link:x", "new")


@pytest.mark.parametrize("name", ["a?mode=rwc.db", "a#b.db", "50%20.db", "\u00e9 \u2603.db"])
def test_any_file_name_will_do(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    odd = path.rename(path.with_name(name))

    (account,) = read(odd.relative_to(path.parent))

    assert isinstance(account, TokenFile)
    assert names(path.parent) == {name}


def test_what_may_only_be_read_is_read_if_that_can_be_done(
    made: Path, open_directory: Path
) -> None:
    directories = {name: open_directory / name for name in (*MODES, "log", "no index", "secret")}
    for directory in directories.values():
        directory.mkdir()
        copied(made, directory / "storage.db")
    for journal_mode in MODES:
        used(directories[journal_mode] / "storage.db", journal_mode)
    for name in ("log", "no index"):
        killed(directories[name] / "storage.db", "wal")
    (directories["no index"] / "storage.db-shm").unlink()
    for path in open_directory.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o000 if path.parent.name == "secret" else 0o444)

    printed = python(
        """
from tokenstore.importers.detect import read
become_nobody()
for path in sorted(Path(sys.argv[1]).glob("*/storage.db")):
    before = sorted(path.parent.iterdir())
    (account,) = read(path)
    told = getattr(account, "reason", None) or account.tokens.extra["scope"]
    tell(path.parent.name, "-", told, "-", before == sorted(path.parent.iterdir()))
        """,
        open_directory,
    )

    told = dict(line.split(" - ", 1) for line in printed.splitlines())
    assert told.pop("no index").startswith("cannot be read without writing")
    assert told.pop("secret") == "Permission denied - True"
    assert told == dict.fromkeys((*MODES, "log"), "new - True")


# -- it cannot be read ----------------------------------------------------------------------------


def test_a_change_that_was_interrupted_is_not_taken_back_by_us(path: Path) -> None:
    spill = """
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN")
for number in range(100):
    connection.execute("INSERT INTO token_storage VALUES ('a', ?, ?)", (number, "x" * 2000))
"""
    killed(path, "delete", spill)
    before = contents(path), names(path.parent)

    assert reason(path).startswith("cannot be read without writing: a change was interrupted")
    assert (contents(path), names(path.parent)) == before
    with raw(path) as connection:
        connection.execute("SELECT * FROM token_storage")
    assert scope(path) == "new"


def test_a_file_that_stays_locked_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_reader, "_BUSY_TIMEOUT", 0.0)
    with Process(
        PROGRAM + "connection.execute('BEGIN EXCLUSIVE')" + END, path, "delete"
    ) as program:
        assert program.line() == "ready"

        assert reason(path).startswith("stayed locked by another program; try again")

    assert scope(path) == "new"


def test_a_file_that_is_opened_while_it_is_read_as_if_nobody_did_is_reported(path: Path) -> None:
    used(path, "wal")

    with (
        pytest.raises(UnreadableError, match="another program opened it"),
        Process(PROGRAM + END, path, "wal") as program,
        reading(path),
    ):
        assert program.line() == "ready"


def overwritten(path: Path, start: int, what: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(what)


def test_a_damaged_file_is_reported(path: Path) -> None:
    page = 4096
    size = path.stat().st_size
    for start in range(page, size, page):
        overwritten(path, start, SECRET.encode() * 300)

    assert reason(path) == "is a SQLite database that is damaged (SQLITE_CORRUPT)"


def test_a_file_with_a_damaged_head_is_reported(path: Path) -> None:
    overwritten(path, 16, bytes(60))

    assert reason(path) == "is a SQLite database that is damaged"


@pytest.mark.parametrize("size", [20, 1000, 4097, 8000])
def test_a_file_that_was_cut_is_reported(size: int, path: Path) -> None:
    os.truncate(path, size)

    assert reason(path) == "is a SQLite database that is damaged"


def test_a_file_that_was_cut_between_two_pages_is_reported(path: Path) -> None:
    os.truncate(path, 4096)

    assert reason(path).startswith("is a SQLite database that is damaged")


OTHERS = {
    "no table": "DROP TABLE token_storage",
    "another table": "ALTER TABLE token_storage RENAME COLUMN token_data_json TO token",
    "endless view": (
        "DROP TABLE token_storage; CREATE VIEW token_storage AS WITH RECURSIVE n(namespace) AS "
        "(VALUES ('a') UNION ALL SELECT 'a' FROM n) "
        "SELECT namespace, namespace AS resource_server, namespace AS token_data_json FROM n"
    ),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_a_database_of_something_else_is_reported(change: str, path: Path) -> None:
    with raw(path) as connection:
        connection.executescript(change)

    assert reason(path) == "a SQLite database, but none with tokens that are known here"
    assert find_files(path.parent) == []


@pytest.mark.parametrize("size", [512, 1024, 4096])
def test_a_json_file_of_the_size_of_a_database_is_one_all_the_same(
    size: int, tmp_path: Path
) -> None:
    path = tmp_path / "alice.json"
    path.write_text(json.dumps({"access_token": "a"}).ljust(size))

    (account,) = read(path)

    assert isinstance(account, TokenFile)
    assert names(tmp_path) == {"alice.json"}
    with pytest.raises(NotSQLiteError), reading(path):
        pass


# -- our own --------------------------------------------------------------------------------------


def test_a_database_of_ours_is_refused_with_what_to_do_and_keeps_its_locks(
    tmp_path: Path,
) -> None:
    with TokenRepository(tmp_path / "tokens.db") as repository:
        repository.save("alice", tokens())
        files = sorted(p for p in tmp_path.iterdir() if p.is_file())
        with repository.transaction():
            results = [(p.name, account) for p in files for account in read(p)]
            locked = is_locked(Path(repository.name))
        again = list(import_accounts(repository, files))

    told = {name: getattr(account, "reason", "") for name, account in results}
    assert set(told) == {"tokens.db", "tokens.db-wal", "tokens.db-shm"}
    assert "--database FILE export DIR" in told.pop("tokens.db")
    assert set(told.values()) == {"belongs to the database 'tokens.db'; import that"}
    assert locked
    assert {result.outcome for result in again} == {"failed"}


# -- directories ----------------------------------------------------------------------------------


def test_of_a_directory_storages_are_taken_that_are_called_as_globus_sdk_calls_them(
    path: Path,
) -> None:
    directory = path.parent
    for name in ("b.sqlite", "c.bin", ".hidden.db", "d.db.bak"):
        shutil.copy(path, directory / name)
    (directory / "a.json").write_text("{}")
    (directory / "text.db").write_text("x" * 1024)
    (directory / "empty.db").touch()
    (directory / "gone.db").symlink_to("nowhere")
    (directory / "deeper.db").mkdir()
    os.mkfifo(directory / "pipe.db")
    with TokenRepository(directory / "tokens.db") as repository:
        repository.save("alice", tokens())
    damaged = copied(path, directory / "damaged.db")
    overwritten(damaged, 4096, b"\xff" * 4096)
    overwritten(damaged, 100, b"\xff" * 3000)

    assert find_files(directory) == [directory / "a.json", damaged, path]
    assert not any(open_files(p) for p in directory.glob("*.db"))
