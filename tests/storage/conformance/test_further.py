"""Further access tokens on both engines: stored, replaced, dropped with the account."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.refreshes import World, on_both_engines
from tests.helpers.stores import tokens
from tokenstore.models.failures import Failure
from tokenstore.models.further_tokens import FurtherToken
from tokenstore.models.targets import MAX_FURTHER_TOKENS, Target

if TYPE_CHECKING:
    from tokenstore import TokenManager, TokenRepository

pytestmark = on_both_engines

LONG = Target(tuple(f"https://scope.example.com/{number}" for number in range(100)))


@pytest.fixture
def repository(manager: TokenManager) -> TokenRepository:
    manager.save_tokens("alice", tokens(50), provider="test")  # no other test has it
    return manager._repository


def token(name: str, expires_at: float = 4e9) -> FurtherToken:
    return FurtherToken(
        target=Target((name,)),
        access_token=f"access of {name}",
        token_type="Bearer",
        scope=name,
        expires_at=expires_at,
        refreshed_at=1.5,
        refresh_id=7,
    )


def store(repository: TokenRepository, *found: FurtherToken, account: str = "alice") -> None:
    with repository.transaction():
        for each in found:
            repository.further.store(account, each)


def test_what_is_stored_is_read(repository: TokenRepository) -> None:
    store(repository, token("b"), token("a"))
    assert list(repository.further.of("alice")) == [token("a"), token("b")]
    record = repository.record("alice", Target(("a",)))
    assert record is not None
    assert record.further == token("a")
    assert record.tokens.access_token == "access of a"
    assert record.tokens.refresh_token == "refresh-50"
    assert record.own == repository.record("alice")
    missing = repository.record("alice", Target(("c",)))
    assert missing is not None
    assert missing.tokens.access_token is None


def test_a_refusal_keeps_the_token_and_a_token_ends_the_refusal(
    repository: TokenRepository,
) -> None:
    failure = Failure(kind="client_rejected", message="refused", client="c", error="invalid_scope")
    store(repository, token("a"))
    with repository.transaction():
        repository.further.refuse("alice", Target(("a",)), failure, refresh_id=8)
    (found,) = repository.further.of("alice")
    assert (found.access_token, found.failure, found.refresh_id) == ("access of a", failure, 8)
    store(repository, token("a"))
    assert list(repository.further.of("alice")) == [token("a")]


def test_a_name_and_a_target_may_both_be_long(repository: TokenRepository) -> None:
    name = "😀" * 512  # more than an index holds with the target as it is
    repository.save(name, tokens(51))
    stored = FurtherToken(target=LONG, access_token="x", expires_at=1.0)
    store(repository, stored, account=name)
    assert list(repository.further.of(name)) == [stored]


def test_at_most_32_are_kept_and_what_expired_first_leaves(repository: TokenRepository) -> None:
    count = MAX_FURTHER_TOKENS + 3
    store(repository, *(token(f"{n:02}", expires_at=100.0 + n) for n in range(count)))
    store(repository, token("short", expires_at=1.0))
    found = [each.target.text for each in repository.further.of("alice")]
    assert found == [*(f"{n:02}" for n in range(4, count)), "short"]


def test_they_are_dropped_with_what_they_belong_to_and_nothing_else(
    repository: TokenRepository,
) -> None:
    repository.save("bob", tokens(52))
    for account in ("alice", "bob"):
        store(repository, token("a"), account=account)
    repository.save("alice", tokens(50))
    assert list(repository.further.of("alice")) == []
    assert list(repository.further.of("bob")) == [token("a")]
    repository.delete("bob")
    assert list(repository.further.of("bob")) == []


def test_a_transaction_that_fails_leaves_them(repository: TokenRepository) -> None:
    store(repository, token("a"))

    def fail() -> None:
        with repository.transaction():
            repository.save("alice", tokens(53))
            assert list(repository.further.of("alice")) == []
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(repository.further.of("alice")) == [token("a")]


@pytest.mark.parametrize(
    "change",
    ["access_token = 'x'", "scope = 'all'", "expires_at = 5e9", "target = 'b'", "token_type = ''"],
)
def test_a_damaged_row_counts_as_none(
    world: World, repository: TokenRepository, change: str
) -> None:
    store(repository, token("a"))
    world.sql(f"UPDATE access_tokens SET {change}")
    assert list(repository.further.of("alice")) == []
    record = repository.record("alice", Target(("a",)))
    assert record is not None
    assert record.tokens.access_token is None
