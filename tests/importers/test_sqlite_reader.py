"""SQLite databases of other programs, in every state: open, locked, interrupted, damaged."""

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
from tokenstore.importers.detect import read_accounts
from tokenstore.importers.formats import ImportedAccount, UnreadableFileError
from tokenstore.importers.sqlite_reader import NotSQLiteError, open_read_only
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
    """A globus-sdk token storage that no program has open, in its own directory."""
    directory = tmp_path / "files"
    directory.mkdir()
    return copied(made, directory / "storage.db")


def copied(path: Path, target: Path) -> Path:
    shutil.copy(path, target)
    return target


def scope(path: Path) -> str:
    """Return the scope of the only account in a storage."""
    (account,) = read_accounts(path)
    assert isinstance(account, ImportedAccount)
    assert account.account_name == ACCOUNT
    return str(account.tokens.extra["scope"])


def reason(path: Path) -> str:
    (account,) = read_accounts(path)
    assert not isinstance(account, ImportedAccount)
    assert SECRET not in account.reason
    return account.reason


def contents(path: Path) -> str:
    """Return checksums and times of a directory's files; read by another process to keep locks."""
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
    """Change a storage, and close it."""
    with raw(path) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.execute(CHANGE, ("new",))
    return path


def killed(path: Path, journal_mode: str, then: str = "") -> Path:
    """Change a storage with a program that is killed."""
    with Process(PROGRAM + then + KILLED, path, journal_mode) as process:
        process.end()
    return path


# -- readable -------------------------------------------------------------------------------------


@pytest.mark.parametrize("journal_mode", MODES)
def test_a_closed_database_is_read_and_not_changed(journal_mode: str, path: Path) -> None:
    used(path, journal_mode)
    before = contents(path), names(path.parent)

    assert scope(path) == "new"
    assert (contents(path), names(path.parent)) == before
    assert open_files(path) == 0


@pytest.mark.slow
@pytest.mark.parametrize("then", ["", UNCOMMITTED], ids=["idle", "writing"])
@pytest.mark.parametrize("journal_mode", MODES)
def test_an_open_database_is_read_and_not_changed(journal_mode: str, then: str, path: Path) -> None:
    with Process(PROGRAM + then + END, path, journal_mode) as program:
        assert program.line() == "ready"
        before = contents(path), names(path.parent)

        assert scope(path) == "new"
        assert (contents(path), names(path.parent)) == before


@pytest.mark.parametrize("then", ["", UNCOMMITTED], ids=["idle", "writing"])
def test_the_wal_of_a_killed_program_is_read_and_not_changed(then: str, path: Path) -> None:
    killed(path, "wal", then)
    before = contents(path), names(path.parent)

    assert scope(path) == "new"
    assert (contents(path), names(path.parent)) == before


def test_reads_see_one_snapshot(path: Path) -> None:
    again = "wait()\nconnection.execute(CHANGE, ('newer',))\n"
    query = "SELECT json_extract(token_data_json, '$.scope') FROM token_storage"
    with Process(PROGRAM + 'tell("ready")\n' + again + END, path, "wal") as program:
        assert program.line() == "ready"
        with open_read_only(path) as connection:
            program.go()
            assert program.line() == "ready"
            assert connection.execute(query).fetchone() == ("new",)
        assert scope(path) == "newer"


@pytest.mark.parametrize("journal_mode", MODES)
def test_a_database_that_this_process_has_open_keeps_its_locks(
    journal_mode: str, path: Path
) -> None:
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


