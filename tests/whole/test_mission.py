"""What a token manager was asked to do, point by point; the details are tested elsewhere."""

from __future__ import annotations

import json
import stat
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.refreshes import SOON, Call, Told, World, denied
from tokenstore import (
    InvalidTokenError,
    Provider,
    StorageError,
    TokenManager,
    TokenRefreshError,
    TokenRepository,
)
from tokenstore.jsonfiles import export_accounts, import_accounts
from tokenstore.testing import Answer, Drop

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

HOUR = 3600.0
BUFFER = 300.0


# -- save and load --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens",
    [
        {"access_token": "a"},
        {"access_token": "a", "refresh_token": "r", "expires_at": 1_900_000_000.5},
        {"access_token": "a", "refresh_token": None, "scope": "b c", "token_type": "Bearer"},
        {"access_token": "é€\U0001f511", "nested": {"list": [1, 2.5, None, True, "x"]}, "": ""},
        {"access_token": "x" * 100_000},
    ],
    ids=["smallest", "usual", "without a refresh token", "unicode and nested", "long"],
)
@pytest.mark.parametrize("name", ["alice@example.com", "../a/b c", "名前", "x" * 512])
def test_what_was_saved_is_loaded(
    world: World, manager: TokenManager, name: str, tokens: dict[str, Any]
) -> None:
    given = json.dumps(tokens)
    manager.save_tokens(name, tokens)
    assert manager.load_tokens(name) == tokens
    assert world.manager().load_tokens(name) == tokens
    assert json.dumps(tokens) == given


def test_saving_again_replaces_everything(manager: TokenManager) -> None:
    manager.save_tokens("alice", {"access_token": "a", "refresh_token": "r", "more": 1})
    manager.save_tokens("alice", {"access_token": "b"})
    assert manager.load_tokens("alice") == {"access_token": "b"}


def test_nothing_is_loaded_of_an_account_that_was_never_saved(manager: TokenManager) -> None:
    assert manager.load_tokens("nobody") is None
    manager.save_tokens("alice", {"access_token": "a"})
    assert manager.load_tokens("nobody") is None


@pytest.mark.parametrize(
    ("tokens", "field"),
    [
        (None, "tokens"),
        ("access", "tokens"),
        ([("access_token", "a")], "tokens"),
        ({}, "access_token"),
        ({"refresh_token": "r"}, "access_token"),
        ({"access_token": None}, "access_token"),
        ({"access_token": ""}, "access_token"),
        ({"access_token": 5}, "access_token"),
        ({"access_token": "a\nb"}, "access_token"),
        ({"access_token": "a", "refresh_token": ""}, "refresh_token"),
        ({"access_token": "a", "refresh_token": 5}, "refresh_token"),
        ({"access_token": "a", "refresh_token": "r\0"}, "refresh_token"),
        ({"access_token": "a", "expires_in": "soon"}, "expires_in"),
        ({"access_token": "a", "expires_in": True}, "expires_in"),
        ({"access_token": "a", "expires_at": "tomorrow"}, "expires_at"),
        ({"access_token": "a", "expires_at": []}, "expires_at"),
        ({"access_token": "a", "x": object()}, "x"),
        ({"access_token": "a", "x": float("nan")}, "x"),
    ],
    ids=lambda case: str(case).partition(" at 0x")[0],
)
def test_what_is_no_token_set_is_refused_and_changes_nothing(
    manager: TokenManager, tokens: Any, field: str
) -> None:
    manager.save_tokens("alice", {"access_token": "before"})
    with pytest.raises(InvalidTokenError) as caught:
        manager.save_tokens("alice", tokens)
    assert caught.value.field == field
    assert isinstance(caught.value, ValueError)
    assert manager.load_tokens("alice") == {"access_token": "before"}


def test_a_file_system_error_is_logged_and_raised(world: World, manager: TokenManager) -> None:
    world.path.mkdir()
    with Told() as told, pytest.raises(StorageError) as caught:
        manager.save_tokens("alice", {"access_token": "a"})
    assert isinstance(caught.value, OSError)
    assert caught.value.path == str(world.path)
    assert any(str(world.path) in record.getMessage() for record in told.records)


