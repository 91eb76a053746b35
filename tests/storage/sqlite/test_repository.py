"""The repository on SQLite: query plans, and the bytes that deleted secrets leave in the files."""

from __future__ import annotations

import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.refreshes import until
from tests.helpers.stores import becomes, begin, holding, raw, token_set, tokens
from tokenstore import StorageError, TokenRepository
from tokenstore.storage import statements
from tokenstore.storage.query import CompiledStatement
from tokenstore.storage.sqlite.database import SQLiteDatabase
from tokenstore.storage.sqlite.engine import BUSY_TIMEOUT, pragma

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tokenstore.storage.base import JournalMode

JOURNAL_MODES = ["wal", "delete"]


@pytest.fixture
def repository(path: Path) -> Iterator[TokenRepository]:
    with TokenRepository(path) as repository:
        yield repository


# -- deleted secrets ------------------------------------------------------------------------------


@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
def test_a_deleted_secret_leaves_the_files_at_once(path: Path, journal_mode: Any) -> None:
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        repository.save("alice", tokens(padding="canary " * 3000) | {"refresh_token": "canary"})
        repository.save("bob", tokens())
        assert holding(path.parent, "canary")

        repository.delete("alice")

        assert holding(path.parent, "canary") == []


@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
def test_a_rotated_secret_leaves_the_files_at_once(path: Path, journal_mode: Any) -> None:
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        repository.save("alice", tokens() | {"refresh_token": "canary-1"})

        repository.journal.finish(begin(repository), becomes(token_set(2)), provider="p")

        assert holding(path.parent, "canary-1") == []
        assert holding(path.parent, "refresh-2")


@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
def test_a_replaced_secret_leaves_the_files_with_the_last_close(
    path: Path, journal_mode: Any
) -> None:
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        repository.save("alice", tokens() | {"refresh_token": "canary-1"})
        repository.save("alice", tokens(2))

    assert holding(path.parent, "canary-1") == []


def test_a_secret_that_a_reader_needs_leaves_the_files_with_the_next_write(
    repository: TokenRepository, path: Path
) -> None:
    repository.save("alice", tokens() | {"refresh_token": "canary"})
    with raw(path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM accounts").fetchall()
        repository.delete("alice")
        assert holding(path.parent, "canary")
        reader.execute("ROLLBACK")

        repository.save("bob", tokens())

        assert holding(path.parent, "canary") == []


# -- the statements -------------------------------------------------------------------------------

STATEMENTS = {
    name: value for name, value in vars(statements).items() if isinstance(value, CompiledStatement)
}


@pytest.mark.parametrize("name", [n for n in STATEMENTS if n != "COUNT_BY_PROVIDER"])  # of all
def test_no_statement_scans_a_table(repository: TokenRepository, path: Path, name: str) -> None:
    repository.save("alice", tokens())
    statement = STATEMENTS[name].sqlite

    with raw(path) as connection:
        values = statement.values(defaultdict(lambda: 1) | statement.constants)
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement.sql}", values).fetchall()

    steps = {step for *_, step in plan} - {"SCAN CONSTANT ROW"}  # a select without a table
    assert not [step for step in steps if "SCAN" in step or "TEMP B-TREE" in step]
    assert steps or statement.sql.startswith("INSERT")


def test_reading_writes_nothing(repository: TokenRepository, path: Path) -> None:
    repository.save("alice", tokens())
    repository.close()
    before = path.read_bytes()

    repository.load("alice")
    repository.access_token("alice")
    list(repository.accounts())
    repository.delete("nobody")
    repository.close()

    assert path.read_bytes() == before


# -- errors, and the content of the files ---------------------------------------------------------


def test_a_storage_error_has_the_path(tmp_path: Path) -> None:
    (tmp_path / "tokens.db").write_text("not a database, and longer than a header would be")

    with TokenRepository(tmp_path / "tokens.db") as repository:
        reads = (repository.load, repository.record, repository.access_token)
        for call in (*reads, repository.delete):
            with pytest.raises(StorageError) as caught:
                call("alice")
            assert caught.value.path == str(tmp_path / "tokens.db")


@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
def test_a_replaced_refresh_token_leaves_the_files(path: Path, journal_mode: JournalMode) -> None:
    old = "refresh-token-of-an-earlier-sign-in"
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        repository.save("alice", tokens(refresh_token=old))
        repository.save("alice", tokens(1))

        written = b"".join(p.read_bytes() for p in path.parent.glob("tokens.db*") if p.is_file())

    assert old.encode() not in written


def bytes_of(path: Path) -> bytes:
    return b"".join(p.read_bytes() for p in path.parent.glob("tokens.db*") if p.is_file())