def test_the_target_of_a_symlink_is_read_with_its_wal(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with Process(PROGRAM + END, path, "wal") as program:
        assert program.line() == "ready"

        (account,) = read_accounts(link)

    assert isinstance(account, ImportedAccount)
    assert (account.account_name, account.tokens.extra["scope"]) == ("link:x", "new")


@pytest.mark.parametrize("name", ["a?mode=rwc.db", "a#b.db", "50%20.db", "\u00e9 \u2603.db"])
def test_file_names_may_have_special_characters(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    odd = path.rename(path.with_name(name))

    (account,) = read_accounts(odd.relative_to(path.parent))

    assert isinstance(account, ImportedAccount)
    assert names(path.parent) == {name}


@pytest.mark.slow
def test_a_database_without_write_permission_is_read_if_possible(
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
from tokenstore.importers.detect import read_accounts
become_nobody()
for path in sorted(Path(sys.argv[1]).glob("*/storage.db")):
    before = sorted(path.parent.iterdir())
    (account,) = read_accounts(path)
    reasons = getattr(account, "reason", None) or account.tokens.extra["scope"]
    tell(path.parent.name, "-", reasons, "-", before == sorted(path.parent.iterdir()))
        """,
        open_directory,
    )

    reasons = dict(line.split(" - ", 1) for line in printed.splitlines())
    assert reasons.pop("no index").startswith("cannot be read without writing")
    assert reasons.pop("secret") == "Permission denied - True"
    assert reasons == dict.fromkeys((*MODES, "log"), "new - True")


# -- unreadable -----------------------------------------------------------------------------------


def test_an_interrupted_transaction_is_not_rolled_back(path: Path) -> None:
    spill = """
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN")
for number in range(100):
    connection.execute("INSERT INTO token_storage VALUES ('a', ?, ?)", (number, "x" * 2000))
"""
    killed(path, "delete", spill)
    before = contents(path), names(path.parent)

    assert reason(path).startswith("cannot be read without writing: a transaction was interrupted")
    assert (contents(path), names(path.parent)) == before
    with raw(path) as connection:
        connection.execute("SELECT * FROM token_storage")
    assert scope(path) == "new"


def test_a_locked_database_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_reader, "_BUSY_TIMEOUT", 0.0)
    with Process(
        PROGRAM + "connection.execute('BEGIN EXCLUSIVE')" + END, path, "delete"
    ) as program:
        assert program.line() == "ready"

        assert reason(path).startswith("stayed locked by another program; try again")

    assert scope(path) == "new"


def test_a_database_opened_during_an_immutable_read_is_reported(path: Path) -> None:
    used(path, "wal")

    with (
        pytest.raises(UnreadableFileError, match="another program opened it"),
        Process(PROGRAM + END, path, "wal") as program,
        open_read_only(path),
    ):
        assert program.line() == "ready"


def overwritten(path: Path, start: int, what: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(what)


def test_a_damaged_database_is_reported(path: Path) -> None:
    page = 4096
    size = path.stat().st_size
    for start in range(page, size, page):
        overwritten(path, start, SECRET.encode() * 300)

    assert reason(path) == "is a damaged SQLite database (SQLITE_CORRUPT)"


def test_a_damaged_header_is_reported(path: Path) -> None:
    overwritten(path, 16, bytes(60))

    assert reason(path) == "is a damaged SQLite database"


@pytest.mark.parametrize("size", [20, 1000, 4097, 8000])
def test_a_truncated_database_is_reported(size: int, path: Path) -> None:
    os.truncate(path, size)

    assert reason(path) == "is a damaged SQLite database"


def test_a_database_truncated_between_two_pages_is_reported(path: Path) -> None:
    os.truncate(path, 4096)

    assert reason(path).startswith("is a damaged SQLite database")


OTHERS = {
    "no table": "DROP TABLE token_storage",
    "another table": "ALTER TABLE token_storage RENAME COLUMN token_data_json TO token",
    "endless view": (
        "DROP TABLE token_storage; CREATE VIEW token_storage AS WITH RECURSIVE n(namespace) AS "
        "(VALUES ('a') UNION ALL SELECT 'a' FROM n) "
        "SELECT namespace, namespace AS resource_server, namespace AS token_data_json FROM n"
    ),
    "S16: virtual table over an endless view": (
        "DROP TABLE token_storage; CREATE VIEW v(id, namespace, resource_server, token_data_json) "
        "AS WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) "
        "SELECT i, 'x', 'y', '{}' FROM n; CREATE VIRTUAL TABLE token_storage USING "
        "fts5(namespace, resource_server, token_data_json, content='v', content_rowid='id')"
    ),
    "computed columns": (
        "DROP TABLE token_storage; CREATE TABLE token_storage (namespace, resource_server, "
        "token_data_json AS (zeroblob(1000000000))); INSERT INTO token_storage VALUES ('a', 'b')"
    ),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_a_database_of_another_kind_is_reported(change: str, path: Path) -> None:
    with raw(path) as connection:
        connection.executescript(change)

    assert reason(path) == "is a SQLite database without tokens in a supported format"
    assert find_files(path.parent) == []


ENDLESS = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) "


@pytest.mark.parametrize(
    "query", ["SELECT count(*) FROM n", "SELECT i FROM n ORDER BY i", "SELECT i FROM n"]
)
def test_no_query_of_a_file_is_endless(query: str, path: Path) -> None:
    with (
        pytest.raises(UnreadableFileError, match="cannot be read to an end"),
        open_read_only(path) as connection,
    ):
        for _ in connection.execute(ENDLESS + query):
            pass


def test_a_file_of_many_small_rows_is_read_to_the_end(path: Path) -> None:
    with raw(path) as connection:
        connection.executescript(
            "CREATE TABLE small (a); WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL "
            "SELECT i + 1 FROM n LIMIT 300000) INSERT INTO small SELECT i % 2 FROM n"
        )
    query = "SELECT a, count(*) FROM (SELECT a FROM small ORDER BY a DESC) GROUP BY a"

    with open_read_only(path) as connection:
        assert dict(connection.execute(query)) == {0: 150_000, 1: 150_000}


@pytest.mark.parametrize("size", [512, 1024, 4096])
def test_a_json_file_with_the_size_of_a_database_is_read(size: int, tmp_path: Path) -> None:
    path = tmp_path / "alice.json"
    path.write_text(json.dumps({"access_token": "a"}).ljust(size))

    (account,) = read_accounts(path)

    assert isinstance(account, ImportedAccount)
    assert names(tmp_path) == {"alice.json"}
    with pytest.raises(NotSQLiteError), open_read_only(path):
        pass


# -- tokenstore's databases -----------------------------------------------------------------------


def test_a_tokenstore_database_is_refused_with_a_remedy_and_keeps_its_locks(
    tmp_path: Path,
) -> None:
    with TokenRepository(tmp_path / "tokens.db") as repository:
        repository.save("alice", tokens())
        files = sorted(p for p in tmp_path.iterdir() if p.is_file())
        with repository.transaction():
            results = [(p.name, account) for p in files for account in read_accounts(p)]
            locked = is_locked(Path(repository.name))
        again = list(import_accounts(repository, files))

    reasons = {name: getattr(account, "reason", "") for name, account in results}
    assert set(reasons) == {"tokens.db", "tokens.db-wal", "tokens.db-shm"}
    assert "--database FILE export DIR" in reasons.pop("tokens.db")
    assert set(reasons.values()) == {"belongs to the database 'tokens.db'; import that file"}
    assert locked
    assert {result.outcome for result in again} == {"failed"}


# -- directories ----------------------------------------------------------------------------------


def test_token_storages_named_db_are_found_in_a_directory(
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