def test_a_deleted_account_is_gone(manager: TokenManager) -> None:
    manager.save_tokens("alice", {"access_token": "a"})
    assert manager.delete_tokens("alice") is True
    assert manager.load_tokens("alice") is None
    assert manager.delete_tokens("alice") is False


# -- expiry ---------------------------------------------------------------------------------------


def moment(seconds: float, zone: Any = UTC) -> datetime:
    """Return the moment *seconds* after that at which the clock stands."""
    return datetime.fromtimestamp(1_800_000_000 + seconds, zone)


@pytest.mark.parametrize(
    ("seconds", "expired"),
    [
        (HOUR, False),
        (BUFFER + 0.001, False),
        (BUFFER, True),
        (BUFFER - 0.001, True),
        (0, True),
        (-1, True),
        (-1e9, True),
    ],
    ids=["future", "just outside", "edge", "just inside", "now", "past", "long past"],
)
@pytest.mark.parametrize(
    "kind",
    [
        lambda seconds: {"expires_at": 1_800_000_000 + seconds},
        lambda seconds: {"expires_at": str(1_800_000_000 + seconds)},
        lambda seconds: {"expires_at": (1_800_000_000 + seconds) * 1000},
        lambda seconds: {"expires_at": moment(seconds).isoformat()},
        lambda seconds: {"expires_at": moment(seconds).isoformat().replace("+00:00", "Z")},
        lambda seconds: {"expires_at": moment(seconds)},
        lambda seconds: {"expires_at": moment(seconds, None)},
        lambda seconds: {"expires_at": moment(seconds, None).isoformat()},
        lambda seconds: {"expires_in": seconds},
        lambda seconds: {"expires_in": str(seconds)},
        lambda seconds: {"expires_at": moment(seconds), "expires_in": -seconds},
    ],
    ids=[
        "epoch",
        "numeric string",
        "milliseconds",
        "ISO",
        "ISO with Z",
        "datetime",
        "naive datetime",
        "naive ISO",
        "expires_in",
        "expires_in as string",
        "expires_at before expires_in",
    ],
)
def test_a_token_is_expired_from_its_buffer_on(
    manager: TokenManager, kind: Any, seconds: float, *, expired: bool
) -> None:
    assert manager._is_token_expired({"access_token": "a", **kind(seconds)}) is expired


@pytest.mark.parametrize(
    "tokens",
    [{}, {"access_token": "a"}, {"expires_at": None}, {"expires_at": None, "expires_in": None}],
    ids=["nothing", "token alone", "null", "both null"],
)
def test_a_token_without_expiry_is_expired(
    manager: TokenManager, tokens: Mapping[str, Any]
) -> None:
    with Told() as told:
        assert manager._is_token_expired(tokens) is True
    assert told.records == []


@pytest.mark.parametrize(
    "tokens",
    [
        {"expires_at": "not-a-date"},
        {"expires_at": ""},
        {"expires_at": "2027-13-45"},
        {"expires_at": True},
        {"expires_at": []},
        {"expires_at": {}},
        {"expires_at": float("nan")},
        {"expires_at": -1e300},
        {"expires_at": "bad", "expires_in": HOUR},
        {"expires_in": "bad"},
        {"expires_in": False},
        {"expires_in": float("inf")},
    ],
    ids=str,
)
def test_a_malformed_expiry_is_expired_and_logged(
    manager: TokenManager, tokens: Mapping[str, Any]
) -> None:
    with Told() as told:
        assert manager._is_token_expired(tokens) is True
    (record,) = told.records
    assert "malformed" in record.getMessage()


def test_a_saved_expires_in_does_expire(world: World, manager: TokenManager) -> None:
    manager.save_tokens("alice", {"access_token": "a", "expires_in": HOUR})
    loaded = manager.load_tokens("alice")
    assert loaded is not None
    assert loaded["expires_at"] == world.clock.now + HOUR
    assert manager._is_token_expired(loaded) is False
    world.clock.now += HOUR
    assert manager._is_token_expired(loaded) is True


# -- refresh --------------------------------------------------------------------------------------


def test_a_refresh_gives_new_tokens_and_stores_them(world: World, manager: TokenManager) -> None:
    old = world.sign_in()
    new = manager.refresh_token("alice", "test")
    assert world.server.is_live(new["access_token"])
    assert new["refresh_token"] != old["refresh_token"]
    assert manager.load_tokens("alice") == new


