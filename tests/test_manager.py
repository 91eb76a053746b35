from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from sqlalchemy.engine import URL

from tests.helpers.refreshes import SOON, Call, Told, World, denied, of_sqlite, on_both_engines
from tokenstore import (
    InvalidTokenError,
    Provider,
    ReauthorizationRequired,
    SchemaOutdatedError,
    StorageError,
    TokenManager,
    TokenPersistError,
    TransientRefreshError,
)
from tokenstore.lifecycle.cache import TokenCache
from tokenstore.models.timestamps import NEVER
from tokenstore.storage.tables import APPLICATION_ID, VERSION_TABLE
from tokenstore.testing import Answer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.helpers.refreshes import Clock

HOUR = 3600.0
NOTHING = lambda: None  # noqa: E731

pytestmark = on_both_engines


@pytest.fixture
def clock(world: World) -> Clock:
    return world.clock


def token(name: str = "saved", expires_in: float = HOUR, **more: Any) -> dict[str, Any]:
    return {"access_token": name, "expires_in": expires_in, **more}


# -- the arguments --------------------------------------------------------------------------------


def test_creating_a_manager_does_no_io(tmp_path: Path) -> None:
    TokenManager(tmp_path / "missing" / "tokens.db").close()
    TokenManager(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_an_unusable_store_shows_at_the_first_call(tmp_path: Path) -> None:
    manager = TokenManager(tmp_path)
    for call in (manager.load_tokens, manager.get_valid_token, manager.delete_tokens):
        with pytest.raises(StorageError) as caught:
            call("alice")
        assert caught.value.path == str(tmp_path)
    with pytest.raises(StorageError):
        next(manager.accounts())


def test_reading_a_store_that_is_not_there_creates_nothing(tmp_path: Path) -> None:
    with TokenManager(tmp_path / "tokens.db") as manager:
        assert manager.load_tokens("alice") is None
        assert manager.get_valid_token("alice", "google") is None
        assert manager.delete_tokens("alice") is False
        assert list(manager.accounts()) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "database"),
    [
        ("a b%20?#.db", lambda path: path),
        ("a b%20?#.db", str),
        ("tokens.db", lambda path: f"sqlite:///{path}"),
        ("a b%20?#.db", lambda path: URL.create("sqlite", database=str(path))),
    ],
    ids=["path", "string", "URL as text", "URL"],
)
def test_a_database_is_named_by_path_or_url(
    tmp_path: Path, name: str, database: Callable[[Path], Any]
) -> None:
    with TokenManager(database(tmp_path / name)) as manager:
        manager.save_tokens("alice", token())
    assert (tmp_path / name).is_file()


def test_the_environment_names_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENSTORE_DATABASE", str(tmp_path / "named.db"))
    with TokenManager() as manager:
        manager.save_tokens("alice", token())
    assert (tmp_path / "named.db").is_file()


def test_given_providers_come_before_the_built_in_ones(world: World) -> None:
    tokens = {**world.server.sign_in(), "expires_in": -1}
    manager = world.manager(providers={"google": world.server.provider("google")})
    manager.save_tokens("alice", tokens, provider="google")
    assert manager.get_valid_token("alice") is not None
    assert world.posts == 1


@of_sqlite
def test_a_providers_file_beside_the_database_is_read(world: World) -> None:
    world.sign_in(provider="of-the-file")
    world.path.with_name("providers.toml").write_text(
        f'[of-the-file]\ntoken_endpoint = "{world.server.token_endpoint}"\n'
        'client_id = "tokenstore"\nclient_secret = "p+a/b=:%é€"\n',
        "utf-8",
    )
    assert world.manager(providers=None).get_valid_token("alice") is not None


@pytest.mark.parametrize("buffer", [0.0, 10.0, 300.0])
def test_a_token_is_due_when_its_buffer_begins(world: World, buffer: float) -> None:
    manager = world.manager(expiry_buffer=buffer, cache_ttl=0)
    saved = world.sign_in(expires_in=HOUR)
    world.clock.now += HOUR - buffer - 0.001
    assert manager.get_valid_token("alice") == saved["access_token"]
    assert world.posts == 0
    world.clock.now += 0.001
    assert manager.get_valid_token("alice") != saved["access_token"]
    assert world.posts == 1