@pytest.mark.parametrize("rush", [0.0, 1e9], ids=["a rush that lasts", "a rush"])
def test_the_last_of_a_series_of_writers_empties_the_log(
    path: Path, monkeypatch: pytest.MonkeyPatch, rush: float
) -> None:
    monkeypatch.setattr("tokenstore.storage.sqlite.database._MAX_SCRUB_DELAY", rush)
    names = [f"account-{number}" for number in range(8)]
    emptied: list[str] = []

    def note(said: str) -> None:
        if "checkpoint" in said:
            emptied.append(said)

    def replace(name: str) -> None:
        repository.load(name)  # opens this thread's connection
        assert isinstance(database, SQLiteDatabase)
        driver = database._connections.current().driver
        assert driver is not None
        driver.set_trace_callback(note)
        ready.wait()
        repository.save(name, tokens(refresh_token=f"new-{name}"))

    with TokenRepository(path) as others, TokenRepository(path) as repository:
        others.save("bob", tokens())  # so that SQLite keeps the log in any case
        database = repository._database
        assert isinstance(database, SQLiteDatabase)
        for name in names:
            repository.save(name, tokens(refresh_token=f"old-{name}"))
        ready = threading.Barrier(len(names) + 1)
        with ThreadPoolExecutor(len(names)) as threads:
            saves = [threads.submit(replace, name) for name in names]
            with repository.transaction():
                ready.wait()
                until(lambda: len(database._connections.write_lock._waiting) == len(names))
            for save in saves:
                save.result()

        assert b"old-" not in bytes_of(path)
    assert len(emptied) == (1 if rush else len(names))


def test_close_empties_the_log_that_a_reader_has_protected(path: Path) -> None:
    old = "refresh-token-of-a-deleted-account"
    with TokenRepository(path) as repository:
        repository.save("alice", tokens(refresh_token=old))
        with raw(path) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM accounts").fetchone()
            repository.delete("alice")
        assert old.encode() in bytes_of(path)
        with ThreadPoolExecutor(1) as threads:
            threads.submit(repository.close).result()

        assert old.encode() not in bytes_of(path)


def test_emptying_the_log_keeps_the_busy_timeout(path: Path) -> None:
    with TokenRepository(path) as repository:
        for number in range(2):
            repository.save("alice", tokens(refresh_token=f"refresh-{number}"))
        database = repository._database
        assert isinstance(database, SQLiteDatabase)
        driver = database._connections.current().driver
        assert driver is not None

        assert pragma(driver, "busy_timeout") == BUSY_TIMEOUT * 1000


def test_the_next_writer_repeats_a_scrub_that_a_reader_prevented(path: Path) -> None:
    old = "refresh-token-of-a-deleted-account"
    with TokenRepository(path) as repository:
        repository.save("alice", tokens(refresh_token=old))
        repository.save("bob", tokens())
        with raw(path) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM accounts").fetchone()
            repository.delete("alice")
            reader.execute("COMMIT")
        with ThreadPoolExecutor(1) as threads:
            threads.submit(repository.save, "bob", tokens(1)).result()

        written = b"".join(p.read_bytes() for p in path.parent.glob("tokens.db*") if p.is_file())

    assert old.encode() not in written


# -- interrupts -----------------------------------------------------------------------------------


def test_a_transaction_that_an_interrupt_left_open_is_rolled_back(path: Path) -> None:
    with TokenRepository(path) as repository:
        repository.save("alice", tokens())
        database = repository._database
        assert isinstance(database, SQLiteDatabase)
        driver = database._connections.current().driver
        assert driver is not None
        driver.execute("BEGIN IMMEDIATE")
        driver.execute("DELETE FROM accounts")

        assert repository.load("alice") == tokens()

        with TokenRepository(path) as another:
            another.save("alice", tokens(1))
        driver.execute("BEGIN IMMEDIATE")
        repository.save("bob", tokens())
        assert [account.name for account in repository.accounts()] == ["alice", "bob"]


def test_an_interrupt_while_reading_damaged_text_does_not_quote_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: bytes) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenstore.storage.sqlite.engine.decode_leniently", interrupted)
    with TokenRepository(path) as repository:
        repository.save("alice", tokens())
        with raw(path) as connection:
            connection.execute(
                "UPDATE accounts SET refresh_token = CAST(x'63616e617279ff' AS TEXT)"
            )

        with pytest.raises(KeyboardInterrupt) as caught:
            repository.load("alice")

    error: BaseException | None = caught.value
    while error is not None:
        assert "canary" not in repr(error)
        error = error.__context__
