from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.refreshes import SOON, Call, World, denied, on_both_engines, until
from tests.helpers.stores import Process
from tokenstore import (
    Provider,
    ProviderConfigurationError,
    ReauthorizationRequired,
    StorageError,
    TokenManager,
    TokenPersistError,
    TransientRefreshError,
)
from tokenstore.lifecycle.bulk import _WINDOW, BulkRefresher, RefreshResult, Selection
from tokenstore.models.accounts import Account
from tokenstore.models.tokens import TokenSet
from tokenstore.oauth.registry import ProviderRegistry
from tokenstore.testing import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

HOUR = 3600.0
DAY = 24 * HOUR

pytestmark = on_both_engines


def sign_in(world: World, names: Iterable[str], provider: str = "test", **more: Any) -> list[str]:
    """Store many sign-ins in one transaction; without ``expires_in`` they have expired."""
    names = list(names)
    with world.manager()._repository.transaction() as repository:
        for name in names:
            tokens = {**world.server.sign_in(name), "expires_in": -1, **more}
            repository.save(name, tokens, provider=provider)
    return names


def outcomes(results: Iterable[RefreshResult]) -> dict[str, str]:
    """Return what became of each account, each of which has one result."""
    found = [(result.account_name, result.outcome) for result in results]
    assert len(dict(found)) == len(found)
    return dict(found)


def asked(world: World, prefix: str = "") -> Counter[str]:
    """Return how often the provider was asked about each account."""
    subjects = [request.subject or "?" for request in world.server.requests]
    return Counter(subject for subject in subjects if subject.startswith(prefix))


# -- what it does -----------------------------------------------------------------------------


def test_every_due_account_is_refreshed_once(world: World, manager: TokenManager) -> None:
    due = sign_in(world, (f"due-{number}" for number in range(20)))
    sign_in(world, ["fresh"], expires_in=HOUR)
    results = list(manager.refresh_all())
    assert outcomes(results) == dict.fromkeys(due, "refreshed")
    assert {(result.reason, result.error) for result in results} == {(None, None)}
    assert asked(world) == dict.fromkeys(due, 1)
    for name in due:
        assert world.server.is_live(world.tokens(name)[0] or "")
    assert list(manager.refresh_all()) == []


def test_an_empty_store_has_nothing_to_refresh(manager: TokenManager) -> None:
    assert list(manager.refresh_all()) == []


