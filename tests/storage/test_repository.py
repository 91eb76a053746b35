from __future__ import annotations

import math
import threading
import unicodedata
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.refreshes import Clock, until
from tests.helpers.stores import LATER, holding, python, raw, tokens
from tokenstore import InvalidTokenError, StorageError, TokenRepository
from tokenstore.models.failures import Failure
from tokenstore.models.tokens import TokenSet
from tokenstore.storage import statements
from tokenstore.storage.query import Query
from tokenstore.storage.sqlite.database import SQLiteDatabase
from tokenstore.storage.sqlite.engine import BUSY_TIMEOUT, pragma

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tokenstore.storage.base import JournalMode
    from tokenstore.storage.journal import Refresh

NOW = 1_800_000_000.0
JOURNAL_MODES = ["wal", "delete"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.db"


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def repository(path: Path, clock: Clock) -> Iterator[TokenRepository]:
    with TokenRepository(path, clock=clock) as repository:
        yield repository


def failure(kind: Any = "reauthorization", **more: Any) -> Failure:
    return Failure(kind=kind, message="the provider said no", client="client", **more)


def begin(repository: TokenRepository, name: str = "alice") -> Refresh:
    record = repository.record(name)
    assert record is not None
    return repository.journal.begin(record, provider="p", reason="due")


def token_set(number: int) -> TokenSet:
    return TokenSet(
        access_token=f"access-{number}", refresh_token=f"refresh-{number}", expires_at=LATER
    )


def history(path: Path, columns: str = "outcome") -> list[Any]:
    with raw(path) as connection:
        rows = connection.execute(f"SELECT {columns} FROM refreshes ORDER BY id").fetchall()
    return [row[0] if len(row) == 1 else row for row in rows]


# -- save and load --------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(repository: TokenRepository) -> None:
    saved = tokens(scope=["a", "b"], nested={"x": [1, None, {"y": "ä€😀"}]}, empty="", none=None)

    repository.save("alice", saved)

    assert repository.load("alice") == saved


def test_an_unknown_account_is_none(repository: TokenRepository) -> None:
    repository.save("alice", tokens())

    assert repository.load("bob") is None
    assert repository.record("bob") is None
    assert repository.access("bob") is None


def test_saving_again_replaces_every_field(repository: TokenRepository) -> None:
    repository.save("alice", tokens(1, scope="a", id_token="x"))

    repository.save("alice", {"access_token": "only"})

    assert repository.load("alice") == {"access_token": "only"}


def test_a_lifetime_becomes_a_moment(repository: TokenRepository) -> None:
    repository.save("alice", {"access_token": "a", "expires_in": 3600})

    found = repository.load("alice")
    assert found is not None
    assert found["expires_at"] == NOW + 3600


def test_saving_clears_a_failure_and_keeps_the_provider(repository: TokenRepository) -> None:
    repository.save("alice", tokens(1), provider="google")
    repository.journal.finish(begin(repository), failure(), provider="google")

    repository.save("alice", tokens(2))

    record = repository.record("alice")
    assert record is not None
    assert (record.failure, record.provider, record.refreshed_at) == (None, "google", None)


def test_a_provider_can_be_named_anew(repository: TokenRepository) -> None:
    repository.save("alice", tokens(), provider="google")

    repository.save("alice", tokens(), provider="microsoft")

    record = repository.record("alice")
    assert record is not None
    assert record.provider == "microsoft"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"access_token": ""}, "access_token"),
        ({"access_token": "a\nb"}, "access_token"),
        ({"access_token": "a", "refresh_token": ""}, "refresh_token"),
        ({"access_token": "a", "expires_at": "soon"}, "expires_at"),
        ({"access_token": "a", "x": {1, 2}}, "x"),
        ({"access_token": "a", "x": math.nan}, "x"),
        ({"access_token": "\ud800"}, "access_token"),
    ],
    ids=["empty", "newline", "empty-refresh", "moment", "set", "nan", "surrogate"],
)
def test_what_is_no_token_set_is_refused_and_writes_nothing(
    repository: TokenRepository, path: Path, given: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidTokenError) as caught:
        repository.save("alice", given)

    assert caught.value.field == field
    assert not path.exists()


NAMES = ["alice@example.com", "a/b", "..", "  spaces ", "ä€😀", "' OR 1=1 --", "%s", "x" * 512]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_names_an_account(repository: TokenRepository, name: str) -> None:
    repository.save(name, tokens())

    assert repository.load(name) == tokens()
    assert [account.name for account in repository.accounts()] == [name]
    assert repository.delete(name)
    assert repository.load(name) is None