def test_the_timeout_is_that_of_the_whole_request(world: World) -> None:
    world.sign_in()
    world.hold()
    with pytest.raises(TransientRefreshError, match=r"no complete response .* within 0\.2 s"):
        world.manager(timeout=0.2).ensure_valid_token("alice")


def test_a_given_session_is_used(world: World) -> None:
    world.sign_in()
    sent: list[str | None] = []

    class Adapter(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, **more: Any) -> requests.Response:  # type: ignore[override]
            sent.append(request.url)
            return super().send(request, **more)

    with requests.Session() as session:
        session.mount("http://", Adapter())
        assert world.manager(session=session).get_valid_token("alice") is not None
    assert sent == [world.server.token_endpoint]


@of_sqlite
@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_the_journal_mode_is_that_of_the_file(world: World, journal_mode: str) -> None:
    with world.manager(journal_mode=journal_mode) as manager:
        manager.save_tokens("alice", {**world.server.sign_in(), "expires_in": -1})
        assert manager.get_valid_token("alice", "test") is not None
    assert world.sql("PRAGMA journal_mode") == [(journal_mode,)]


@of_sqlite
def test_an_older_database_is_migrated_if_told_so(world: World) -> None:
    with closing(sqlite3.connect(world.path)) as old:
        old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        old.execute("CREATE TABLE t (x)")
    with pytest.raises(SchemaOutdatedError, match="db upgrade"):
        world.manager().save_tokens("alice", token())
    with world.manager(upgrade=True) as manager:
        manager.save_tokens("alice", token())
    assert world.manager().get_valid_token("alice") == "saved"


@pytest.mark.parametrize(
    "wrong",
    [
        {"expiry_buffer": -1},
        {"expiry_buffer": float("nan")},
        {"cache_ttl": -1},
        {"cache_ttl": float("nan")},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": 1e12},
        {"journal_mode": "off"},
    ],
    ids=str,
)
def test_an_argument_without_sense_is_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}: "):
        TokenManager(tmp_path / "tokens.db", **wrong)


@pytest.mark.parametrize(
    "provider", [5, {"client_secret": "s"}, b"test"], ids=["int", "dict", "bytes"]
)
def test_a_provider_is_a_name_or_a_provider(world: World, provider: Any) -> None:
    manager = world.manager()
    saved = world.sign_in()
    for call in (manager.refresh_token, manager.get_valid_token, manager.ensure_valid_token):
        with pytest.raises(TypeError, match=r"^provider: "):
            call("alice", provider)
    with pytest.raises(TypeError, match=r"^provider: "):
        manager.save_tokens("alice", saved, provider=provider)


# -- memory ---------------------------------------------------------------------------------------


def test_a_token_is_served_from_memory_for_the_ttl(world: World, clock: Clock) -> None:
    reader, writer = world.manager(cache_ttl=60), world.manager()
    writer.save_tokens("alice", token("first"))
    assert reader.get_valid_token("alice") == "first"
    writer.save_tokens("alice", token("second"))
    clock.now += 59.9
    assert reader.get_valid_token("alice") == "first"
    clock.now += 0.1
    assert reader.get_valid_token("alice") == "second"


def test_a_ttl_of_0_turns_memory_off(world: World) -> None:
    reader, writer = world.manager(cache_ttl=0), world.manager()
    for name in ("first", "second"):
        writer.save_tokens("alice", token(name))
        assert reader.get_valid_token("alice") == name


def test_memory_ends_where_the_token_is_due(world: World, clock: Clock) -> None:
    saved = world.sign_in(expires_in=310)
    manager = world.manager(cache_ttl=60, expiry_buffer=300)
    assert manager.get_valid_token("alice") == saved["access_token"]
    clock.now += 9.9
    assert manager.get_valid_token("alice") == saved["access_token"]
    clock.now += 0.1
    assert manager.get_valid_token("alice") != saved["access_token"]
    assert world.posts == 1


