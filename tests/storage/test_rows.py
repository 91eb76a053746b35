"""Damaged rows raise errors. They are never returned or sent, and do not affect other accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from zlib import crc32

import pytest

from tests.helpers.refreshes import World
from tests.helpers.stores import raw, tokens
from tokenstore import StorageError, TokenRepository
from tokenstore.jsonfiles import export_accounts
from tokenstore.models.tokens import TokenSet
from tokenstore.storage.rows import CorruptRowError, to_access_token, to_columns, to_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIELDS = {
    "access_token": "canary-access",
    "refresh_token": "canary-refresh",
    "expires_at": 4_000_000_000,
    "scope": "ü",
}
CHANGES = {
    "a bit of the access token": "access_token = 'canarz-access'",
    "a bit of the refresh token": "refresh_token = 'canarz-refresh'",
    "another expiry": "expires_at = expires_at + 1",
    "another field": "extra = replace(extra, 'scope', 'scopf')",
    "no JSON": "extra = '{canary'",
    "deep JSON": "extra = '" + "[" * 100_000 + "'",
    "no object": "extra = '[1]'",
    "no UTF-8 in the access token": "access_token = CAST(x'63616e617279ff' AS TEXT)",
    "no UTF-8 in the refresh token": "refresh_token = CAST(x'63616e617279ff' AS TEXT)",
    "no UTF-8 in the JSON": "extra = CAST(x'7b2263616e617279ff223a317d' AS TEXT)",
    "bytes": "access_token = x'63616e617279'",
    "no bytes": "refresh_token = x''",
    "a number": "refresh_token = 5",
    "a moment that is text": "expires_at = 'canary'",
    "the tokens of another account": "access_token = (SELECT access_token FROM accounts "
    "WHERE account_name = 'bob'), access_checksum = (SELECT access_checksum FROM accounts WHERE "
    "account_name = 'bob'), checksum = (SELECT checksum FROM accounts WHERE account_name = 'bob')",
}
UNCHECKED = [  # damage that shows without a checksum
    "no JSON",
    "deep JSON",
    "no object",
    "no UTF-8 in the access token",
    "no UTF-8 in the refresh token",
    "no UTF-8 in the JSON",
    "bytes",
    "no bytes",
    "a moment that is text",
]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        for account in ("alice", "bob", "carol"):
            world.manager().save_tokens(account, {**FIELDS, "of": account}, provider="test")
        world.manager().close()
        yield world


def damage(world: World, change: str) -> None:
    world.sql(f"UPDATE accounts SET {change} WHERE account_name = 'alice'")


def is_told(world: World, error: StorageError) -> None:
    text = str(error)
    assert str(world.path) in text
    assert "restore a backup" in text
    assert "canar" not in text + repr(vars(error)) + repr(error.__cause__)
    assert error.path == str(world.path)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_damaged_row_raises_and_uses_no_token(world: World, change: str) -> None:
    damage(world, change)

    for call in (
        lambda: TokenRepository(world.path).load("alice"),
        lambda: world.manager().load_tokens("alice"),
        lambda: world.manager().refresh_token("alice"),
        lambda: world.manager(cache_ttl=0).ensure_valid_token("alice", min_ttl=1e10),
    ):
        with pytest.raises(StorageError) as caught:
            call()
        is_told(world, caught.value)
    assert world.posts == 0


@pytest.mark.parametrize(
    "name", [n for n in CHANGES if "access token" in n or n in {"bytes", "a moment that is text"}]
)
def test_a_damaged_access_token_is_not_returned(world: World, name: str) -> None:
    damage(world, CHANGES[name])

    with pytest.raises(StorageError) as caught:
        world.manager().get_valid_token("alice")
    is_told(world, caught.value)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_damaged_row_does_not_affect_other_accounts(
    world: World, change: str, tmp_path: Path
) -> None:
    damage(world, change)

    manager = world.manager()
    assert manager.get_valid_token("bob") == FIELDS["access_token"]
    with TokenRepository(world.path) as repository:
        results = {r.account_name: r for r in export_accounts(repository, tmp_path / "out")}
    assert {n: r.outcome for n, r in results.items()} == {
        "alice": "failed",
        "bob": "exported",
        "carol": "exported",
    }
    assert "damaged" in str(results["alice"].reason)
    assert "canar" not in str(results["alice"])
    assert not (tmp_path / "out" / "alice.json").exists()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_damaged_account_can_be_replaced_and_deleted(world: World, change: str) -> None:
    damage(world, change)
    manager = world.manager()

    manager.save_tokens("alice", tokens(1))
    assert manager.load_tokens("alice") == tokens(1)
    damage(world, change)
    assert manager.delete_tokens("alice")
    assert manager.load_tokens("alice") is None


@pytest.mark.parametrize("name", UNCHECKED)
def test_visible_damage_in_a_row_without_checksums_raises(world: World, name: str) -> None:
    damage(world, "checksum = NULL, access_checksum = NULL")
    assert TokenRepository(world.path).load("alice") == {**FIELDS, "of": "alice"}
    damage(world, CHANGES[name])

    with pytest.raises(StorageError) as caught:
        TokenRepository(world.path).load("alice")
    is_told(world, caught.value)


def test_a_recorded_failure_that_cannot_be_read_is_ignored(world: World) -> None:
    for details in ("'{canary'", "'[]'", "'{\"canary\": 1}'", "x'63ff'", "5"):
        damage(world, f"failure = {details}")
        account = next(world.manager().accounts())
        assert (account.name, account.state, account.last_error) == ("alice", "valid", None)
        assert world.manager().load_tokens("alice") is not None


def test_a_damaged_timestamp_is_listed_as_unknown(world: World) -> None:
    for change in ("expires_at = 'canary'", "refreshed_at = x'00', expires_at = NULL"):
        damage(world, change)
        accounts = list(world.manager().accounts())
        assert [account.name for account in accounts] == ["alice", "bob", "carol"]
        assert (accounts[0].state, accounts[0].expires_at) == ("due", None)


@pytest.mark.parametrize("name", ["CAST(x'616cff' AS TEXT)", "x'616cff'", "CAST(x'ff' AS TEXT)"])
def test_a_damaged_name_hides_no_other_account(world: World, tmp_path: Path, name: str) -> None:
    damage(world, f"account_name = {name}")

    names = [account.name for account in world.manager().accounts()]
    assert len(names) == 3
    assert {"bob", "carol"} < set(names)
    with TokenRepository(world.path) as repository:
        outcomes = [r.outcome for r in export_accounts(repository, tmp_path / "out")]
    assert sorted(outcomes) == ["exported", "exported", "failed"]


def test_a_damaged_provider_raises(world: World) -> None:
    damage(world, "provider = x'63616e617279ff'")

    assert [account.name for account in world.manager().accounts()] == ["alice", "bob", "carol"]
    with pytest.raises(StorageError) as caught:
        world.manager().refresh_token("alice")
    is_told(world, caught.value)


@pytest.mark.parametrize("moment", [-0.0, "-0", "-0.0", 0, 5, 1e-300, "1e11"])
def test_a_timestamp_has_one_form(tmp_path: Path, moment: object) -> None:
    with TokenRepository(tmp_path / "tokens.db") as repository:
        repository.save("alice", {"access_token": "a", "expires_at": moment})
        assert repository.load("alice") is not None


def test_every_field_is_returned_whatever_its_value(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "access_token": "a\U0001f511",
        "expires_at": 5,
        "nested": {"x": [1, 2.5, None, "\N{SNOWMAN}"]},
    }
    with TokenRepository(tmp_path / "tokens.db") as repository:
        repository.save("n\u00e4me\n"[:-1], given)
        assert repository.load("n\u00e4me") == given
        assert repository.access_token("n\u00e4me") == (given["access_token"], 5.0, None, None)


def test_checksums_do_not_depend_on_the_python_that_made_them() -> None:
    given = TokenSet(
        access_token="\u00e4", refresh_token="b", expires_at=0.1, extra={"\u2603": 1e22}
    )

    columns = to_columns("n\u00e4me", given)

    assert columns["access_checksum"] == crc32(b"n\xc3\xa4me\n\xc3\xa4")
    stored = b'n\xc3\xa4me\n\xc3\xa4\nb\n0.1\n{"\\u2603": 1e+22}'
    assert columns["checksum"] == crc32(stored)


def test_a_checksum_belongs_to_one_account() -> None:
    columns = to_columns("alice", TokenSet(access_token="a", refresh_token="b"))
    row = [columns[name] for name in ("access_token", "refresh_token", "expires_at", "extra")]

    assert to_tokens("alice", (*row, None, None, columns["checksum"])).access_token == "a"
    assert to_access_token("alice", ("a", None, None, None, columns["access_checksum"]))[0] == "a"
    with pytest.raises(CorruptRowError):
        to_tokens("bob", (*row, None, None, columns["checksum"]))
    with pytest.raises(CorruptRowError):
        to_access_token("bob", ("a", None, None, None, columns["access_checksum"]))


def test_no_flipped_bit_of_a_file_returns_a_wrong_token(world: World) -> None:
    with raw(world.path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = world.path.read_bytes()
    at = before.index(b"canary-refresh")
    for offset in range(at, at + 14):
        changed = bytearray(before)
        changed[offset] ^= 1 << offset % 8
        world.path.write_bytes(changed)
        with TokenRepository(world.path) as repository:
            told = 0
            for name in ("alice", "bob", "carol"):
                try:
                    assert repository.load(name) == {**FIELDS, "of": name}
                except StorageError as error:
                    told += 1
                    is_told(world, error)
            assert told == 1