def test_a_refresh_keeps_the_refresh_token_if_none_is_given(tmp_path: Path) -> None:
    with World(tmp_path, rotate=False) as world:
        old = world.sign_in()
        new = world.manager().refresh_token("alice", "test")
        assert new["refresh_token"] == old["refresh_token"]


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (denied("invalid_grant"), "ReauthorizationRequired"),
        (denied("invalid_client", 401), "ClientRejectedError"),
        (Answer(400, "<html>"), "TransientRefreshError"),
        (Answer(429), "TransientRefreshError"),
        (Answer(500), "TransientRefreshError"),
        (Answer(200, "<html>"), "TransientRefreshError"),
        (Answer(200, {"token_type": "Bearer"}), "TransientRefreshError"),
        (Drop(spent=False), "TransientRefreshError"),
    ],
    ids=["revoked", "client", "400", "429", "500", "no JSON", "no token", "no answer"],
)
def test_a_failed_refresh_raises_and_keeps_the_tokens(
    world: World, manager: TokenManager, step: Any, error: str
) -> None:
    world.sign_in()
    before = manager.load_tokens("alice")
    world.server.script(step)
    with pytest.raises(TokenRefreshError) as caught:
        manager.refresh_token("alice", "test")
    assert type(caught.value).__name__ == error
    assert caught.value.account_name == "alice"
    assert manager.load_tokens("alice") == before