def test_a_clock_that_is_set_back_looks_at_the_store(world: World, clock: Clock) -> None:
    reader, writer = world.manager(), world.manager()
    writer.save_tokens("alice", token("first"))
    assert reader.get_valid_token("alice") == "first"
    writer.save_tokens("alice", token("second"))
    clock.now -= 0.001
    assert reader.get_valid_token("alice") == "second"


def test_a_clock_that_leaps_ahead_refreshes_at_once(
    world: World, manager: TokenManager, clock: Clock
) -> None:
    saved = world.sign_in(expires_in=HOUR)
    assert manager.get_valid_token("alice") == saved["access_token"]
    clock.now += 5 * HOUR
    assert manager.get_valid_token("alice") != saved["access_token"]


def test_a_manager_sees_its_own_changes_at_once(world: World, manager: TokenManager) -> None:
    world.sign_in(expires_in=HOUR)
    manager.get_valid_token("alice")
    manager.save_tokens("alice", {**world.server.sign_in(), "access_token": "second"})
    assert manager.get_valid_token("alice") == "second"
    refreshed = manager.refresh_token("alice")["access_token"]
    assert manager.get_valid_token("alice") == refreshed
    manager.delete_tokens("alice")
    assert manager.get_valid_token("alice") is None


def test_a_read_that_a_save_overtakes_is_not_remembered(
    manager: TokenManager, clock: Clock
) -> None:
    manager.save_tokens("alice", token("first"))
    # The clock is read for the cache, before the read, and again before the token is cached.
    clock.next = [NOTHING, NOTHING, lambda: manager.save_tokens("alice", token("second"))]
    assert manager.get_valid_token("alice") == "first"
    assert clock.next == []
    assert manager.get_valid_token("alice") == "second"


def test_memory_knows_a_name_in_one_form(manager: TokenManager) -> None:
    manager.save_tokens("e\u0301", token("first"))
    assert manager.get_valid_token("\u00e9") == "first"
    manager.save_tokens("e\u0301", token("second"))
    assert manager.get_valid_token("\u00e9") == "second"


def test_memory_is_limited(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenCache, "_LIMIT", 3)
    cache = TokenCache(60, clock)
    for name in "abcd":
        cache.put(name, name, None, until=clock.now + HOUR, epoch=0)
    assert [cache.get(name) for name in "abcd"] == [None, None, None, "d"]


# -- how long a token has to live -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("expires_in", "min_ttl", "posts"),
    [(601, 600, 0), (600, 600, 1), (301, 10, 0), (300, 10, 1), (301, None, 0), (300, 0, 1)],
)
def test_min_ttl_asks_for_more_than_the_buffer(
    world: World, manager: TokenManager, expires_in: float, min_ttl: float | None, posts: int
) -> None:
    world.sign_in(expires_in=expires_in)
    assert manager.ensure_valid_token("alice", min_ttl=min_ttl)
    assert world.posts == posts


def test_a_token_just_refreshed_is_returned_though_it_lives_shorter(
    world: World, manager: TokenManager
) -> None:
    world.sign_in()
    for _ in range(3):
        assert world.server.is_live(manager.ensure_valid_token("alice", min_ttl=2 * HOUR))
        assert world.posts == 1
    world.clock.now += HOUR / 2
    assert manager.ensure_valid_token("alice", min_ttl=2 * HOUR)
    assert world.posts == 2


@pytest.mark.parametrize("min_ttl", [-1, float("nan")])
def test_min_ttl_is_a_number_of_seconds(manager: TokenManager, min_ttl: float) -> None:
    with pytest.raises(ValueError, match=r"^min_ttl: "):
        manager.ensure_valid_token("alice", min_ttl=min_ttl)


