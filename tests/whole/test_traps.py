"""The known traps of SQLite, SQLAlchemy and alembic, by number; many are tested in depth elsewhere.

T1-T5 transactions, T6 pools, T7 fork, T8 modes, T9-T10 paths, T11-T20 migrations, T21-T23 values,
T24 foreign files, T25-T27 versions and durability, T28 POSIX locks.
"""

from __future__ import annotations

import io
import logging
import os
import sqlite3
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from tests.helpers.stores import (
    ROOT,
    Process,
    driver_in_use,
    mode,
    names,
    newer_checkout,
    python,
    raw,
    tokens,
)
from tokenstore import (
    InvalidTokenError,
    SchemaTooNewError,
    StorageError,
    TokenRepository,
    migrate,
)
from tokenstore.storage.migrations import scripts, target_metadata
from tokenstore.storage.sqlite.database import SQLiteDatabase
from tokenstore.storage.sqlite.engine import driver_of, make_engine, pragma
from tokenstore.storage.tables import APPLICATION_ID, REVISION, VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tokenstore.storage.base import JournalMode


@pytest.fixture
def repository(path: Path) -> Iterator[TokenRepository]:
    with TokenRepository(path) as repository:
        repository.save("alice", tokens())
        yield repository


def test_t01_read_check_and_write_are_one_transaction(path: Path) -> None:
    def count(_: int) -> None:
        with TokenRepository(path) as repository:
            for _ in range(10):
                with repository.transaction():
                    assert repository.in_transaction()
                    found = (repository.load("counter") or {"count": 0})["count"]
                    repository.save("counter", {"access_token": "a", "count": found + 1})
                assert not driver_in_use(repository).in_transaction

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(count, range(4)))

    with TokenRepository(path) as repository:
        assert (repository.load("counter") or {})["count"] == 40


def test_t02_transactions_are_the_same_on_every_python(
    repository: TokenRepository,
) -> None:
    repository.load("alice")
    driver = driver_in_use(repository)

    assert driver.isolation_level is None
    if sys.version_info >= (3, 12):
        assert driver.autocommit == sqlite3.LEGACY_TRANSACTION_CONTROL


def test_t03_a_read_followed_by_a_write_never_conflicts(
    repository: TokenRepository, path: Path
) -> None:
    with Process(
        """
repository = TokenRepository(sys.argv[1])
repository.load("alice")
tell("ready")
wait()
tell("writing")
repository.save("bob", tokens())
tell("saved")
        """,
        path,
    ) as other:
        assert other.line() == "ready"
        with repository.transaction():
            found = repository.load("alice")
            other.go()
            assert other.line() == "writing"
            repository.save("alice", tokens(1))
        assert other.line() == "saved"

    assert found == tokens()
    assert repository.load("alice") == tokens(1)
    assert repository.load("bob") == tokens()


def test_t04_a_writer_inside_a_writer_fails_at_once(
    repository: TokenRepository, path: Path
) -> None:
    with (
        repository.transaction(),
        TokenRepository(path) as inner,
        pytest.raises(StorageError, match="inside a transaction"),
    ):
        inner.save("bob", tokens())


def test_t05_connecting_does_not_set_the_journal_mode(path: Path) -> None:
    with TokenRepository(path, journal_mode="delete") as repository:
        repository.save("alice", tokens())

    with raw(path) as other:
        other.execute("BEGIN IMMEDIATE")  # PRAGMA journal_mode would not wait for this
        with TokenRepository(path) as repository:
            assert repository.load("alice") == tokens()
    with TokenRepository(path, journal_mode="delete") as repository, raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        assert repository.load("alice") == tokens()


def test_t06_no_pool_runs_out_of_connections(path: Path) -> None:
    migrate.upgrade(path)
    engine = make_engine(path)

    connections = [engine.connect() for _ in range(30)]

    assert isinstance(engine.pool, NullPool)
    for connection in connections:
        connection.close()


@pytest.mark.slow
def test_t07_a_child_never_uses_its_parents_connection(path: Path) -> None:
    printed = python(
        """
repository = TokenRepository(sys.argv[1])
repository.save("alice", tokens())
def driver():
    return repository._database._connections.current().driver
assert driver() is not None
child = os.fork()
tell(driver())
repository.load("alice")
if not child:
    os._exit(0)
os.waitpid(child, 0)
repository.close()
        """,
        path,
    )

    assert printed == "None\nNone\n"


def test_t08_the_mode_is_set_before_sqlite_opens_the_file(path: Path) -> None:
    printed = python(
        """
import sqlite3
seen = []
def hook(event, arguments):
    if event == "sqlite3.connect":
        file = arguments[0].partition("file://")[2].partition("?")[0]
        seen.append(oct(os.stat(file).st_mode & 0o777) if os.path.exists(file) else "missing")
sys.addaudithook(hook)
TokenRepository(sys.argv[1]).save("alice", tokens())
tell(sorted(set(seen)))
        """,
        path,
        umask=0,
    )

    assert printed == "['0o600']\n"


