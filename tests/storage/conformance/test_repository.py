from __future__ import annotations

import math
import unicodedata
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.refreshes import SOON, Clock, execute
from tests.helpers.stores import LATER, becomes, begin, python, token_set, tokens
from tokenstore import InvalidTokenError, TokenRepository
from tokenstore.models.failures import Failure
from tokenstore.models.tokens import TokenSet
from tokenstore.storage import statements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Outcome = Failure | Callable[[TokenSet], TokenSet]

NOW = 1_800_000_000.0


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def repository(database: Path | str, clock: Clock) -> Iterator[TokenRepository]:
    with TokenRepository(database, clock=clock) as repository:
        yield repository


def failure(kind: Any = "reauthorization", **more: Any) -> Failure:
    return Failure(kind=kind, message="the provider said no", client="client", **more)


def history(database: Path | str, columns: str = "outcome") -> list[Any]:
    rows = execute(database, f"SELECT {columns} FROM refreshes ORDER BY id")
    return [row[0] if len(row) == 1 else row for row in rows]


# -- save and load --------------------------------------------------------------------------------


def test_saved_tokens_are_loaded(repository: TokenRepository) -> None:
    saved = tokens(scope=["a", "b"], nested={"x": [1, None, {"y": "ä€😀"}]}, empty="", none=None)

    repository.save("alice", saved)

    assert repository.load("alice") == saved


def test_an_unknown_account_is_none(repository: TokenRepository) -> None:
    repository.save("alice", tokens())

    assert repository.load("bob") is None
    assert repository.record("bob") is None
    assert repository.access_token("bob") is None


def test_saving_again_replaces_every_field(repository: TokenRepository) -> None:
    repository.save("alice", tokens(1, scope="a", id_token="x"))

    repository.save("alice", {"access_token": "only"})

    assert repository.load("alice") == {"access_token": "only"}


def test_expires_in_becomes_expires_at(repository: TokenRepository) -> None:
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


def test_an_account_can_be_bound_to_another_provider(repository: TokenRepository) -> None:
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
def test_an_invalid_token_set_is_refused_and_nothing_is_written(
    repository: TokenRepository, given: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidTokenError) as caught:
        repository.save("alice", given)

    assert caught.value.field == field
    assert list(repository.accounts()) == []


NAMES = ["alice@example.com", "a/b", "..", "  spaces ", "ä€😀", "' OR 1=1 --", "%s", "x" * 512]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_an_account_name_may_contain_any_printable_character(
    repository: TokenRepository, name: str
) -> None:
    repository.save(name, tokens())

    assert repository.load(name) == tokens()
    assert [account.name for account in repository.accounts()] == [name]
    assert repository.delete(name)
    assert repository.load(name) is None


@pytest.mark.parametrize("name", ["", "x" * 513, "a\0b", "a\nb", "\ud800", None, 7], ids=ascii)
@pytest.mark.parametrize("call", ["save", "load", "delete"])
def test_an_invalid_account_name_is_refused(
    repository: TokenRepository, name: Any, call: str
) -> None:
    with pytest.raises(InvalidTokenError, match="account_name"):
        repository.save(name, tokens()) if call == "save" else getattr(repository, call)(name)


def test_two_unicode_forms_of_a_name_are_one_account(repository: TokenRepository) -> None:
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