def test_tokens_that_live_shorter_than_the_buffer_cause_no_storm(tmp_path: Path) -> None:
    with World(tmp_path, expires_in=30) as world:
        world.sign_in()
        manager, other = world.manager(), world.manager(cache_ttl=0)
        for _ in range(50):
            assert manager.get_valid_token("alice") == other.get_valid_token("alice")
        world.clock.now += 14.9
        assert manager.get_valid_token("alice") == other.get_valid_token("alice")
        assert world.posts == 1
        world.clock.now += 0.1
        assert manager.get_valid_token("alice") == other.get_valid_token("alice")
        assert world.posts == 2


def test_a_short_token_that_was_saved_is_due_by_the_buffer(
    world: World, manager: TokenManager
) -> None:
    world.sign_in(expires_in=200)
    assert manager.get_valid_token("alice")
    assert world.posts == 1


def test_a_token_of_unknown_lifetime_is_due(world: World, manager: TokenManager) -> None:
    world.sign_in(expires_in=None, provider=None)
    assert manager.get_valid_token("alice", "test")
    assert world.posts == 1


@pytest.mark.parametrize("how", ["by name", "itself", "bound before", "over a damaged row"])
def test_the_default_lifetime_of_the_provider_counts_from_the_save(world: World, how: str) -> None:
    provider = dataclasses.replace(world.server.provider(), name="slow", default_expires_in=7200.0)
    manager = world.manager(providers={"slow": provider})
    tokens = {"access_token": "a", "refresh_token": "r", "expires_at": None}
    if how in {"bound before", "over a damaged row"}:
        manager.save_tokens("alice", {**tokens, "expires_in": 1}, provider="slow")
    if how == "over a damaged row":
        world.sql("UPDATE accounts SET access_token = 'damaged'")
    given = "slow" if how == "by name" else provider if how == "itself" else None

    manager.save_tokens("alice", tokens, provider=given)

    expires_at = None if how == "over a damaged row" else world.clock.now + 7200
    assert (manager.load_tokens("alice") or {})["expires_at"] == expires_at


@pytest.mark.parametrize(
    ("tokens", "lifetime", "expires_at"),
    [
        ({}, math.inf, NEVER),
        ({"expires_at": None}, math.inf, NEVER),
        ({"refresh_token": "r"}, math.inf, NEVER),
        ({}, 7200.0, None),  # nothing can be done but to use it until it is rejected
        ({"refresh_token": "r", "expires_in": 600}, math.inf, 600),
        ({"refresh_token": "r", "expires_in": 600}, 7200.0, 600),
    ],
)
def test_a_default_lifetime_counts_where_nothing_else_does(
    world: World, tokens: dict[str, Any], lifetime: float, expires_at: float | None
) -> None:
    provider = dataclasses.replace(world.server.provider(), default_expires_in=lifetime)
    manager = world.manager(providers={"test": provider})

    manager.save_tokens("alice", {"access_token": "a", **tokens}, provider="test")

    stored = manager.load_tokens("alice") or {}
    if expires_at == 600:
        expires_at += world.clock.now
    assert stored.get("expires_at") == expires_at
    assert manager.get_valid_token("alice") == "a"
    assert world.posts == 0


def test_a_provider_that_is_not_known_prevents_no_save(manager: TokenManager) -> None:
    manager.save_tokens("alice", {"access_token": "a", "refresh_token": "r"}, provider="unknown")

    assert "expires_at" not in (manager.load_tokens("alice") or {})


# -- a stale token in place of none ---------------------------------------------------------------


FAILURES = {
    "dead": denied(),
    "down": Answer(503),
    "to wait": Answer(429, headers={"Retry-After": "60"}),
    "misconfigured": denied("invalid_client", 401),
}


@pytest.mark.parametrize("step", FAILURES.values(), ids=FAILURES.keys())
@pytest.mark.parametrize("call", ["get_valid_token", "ensure_valid_token"])
def test_a_token_that_has_not_expired_is_served_when_the_refresh_fails(
    world: World, step: Answer, call: str
) -> None:
    saved = world.sign_in(expires_in=100)
    manager = world.manager(serve_stale=True)
    for _ in range(3):
        world.server.script(step, step)
        assert getattr(manager, call)("alice") == saved["access_token"]
    world.clock.now += 100
    world.server.script(step, step)
    assert manager.get_valid_token("alice") is None