@pytest.mark.parametrize("name", ["a?b.db", "a%20b.db", "a#b.db", "?mode=memory"])
def test_t09_a_path_is_not_a_url(tmp_path: Path, name: str) -> None:
    with TokenRepository(tmp_path / name) as repository:
        repository.save("alice", tokens())

    assert names(tmp_path) == {name, f"{name}-locks", f"{name}-locks/schema"}


def test_t10_a_path_may_contain_a_percent_sign(tmp_path: Path) -> None:
    (tmp_path / "%(here)s").mkdir()
    checkout = newer_checkout(tmp_path / "%(here)s")

    python(
        "migrate.upgrade(sys.argv[1]); migrate.check(sys.argv[1])",
        tmp_path / "%(here)s" / "100%.db",
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )


def test_t11_threads_can_migrate_different_databases(tmp_path: Path) -> None:
    def work(number: int) -> str:
        out = io.StringIO()
        migrate.upgrade(tmp_path / f"{number}.db")
        migrate.current(tmp_path / f"{number}.db", stdout=out)
        return out.getvalue()

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(12))) == [f"{REVISION} (head)\n"] * 12


def test_t12_processes_can_create_a_database_concurrently(path: Path) -> None:
    printed = python(
        """
def work(number):
    TokenRepository(sys.argv[1], upgrade=bool(number % 2)).save(str(number), tokens())
tell(forked(6, work))
        """,
        path,
    )

    assert printed == str([0] * 6) + "\n"


def test_t13_a_failed_migration_leaves_no_tables(path: Path) -> None:
    migrate.upgrade(path)

    def fail() -> None:
        with SQLiteDatabase(path).migration() as connection:
            connection.execute(sa.text("CREATE TABLE half (id INTEGER)"))
            raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fail()

    with raw(path) as connection:
        assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'half'").fetchall()


@pytest.mark.slow
def test_t14_a_recreated_table_keeps_its_rows(path: Path, tmp_path: Path) -> None:
    with TokenRepository(path) as repository:
        for number in range(20):
            repository.save(f"account-{number}", tokens(number))
    checkout = newer_checkout(tmp_path)

    for call in ("upgrade", "downgrade"):
        python(
            f"migrate.{call}(sys.argv[1])", path, env={**os.environ, "PYTHONPATH": str(checkout)}
        )

    with TokenRepository(path) as repository:
        assert len(list(repository.accounts())) == 20
        assert repository.load("account-7") == tokens(7)


def test_t15_every_key_and_index_has_a_name() -> None:
    assert {"pk", "ix", "uq", "ck", "fk"} <= target_metadata().naming_convention.keys()
    for table in target_metadata().tables.values():
        assert table.primary_key.name == f"pk_{table.name}"
        assert all(constraint.name for constraint in table.constraints)
        assert all(index.name for index in table.indexes)


def test_t16_only_migrations_create_tables() -> None:
    for file in (ROOT / "tokenstore").rglob("*.py"):
        assert "create_all" not in file.read_text(), file


def test_t17_a_newer_database_is_an_error_that_names_both_versions(path: Path) -> None:
    migrate.upgrade(path)
    with raw(path) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")

    calls: list[Any] = [
        lambda: TokenRepository(path).load("alice"),
        lambda: TokenRepository(path, upgrade=True).load("alice"),
        lambda: migrate.upgrade(path),
    ]
    for call in calls:
        with pytest.raises(SchemaTooNewError, match=f"9999.*{REVISION}"):
            call()


def test_t17_an_upgrade_leaves_a_private_backup(path: Path, tmp_path: Path) -> None:
    with TokenRepository(path) as repository:
        repository.save("alice", tokens())

    python(
        "migrate.upgrade(sys.argv[1])",
        path,
        env={**os.environ, "PYTHONPATH": str(newer_checkout(tmp_path))},
        umask=0,
    )

    [backup] = path.parent.glob("tokens.db-backup-*")
    assert mode(backup) == 0o600


def test_t18_the_wheel_includes_the_migrations() -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = configuration["tool"]["hatch"]["build"]["targets"]["wheel"]

    assert wheel["only-include"] == ["tokenstore", "migrations"]
    assert wheel["sources"] == {"migrations": "tokenstore/migrations"}
    assert list((scripts() / "versions").glob(f"{REVISION}_*.py"))