def test_keep_does_not_change_an_existing_account(repository: TokenRepository) -> None:
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
def test_keep_newer_replaces_only_older_tokens(
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


def test_delete_returns_whether_the_account_existed(repository: TokenRepository) -> None:
    repository.save("alice", tokens())

    assert repository.delete("alice") is True
    assert repository.delete("alice") is False


def test_delete_removes_the_history(repository: TokenRepository, database: Path | str) -> None:
    for name in ("alice", "bob"):
        repository.save(name, tokens(refresh_token=name))
        repository.journal.finish(begin(repository, name), becomes(token_set(1)), provider="p")

    repository.delete("alice")

    assert history(database, "account_name") == ["bob"]


# -- accounts -------------------------------------------------------------------------------------


def test_accounts_are_in_the_order_of_their_names(repository: TokenRepository) -> None:
    given = ["b", "a", "B", "ä", "😀", "\uffee", "a/b", "Z"]
    for name in given:
        repository.save(name, tokens())

    assert [account.name for account in repository.accounts()] == sorted(given)
    assert [record.account_name for record in repository.listing.records()] == sorted(given)


def test_pages_are_complete_and_without_duplicates(
    repository: TokenRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenstore.storage.listing._PAGE", 3)
    names = [f"{number:02}" for number in range(10)]
    with repository.transaction():
        for name in names:
            repository.save(name, tokens())

    assert [account.name for account in repository.accounts()] == names


def test_accounts_may_change_while_they_are_listed(
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


def test_an_account_has_no_secrets(repository: TokenRepository) -> None:
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
        (failure("client_rejected"), "misconfigured"),
    ],
)
def test_the_state_of_an_account_follows_its_last_failure(
    repository: TokenRepository, why: Failure, state: str
) -> None:
    repository.save("alice", tokens(expires_at=NOW))
    repository.journal.finish(begin(repository), why, provider="p")

    [account] = repository.accounts()

    assert (account.state, account.last_error) == (state, "the provider said no")


def test_a_refreshed_token_is_due_after_half_its_lifetime(
    repository: TokenRepository,
) -> None:
    repository.save("alice", tokens())
    given = TokenSet(access_token="short", refresh_token="r", expires_at=NOW + 60)
    repository.journal.finish(begin(repository), becomes(given), provider="p")

    assert [a.state for a in repository.accounts(expiry_buffer=300)] == ["valid"]


# -- the journal ----------------------------------------------------------------------------------


def test_a_finished_refresh_stores_its_tokens(
    repository: TokenRepository, database: Path | str
) -> None:
    repository.save("alice", tokens(1))
    before = repository.record("alice")
    assert before is not None

    stored = repository.journal.finish(begin(repository), becomes(token_set(2)), provider="p")

    assert stored is not None
    assert stored == repository.record("alice")
    assert stored.tokens == token_set(2)
    assert (stored.provider, stored.refreshed_at, stored.failure) == ("p", NOW, None)
    assert stored.version != before.version
    assert history(database) == ["refreshed"]


@pytest.mark.parametrize("verdict", ["reauthorization", "transient", "client_rejected"])
def test_a_failed_refresh_keeps_the_tokens(
    repository: TokenRepository, database: Path | str, verdict: Any
) -> None:
    repository.save("alice", tokens(1))
    before = repository.record("alice")
    assert before is not None

    stored = repository.journal.finish(begin(repository), failure(verdict), provider="p")

    assert stored is not None
    assert stored.tokens == before.tokens
    assert stored.version == before.version
    assert stored.failure == failure(verdict)
    assert history(database) == [verdict]


@pytest.mark.parametrize("outcome", [becomes(token_set(9)), failure()], ids=["tokens", "failure"])
def test_an_outcome_does_not_replace_another_refresh_token(
    repository: TokenRepository, database: Path | str, outcome: Outcome
) -> None:
    repository.save("alice", tokens(1))
    refresh = begin(repository)
    repository.save("alice", tokens(2), provider="other")
    before = repository.record("alice")

    stored = repository.journal.finish(refresh, outcome, provider="p")

    assert stored == before == repository.record("alice")
    assert history(database) == ["superseded"]


def test_tokens_are_merged_into_what_was_edited_meanwhile(
    repository: TokenRepository, database: Path | str
) -> None:
    """R4: the row still holds the refresh token that was sent, so these are its successors."""
    repository.save("alice", tokens(1))
    refresh = begin(repository)
    repository.save("alice", tokens(1, note="edited"), provider="other")

    def merge(current: TokenSet) -> TokenSet:
        return replace(current, access_token="access-2", refresh_token="refresh-2")

    stored = repository.journal.finish(refresh, merge, provider="p")

    assert stored is not None
    assert stored == repository.record("alice")
    assert stored.tokens.to_dict() == tokens(2, note="edited")
    assert (stored.provider, stored.refresh_id) == ("other", refresh.id)
    assert history(database) == ["refreshed"]


def test_a_failure_belongs_to_the_refresh_token_whatever_else_was_edited(
    repository: TokenRepository, database: Path | str
) -> None:
    """R4: a save cannot make a refused token good."""
    repository.save("alice", tokens(1))
    refresh = begin(repository)
    repository.save("alice", tokens(1, note="edited"))

    stored = repository.journal.finish(refresh, failure(), provider="p")

    assert stored is not None
    assert stored.tokens.to_dict() == tokens(1, note="edited")
    assert stored.failure == failure()
    assert history(database) == ["reauthorization"]


@pytest.mark.parametrize("outcome", [becomes(token_set(9)), failure()], ids=["tokens", "failure"])
def test_an_outcome_is_stored_once_however_often_that_is_tried(
    repository: TokenRepository, database: Path | str, outcome: Outcome
) -> None:
    """R3: whether a commit whose confirmation was lost is stored, nobody knows."""
    repository.save("alice", tokens(1))
    refresh = begin(repository)
    first = repository.journal.finish(refresh, outcome, provider="p")
    ended = history(database)

    assert repository.journal.finish(refresh, outcome, provider="p") == first
    assert repository.record("alice") == first
    assert history(database) == ended != ["superseded"]


@pytest.mark.parametrize("outcome", [becomes(token_set(9)), failure()], ids=["tokens", "failure"])
def test_an_outcome_does_not_recreate_a_deleted_account(
    repository: TokenRepository, database: Path | str, outcome: Outcome
) -> None:
    """R24: a deleted account is forgotten, its last refresh included."""
    repository.save("alice", tokens(1))
    refresh = begin(repository)
    repository.delete("alice")

    assert repository.journal.finish(refresh, outcome, provider="p") is None

    assert repository.load("alice") is None
    assert history(database) == []


@pytest.mark.parametrize("outcome", [becomes(token_set(9)), failure()], ids=["tokens", "failure"])
def test_an_outcome_does_not_replace_an_account_recreated_with_another_refresh_token(
    repository: TokenRepository, database: Path | str, outcome: Outcome
) -> None:
    repository.save("alice", tokens(1))
    refresh = begin(repository)
    repository.delete("alice")
    repository.save("alice", tokens(2))

    repository.journal.finish(refresh, outcome, provider="p")

    assert repository.load("alice") == tokens(2)
    assert history(database) == ["superseded"]


def test_tokens_go_to_an_account_recreated_with_the_refresh_token_that_was_sent(
    repository: TokenRepository, database: Path | str
) -> None:
    """R4: it is spent, and these are the only ones that work."""
    repository.save("alice", tokens(1))
    refresh = begin(repository)
    repository.delete("alice")
    repository.save("alice", tokens(1))

    repository.journal.finish(refresh, becomes(token_set(9)), provider="p")

    assert repository.load("alice") == tokens(9)
    assert history(database) == ["refreshed"]


def test_an_outcome_does_not_touch_another_account(repository: TokenRepository) -> None:
    for name in ("alice", "bob"):
        repository.save(name, tokens(1))

    repository.journal.finish(begin(repository), becomes(token_set(2)), provider="p")

    assert repository.load("bob") == tokens(1)


def test_a_refresh_does_not_change_the_provider(repository: TokenRepository) -> None:
    repository.save("alice", tokens(), provider="google")

    stored = repository.journal.finish(begin(repository), becomes(token_set(1)), provider="p")

    assert stored is not None
    assert stored.provider == "google"


def test_a_later_refresh_has_a_higher_id(repository: TokenRepository) -> None:
    repository.save("alice", tokens())
    assert repository.journal.last_begun("alice") == 0

    numbers = []
    for number in range(3):
        refresh = begin(repository)
        numbers.append(refresh.id)
        assert repository.journal.last_begun("alice") == refresh.id
        repository.journal.finish(refresh, becomes(token_set(number)), provider="p")

    assert numbers == sorted(set(numbers))
    assert repository.journal.last_begun("bob") == 0


def test_a_history_entry_has_fingerprints_instead_of_tokens(
    repository: TokenRepository, database: Path | str, clock: Clock
) -> None:
    repository.save("alice", tokens(1))
    refresh = begin(repository)
    clock.now += 2
    why = failure("transient", status_code=503, error="down", maybe_spent=True)
    repository.journal.finish(refresh, why, provider="p")

    columns = "account_name, provider, reason, started_at, finished_at, status_code, error"
    assert history(database, columns) == [("alice", "p", "due", NOW, NOW + 2, 503, "down")]
    [row] = history(database, "*")
    assert "refresh-1" not in str(row)
    assert "access-1" not in str(row)


def test_the_history_of_an_account_is_bounded(
    repository: TokenRepository, database: Path | str
) -> None:
    for name in ("alice", "bob"):
        repository.save(name, tokens())
    repository.journal.finish(begin(repository, "bob"), becomes(token_set(0)), provider="p")

    for number in range(statements.HISTORY + 5):
        last = begin(repository)
        repository.journal.finish(last, becomes(token_set(number)), provider="p")

    found = history(database, "account_name, id")
    assert len([row for row in found if row[0] == "alice"]) == statements.HISTORY
    assert len([row for row in found if row[0] == "bob"]) == 1
    assert found[-1] == ("alice", last.id)


def test_a_refresh_without_an_end_was_interrupted(
    repository: TokenRepository, database: Path | str, clock: Clock
) -> None:
    repository.save("alice", tokens(1))
    repository.journal.abandon(begin(repository))
    clock.now += 60

    second = begin(repository)

    assert history(database) == ["interrupted", None]
    earlier = repository.journal.unanswered(second)
    assert earlier is not None
    assert (earlier.started_at, earlier.interrupted, earlier.status_code) == (NOW, True, None)
    assert earlier.host


@pytest.mark.slow
def test_a_refresh_whose_process_was_killed_was_interrupted(
    database: Path | str, repository: TokenRepository
) -> None:
    repository.save("alice", tokens(1))
    python(
        """
child = os.fork()
if not child:
    repository = TokenRepository(sys.argv[1])
    with repository.refresh_lock("alice", timeout=1):
        record = repository.record("alice")
        repository.journal.begin(record, provider="p", reason="due", longest=60)
        os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
        """,
        database,
    )

    with repository.refresh_lock("alice", timeout=SOON):
        earlier = repository.journal.unanswered(begin(repository))

    assert earlier is not None
    assert earlier.interrupted


@pytest.mark.parametrize("status", [None, 200, 500, 599])
def test_a_request_without_a_usable_response_may_have_spent_the_token(
    repository: TokenRepository, status: int | None
) -> None:
    """R18: a gateway that answers 5xx may have lost a successful response."""
    repository.save("alice", tokens(1))
    maybe_spent = status is None or status < 500
    why = failure("transient", maybe_spent=maybe_spent, status_code=status)
    repository.journal.finish(begin(repository), why, provider="p")

    earlier = repository.journal.unanswered(begin(repository))

    assert earlier is not None
    assert not earlier.interrupted
    assert earlier.status_code == status


@pytest.mark.parametrize(
    "outcome",
    [failure("transient", status_code=429), failure(), failure("client_rejected")],
)
def test_a_request_with_a_response_has_an_answer(
    repository: TokenRepository, outcome: Failure
) -> None:
    repository.save("alice", tokens(1))
    repository.journal.finish(begin(repository), outcome, provider="p")

    assert repository.journal.unanswered(begin(repository)) is None


def test_a_new_refresh_token_has_no_earlier_use(repository: TokenRepository) -> None:
    repository.save("alice", tokens(1))
    repository.journal.abandon(begin(repository))
    repository.save("alice", tokens(2))

    assert repository.journal.unanswered(begin(repository)) is None


def test_a_use_of_the_token_for_another_account_is_none_of_this_one(
    repository: TokenRepository,
) -> None:
    for name in ("alice", "bob"):
        repository.save(name, tokens(1))
    begin(repository, "bob")

    assert repository.journal.unanswered(begin(repository)) is None