@pytest.mark.parametrize("name", ["", "x" * 513, "a\0b", "a\nb", "\ud800", None, 7], ids=ascii)
@pytest.mark.parametrize("call", ["save", "load", "delete", "record"])
def test_what_is_no_name_is_refused(repository: TokenRepository, name: Any, call: str) -> None:
    with pytest.raises(InvalidTokenError, match="account_name"):
        repository.save(name, tokens()) if call == "save" else getattr(repository, call)(name)


def test_two_spellings_of_a_name_are_one_account(repository: TokenRepository) -> None:
    composed, decomposed = (unicodedata.normalize(form, "José") for form in ("NFC", "NFD"))
    assert composed != decomposed

    repository.save(decomposed, tokens(1))
    repository.save(composed, tokens(2))

    assert repository.load(decomposed) == repository.load(composed) == tokens(2)
    assert len(list(repository.accounts())) == 1


def test_names_that_differ_in_case_are_two_accounts(repository: TokenRepository) -> None:
    repository.save("Alice", tokens(1))
    repository.save("alice", tokens(2))

    assert repository.load("Alice") == tokens(1)


# -- put ------------------------------------------------------------------------------------------


def test_keeping_leaves_an_account_as_it_is(repository: TokenRepository) -> None:
    assert repository.put("alice", token_set(1), existing="keep")
    assert not repository.put("alice", token_set(2), existing="keep")

    assert repository.load("alice") == tokens(1)


@pytest.mark.parametrize(
    ("stored", "given", "replaced"),
    [
        (NOW, NOW + 1, True),
        (NOW, NOW, False),
        (NOW, NOW - 1, False),
        (None, NOW, True),
        (NOW, None, False),
        (None, None, False),
    ],
)
def test_only_newer_tokens_replace_older_ones(
    repository: TokenRepository, stored: float | None, given: float | None, replaced: bool
) -> None:
    repository.put("alice", TokenSet(access_token="old", expires_at=stored))

    done = repository.put(
        "alice", TokenSet(access_token="new", expires_at=given), existing="keep_newer"
    )

    found = repository.load("alice")
    assert found is not None
    assert (done, found["access_token"]) == (replaced, "new" if replaced else "old")


# -- delete ---------------------------------------------------------------------------------------


def test_delete_tells_whether_there_was_an_account(repository: TokenRepository) -> None:
    repository.save("alice", tokens())

    assert repository.delete("alice") is True
    assert repository.delete("alice") is False


def test_delete_forgets_the_history_too(repository: TokenRepository, path: Path) -> None:
    for name in ("alice", "bob"):
        repository.save(name, tokens())
        repository.journal.finish(begin(repository, name), token_set(1), provider="p")

    repository.delete("alice")

    assert history(path, "account_name") == ["bob"]


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

        repository.journal.finish(begin(repository), token_set(2), provider="p")

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