@pytest.mark.parametrize(
    ("account", "provider"),
    [("nobody", "test"), ("no-refresh", "test"), ("alice", "unknown"), ("alice", "google")],
    ids=["no account", "no refresh token", "unknown provider", "provider without a client"],
)
def test_a_refresh_that_cannot_be_asked_for_raises(
    world: World, account: str, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_CLIENT_ID", raising=False)
    world.sign_in(provider=None)
    world.sign_in("no-refresh", refresh_token=None)
    manager = world.manager()
    with pytest.raises(TokenRefreshError):
        manager.refresh_token(account, provider)
    assert manager.get_valid_token(account, provider) is None
    assert world.posts == 0


def test_a_server_that_is_down_is_a_failed_refresh(world: World, manager: TokenManager) -> None:
    world.sign_in()
    down = Provider("test", "http://127.0.0.1:1/token", "tokenstore")
    with pytest.raises(TokenRefreshError) as caught:
        manager.refresh_token("alice", down)
    assert caught.value.retryable


# -- get_valid_token ------------------------------------------------------------------------------


def test_a_valid_token_is_returned_without_a_request(world: World, manager: TokenManager) -> None:
    saved = world.sign_in(expires_in=HOUR)
    for _ in range(3):
        assert manager.get_valid_token("alice", "test") == saved["access_token"]
    assert world.posts == 0


@pytest.mark.parametrize("expires_in", [BUFFER, 0, -HOUR], ids=["nearly", "just", "long ago"])
def test_an_expired_token_is_refreshed(
    world: World, manager: TokenManager, expires_in: float
) -> None:
    saved = world.sign_in(expires_in=expires_in)
    token = manager.get_valid_token("alice", "test")
    assert token not in {None, saved["access_token"]}
    assert world.server.is_live(str(token))
    assert world.posts == 1


def test_a_failing_refresh_is_tried_once_more_and_then_gives_none(
    world: World, manager: TokenManager
) -> None:
    world.sign_in()
    world.server.script(Answer(500), Answer(500), Answer(500))
    with Told() as told:
        assert manager.get_valid_token("alice", "test") is None
    assert world.posts == 2
    assert any("HTTP 500" in record.getMessage() for record in told.records)


def test_the_second_try_may_succeed(world: World, manager: TokenManager) -> None:
    world.sign_in()
    world.server.script(Answer(500))
    assert manager.get_valid_token("alice", "test") is not None
    assert world.posts == 2


def test_a_refused_refresh_gives_none(world: World, manager: TokenManager) -> None:
    world.sign_in()
    world.server.revoke("alice")
    assert manager.get_valid_token("alice", "test") is None
    assert world.posts == 1


def test_an_unknown_account_gives_none(manager: TokenManager) -> None:
    assert manager.get_valid_token("nobody", "test") is None


# -- permissions ----------------------------------------------------------------------------------


def test_every_file_is_private(world: World, manager: TokenManager) -> None:
    world.sign_in()
    hold = world.hold()
    call = Call(manager.get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in world.path.parent.rglob("*")}
    hold.release.set()
    assert call.result() is not None
    directories = {"tokens.db-locks"}
    assert {"tokens.db", "tokens.db-wal", "tokens.db-shm", *directories} <= modes.keys()
    assert {modes[name] for name in directories} == {0o700}
    assert {mode for name, mode in modes.items() if name not in directories} == {0o600}


# -- races ----------------------------------------------------------------------------------------


def test_threads_that_need_the_same_token_refresh_it_once(world: World) -> None:
    world.sign_in()
    managers = [world.manager() for _ in range(4)]
    start = threading.Barrier(32)

    def get(number: int) -> str | None:
        start.wait(SOON)
        return managers[number % 4].get_valid_token("alice", "test")

    calls = [Call(get, number) for number in range(32)]
    (token,) = {call.result() for call in calls}
    assert token is not None
    assert world.server.is_live(token)
    assert (world.posts, world.server.reuses) == (1, 0)


def test_threads_that_save_and_load_see_whole_token_sets(world: World) -> None:
    managers = [world.manager() for _ in range(4)]
    sets = [{"access_token": f"a{n}", "refresh_token": f"r{n}", "n": n} for n in range(8)]
    managers[0].save_tokens("alice", sets[0])
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait(SOON)
        for _ in range(20):
            managers[number % 4].save_tokens("alice", sets[number])
            assert managers[(number + 1) % 4].load_tokens("alice") in sets

    for call in [Call(work, number) for number in range(8)]:
        call.result()


# -- files of the old kind ------------------------------------------------------------------------


def test_an_old_file_is_imported_refreshed_and_exported_for_its_old_reader(
    world: World, manager: TokenManager, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    tokens = world.server.sign_in("alice@example.com")
    expired = (datetime.now() - timedelta(hours=1)).isoformat()  # noqa: DTZ005 - as they wrote it
    (old / "alice@example.com.json").write_text(
        json.dumps({**tokens, "expires_at": expired, "custom": {"kept": True}})
    )
    with TokenRepository(world.path, clock=world.clock) as repository:
        (imported,) = import_accounts(repository, old, provider="test")
        assert (imported.account_name, imported.outcome) == ("alice@example.com", "imported")
        token = manager.get_valid_token("alice@example.com")
        assert token is not None
        (exported,) = export_accounts(repository, new)
    assert exported.outcome == "exported"
    file = new / "alice@example.com.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    read = json.loads(file.read_text())
    assert read["access_token"] == token
    assert read["refresh_token"] not in {None, tokens["refresh_token"]}
    assert read["custom"] == {"kept": True}
    in_an_hour = moment(HOUR, None).isoformat()
    assert datetime.fromisoformat(read["expires_at"]).isoformat() == in_an_hour


@pytest.mark.parametrize(
    "fields",
    [
        {"access_token": "a", "expires_at": "2027-01-15T09:00:00+00:00"},
        {"access_token": "a", "expires_at": 1_800_003_600},
        {"access_token": "a", "expires_at": 1_800_003_600_000},
        {"token": "a", "expiry": "2027-01-15T09:00:00.000000Z"},
        {"accessToken": "a", "expiresAt": 1_800_003_600},
        {"access_token": "a", "expiry_date": 1_800_003_600_000},
        {"access_token": "a", "token_expiry": "2027-01-15T09:00:00Z"},
        {"access_token": "a", "expires_in": 3600, "created_at": 1_800_000_000},
    ],
    ids=[
        "ISO",
        "epoch",
        "milliseconds",
        "google-auth",
        "camel case",
        "expiry_date",
        "oauth2client",
        "created_at",
    ],
)
def test_older_formats_give_the_same_token(
    world: World, manager: TokenManager, tmp_path: Path, fields: dict[str, Any]
) -> None:
    (tmp_path / "alice.json").write_text(json.dumps(fields))
    with TokenRepository(world.path, clock=world.clock) as repository:
        (result,) = import_accounts(repository, tmp_path / "alice.json")
    assert result.outcome == "imported"
    assert manager.get_valid_token("alice") == "a"
    (account,) = manager.accounts()
    assert account.expires_at == world.clock.now + HOUR