@pytest.mark.slow
def test_only_what_may_be_due_is_read_the_most_urgent_first(
    world: World, manager: TokenManager
) -> None:
    now = world.clock.now
    with manager._repository.transaction():
        for number in range(1200):
            manager.save_tokens(f"fresh {number}", {"access_token": "a", "expires_at": now + 9000})
            manager.save_tokens(
                f"due {number:04}", {"access_token": "a", "expires_at": now - 1 - number // 3}
            )
    manager.save_tokens("undated", {"access_token": "a"})
    kept = TokenSet(access_token=None, refresh_token="r", expires_at=now + 9000)
    manager._repository.put("tokenless", kept)

    found = manager._repository.listing.due_candidates(
        before=now, expiry_buffer=0.0, client_of=lambda _: None
    )

    due = sorted((-1 - number // 3, f"due {number:04}") for number in range(1200))
    assert [a.name for a in found] == [*(name for _, name in due), "undated", "tokenless"]


@pytest.mark.slow
def test_a_token_that_lives_no_longer_than_the_time_ahead_is_refreshed_once_a_run(
    tmp_path: Path, database: Path | str
) -> None:
    with World(tmp_path, database, expires_in=60.0) as world:
        manager = world.manager(providers={"test": world.server.provider()})
        names = [f"account {number:04}" for number in range(_WINDOW + 100)]
        with manager._repository.transaction():
            for name in names:
                tokens = {**world.server.sign_in(name), "expires_in": -1}
                manager.save_tokens(name, tokens, provider="test")
        world.clock.now += 1
        select = Selection(manager._repository, manager._providers, manager._freshness, world.clock)
        scan = select.due(3600.0)
        found = [next(scan).name]
        world.clock.now += 1
        manager.refresh_token(found[0])
        found += [account.name for account in scan]
    assert found == names


def test_a_clock_that_was_set_back_hides_nothing_that_is_due(
    world: World, manager: TokenManager
) -> None:
    world.sign_in("alice")
    assert manager.get_valid_token("alice")
    world.clock.now -= 86_400

    assert [r.outcome for r in manager.refresh_all()] == ["refreshed"]


def test_one_account_that_fails_stops_nothing(world: World, manager: TokenManager) -> None:
    names = sign_in(world, (f"account-{number}" for number in range(6)))
    sign_in(world, ["dead"])
    sign_in(world, ["odd"], "nowhere")
    sign_in(world, ["tired"])
    world.server.revoke("dead")
    world.server.script(Answer(503, headers={"Retry-After": "60"}), subject="tired")
    results = {result.account_name: result for result in manager.refresh_all(jobs=2)}
    failed = {name: result for name, result in results.items() if result.outcome == "failed"}
    assert {name: type(result.error) for name, result in failed.items()} == {
        "dead": ReauthorizationRequired,
        "odd": ProviderConfigurationError,
        "tired": TransientRefreshError,
    }
    assert all(result.reason == str(result.error) for result in failed.values())
    assert {name: results[name].outcome for name in names} == dict.fromkeys(names, "refreshed")


def test_what_is_known_to_be_in_vain_is_left_out(world: World, manager: TokenManager) -> None:
    sign_in(world, ["dead", "tired", "well"])
    sign_in(world, ["bare"], refresh_token=None)
    world.server.script(denied(), subject="dead")
    world.server.script(Answer(429, headers={"Retry-After": "60"}), subject="tired")
    assert outcomes(manager.refresh_all())["well"] == "refreshed"
    world.server.script(denied(), denied())  # for whoever asks in vain
    assert list(manager.refresh_all()) == []
    assert asked(world) == {"dead": 1, "tired": 1, "well": 1}


@pytest.mark.parametrize("choice", [{"within": HOUR}, {"idle_for": 0.0}], ids=str)
def test_a_provider_that_wants_to_be_left_alone_is_left_alone_though_the_token_is_valid(
    world: World, manager: TokenManager, choice: dict[str, Any]
) -> None:
    sign_in(world, ["tired"], expires_in=HOUR)
    world.server.script(Answer(429, headers={"Retry-After": "60"}))
    with pytest.raises(TransientRefreshError):
        manager.refresh_token("tired")
    assert list(manager.refresh_all(**choice)) == []
    assert world.posts == 1
    world.clock.now += 61
    assert outcomes(manager.refresh_all(**choice)) == {"tired": "refreshed"}


@pytest.mark.parametrize("choice", [{"within": HOUR}, {"idle_for": 0.0}], ids=str)
def test_an_account_without_a_refresh_token_is_left_out(
    world: World, manager: TokenManager, choice: dict[str, Any]
) -> None:
    sign_in(world, ["bare"], refresh_token=None, expires_in=HOUR)
    assert list(manager.refresh_all(**choice)) == []


def test_what_becomes_due_within_some_time_is_refreshed_as_well(
    world: World, manager: TokenManager
) -> None:
    sign_in(world, ["due"])
    sign_in(world, ["soon"], expires_in=1000)
    sign_in(world, ["later"], expires_in=1001)
    assert outcomes(manager.refresh_all(within=1000, dry_run=True)).keys() == {"due", "soon"}
    assert outcomes(manager.refresh_all(within=1000)) == {"due": "refreshed", "soon": "refreshed"}
    assert outcomes(manager.refresh_all(within=1001)) == {"later": "refreshed"}


def test_what_was_not_used_for_some_time_is_kept_alive(world: World, manager: TokenManager) -> None:
    names = ["idle", "refreshed", "young"]
    world.clock.now -= 40 * DAY
    sign_in(world, ["idle", "refreshed"], expires_in=400 * DAY)
    world.clock.now += 20 * DAY
    manager.refresh_token("refreshed")
    sign_in(world, ["young"], expires_in=400 * DAY)
    world.clock.now += 20 * DAY
    assert outcomes(manager.refresh_all(idle_for=40 * DAY + 1)) == {}
    assert outcomes(manager.refresh_all(idle_for=30 * DAY)) == {"idle": "refreshed"}
    assert outcomes(manager.refresh_all(idle_for=30 * DAY)) == {}
    assert outcomes(manager.refresh_all(idle_for=20 * DAY)).keys() == set(names) - {"idle"}


def test_a_refresh_token_of_unknown_age_is_kept_alive_too(
    world: World, manager: TokenManager
) -> None:
    sign_in(world, ["imported"], expires_in=400 * DAY)
    world.sql("UPDATE accounts SET refresh_token_obtained_at = NULL")
    assert outcomes(manager.refresh_all(idle_for=30 * DAY)) == {"imported": "refreshed"}
    assert outcomes(manager.refresh_all(idle_for=30 * DAY)) == {}


def test_a_provider_may_be_chosen(world: World) -> None:
    providers = {name: world.server.provider(name) for name in ("one", "other")}
    manager = world.manager(providers=providers)
    sign_in(world, ["alice"], "one")
    sign_in(world, ["bob"], "other")
    assert outcomes(manager.refresh_all(provider="other")) == {"bob": "refreshed"}
    assert asked(world) == {"bob": 1}


@pytest.mark.parametrize("choice", [{}, {"within": HOUR}, {"idle_for": 0.0}], ids=str)
def test_a_dry_run_tells_whom_it_would_be_and_does_nothing(
    world: World, manager: TokenManager, choice: dict[str, Any]
) -> None:
    due = sign_in(world, ["alice", "bob"])
    before = [world.row(name) for name in due], sorted(world.path.parent.rglob("*"))
    results = list(manager.refresh_all(dry_run=True, **choice))
    assert results == [RefreshResult(name, "skipped", "dry run") for name in due]
    assert world.posts == 0
    assert world.sql("SELECT count(*) FROM refreshes") == [(0,)]
    assert ([world.row(name) for name in due], sorted(world.path.parent.rglob("*"))) == before


@pytest.mark.parametrize(
    "wrong",
    [{"jobs": 0}, {"jobs": -1}, {"within": -1}, {"within": float("nan")}, {"idle_for": -1}],
    ids=str,
)
def test_an_argument_without_sense_is_named_at_once(
    manager: TokenManager, wrong: dict[str, Any]
) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        manager.refresh_all(**wrong)


# -- how many at once -------------------------------------------------------------------------


def test_no_more_requests_than_jobs_are_under_way(world: World) -> None:
    names = sign_in(world, (f"account-{number}" for number in range(12)))
    holds = {name: world.hold(name) for name in names}
    run = Call(lambda: list(world.manager().refresh_all(jobs=3)))
    for done in range(len(names)):
        under_way = min(3, len(names) - done)
        until(lambda many=done + under_way: world.posts >= many)  # type: ignore[misc]
        assert world.posts == done + under_way
        held = {name for name in asked(world) if not holds[name].release.is_set()}
        assert len(held) == under_way
        holds[held.pop()].release.set()
        until(lambda many=done + 1: world.server.refreshes() == many)  # type: ignore[misc]
    assert set(outcomes(run.result()).values()) == {"refreshed"}


def test_a_provider_is_asked_about_no_more_at_once_than_it_allows(world: World) -> None:
    providers = {
        "slow": world.server.provider("slow", max_concurrency=2),
        "fast": world.server.provider("fast"),
    }
    manager = world.manager(providers=providers)
    slow = sign_in(world, (f"slow-{number}" for number in range(5)), "slow")
    fast = sign_in(world, (f"zfast-{number}" for number in range(10)), "fast")
    holds = {name: world.hold(name) for name in slow}
    run = Call(lambda: list(manager.refresh_all(jobs=4)))
    until(lambda: sum(world.server.refreshes(name) for name in fast) == len(fast))
    for done in range(len(slow)):
        under_way = min(2, len(slow) - done)
        until(lambda many=done + under_way: asked(world, "slow").total() >= many)  # type: ignore[misc]
        assert asked(world, "slow").total() == done + under_way
        held = {name for name in asked(world, "slow") if not holds[name].release.is_set()}
        holds[held.pop()].release.set()
    assert outcomes(run.result()) == dict.fromkeys([*slow, *fast], "refreshed")
    assert set(asked(world).values()) == {1}


def test_a_fleet_of_a_thousand_is_read_as_it_is_refreshed() -> None:
    read: list[str] = []

    def accounts() -> Iterator[Account]:
        for number in range(1000):
            read.append(f"account-{number}")
            yield Account(read[-1], f"provider-{number % 5}", "due", None, None, None)

    under_way: list[int] = []

    def start(_: Account, done: Callable[[Callable[[], bool]], object]) -> None:
        under_way.append(fleet._running.total())
        done(lambda: True)

    fleet = BulkRefresher(start, ProviderRegistry(None, None), jobs=8)
    done = []
    for result in fleet.run(accounts()):
        done.append(result.account_name)
        assert len(read) - len(done) <= _WINDOW + 8
    assert sorted(done) == sorted(read)
    assert len(done) == 1000
    assert max(under_way) <= 8


@pytest.mark.slow
def test_a_fleet_is_asked_about_in_no_order(world: World, manager: TokenManager) -> None:
    names = sign_in(world, (f"account-{number:03}" for number in range(40)))
    assert [result.account_name for result in manager.refresh_all(jobs=1)] != names


# -- several at once --------------------------------------------------------------------------


@pytest.mark.slow
def test_an_account_whose_lock_is_taken_is_skipped(world: World, manager: TokenManager) -> None:
    sign_in(world, ["alice", "bob"])
    holding = """
with TokenRepository(sys.argv[1]).refresh_lock("alice", timeout=10):
    tell("held")
    wait()
"""
    with Process(holding, world.database) as process:
        assert process.line() == "held"
        results = {result.account_name: result for result in manager.refresh_all()}
        process.go()
        assert process.end() == 0
    assert results["alice"].outcome == "skipped"
    assert "another process" in (results["alice"].reason or "")
    assert results["bob"].outcome == "refreshed"
    assert asked(world) == {"bob": 1}


@pytest.mark.parametrize("choice", [{}, {"within": 2 * HOUR}, {"idle_for": 0.0}], ids=str)
def test_two_runs_at_once_share_the_work(world: World, choice: dict[str, Any]) -> None:
    world.clock.now -= DAY
    names = sign_in(world, (f"account-{number}" for number in range(12)))
    world.clock.now += DAY  # their tokens live for an hour, less than the second run looks ahead
    hold = world.hold()
    slow = Call(lambda: list(world.manager().refresh_all(jobs=1, **choice)))
    assert hold.arrived.wait(SOON)
    (held,) = asked(world)
    quick = outcomes(world.manager().refresh_all(jobs=4, **choice))
    assert quick == {**dict.fromkeys(names, "refreshed"), held: "skipped"}
    hold.release.set()
    assert outcomes(slow.result()) == {**dict.fromkeys(names, "skipped"), held: "refreshed"}
    assert asked(world) == dict.fromkeys(names, 1)


def test_whoever_needs_a_token_meanwhile_gets_the_one_of_the_run(
    world: World, manager: TokenManager
) -> None:
    sign_in(world, ["alice"])
    hold = world.hold("alice")
    run = Call(lambda: list(manager.refresh_all()))
    assert hold.arrived.wait(SOON)
    other = Call(world.manager().get_valid_token, "alice").waits()
    hold.release.set()
    assert outcomes(run.result()) == {"alice": "refreshed"}
    assert other.result() == world.tokens()[0]
    assert world.posts == 1


# -- how it ends ------------------------------------------------------------------------------


def test_a_store_that_cannot_be_written_fails_each_account_and_sends_nothing(
    world: World, manager: TokenManager
) -> None:
    names = sign_in(world, (f"account-{number}" for number in range(8)))
    world.refuse("INSERT ON refreshes")
    results = list(manager.refresh_all(jobs=3))
    assert {r.account_name: r.outcome for r in results} == dict.fromkeys(names, "failed")
    assert all(isinstance(result.error, StorageError) for result in results)
    assert world.posts == 0
    world.accept()
    assert outcomes(manager.refresh_all(jobs=3)) == dict.fromkeys(names, "refreshed")


def test_tokens_that_cannot_be_stored_are_in_the_result_and_stored_later(
    world: World, impatient: TokenManager
) -> None:
    sign_in(world, ["alice"])
    world.refuse_outcome()
    [result] = impatient.refresh_all()
    world.accept()
    assert isinstance(result.error, TokenPersistError)
    assert result.error.tokens is not None
    assert impatient.get_valid_token("alice") == result.error.tokens["access_token"]
    assert (world.posts, world.server.reuses) == (1, 0)


def test_corrected_settings_reach_an_account_that_was_given_up(world: World) -> None:
    sign_in(world, ["alice"])
    wrong = Provider("test", world.server.token_endpoint, "somebody else")
    world.server.script(Answer(400, {"error": "invalid_grant"}))
    with world.manager(providers={"test": wrong}) as manager:
        assert manager.get_valid_token("alice") is None
        assert [a.state for a in manager.accounts()] == ["sign_in"]
    with world.manager() as manager:
        assert [a.state for a in manager.accounts()] == ["due"]
        assert outcomes(manager.refresh_all()) == {"alice": "refreshed"}


def test_a_run_that_is_left_early_finishes_what_it_began_and_begins_nothing(
    world: World, manager: TokenManager
) -> None:
    names = sign_in(world, (f"account-{number}" for number in range(20)))
    results = manager.refresh_all(jobs=2)
    first = next(results)
    assert first.outcome == "refreshed"
    results.close()
    manager.close()
    assert manager._refreshes_at_work() == 0
    assert 1 <= world.posts <= 2
    assert [request.status for request in world.server.requests] == [200] * world.posts
    assert world.sql("SELECT count(*) FROM refreshes WHERE outcome IS NULL") == [(0,)]
    done = world.posts
    assert len(outcomes(manager.refresh_all())) == len(names) - done
    assert asked(world) == dict.fromkeys(names, 1)
