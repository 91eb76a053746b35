from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from tests.helpers.stores import raw, tokens
from tokenstore import InsecureStorageError, StorageError, TokenRepository
from tokenstore.storage.query import CompiledStatement
from tokenstore.storage.sqlite.engine import driver_of, make_engine, pragma
from tokenstore.storage.sqlite.errors import error_name, sqlite_error, translated
from tokenstore.storage.tables import APPLICATION_ID, accounts

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with TokenRepository(tmp_path / "tokens.db") as repository:
        repository.save("alice", tokens())
    return tmp_path / "tokens.db"


@pytest.fixture
def connection(path: Path) -> Iterator[sa.Connection]:
    with make_engine(path).connect() as connection:
        yield connection


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("journal_mode", "wal"),
        ("synchronous", 3),  # D1: EXTRA, which a rollback journal needs
        ("temp_store", 2),  # S11: in memory
        ("secure_delete", 1),
        ("busy_timeout", 30_000),
        ("application_id", APPLICATION_ID),
        ("integrity_check", "ok"),
    ],
)
def test_a_connection_has_its_pragmas(connection: sa.Connection, name: str, value: object) -> None:
    assert pragma(driver_of(connection), name) == value


def test_the_driver_begins_no_transaction_by_itself(connection: sa.Connection) -> None:
    driver = driver_of(connection)

    driver.execute("UPDATE accounts SET provider = 'p'")

    assert driver.isolation_level is None
    assert not driver.in_transaction


def test_a_transaction_acquires_the_write_lock_at_once(
    connection: sa.Connection, path: Path
) -> None:
    with (
        connection.begin(),
        raw(path, timeout=0) as other,
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        other.execute("BEGIN IMMEDIATE")


def test_a_rollback_includes_tables(connection: sa.Connection) -> None:
    transaction = connection.begin()
    connection.execute(sa.text("CREATE TABLE half (id INTEGER)"))
    transaction.rollback()

    assert "half" not in sa.inspect(connection).get_table_names()


def test_a_failed_begin_leaves_the_connection_usable(path: Path) -> None:
    with make_engine(path).connect() as connection, raw(path) as other:
        driver_of(connection).execute("PRAGMA busy_timeout = 0")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            connection.begin()
        other.execute("ROLLBACK")

        with connection.begin():
            connection.execute(accounts.update().values(provider="p"))

        assert connection.execute(sa.select(accounts.c.provider)).scalar() == "p"


def test_connections_are_not_pooled(path: Path) -> None:
    engine = make_engine(path)

    with engine.connect() as first, engine.connect() as second:
        assert driver_of(first) is not driver_of(second)
    assert isinstance(engine.pool, NullPool)


def test_a_missing_file_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(sa.exc.OperationalError, match="unable to open"):
        make_engine(tmp_path / "tokens.db").connect()

    assert not (tmp_path / "tokens.db").exists()


@pytest.mark.parametrize(
    "name",
    [
        "a?b.db",
        "a%20b.db",
        "a%b.db",
        "a#b.db",
        "a b.db",
        "a&mode=memory.db",
        "a'b\"c.db",
        "ä€😀.db",
        os.fsdecode(b"latin-\xe9.db"),
        "file:a.db",
        ":memory:x",
        "~tokens.db",
    ],
    ids=ascii,
)
def test_a_path_may_contain_any_character(tmp_path: Path, name: str) -> None:
    with TokenRepository(tmp_path / name) as repository:
        repository.save("alice", tokens())

    with TokenRepository(tmp_path / name) as repository:
        assert repository.load("alice") == tokens()
    assert {p.name for p in tmp_path.iterdir()} == {name, f"{name}-locks"}


def test_a_path_may_begin_with_two_slashes(tmp_path: Path) -> None:
    with TokenRepository(f"/{tmp_path}/tokens.db") as repository:
        repository.save("alice", tokens())

        assert repository.load("alice") == tokens()
    assert (tmp_path / "tokens.db").is_file()


def test_a_compiled_statement_has_its_constants_and_the_order_of_its_values() -> None:
    query = CompiledStatement(
        sa.select(accounts.c.provider).where(
            accounts.c.account_name == sa.bindparam("name"), accounts.c.version == 7
        )
    )

    assert query.sqlite.values({"name": "alice"}) == ("alice", 7)
    assert query.sqlite.sql.count("?") == 2


def test_an_error_of_sqlalchemy_shows_no_parameter(connection: sa.Connection) -> None:
    with pytest.raises(sa.exc.IntegrityError) as caught, connection.begin():
        connection.execute(
            accounts.insert().values(
                account_name="alice", access_token="canary", extra="", version=1
            )
        )

    assert "canary" not in str(caught.value)
    assert "canary" not in str(sqlite_error(Path("tokens.db"), caught.value))


def driver_error(name: str) -> sqlite3.Error:
    error = sqlite3.OperationalError("what SQLite says")
    error.sqlite_errorname = name
    return error


@pytest.mark.parametrize(
    ("name", "number", "cls", "text"),
    [
        ("SQLITE_FULL", errno.ENOSPC, StorageError, "no space"),
        ("SQLITE_READONLY", errno.EACCES, StorageError, "must be writable"),
        ("SQLITE_READONLY_DIRECTORY", errno.EACCES, StorageError, "must be writable"),
        ("SQLITE_CANTOPEN", errno.EACCES, StorageError, "must be writable"),
        ("SQLITE_NOTADB", None, InsecureStorageError, "not a tokenstore database"),
        ("SQLITE_CORRUPT", errno.EIO, StorageError, "damaged"),
        ("SQLITE_BUSY", errno.EBUSY, StorageError, "locked by another process"),
        ("SQLITE_BUSY_SNAPSHOT", errno.EBUSY, StorageError, "locked by another process"),
        ("SQLITE_IOERR_WRITE", errno.EIO, StorageError, "the disk reported an error"),
        ("SQLITE_ERROR", None, StorageError, "db check"),
    ],
)
def test_an_error_has_its_cause_and_its_path(
    name: str, number: int | None, cls: type[StorageError], text: str
) -> None:
    error = sqlite_error(Path("/x/tokens.db"), driver_error(name))

    assert type(error) is cls
    assert error.errno == number
    assert error.path == "/x/tokens.db"
    assert str(error).startswith("/x/tokens.db")
    assert text in str(error)
    assert name in str(error)


def test_an_error_without_a_name_gets_a_general_one() -> None:
    assert error_name(sqlite3.ProgrammingError("closed")) == "SQLITE_ERROR"


def test_a_translated_error_has_no_context(path: Path) -> None:
    with (
        closing(sqlite3.connect(path)) as connection,
        pytest.raises(StorageError) as caught,
        translated(path),
    ):
        connection.execute("INSERT INTO accounts (account_name) VALUES (?)", ["canary"])

    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "canary" not in repr(caught.value)