def test_by_default_no_stale_token_is_served(world: World, manager: TokenManager) -> None:
    world.sign_in(expires_in=100)
    world.server.script(denied())
    assert manager.get_valid_token("alice") is None


def test_a_stale_token_is_served_while_another_refreshes(world: World) -> None:
    saved = world.sign_in(expires_in=100)
    manager = world.manager(serve_stale=True)
    hold = world.hold()
    other = Call(world.manager().get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    assert manager.get_valid_token("alice") == saved["access_token"]
    assert not hold.release.is_set()
    hold.release.set()
    assert manager.get_valid_token("alice") in {other.result(), saved["access_token"]}
    assert world.posts == 1


def test_an_expired_token_is_waited_for(world: World) -> None:
    world.sign_in()
    manager = world.manager(serve_stale=True)
    hold = world.hold()
    other = Call(world.manager().get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    call = Call(manager.get_valid_token, "alice").waits()
    hold.release.set()
    assert call.result() == other.result()
    assert world.posts == 1


def test_a_stale_token_has_to_live_for_min_ttl(world: World) -> None:
    saved = world.sign_in(expires_in=100)
    manager = world.manager(serve_stale=True)
    world.server.script(denied())
    assert manager.ensure_valid_token("alice", min_ttl=99) == saved["access_token"]
    with pytest.raises(ReauthorizationRequired):
        manager.ensure_valid_token("alice", min_ttl=100)


def test_a_stale_token_does_not_hide_a_broken_store(world: World) -> None:
    world.sign_in(expires_in=100)
    world.refuse("INSERT ON refreshes")
    with pytest.raises(StorageError):
        world.manager(serve_stale=True).get_valid_token("alice")


def test_a_forced_refresh_serves_nothing_stale(world: World) -> None:
    world.sign_in(expires_in=100)
    world.server.script(denied())
    with pytest.raises(ReauthorizationRequired):
        world.manager(serve_stale=True).refresh_token("alice")


# -- what raises and what does not ----------------------------------------------------------------


def test_get_valid_token_gives_none_where_ensure_valid_token_says_why(
    world: World, manager: TokenManager
) -> None:
    world.sign_in()
    world.server.revoke("alice")
    for account, provider in (("alice", None), ("alice", "other"), ("bob", "test")):
        assert manager.get_valid_token(account, provider) is None


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 513, 5, None, b"alice"])
def test_what_is_no_account_name_raises(manager: TokenManager, name: Any) -> None:
    for call in (
        manager.get_valid_token,
        manager.ensure_valid_token,
        manager.refresh_token,
        manager.load_tokens,
        manager.delete_tokens,
        lambda name: manager.save_tokens(name, token()),
    ):
        with pytest.raises(InvalidTokenError) as caught:
            call(name)
        assert caught.value.field == "account_name"


# -- log records ----------------------------------------------------------------------------------


def refresh(manager: TokenManager, world: World) -> None:
    world.sign_in()
    manager.refresh_token("alice")


def fail(call: str, provider: str | None = None) -> Callable[[TokenManager, World], None]:
    def failing(manager: TokenManager, world: World) -> None:
        world.sign_in()
        world.server.script(denied())
        with pytest.raises(ReauthorizationRequired):
            getattr(manager, call)("alice", provider)

    return failing


def get(**tokens: Any) -> Callable[[TokenManager, World], None]:
    def getting(manager: TokenManager, world: World) -> None:
        world.sign_in(**tokens)
        assert manager.get_valid_token("alice") is not None

    return getting


def get_twice(manager: TokenManager, world: World) -> None:
    world.sign_in(expires_in=HOUR)
    for _ in range(2):
        manager.get_valid_token("alice", "test")


