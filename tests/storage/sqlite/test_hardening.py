"""Faults of the storage study that only SQLite has: D1, D3, D11, D12, D15, D20."""

from __future__ import annotations

import errno
import os
import sqlite3
from typing import TYPE_CHECKING

import pytest

from tests.helpers.stores import names, newer_checkout, open_files, python, raw, tokens
from tokenstore import (
    InsecureStorageError,
    SchemaOutdatedError,
    StorageError,
    TokenRepository,
    doctor,
    migrate,
)
from tokenstore.storage.sqlite.connections import WriteLock
from tokenstore.storage.sqlite.database import SQLiteDatabase
from tokenstore.storage.sqlite.engine import LEAST_VERSION, driver_of, make_engine, pragma
from tokenstore.storage.tables import REVISION, VERSION_TABLE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def filled(path: Path) -> Path:
    with TokenRepository(path) as repository:
        repository.save("alice", tokens(1))
    return path


def set_revision(path: Path, revision: str) -> None:
    with raw(path) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = ?", [revision])


# -- D1: durable in delete mode --------------------------------------------------------------------


def test_d1_delete_mode_is_durable_also_while_it_is_migrated(path: Path) -> None:
    with TokenRepository(path, journal_mode="delete") as repository:
        repository.save("alice", tokens(1))
        database = repository._database
        with database.migration() as connection:
            assert pragma(driver_of(connection), "journal_mode") == "delete"
            assert pragma(driver_of(connection), "synchronous") == 3
        with database.inspection() as connection:
            assert pragma(driver_of(connection), "temp_store") == 2


# -- D3: what is damaged and what is not -----------------------------------------------------------


@pytest.mark.parametrize("recorded", ["0002", "0003", "0004"])
def test_d3_a_wrong_record_is_named_and_corrected(filled: Path, recorded: str) -> None:
    set_revision(filled, recorded)

    with pytest.raises(StorageError, match=f"recorded as schema {recorded}.*{REVISION}") as caught:
        migrate.upgrade(filled)

    assert "damaged" not in str(caught.value)
    assert "db stamp" in str(caught.value)
    assert not list(filled.parent.glob("*-backup-*"))
    findings = {finding.check: finding for finding in doctor.examine(filled)}
    assert "db stamp" in str(findings["schema"].hint)
    assert migrate.stamp(filled) == REVISION
    with TokenRepository(filled) as repository:
        assert repository.load("alice") == tokens(1)


def test_d3_an_empty_version_table_is_corrected_too(filled: Path) -> None:
    with raw(filled) as connection:
        connection.execute(f"DELETE FROM {VERSION_TABLE}")

    with pytest.raises(StorageError, match="db stamp"):
        migrate.upgrade(filled)

    assert migrate.stamp(filled) == REVISION
    with TokenRepository(filled) as repository:
        assert repository.load("alice") == tokens(1)


def test_d3_tables_of_no_revision_are_not_stamped(filled: Path) -> None:
    with raw(filled) as connection:
        connection.execute("ALTER TABLE accounts ADD COLUMN stray TEXT")

    with pytest.raises(StorageError, match="not those of any schema"):
        migrate.stamp(filled)


def test_d3_a_store_that_was_downgraded_says_so(filled: Path) -> None:
    with TokenRepository(filled) as repository:
        assert repository.load("alice") == tokens(1)
        python("migrate.downgrade(sys.argv[1], '0002')", filled)

        with pytest.raises(SchemaOutdatedError, match="0002"):
            repository.load("alice")
        with pytest.raises(SchemaOutdatedError, match="0002"):
            repository.save("alice", tokens(2))
        migrate.upgrade(filled)
        assert repository.load("alice") == tokens(1)


def test_d3_an_old_sqlite_is_named(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))

    least = ".".join(map(str, LEAST_VERSION))
    with TokenRepository(filled) as repository, pytest.raises(StorageError, match=least) as caught:
        repository.load("alice")

    assert "too old" in str(caught.value)


# -- D11: failures leave nothing -------------------------------------------------------------------

FAILING = f"""
from alembic import op
revision, down_revision = "{int(REVISION) + 1:04}", "{REVISION}"
def upgrade():
    op.execute("DELETE FROM accounts")
    op.execute("INSERT INTO nowhere VALUES (1)")
"""


@pytest.mark.slow
def test_d11_failed_upgrades_leave_no_copies(filled: Path, tmp_path: Path) -> None:
    checkout = newer_checkout(tmp_path, FAILING)
    code = """
for _ in range(3):
    try:
        migrate.upgrade(sys.argv[1])
    except StorageError as error:
        tell("damaged" in str(error), "nowhere" in str(error))
"""
    before = {name for name in names(tmp_path) if name.startswith("tokens.db")}

    printed = python(code, filled, env={**os.environ, "PYTHONPATH": str(checkout)})

    assert printed == "False True\n" * 3
    assert {name for name in names(tmp_path) if name.startswith("tokens.db")} == before