def test_a_secret_that_a_reader_still_sees_leaves_the_files_with_the_next_write(
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


# -- accounts -------------------------------------------------------------------------------------


def test_accounts_come_in_the_order_of_names(repository: TokenRepository) -> None:
    given = ["b", "a", "B", "ä", "😀", "\uffee", "a/b", "Z"]
    for name in given:
        repository.save(name, tokens())

    assert [account.name for account in repository.accounts()] == sorted(given)
    assert [record.account_name for record in repository.listing.records()] == sorted(given)


def test_pages_miss_and_repeat_nothing(
    repository: TokenRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenstore.storage.listing._PAGE", 3)
    names = [f"{number:02}" for number in range(10)]
    with repository.transaction():
        for name in names:
            repository.save(name, tokens())

    assert [account.name for account in repository.accounts()] == names


def test_accounts_that_change_while_they_are_listed_hinder_nobody(
    repository: TokenRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenstore.storage.listing._PAGE", 2)
    for name in "abcdef":
        repository.save(name, tokens())

    seen = []
    for account in repository.accounts():
        seen.append(account.name)
        repository.delete(account.name)

    assert seen == list("abcdef")
    assert list(repository.accounts()) == []


def test_an_account_is_told_without_secrets(repository: TokenRepository) -> None:
    repository.save("alice", tokens(), provider="google")

    [account] = repository.accounts()

    known = (account.name, account.provider, account.state, account.expires_at)
    assert known == ("alice", "google", "valid", LATER)
    assert (account.refreshed_at, account.last_error) == (None, None)
    assert "access-0" not in repr(account)
    assert "refresh-0" not in repr(repository.record("alice"))


@pytest.mark.parametrize(
    ("given", "state"),
    [
        ({"expires_at": NOW + 301}, "valid"),
        ({"expires_at": NOW + 300}, "due"),
        ({"expires_at": NOW - 1}, "due"),
        ({"expires_at": None}, "due"),
        ({"expires_at": NOW + 301, "refresh_token": None}, "valid"),
        ({"expires_at": NOW, "refresh_token": None}, "sign_in"),
    ],
)
def test_the_state_of_an_account_follows_its_tokens(
    repository: TokenRepository, given: dict[str, Any], state: str
) -> None:
    repository.save("alice", tokens() | given)

    assert [account.state for account in repository.accounts()] == [state]


@pytest.mark.parametrize(
    ("why", "state"),
    [
        (failure("reauthorization"), "sign_in"),
        (failure("transient", retry_at=NOW + 60), "retry_later"),
        (failure("transient", retry_at=NOW), "due"),
        (failure("transient"), "due"),
        (failure("client_rejected"), "due"),
    ],
)
def test_the_state_of_an_account_follows_its_last_failure(
    repository: TokenRepository, why: Failure, state: str
) -> None:
    repository.save("alice", tokens(expires_at=NOW))
    repository.journal.finish(begin(repository), why, provider="p")

    [account] = repository.accounts()

    assert (account.state, account.last_error) == (state, "the provider said no")


def test_a_token_that_a_refresh_gave_is_due_after_half_its_lifetime(
    repository: TokenRepository,
) -> None:
    repository.save("alice", tokens())
    given = TokenSet(access_token="short", refresh_token="r", expires_at=NOW + 60)
    repository.journal.finish(begin(repository), given, provider="p")

    assert [a.state for a in repository.accounts(expiry_buffer=300)] == ["valid"]


# -- the journal ----------------------------------------------------------------------------------


def test_a_finished_refresh_stores_its_tokens(repository: TokenRepository, path: Path) -> None:
    repository.save("alice", tokens(1))
    before = repository.record("alice")
    assert before is not None

    stored = repository.journal.finish(begin(repository), token_set(2), provider="p")

    assert stored is not None
    assert stored == repository.record("alice")
    assert stored.tokens == token_set(2)
    assert (stored.provider, stored.refreshed_at, stored.failure) == ("p", NOW, None)
    assert stored.version != before.version
    assert history(path) == ["refreshed"]


@pytest.mark.parametrize("verdict", ["reauthorization", "transient", "client_rejected"])
def test_a_failed_refresh_keeps_the_tokens(
    repository: TokenRepository, path: Path, verdict: Any
) -> None:
    repository.save("alice", tokens(1))
    before = repository.record("alice")
    assert before is not None

    stored = repository.journal.finish(begin(repository), failure(verdict), provider="p")

    assert stored is not None
    assert stored.tokens == before.tokens
    assert stored.version == before.version
    assert stored.failure == failure(verdict)
    assert history(path) == [verdict]


@pytest.mark.parametrize("outcome", [token_set(9), failure()], ids=["tokens", "failure"])
@pytest.mark.parametrize("saved", [tokens(2), tokens(1)], ids=["another", "the same"])
def test_an_outcome_does_not_replace_what_was_saved_meanwhile(
    repository: TokenRepository, path: Path, outcome: TokenSet | Failure, saved: dict[str, Any]
) -> None:
    repository.save("alice", tokens(1))
    refresh = begin(repository)
    repository.save("alice", saved, provider="other")
    before = repository.record("alice")

    stored = repository.journal.finish(refresh, outcome, provider="p")

    assert stored == before == repository.record("alice")
    assert history(path) == ["superseded"]


@pytest.mark.parametrize("outcome", [token_set(9), failure()], ids=["tokens", "failure"])
def test_an_outcome_does_not_bring_a_deleted_account_back(
    repository: TokenRepository, path: Path, outcome: TokenSet | Failure
) -> None:
    repository.save("alice", tokens(1))
    refresh = begin(repository)
    repository.delete("alice")

    assert repository.journal.finish(refresh, outcome, provider="p") is None

    assert repository.load("alice") is None
    assert history(path) == ["superseded"]
    assert holding(path.parent, "access-9") == []


@pytest.mark.parametrize("outcome", [token_set(9), failure()], ids=["tokens", "failure"])
def test_an_outcome_does_not_replace_what_was_deleted_and_saved_again(
    repository: TokenRepository, path: Path, outcome: TokenSet | Failure
) -> None:
    repository.save("alice", tokens(1))
    refresh = begin(repository)
    repository.delete("alice")
    repository.save("alice", tokens(1))

    repository.journal.finish(refresh, outcome, provider="p")

    assert repository.load("alice") == tokens(1)
    assert history(path) == ["superseded"]


def test_an_outcome_does_not_touch_another_account(repository: TokenRepository) -> None:
    for name in ("alice", "bob"):
        repository.save(name, tokens(1))

    repository.journal.finish(begin(repository), token_set(2), provider="p")

    assert repository.load("bob") == tokens(1)


def test_a_refresh_does_not_bind_an_account_anew(repository: TokenRepository) -> None:
    repository.save("alice", tokens(), provider="google")

    stored = repository.journal.finish(begin(repository), token_set(1), provider="p")

    assert stored is not None
    assert stored.provider == "google"


def test_a_later_refresh_has_a_higher_number(repository: TokenRepository) -> None:
    repository.save("alice", tokens())
    assert repository.journal.last_begun("alice") == 0

    numbers = []
    for number in range(3):
        refresh = begin(repository)
        numbers.append(refresh.id)
        assert repository.journal.last_begun("alice") == refresh.id
        repository.journal.finish(refresh, token_set(number), provider="p")

    assert numbers == sorted(set(numbers))
    assert repository.journal.last_begun("bob") == 0


def test_the_history_tells_a_refresh_without_a_secret(
    repository: TokenRepository, path: Path, clock: Clock
) -> None:
    repository.save("alice", tokens(1))
    refresh = begin(repository)
    clock.now += 2
    why = failure("transient", status_code=503, error="down", maybe_spent=True)
    repository.journal.finish(refresh, why, provider="p")

    columns = "account_name, provider, reason, started_at, finished_at, status_code, error"
    assert history(path, columns) == [("alice", "p", "due", NOW, NOW + 2, 503, "down")]
    [row] = history(path, "*")
    assert "refresh-1" not in str(row)
    assert "access-1" not in str(row)


def test_the_history_of_an_account_is_bounded(repository: TokenRepository, path: Path) -> None:
    for name in ("alice", "bob"):
        repository.save(name, tokens())
    repository.journal.finish(begin(repository, "bob"), token_set(0), provider="p")

    for number in range(statements.HISTORY + 5):
        last = begin(repository)
        repository.journal.finish(last, token_set(number), provider="p")

    found = history(path, "account_name, id")
    assert len([row for row in found if row[0] == "alice"]) == statements.HISTORY
    assert len([row for row in found if row[0] == "bob"]) == 1
    assert found[-1] == ("alice", last.id)


def test_a_refresh_that_nobody_ended_was_interrupted(
    repository: TokenRepository, path: Path, clock: Clock
) -> None:
    repository.save("alice", tokens(1))
    begin(repository)
    clock.now += 60

    second = begin(repository)

    assert history(path) == ["interrupted", None]
    suspicion = repository.journal.suspicion(second)
    assert suspicion is not None
    assert (suspicion.started_at, suspicion.interrupted) == (NOW, True)
    assert suspicion.host


def test_a_refresh_whose_process_was_killed_was_interrupted(
    path: Path, repository: TokenRepository
) -> None:
    repository.save("alice", tokens(1))
    python(
        """
child = os.fork()
if not child:
    repository = TokenRepository(sys.argv[1])
    with repository.refresh_lock("alice", timeout=1):
        repository.journal.begin(repository.record("alice"), provider="p", reason="due")
        os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
        """,
        path,
    )

    with repository.refresh_lock("alice", timeout=0):
        suspicion = repository.journal.suspicion(begin(repository))

    assert suspicion is not None
    assert suspicion.interrupted


def test_a_request_without_a_usable_answer_is_suspicious_too(repository: TokenRepository) -> None:
    repository.save("alice", tokens(1))
    repository.journal.finish(
        begin(repository), failure("transient", maybe_spent=True), provider="p"
    )

    suspicion = repository.journal.suspicion(begin(repository))

    assert suspicion is not None
    assert not suspicion.interrupted


@pytest.mark.parametrize("outcome", [failure("transient"), failure(), failure("client_rejected")])
def test_an_answered_request_is_not_suspicious(
    repository: TokenRepository, outcome: Failure
) -> None:
    repository.save("alice", tokens(1))
    repository.journal.finish(begin(repository), outcome, provider="p")

    assert repository.journal.suspicion(begin(repository)) is None


def test_nobody_suspects_a_new_refresh_token(repository: TokenRepository) -> None:
    repository.save("alice", tokens(1))
    begin(repository)
    repository.save("alice", tokens(2))

    assert repository.journal.suspicion(begin(repository)) is None


def test_nobody_suspects_another_account(repository: TokenRepository) -> None:
    for name in ("alice", "bob"):
        repository.save(name, tokens(1))
    begin(repository, "bob")

    assert repository.journal.suspicion(begin(repository)) is None


# -- the statements -------------------------------------------------------------------------------

QUERIES = {name: query for name, query in vars(statements).items() if isinstance(query, Query)}


@pytest.mark.parametrize("name", QUERIES)
def test_no_statement_scans_a_table(repository: TokenRepository, path: Path, name: str) -> None:
    repository.save("alice", tokens())
    query = QUERIES[name].sqlite

    with raw(path) as connection:
        values = query.values(defaultdict(lambda: 1) | query.constants)
        plan = connection.execute(f"EXPLAIN QUERY PLAN {query.sql}", values).fetchall()

    steps = [step for *_, step in plan]
    assert not [step for step in steps if "SCAN" in step or "TEMP B-TREE" in step]
    assert steps or query.sql.startswith("INSERT")


def test_reading_writes_nothing(repository: TokenRepository, path: Path) -> None:
    repository.save("alice", tokens())
    repository.close()
    before = path.read_bytes()

    repository.load("alice")
    repository.access("alice")
    list(repository.accounts())
    repository.delete("nobody")
    repository.close()

    assert path.read_bytes() == before


# -- errors, and what is left in the files --------------------------------------------------------


def test_a_storage_error_says_where(tmp_path: Path) -> None:
    (tmp_path / "tokens.db").write_text("not a database, and longer than a header would be")

    with TokenRepository(tmp_path / "tokens.db") as repository:
        for call in (repository.load, repository.delete, repository.record, repository.access):
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
def test_whoever_writes_last_in_a_rush_empties_the_log(
    path: Path, monkeypatch: pytest.MonkeyPatch, rush: float
) -> None:
    monkeypatch.setattr("tokenstore.storage.sqlite.database._LONGEST_RUSH", rush)
    names = [f"account-{number}" for number in range(8)]
    emptied: list[str] = []

    def note(said: str) -> None:
        if "checkpoint" in said:
            emptied.append(said)

    def replace(name: str) -> None:
        repository.load(name)  # opens this thread's connection
        assert isinstance(database, SQLiteDatabase)
        driver = database._threads.current().driver
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
                until(lambda: len(database._threads.write_lock._waiting) == len(names))
            for save in saves:
                save.result()

        assert b"old-" not in bytes_of(path)
    assert len(emptied) == (1 if rush else len(names))


def test_what_a_reader_was_in_the_way_of_is_done_when_the_store_is_closed(path: Path) -> None:
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


def test_a_connection_that_has_emptied_the_log_waits_for_others_as_before(path: Path) -> None:
    with TokenRepository(path) as repository:
        for number in range(2):
            repository.save("alice", tokens(refresh_token=f"refresh-{number}"))
        database = repository._database
        assert isinstance(database, SQLiteDatabase)
        driver = database._threads.current().driver
        assert driver is not None

        assert pragma(driver, "busy_timeout") == BUSY_TIMEOUT * 1000


def test_a_scrub_that_met_a_reader_is_done_by_whoever_writes_next(path: Path) -> None:
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


def test_a_transaction_that_an_interrupt_left_open_is_undone(path: Path) -> None:
    with TokenRepository(path) as repository:
        repository.save("alice", tokens())
        database = repository._database
        assert isinstance(database, SQLiteDatabase)
        driver = database._threads.current().driver
        assert driver is not None
        driver.execute("BEGIN IMMEDIATE")
        driver.execute("DELETE FROM accounts")

        assert repository.load("alice") == tokens()

        with TokenRepository(path) as another:
            another.save("alice", tokens(1))
        driver.execute("BEGIN IMMEDIATE")
        repository.save("bob", tokens())
        assert [account.name for account in repository.accounts()] == ["alice", "bob"]


def test_an_interrupt_while_damage_is_read_takes_nothing_of_it_along(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: bytes) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenstore.storage.sqlite.engine.decode_what_can_be", interrupted)
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