def get_stale(_: TokenManager, world: World) -> None:
    world.sign_in(expires_in=100)
    world.server.script(denied())
    assert world.manager(serve_stale=True).get_valid_token("alice") is not None


def get_none(manager: TokenManager, world: World) -> None:
    world.sign_in()
    world.server.script(denied())
    assert manager.get_valid_token("alice", world.server.provider()) is None


def lose(_: TokenManager, world: World) -> None:
    world.sign_in()
    world.refuse_outcome()
    manager = world.manager(timeout=0.5)
    with pytest.raises(TokenPersistError):
        manager.get_valid_token("alice")
    world.accept()
    manager.close()


def break_store(manager: TokenManager, world: World) -> None:
    if isinstance(world.database, str):
        world.sql(f"ALTER TABLE {VERSION_TABLE} RENAME TO elsewhere")
    else:
        world.database.mkdir()
    with pytest.raises(StorageError):
        manager.load_tokens("alice")
    if isinstance(world.database, str):
        world.sql(f"ALTER TABLE elsewhere RENAME TO {VERSION_TABLE}")


def save_wrongly(manager: TokenManager, _: World) -> None:
    with pytest.raises(InvalidTokenError):
        manager.save_tokens("alice", {"access_token": ""})


D, I, W = logging.DEBUG, logging.INFO, logging.WARNING  # noqa: E741