def test_d11_a_copy_that_fails_leaves_no_journal(filled: Path, tmp_path: Path) -> None:
    with TokenRepository(filled) as repository:
        for number in range(200):
            repository.save(f"{number}", tokens(number, filler="x" * 2000))
    (tmp_path / "copies").mkdir()
    code = """
import resource
repository = TokenRepository(sys.argv[1])
repository.load("alice")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    repository.backup(sys.argv[2])
except StorageError as error:
    tell("failed")
"""
    assert python(code, filled, tmp_path / "copies" / "copy.db") == "failed\n"
    assert names(tmp_path / "copies") == set()


# -- D12: no error leaves untyped ------------------------------------------------------------------


def test_d12_a_lack_of_descriptors_is_not_a_lack_of_permissions(filled: Path) -> None:
    code = """
import resource
repository = TokenRepository(sys.argv[1])
repository.load("alice")
repository.close()
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
for left in range(8):
    for attempt in (lambda: repository.load("alice"), lambda: repository.save("bob", tokens(2))):
        try:
            attempt()
        except StorageError as error:
            tell(left, error.errno, "writable" in str(error))
        repository.close()
    os.close(taken.pop())
tell("end", repository.load("alice") == tokens(1))
"""
    *failed, end = python(code, filled).splitlines()

    assert end == "end True"
    assert failed
    assert {line.split(" ", 1)[1] for line in failed} == {f"{errno.EMFILE} False"}


@pytest.mark.parametrize("length", [224, 240, 247, 248, 250, 255, 256, 300])
def test_d12_a_long_name_is_a_storage_error(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("n" * length)
    with TokenRepository(path) as repository:
        with pytest.raises(StorageError) as caught:
            repository.save("alice", tokens())
        assert caught.value.errno == errno.ENAMETOOLONG
        if length + len("-journal") <= 255:
            assert repository.load("alice") is None
        else:
            with pytest.raises(StorageError, match="choose a shorter name"):
                repository.load("alice")
    assert names(tmp_path) <= {f"{path.name}-locks", f"{path.name}-locks/schema"}


def test_d12_the_longest_name_works(tmp_path: Path) -> None:
    with TokenRepository(tmp_path / ("n" * 223)) as repository:
        repository.save("alice", tokens())
        assert repository.load("alice") == tokens()


@pytest.mark.parametrize("length", [477, 479, 480, 490, 500, 504, 520])
def test_d12_a_long_path_works_or_says_so(tmp_path: Path, length: int) -> None:
    directory = tmp_path
    while len(str(directory)) < length - 120:
        directory /= "d" * 100
    path = directory / ("n" * (length - len(str(directory)) - 1))
    assert len(str(path)) == length
    with TokenRepository(path) as repository:
        if length <= 479:
            repository.save("alice", tokens())
            assert repository.load("alice") == tokens()
        else:
            with pytest.raises(StorageError, match="choose a shorter path"):
                repository.save("alice", tokens())


def test_d12_a_name_may_contain_what_means_something_in_a_url(tmp_path: Path) -> None:
    path = tmp_path / "a?b#c%20&d=.db"
    with TokenRepository(path) as repository:
        repository.save("alice", tokens())
        repository.backup(tmp_path / "copy?mode=memory.db")

    assert {path.name, "copy?mode=memory.db"} <= names(tmp_path)


# -- D15: restored from a dump ---------------------------------------------------------------------


@pytest.fixture
def dumped(filled: Path) -> Path:
    new = filled.with_name("new.db")
    with raw(filled) as connection:
        dump = "\n".join(connection.iterdump())
    with raw(new) as connection:
        connection.executescript(dump)
    return new


def test_d15_a_database_from_a_dump_is_adopted_on_request(dumped: Path) -> None:
    with TokenRepository(dumped, upgrade=True) as repository:
        with pytest.raises(InsecureStorageError, match=r"application_id.*dump.*db upgrade"):
            repository.load("alice")

        migrate.upgrade(dumped)

        assert repository.load("alice") == tokens(1)
        repository.save("bob", tokens(2))


def test_d15_another_applications_tables_are_not_adopted(dumped: Path) -> None:
    with raw(dumped) as connection:
        connection.execute("ALTER TABLE accounts RENAME TO customers")

    with pytest.raises(InsecureStorageError, match="is not a tokenstore database"):
        migrate.upgrade(dumped)

    with raw(dumped) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (0,)


# -- D20: two paths to one store -------------------------------------------------------------------


def test_d20_two_paths_to_one_store_are_noticed_at_once(filled: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(filled.parent, target_is_directory=True)
    with TokenRepository(filled) as one, TokenRepository(link / filled.name) as two:
        with one.transaction():
            with pytest.raises(StorageError, match="this thread is inside a transaction"):
                two.save("bob", tokens(2))
            assert two.in_transaction()
        two.save("bob", tokens(2))


def test_d20_a_mounted_path_is_the_same_file(filled: Path) -> None:
    with TokenRepository(filled) as one, TokenRepository(filled) as two:
        # As through a bind mount, where the path says nothing.
        assert isinstance(two._database, SQLiteDatabase)
        two._database._connections._write_lock = WriteLock()
        with one.transaction(), pytest.raises(StorageError, match="inside a transaction"):
            two.save("bob", tokens(2))


def test_nothing_stays_open(filled: Path) -> None:
    with make_engine(filled).connect() as connection:
        assert pragma(driver_of(connection), "synchronous") == 3
    assert not open_files(filled)
