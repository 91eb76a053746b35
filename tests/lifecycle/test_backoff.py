"""The waits after repeated failures, which all processes respect."""

from __future__ import annotations

import json
import sys
from subprocess import run
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.refreshes import Clock, World, denied, on_both_engines
from tokenstore import TokenManager, TransientRefreshError
from tokenstore.testing import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

DOWN = Answer(503)
WAITS = [None, None, None, 5, 10, 20, 40, 80, 160, 300, 300, 300]

pytestmark = on_both_engines


def fail(manager: TokenManager, act: Callable[..., Any] | None = None) -> float | None:
    """Request a token; return how long to wait according to the error."""
    with pytest.raises(TransientRefreshError) as caught:
        (act or manager.ensure_valid_token)("alice")
    return caught.value.retry_after


def go_down(world: World, calls: int = 50) -> None:
    """Let the provider return 503 to every request."""
    world.server.script(*[DOWN] * 2 * calls)


def come_back(world: World) -> None:
    world.server._script.clear()


def fail_repeatedly(world: World, manager: TokenManager, calls: int = 4) -> None:
    """Let *calls* calls fail, each as soon as it is allowed."""
    world.sign_in()
    go_down(world)
    for _ in range(calls):
        world.clock.now += fail(manager) or 0.0
    come_back(world)


def test_the_first_failures_cause_no_wait_and_then_the_waits_double(
    world: World, manager: TokenManager
) -> None:
    world.sign_in()
    go_down(world)
    waits = []
    for _ in WAITS:
        waits.append(fail(manager))
        world.clock.now += waits[-1] or 0.0
    assert waits == WAITS
    # One retry per call, until there is a wait.
    assert world.posts == 3 * 2 + len(WAITS) - 3


def test_no_request_is_sent_and_no_thread_sleeps_during_the_wait(
    world: World, manager: TokenManager
) -> None:
    world.sign_in()
    go_down(world)
    for _ in range(3):
        assert fail(manager) is None
    assert fail(manager) == 5
    posts = world.posts
    for left in (5, 4, 3, 2, 1):
        assert fail(manager) == left
        assert manager.get_valid_token("alice") is None
        world.clock.now += 1  # a sleep would not advance this clock
    assert world.posts == posts
    assert [account.state for account in manager.accounts()] == ["due"]
    assert fail(manager) == 10
    assert world.posts == posts + 1
    assert [account.state for account in manager.accounts()] == ["retry_later"]


def test_another_process_keeps_the_wait_and_counts_on(world: World, manager: TokenManager) -> None:
    world.sign_in()
    go_down(world)
    for _ in range(4):
        fail(manager)
    posts = world.posts
    code = """
import sys
from tokenstore import Provider, TokenManager, TransientRefreshError
path, endpoint, now = sys.argv[1:]
test = Provider("test", endpoint, "tokenstore", client_secret="p+a/b=:%\\u00e9\\u20ac")
for timestamp in (float(now), float(now) + 5):
    manager = TokenManager(path, providers={"test": test}, clock=lambda: timestamp)
    try:
        manager.ensure_valid_token("alice")
    except TransientRefreshError as error:
        print(error.retry_after)
"""
    arguments = [str(world.database), world.server.token_endpoint, str(world.clock.now)]
    done = run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["5.0", "10.0"]
    assert world.posts == posts + 1


def test_a_success_clears_the_count(world: World, manager: TokenManager) -> None:
    fail_repeatedly(world, manager)
    assert manager.get_valid_token("alice") is not None
    assert world.row()["failure"] is None
    world.clock.now += 3600
    go_down(world)
    assert [fail(manager) for _ in range(4)] == WAITS[:4]


def test_a_new_sign_in_clears_the_wait(world: World, manager: TokenManager) -> None:
    world.sign_in()
    go_down(world)
    for _ in range(4):
        fail(manager)
    come_back(world)
    world.sign_in()
    assert manager.get_valid_token("alice") is not None


def test_corrected_settings_clear_the_wait_and_the_count(
    world: World, manager: TokenManager
) -> None:
    world.sign_in()
    go_down(world)
    for _ in range(4):
        fail(manager)
    world.server.register("renamed", "secret")
    provider = world.server.provider(client_id="renamed", client_secret="secret")
    other = world.manager(providers={"test": provider})
    assert [fail(other) for _ in range(4)] == WAITS[:4]


def test_another_kind_of_failure_resets_the_count(world: World, manager: TokenManager) -> None:
    fail_repeatedly(world, manager, 3)
    world.server.script(denied())
    assert manager.get_valid_token("alice") is None
    world.server.script(*[DOWN] * 2)
    assert fail(manager, manager.refresh_token) is None
    assert json.loads(world.row()["failure"])["count"] == 1


def test_a_forced_refresh_ignores_the_wait_and_counts(world: World, manager: TokenManager) -> None:
    world.sign_in()
    go_down(world)
    for wait in WAITS[:6]:
        assert fail(manager, manager.refresh_token) == wait
    assert world.posts == 6
    assert fail(manager) == 20
    assert world.posts == 6
    come_back(world)
    assert manager.refresh_token("alice")["access_token"] == manager.get_valid_token("alice")


def test_a_wait_that_the_provider_requests_takes_precedence(
    world: World, manager: TokenManager
) -> None:
    fail_repeatedly(world, manager, 5)
    world.server.script(Answer(429, headers={"Retry-After": "33"}))
    assert fail(manager) == 33
    world.clock.now += 33
    world.server.script(DOWN)
    assert fail(manager) == 40  # the seventh


def test_a_token_that_is_still_valid_is_served_meanwhile(world: World) -> None:
    saved = world.sign_in(expires_in=200)
    manager = world.manager(serve_stale=True, cache_ttl=0)
    go_down(world)
    for _ in range(6):
        assert manager.get_valid_token("alice") == saved["access_token"]
    assert world.posts == 7  # three calls of two requests, and the first of the fourth
    assert world.manager().get_valid_token("alice") is None
    world.clock.now += 200
    assert manager.get_valid_token("alice") is None


def test_calls_that_waited_for_a_failing_call_do_not_count(world: World) -> None:
    world.sign_in()
    go_down(world)
    managers = [world.manager() for _ in range(3)]
    for manager in managers:
        assert fail(manager) is None
    assert json.loads(world.row()["failure"])["count"] == 3


def test_a_wait_is_over_when_the_clock_was_set_back_by_more_than_any_wait(world: World) -> None:
    clock = Clock()
    manager = world.manager(clock=clock)
    world.sign_in()
    world.server.script(Answer(429, headers={"Retry-After": "3600"}))
    assert fail(manager) == 3600
    assert fail(manager) == 3600
    clock.now -= 4 * 3600
    world.sql("UPDATE accounts SET expires_at = 0, checksum = NULL")
    assert [account.state for account in manager.accounts()] == ["due"]
    assert manager.get_valid_token("alice") is not None
    assert world.posts == 2