def test_t19_migrations_do_not_configure_logging(path: Path) -> None:
    host = logging.getLogger("t19.host")
    before = (logging.root.level, list(logging.root.handlers))

    migrate.upgrade(path)

    assert not host.disabled
    assert (logging.root.level, list(logging.root.handlers)) == before
    assert "fileConfig" not in (scripts() / "env.py").read_text()


def test_t20_creation_and_upgrade_print_nothing(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with TokenRepository(path, upgrade=True) as repository:
        repository.save("alice", tokens())
    migrate.upgrade(path)

    assert capfd.readouterr() == ("", "")


def test_t21_a_timestamp_is_kept_whatever_its_time_zone(
    repository: TokenRepository, zone: str
) -> None:
    moment = datetime(2026, 3, 29, 12, 0, tzinfo=timezone(timedelta(hours=-8)))
    assert zone

    repository.save("alice", {"access_token": "a", "expires_at": moment})

    found = repository.load("alice")
    assert found is not None
    assert found["expires_at"] == datetime(2026, 3, 29, 20, 0, tzinfo=UTC).timestamp()
    types = {type(column.type) for table in target_metadata().tables.values() for column in table.c}
    assert not types & {sa.DateTime, sa.Date, sa.TIMESTAMP}


def test_t22_neither_errors_nor_logs_show_a_parameter(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("sqlalchemy", "sqlalchemy.engine", "sqlalchemy.pool", "alembic"):
        caplog.set_level(logging.DEBUG, logger=name)
    saved = tokens() | {"access_token": "canary-a", "refresh_token": "canary-r", "x": "canary-x"}

    with TokenRepository(path) as repository:
        repository.save("alice", saved)
        repository.load("alice")
        record = repository.record("alice")
        assert record is not None
        refresh = repository.journal.begin(record, provider="p", reason="due", longest=60)
        list(repository.accounts())
        with raw(path) as other:
            other.execute("DROP TABLE accounts")
        with pytest.raises(StorageError) as caught:
            repository.save("alice", saved)

    shown = [caplog.text, str(caught.value), repr(caught.value), repr(record), repr(refresh)]
    shown += [repr(vars(caught.value)), repr(caught.value.__cause__)]
    assert "canary" not in "".join(shown)
    assert make_engine(path).hide_parameters


@pytest.mark.parametrize(
    "given",
    [{"x": 2**63}, {"x": -(2**70)}, {"x": "\ud800"}, {"x\0": "a\0b"}, {"expires_at": 9e99}],
    ids=["2**63", "-2**70", "surrogate", "nul", "huge"],
)
def test_t23_no_value_fails_in_the_driver(
    repository: TokenRepository, given: dict[str, Any]
) -> None:
    try:
        repository.save("bob", tokens() | given)
    except InvalidTokenError:
        assert repository.load("bob") is None
    else:
        assert repository.load("bob") == tokens() | given


def test_t23_two_unicode_forms_are_one_name(repository: TokenRepository) -> None:
    repository.save("e\u0301", tokens(1))

    assert repository.load("\u00e9") == tokens(1)


def test_t24_a_database_has_an_application_id_and_its_own_version_table(
    repository: TokenRepository, path: Path
) -> None:
    repository.load("alice")

    with raw(path) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        assert pragma(connection, "application_id") == APPLICATION_ID
    assert VERSION_TABLE in tables
    assert "alembic_version" not in tables


def test_t25_greenlet_is_not_needed(path: Path) -> None:
    printed = python(
        """
tell("greenlet" in sys.modules)
sys.modules["greenlet"] = None
with TokenRepository(sys.argv[1]) as repository:
    repository.save("alice", tokens())
    tell(repository.load("alice") == tokens())
        """,
        path,
    )

    assert printed.splitlines()[-1] == "True"


def test_t26_a_failed_begin_leaves_the_connection_usable(
    path: Path, repository: TokenRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenstore.storage.sqlite.engine.BUSY_TIMEOUT", 0.01)
    repository.close()
    with raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(20):
            with pytest.raises(StorageError, match="locked"):
                repository.save("bob", tokens())
        other.execute("ROLLBACK")

    repository.save("bob", tokens())

    assert repository.load("bob") == tokens()


def test_t27_a_commit_is_on_the_disk(path: Path) -> None:
    migrate.upgrade(path)

    modes: list[JournalMode] = ["wal", "delete"]
    for journal_mode in modes:
        repository = TokenRepository(path, journal_mode=journal_mode)
        repository.load("alice")
        assert pragma(driver_in_use(repository), "synchronous") == 3  # EXTRA
        assert pragma(driver_in_use(repository), "journal_mode") == journal_mode
        repository.close()
    with make_engine(path).connect() as connection:
        assert pragma(driver_of(connection), "synchronous") == 3


AT_WORK = """
from tokenstore import TokenManager
from tokenstore.doctor import examine
from tokenstore.jsonfiles import export_accounts, import_accounts
path, journal_mode = Path(sys.argv[1]), sys.argv[2]

def look(number):
    '''What a status, a second manager, a doctor and a backup do.'''
    with TokenManager(path, journal_mode=journal_mode) as manager:
        list(manager.accounts())
        manager.load_tokens("alice")
        manager.get_valid_token("alice")
        manager.save_tokens("alice", tokens(number))
        manager.delete_tokens("nobody")
    with TokenRepository(path, journal_mode=journal_mode, upgrade=True) as repository:
        list(repository.listing.records())
    import io
    migrate.current(path, stdout=io.StringIO())
    migrate.check(path, stdout=io.StringIO())
    migrate.upgrade(path)
    copy = path.parent / "copies" / "copy.db"
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        repository.backup(copy, replace=True)
    found = [*examine(path, fix=True), *examine(copy)]
    assert "error" not in {finding.severity for finding in found}, found
"""


@pytest.mark.slow
@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_t28_no_concurrent_operation_loses_writes(path: Path, journal_mode: str) -> None:
    printed = python(
        AT_WORK
        + """
def write(name):
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        for number in range(150):
            repository.save(f"{name}-{number}", tokens(number))
            tell(f"{name}-{number}")

def work(number):
    if number:  # opens and closes: a last close empties the log, if nobody seems to be there
        for step in range(150):
            with TokenRepository(path, journal_mode=journal_mode) as repository:
                repository.save(f"other{number}-{step}", tokens(step))
                tell(f"other{number}-{step}")
        return
    writing = threading.Thread(target=write, args=["first"])
    writing.start()
    step = 0
    while writing.is_alive():
        look(step)
        step += 1
    writing.join()

if forked(2, work) != [0, 0]:
    sys.exit(1)
        """,
        path,
        journal_mode,
    )

    acknowledged = set(printed.split())
    assert len(acknowledged) == 300
    with TokenRepository(path) as repository:
        assert acknowledged <= {account.name for account in repository.accounts()}
    with raw(path) as connection:
        assert pragma(connection, "integrity_check") == "ok"


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_t28_only_sqlite_opens_a_database_in_use(path: Path, journal_mode: str) -> None:
    printed = python(
        AT_WORK
        + """
live = {str(path) + suffix for suffix in ("", "-wal", "-shm", "-journal")}
opened, connected = [], []

def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        name = os.fsdecode(arguments[0])
        created = bool((arguments[2] or 0) & os.O_EXCL)
        if name in live or (name.startswith(str(path) + "-") and not created
                            and "-locks" not in name):
            opened.append(name)
    if event == "sqlite3.connect":
        connected.append(arguments[0])

import tokenstore.storage.sqlite.connector
tokenstore.storage.sqlite.connector._MODE_TIMEOUT = 0.05
sys.addaudithook(hook)
with TokenRepository(path, journal_mode=journal_mode) as repository:
    repository.save("alice", tokens())
    repository.save("bob", tokens())
    with repository.refresh_lock("alice", timeout=1):
        record = repository.record("alice")
        refresh = repository.journal.begin(record, provider="p", reason="due", longest=60)
    child = os.fork()
    if not child:
        repository.save("carol", tokens())
        os._exit(bool(opened))
    assert os.waitpid(child, 0)[1] == 0
    look(1)
    list(export_accounts(repository, path.parent / "exported"))
    list(import_accounts(repository, path.parent / "exported", replace=True))
    repository.delete("bob")
    path.chmod(0o644)
    with TokenRepository(path) as other:
        other.load("alice")
    with TokenRepository(path, journal_mode="delete" if journal_mode == "wal" else "wal") as other:
        try:
            other.load("alice")
        except StorageError:
            pass
migrate.downgrade(path, "base", x=["destroy=yes"])
tell(opened)
tell(len(connected) > 5)
        """,
        path,
        journal_mode,
    )

    assert printed == "[]\nTrue\n"


def test_t28_only_sqlite_opens_it_for_a_backup_before_an_upgrade(
    path: Path, tmp_path: Path
) -> None:
    with TokenRepository(path) as repository:
        repository.save("alice", tokens())

    printed = python(
        """
path = Path(sys.argv[1])
opened = []
def hook(event, arguments):
    if event == "open" and os.fsdecode(arguments[0] if not isinstance(arguments[0], int) else ""
                                       ) in {str(path) + s for s in ("", "-wal", "-shm")}:
        opened.append(arguments[0])
sys.addaudithook(hook)
with TokenRepository(path, upgrade=True) as repository:
    tell(repository.load("alice") == tokens())
tell(opened)
        """,
        path,
        env={**os.environ, "PYTHONPATH": str(newer_checkout(tmp_path))},
    )

    assert printed == "True\n[]\n"
