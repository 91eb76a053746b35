"""The doctor on a SQLite file: every problem is real, not simulated."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.doctor import bad, begin, listing, look, only, tokens
from tests.helpers.refreshes import SOON, Call
from tests.helpers.stores import names, newer_checkout, python, raw
from tokenstore import TokenRepository, migrate
from tokenstore.cli.app import run
from tokenstore.storage.tables import REVISION, VERSION_TABLE

if TYPE_CHECKING:
    from pathlib import Path

ORDER = [
    *("permissions", "leftovers", "file system", "schema", "integrity", "journal mode", "sqlite"),
    *("shared tokens", "logins", "interrupted"),
]


def test_a_sound_store_is_told_to_be_sound(path: Path) -> None:
    found = look(path)

    assert [finding.check for finding in found if finding.severity == "ok"] == [
        check for check in ORDER if check != "sqlite"
    ]
    assert not bad(path)


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_looking_changes_nothing(tmp_path: Path, journal_mode: Any) -> None:
    path = tmp_path / "tokens.db"
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        repository.save("alice", tokens())
    (tmp_path / ".tokens.db.0123456789abcdef.tmp").write_text("belongs to a database")
    before = listing(tmp_path)

    found = look(path)

    assert listing(tmp_path) == before
    assert journal_mode in {finding.message for finding in found}


def test_looking_for_interrupted_refreshes_makes_no_locks(path: Path, tmp_path: Path) -> None:
    begin(path, "alice")
    with TokenRepository(path) as repository:
        copy = repository.backup(tmp_path / "copy" / "tokens.db")

    assert only(copy).check == "interrupted"
    assert names(copy.parent) == {"tokens.db"}


def test_a_database_that_is_not_there_is_told_and_not_made(tmp_path: Path) -> None:
    found = only(tmp_path / "elsewhere" / "tokens.db")

    assert (found.check, found.severity) == ("database", "warning")
    assert "no database" in found.message
    assert not names(tmp_path)


def test_the_log_of_a_database_that_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "tokens.db-wal").write_bytes(b"x" * 100)

    assert "belongs to a database" in only(tmp_path / "tokens.db").message


@pytest.mark.parametrize("kind", ["symlink", "directory", "foreign", "text"])
def test_what_is_no_store_is_told_and_left_alone(path: Path, tmp_path: Path, kind: str) -> None:
    other = tmp_path / "other.db"
    match kind:
        case "symlink":
            other.symlink_to(path)
        case "directory":
            other.mkdir()
        case "foreign":
            with raw(other) as connection:
                connection.execute("CREATE TABLE mail (body)")
        case "text":
            other.write_text("CANARY")
    before = listing(tmp_path)

    found = only(other, fix=True)

    assert (found.check, found.severity) == ("database", "error")
    assert str(other) in found.message
    assert listing(tmp_path) == before


def test_an_older_schema_names_the_command_that_upgrades_it(path: Path) -> None:
    migrate.downgrade(path, "0001")

    found = only(path, fix=True)

    assert (found.check, found.severity) == ("schema", "error")
    assert f"0001 is older than {REVISION}" in found.message
    assert run(str(found.hint).removeprefix("run: tokenstore ").replace("'", "").split()) == 0
    assert not bad(path)


def test_a_newer_schema_needs_a_newer_tokenstore(path: Path, tmp_path: Path) -> None:
    newer = {**os.environ, "PYTHONPATH": str(newer_checkout(tmp_path))}
    python("migrate.upgrade(sys.argv[1])", path, env=newer)

    found = only(path)

    assert "is newer than" in found.message
    assert found.hint == "upgrade tokenstore"


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        (
            "CREATE TRIGGER k AFTER UPDATE ON accounts BEGIN DELETE FROM refreshes; END",
            "trigger 'k'",
        ),
        ("CREATE VIEW v AS SELECT refresh_token FROM accounts", "view 'v'"),
    ],
)
def test_s18_code_in_the_database_is_told(path: Path, statement: str, named: str) -> None:
    with raw(path) as connection:
        connection.execute(statement)

    found = only(path)

    assert (found.check, found.severity) == ("triggers", "error")
    assert named in found.message


def test_s9_a_second_name_of_the_database_is_told(path: Path) -> None:
    path.with_name("other.db").hardlink_to(path)

    found = [finding for finding in bad(path) if finding.check == "permissions"]

    assert len(found) == 1
    assert found[0].severity == "error"
    assert "has 2 names" in found[0].message
    assert "-samefile" in str(found[0].hint)


@pytest.mark.parametrize(
    "change",
    ["ALTER TABLE accounts ADD COLUMN x TEXT", "DROP INDEX ix_refreshes_account_name_id"],
)
def test_tables_that_somebody_changed_are_told(path: Path, change: str) -> None:
    with raw(path) as connection:
        connection.execute(change)

    found = only(path)

    assert (found.check, found.severity) == ("schema", "error")
    assert "db check" in str(found.hint)
    assert len(found.message) < 100


@pytest.mark.parametrize("gone", ["accounts", "refreshes", VERSION_TABLE])
def test_a_table_that_is_gone_is_told(path: Path, gone: str) -> None:
    with raw(path) as connection:
        connection.execute(f"DROP TABLE {gone}")

    assert "schema" in {finding.check for finding in bad(path)}


def damage_page(path: Path, name: str) -> None:
    """Overwrite the first page of a table or an index."""
    with raw(path) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        page = connection.execute(query, (name,)).fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)


@pytest.mark.parametrize("name", ["accounts", "ix_refreshes_account_name_id"])
def test_a_damaged_page_is_told(path: Path, name: str) -> None:
    damage_page(path, name)

    found = [finding for finding in bad(path) if finding.check == "integrity"]

    assert [finding.severity for finding in found] == ["error"]
    assert "damaged" in found[0].message
    assert "backup" in str(found[0].hint)


def test_a_damaged_header_is_told(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\0" * 100)

    assert only(path).severity == "error"


@pytest.mark.parametrize("byte", [b"X", b"\xff"], ids=["text", "no text"])
@pytest.mark.parametrize("field", ["access", "refresh"])
def test_a_damaged_token_is_told_with_its_account(path: Path, field: str, byte: bytes) -> None:
    content = path.read_bytes()
    assert content.count(f"CANARY-{field}-2".encode()) == 1
    path.write_bytes(
        content.replace(f"CANARY-{field}-2".encode(), f"CANARY-{field}-".encode() + byte)
    )

    [found] = [finding for finding in bad(path) if finding.check == "integrity"]

    assert (found.severity, found.accounts) == ("error", ("bob",))
    assert "1 account" in found.message


def test_a_damaged_name_is_told(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with raw(path) as connection:
        connection.execute(
            "UPDATE accounts SET account_name = CAST(x'62ff62' AS TEXT) WHERE account_name = 'bob'"
        )

    [found] = [finding for finding in bad(path) if finding.check == "integrity"]

    assert found.accounts == (ascii("b\udcffb"),)
    assert run(["--database", str(path), "doctor"]) == 1
    assert run(["--database", str(path), "doctor", "--json"]) == 1
    assert "Traceback" not in "".join(capsys.readouterr())


def test_a_log_that_has_grown_long_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenstore.doctor.sqlite._LARGE_LOG", 1 << 20)
    with raw(path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM accounts").fetchall()
        with TokenRepository(path) as repository:
            for number in range(3):
                repository.save("carol", tokens(3, padding=f"{number}" * 500_000))
        found = only(path)
        reader.execute("ROLLBACK")

    assert (found.check, found.severity) == ("journal mode", "warning")
    with TokenRepository(path) as repository:  # what is advised helps: the reader is gone
        repository.save("carol", tokens(4))
    assert not bad(path)


def test_accounts_with_one_refresh_token_are_told_without_it(path: Path) -> None:
    with TokenRepository(path) as repository:
        for name in ("carol", "dave"):
            repository.save(name, tokens(1))
        for name in ("erin", "frank"):
            repository.save(name, {"access_token": "CANARY"})

    [found] = [finding for finding in bad(path) if finding.check == "shared tokens"]

    assert found.accounts == ("alice", "carol", "dave")
    assert found.message.startswith("3 accounts")


def test_the_doctor_takes_no_lock_from_those_who_write(path: Path) -> None:
    """While a thread is inside a transaction, the doctor looks and does not wait for it."""
    inside, done = threading.Event(), threading.Event()

    def write() -> None:
        with TokenRepository(path) as repository, repository.transaction():
            repository.save("carol", tokens(3))
            inside.set()
            assert done.wait(SOON)

    writing = Call(write)
    assert inside.wait(SOON)
    assert not bad(path)
    done.set()
    writing.result()
    with TokenRepository(path) as repository:
        assert repository.load("carol") == tokens(3)