@pytest.mark.parametrize(
    ("act", "operation", "provider", "outcome", "level"),
    [
        (lambda m, _: m.save_tokens("alice", token()), "save_tokens", None, "saved", I),
        (lambda _, w: w.sign_in(), "save_tokens", "test", "saved", I),
        (save_wrongly, "save_tokens", None, "InvalidTokenError", W),
        (lambda m, _: m.load_tokens("alice"), "load_tokens", None, "missing", D),
        (lambda m, w: [w.sign_in(), m.load_tokens("alice")], "load_tokens", None, "loaded", D),
        (break_store, "load_tokens", None, "InsecureStorageError", W),
        (lambda m, _: m.delete_tokens("alice"), "delete_tokens", None, "missing", D),
        (lambda m, w: [w.sign_in(), m.delete_tokens("alice")], "delete_tokens", None, "deleted", I),
        (refresh, "refresh_token", "test", "refreshed", I),
        (fail("refresh_token"), "refresh_token", "test", "ReauthorizationRequired", W),
        (fail("ensure_valid_token", "test"), "ensure_valid_token", "test",
         "ReauthorizationRequired", W),
        (get(), "get_valid_token", "test", "refreshed", I),
        (get(expires_in=HOUR), "get_valid_token", None, "fresh", D),
        (get_twice, "get_valid_token", "test", "cached", D),
        (get_stale, "get_valid_token", "test", "stale", W),
        (get_none, "get_valid_token", "test", "ReauthorizationRequired", W),
        (lose, "get_valid_token", None, "TokenPersistError", W),
    ],
    ids=[
        "save", "save with provider", "save nonsense", "load nothing", "load", "load from nowhere",
        "delete nothing", "delete", "refresh", "refresh in vain", "ensure in vain",
        "get and refresh", "get", "get from memory", "get stale", "get none", "lose",
    ],
)  # fmt: skip
def test_every_operation_logs_one_record_with_its_facts(
    world: World,
    manager: TokenManager,
    act: Callable[[TokenManager, World], object],
    operation: str,
    provider: str | None,
    outcome: str,
    level: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tokenstore.lifecycle.refresh.STORE_PATIENCE", 0.1)
    with Told() as told:
        act(manager, world)
    records = [r for r in told.records if getattr(r, "operation", None) == operation]
    assert len(records) == (2 if act is get_twice else 1)
    facts = vars(records[-1])
    assert (facts["account_name"], facts["provider"]) == ("alice", provider)
    assert (facts["outcome"], facts["levelno"]) == (outcome, level)
    assert records[-1].getMessage().startswith(f"{operation} alice: {outcome}")


def test_listing_accounts_logs_one_record(world: World, manager: TokenManager) -> None:
    world.sign_in()
    with Told() as told:
        list(manager.accounts())
    (record,) = told.records
    assert record.getMessage() == "accounts: listed"
    facts = [getattr(record, name) for name in ("account_name", "provider", "operation", "outcome")]
    assert facts == [None, None, "accounts", "listed"]


def test_a_failure_is_logged_with_its_reason(world: World, manager: TokenManager) -> None:
    world.sign_in()
    world.server.revoke("alice")
    with Told() as told:
        manager.get_valid_token("alice")
    (record,) = [record for record in told.records if record.levelno >= logging.WARNING]
    assert "HTTP 400 invalid_grant" in record.getMessage()


def test_arguments_in_the_wrong_order_are_not_logged(manager: TokenManager) -> None:
    with Told() as told, pytest.raises(InvalidTokenError):
        manager.save_tokens(token("secret"), "alice")  # type: ignore[arg-type]
    assert [vars(record)["account_name"] for record in told.records] == ["<dict>"]
    assert "secret" not in str([vars(record) for record in told.records])


def test_a_name_with_a_line_break_is_one_line_in_the_log(manager: TokenManager) -> None:
    with Told() as told, pytest.raises(InvalidTokenError):
        manager.load_tokens("alice\nroot: logged in")
    assert "\n" not in told.records[0].getMessage()


def test_nothing_is_formatted_for_a_log_that_is_off(
    world: World, manager: TokenManager, caplog: pytest.LogCaptureFixture
) -> None:
    saved = world.sign_in(expires_in=HOUR)
    with caplog.at_level(logging.CRITICAL, "tokenstore"):
        for _ in range(2):
            assert manager.get_valid_token("alice") == saved["access_token"]
    assert caplog.records == []


# -- threads, forks, closing ----------------------------------------------------------------------


def test_a_manager_serves_many_threads(world: World) -> None:
    manager = world.manager()
    for number in range(4):
        world.sign_in(f"account-{number}")
    start = threading.Barrier(16)

    def work(thread: int) -> set[str | None]:
        start.wait(SOON)
        found = set()
        for step in range(20):
            found.add(manager.get_valid_token(f"account-{(thread + step) % 4}"))
            manager.save_tokens(f"own-{thread}", token(f"{thread}-{step}"))
            assert manager.get_valid_token(f"own-{thread}") == f"{thread}-{step}"
            assert len(list(manager.accounts())) >= 4
        return found

    calls = [Call(work, thread) for thread in range(16)]
    tokens = set().union(*(call.result() for call in calls))
    assert None not in tokens
    assert len(tokens) == 4
    assert world.posts == 4


def test_a_closed_manager_opens_again(world: World, manager: TokenManager) -> None:
    world.sign_in()
    for _ in range(2):
        manager.close()
    assert manager.get_valid_token("alice") is not None
    with manager:
        manager.refresh_token("alice")
    assert manager.load_tokens("alice") is not None


def test_closing_while_others_are_at_work_harms_nobody(world: World, manager: TokenManager) -> None:
    world.sign_in()
    hold = world.hold()
    call = Call(manager.get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    closing = Call(manager.close)
    hold.release.set()
    closing.result()
    assert world.outcomes() == ["refreshed"]
    assert call.result() == world.tokens()[0]


def test_a_cancelled_task_does_not_cost_the_token(world: World, manager: TokenManager) -> None:
    world.sign_in()
    hold = world.hold()

    async def cancel() -> None:
        task = asyncio.create_task(asyncio.to_thread(manager.get_valid_token, "alice"))
        assert await asyncio.to_thread(hold.arrived.wait, SOON)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        hold.release.set()

    asyncio.run(cancel())  # waits for its threads
    token = manager.get_valid_token("alice")
    assert token == world.tokens()[0]
    assert world.server.is_live(token or "")
    assert world.posts == 1


FORK = """
import os, sys, threading
from tokenstore import Provider, TokenManager
path, endpoint = sys.argv[1:]
providers = {"test": Provider("test", endpoint, "tokenstore", client_secret="p+a/b=:%é€")}
manager = TokenManager(path, providers=providers)
assert manager.get_valid_token("alice")
assert manager.get_valid_token("bob")
locked, done = threading.Event(), threading.Event()
def hold():
    with manager._cache._lock:
        locked.set()
        done.wait(20)
threading.Thread(target=hold, daemon=True).start()
locked.wait(20)
child = os.fork()
done.set()
mine = "alice" if child else "bob"
token = manager.refresh_token(mine)["access_token"]
assert manager.get_valid_token(mine) == token
manager.save_tokens(mine + "-2", {"access_token": "x"})
manager.close()
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.slow
def test_a_manager_survives_a_fork_on_both_sides(world: World) -> None:
    for account in ("alice", "bob"):
        world.sign_in(account, expires_in=None, expires_at=0)
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(world.database)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    subprocess.run(
        [*command, world.server.token_endpoint], check=True, timeout=3 * SOON, env=environment
    )
    assert world.server.refreshes("alice") == world.server.refreshes("bob") == 2
    assert world.server.reuses == 0
    if world.database == world.path:
        assert world.sql("PRAGMA integrity_check") == [("ok",)]
    names = [name for (name,) in world.sql("SELECT account_name FROM accounts ORDER BY 1")]
    assert names == ["alice", "alice-2", "bob", "bob-2"]


# -- the list of accounts -------------------------------------------------------------------------


def test_the_list_goes_by_the_managers_buffer_and_clock(world: World) -> None:
    world.sign_in("alice", expires_in=400)
    (account,) = world.manager(expiry_buffer=300).accounts()
    assert account.state == "valid"
    assert account.expires_at == world.clock.now + 400
    assert datetime.fromtimestamp(account.expires_at, UTC).year == 2027
    (account,) = world.manager(expiry_buffer=400).accounts()
    assert account.state == "due"


def test_the_list_tells_how_each_account_is(world: World, manager: TokenManager) -> None:
    for name in ("dead", "due", "no-refresh", "valid", "wait"):
        world.sign_in(name, **{"no-refresh": {"refresh_token": None}}.get(name, {}))
    world.server.revoke("dead")
    manager.get_valid_token("dead")
    manager.get_valid_token("valid")
    world.server.script(Answer(429, headers={"Retry-After": "60"}))
    manager.get_valid_token("wait")
    found = {account.name: account for account in manager.accounts()}
    assert {name: account.state for name, account in found.items()} == {
        "dead": "sign_in",
        "due": "due",
        "no-refresh": "sign_in",
        "valid": "valid",
        "wait": "retry_later",
    }
    assert {account.provider for account in found.values()} == {"test"}
    refreshed = {name for name, account in found.items() if account.refreshed_at is not None}
    assert refreshed == {"valid"}
    failed = {name for name, account in found.items() if account.last_error is not None}
    assert failed == {"dead", "wait"}


def test_a_provider_of_the_same_name_may_move(world: World) -> None:
    world.sign_in()
    moved = Provider("test", world.server.token_endpoint, "tokenstore", client_secret="p+a/b=:%é€")
    assert world.manager(providers={}).get_valid_token("alice", moved) is not None


@pytest.mark.parametrize("name", [[], {}, None, 7], ids=["list", "dict", "None", "number"])
def test_what_is_no_name_is_an_invalid_token_error(manager: TokenManager, name: Any) -> None:
    for method in (manager.get_valid_token, manager.ensure_valid_token, manager.load_tokens):
        with pytest.raises(InvalidTokenError) as caught:
            method(name)
        assert caught.value.field == "account_name"


@pytest.mark.parametrize("arguments", [{"within": "1h"}, {"idle_for": "30d"}], ids=str)
def test_a_time_that_is_not_a_number_is_named(world: World, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{min(arguments)}: expected seconds, got str"):
        list(world.manager().refresh_all(**arguments))
