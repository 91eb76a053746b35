from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.refreshes import SOON, Call, Told, World, denied, on_both_engines
from tokenstore import ReauthorizationRequired, TokenManager, TokenPersistError, TokenRefreshError
from tokenstore.testing import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = on_both_engines


class Heard:
    """What the hooks were told, and a manager whose hooks they are."""

    def __init__(self, world: World, **options: Any) -> None:
        self.refreshed: list[tuple[str, dict[str, Any]]] = []
        self.dead: list[tuple[str, ReauthorizationRequired]] = []
        self.recovered: list[str] = []
        self.manager = world.manager(
            on_refreshed=lambda *told: self.refreshed.append(told),
            on_reauthorization_required=lambda *told: self.dead.append(told),
            on_recovered=self.recovered.append,
            **options,
        )

    @property
    def count(self) -> tuple[int, int, int]:
        return len(self.refreshed), len(self.dead), len(self.recovered)


@pytest.fixture
def heard(world: World) -> Heard:
    return Heard(world)


def die(world: World, manager: TokenManager) -> None:
    world.server.script(denied())
    assert manager.get_valid_token("alice") is None


# -- when -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refresh",
    [
        lambda manager: manager.get_valid_token("alice"),
        lambda manager: manager.ensure_valid_token("alice"),
        lambda manager: manager.refresh_token("alice"),
        lambda manager: list(manager.refresh_all()),
    ],
    ids=["get", "ensure", "forced", "fleet"],
)
def test_a_refresh_is_told_once_with_its_tokens(
    world: World, heard: Heard, refresh: Callable[[TokenManager], object]
) -> None:
    world.sign_in(kept="yes")
    refresh(heard.manager)
    assert heard.refreshed == [("alice", heard.manager.load_tokens("alice"))]
    assert heard.refreshed[0][1]["kept"] == "yes"
    assert heard.manager.get_valid_token("alice") == world.tokens()[0]
    assert heard.count == (1, 0, 0)


def test_what_is_told_is_committed(world: World) -> None:
    world.sign_in()
    seen = []

    def look(account_name: str, tokens: dict[str, Any]) -> None:
        assert account_name == "alice"
        seen.append(world.tokens() == (tokens["access_token"], tokens["refresh_token"], *expiry))
        seen.append(world.outcomes() == ["refreshed"])

    expiry = (world.clock.now + 3600,)
    world.manager(on_refreshed=look).get_valid_token("alice")
    assert seen == [True, True]


def test_a_hook_is_called_outside_the_lock_and_may_refresh_the_account_again(world: World) -> None:
    world.sign_in()
    told: list[str] = []

    def once_more(account_name: str, tokens: dict[str, Any]) -> None:
        told.append(tokens["access_token"])
        with manager._repository.refresh_lock(account_name, timeout=0):
            pass  # nobody holds it
        if len(told) == 1:
            manager.refresh_token(account_name)

    manager = world.manager(on_refreshed=once_more)
    Call(manager.get_valid_token, "alice").result()
    assert len(set(told)) == 2
    assert told[-1] == world.tokens()[0]
    assert world.outcomes() == ["refreshed", "refreshed"]
    assert world.server.reuses == 0


def test_a_hook_may_wait_for_another_thread_that_uses_the_manager(world: World) -> None:
    world.sign_in()
    answers = []

    def elsewhere(account_name: str, _: object) -> None:
        answers.append(Call(manager.get_valid_token, account_name).result())
        manager.save_tokens("other", {"access_token": "a"})

    manager = world.manager(on_refreshed=elsewhere)
    assert Call(manager.get_valid_token, "alice").result() == answers[0] == world.tokens()[0]
    assert manager.load_tokens("other") == {"access_token": "a"}


def test_a_dead_login_may_be_signed_in_anew_by_the_hook(world: World) -> None:
    world.sign_in()
    world.server.revoke("alice")
    fresh = world.server.sign_in("alice")
    recovered: list[str] = []
    manager: TokenManager = world.manager(
        on_reauthorization_required=lambda name, _: manager.save_tokens(name, fresh),
        on_recovered=recovered.append,
    )
    assert Call(manager.get_valid_token, "alice").result() is None
    assert manager.get_valid_token("alice") == fresh["access_token"]
    assert recovered == ["alice"]


# -- how often --------------------------------------------------------------------------------


def test_a_login_dies_once(world: World, heard: Heard) -> None:
    world.sign_in()
    world.server.revoke("alice")
    for _ in range(3):
        assert heard.manager.get_valid_token("alice") is None
        with pytest.raises(ReauthorizationRequired):
            heard.manager.refresh_token("alice")  # asks, and is refused, once more
    assert world.posts == 4
    assert heard.count == (0, 1, 0)
    name, error = heard.dead[0]
    assert name == "alice"
    assert (error.account_name, error.error) == ("alice", "invalid_grant")


def test_a_login_that_dies_again_is_told_again(world: World, heard: Heard) -> None:
    for number in range(1, 3):
        world.sign_in()
        assert heard.manager.get_valid_token("alice") is not None
        world.clock.now += 3600
        die(world, heard.manager)
        assert heard.count == (number, number, 0)


@pytest.mark.parametrize(
    "answers", [[Answer(503)] * 2, [denied("invalid_client", 401)]], ids=["transient", "rejected"]
)
def test_a_failure_that_is_no_verdict_is_not_told(
    world: World, heard: Heard, answers: list[Answer]
) -> None:
    world.sign_in()
    world.server.script(*answers)
    assert heard.manager.get_valid_token("alice") is None
    world.clock.now += 61
    assert heard.manager.get_valid_token("alice") is not None
    assert heard.count == (1, 0, 0)


def test_a_refresh_that_works_again_is_a_recovery(world: World, heard: Heard) -> None:
    world.sign_in()
    die(world, heard.manager)
    heard.manager.refresh_token("alice")
    heard.manager.refresh_token("alice")
    assert heard.recovered == ["alice"]
    assert heard.count == (2, 1, 1)


def test_a_new_sign_in_is_a_recovery(world: World, heard: Heard) -> None:
    world.sign_in()
    die(world, heard.manager)
    for _ in range(2):
        heard.manager.save_tokens("alice", world.server.sign_in("alice"))
    assert heard.recovered == ["alice"]
    assert heard.count == (0, 1, 1)


def test_saving_what_is_not_dead_is_none(world: World, heard: Heard) -> None:
    heard.manager.save_tokens("alice", {**world.server.sign_in("alice"), "expires_in": -1})
    world.server.script(Answer(503), Answer(503))
    assert heard.manager.get_valid_token("alice") is None
    heard.manager.save_tokens("alice", world.server.sign_in("alice"))
    assert heard.count == (0, 0, 0)


def test_those_who_waited_do_not_tell_it_again(world: World) -> None:
    world.sign_in()
    heard = Heard(world)
    others = [Heard(world) for _ in range(3)]
    hold = world.hold()
    first = Call(heard.manager.get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    rest = [Call(other.manager.get_valid_token, "alice").waits() for other in (heard, *others)]
    hold.release.set()
    assert {call.result() for call in rest} == {first.result()}
    assert heard.count == (1, 0, 0)
    assert [other.count for other in others] == [(0, 0, 0)] * 3


def test_those_who_waited_do_not_tell_of_the_same_death_again(world: World, heard: Heard) -> None:
    world.sign_in()
    hold = world.hold()
    first = Call(heard.manager.ensure_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    world.server.revoke("alice")
    rest = [Call(heard.manager.ensure_valid_token, "alice").waits() for _ in range(3)]
    hold.release.set()
    assert all(isinstance(c.error(), ReauthorizationRequired) for c in (first, *rest))
    assert heard.count == (0, 1, 0)
    assert world.posts == 1


def test_the_loser_of_a_race_tells_nothing(world: World, heard: Heard) -> None:
    world.sign_in()
    hold = world.hold()
    call = Call(heard.manager.get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    won = world.sign_in(expires_in=3600)
    hold.release.set()
    assert call.result() == won["access_token"]
    assert heard.count == (0, 0, 0)


def test_an_answer_that_came_late_is_told(world: World) -> None:
    world.sign_in()
    told = threading.Event()
    hold = world.hold()
    manager = world.manager(timeout=1.5, on_refreshed=lambda *_: told.set())
    assert manager.get_valid_token("alice") is None
    assert not told.is_set()
    hold.release.set()
    assert told.wait(SOON)
    assert manager.get_valid_token("alice") == world.tokens()[0]
    assert world.posts == 1


@pytest.mark.parametrize("when", ["next use", "close"])
@pytest.mark.usefixtures("impatient")
def test_a_response_that_was_stored_later_is_told_then(world: World, when: str) -> None:
    world.sign_in()
    world.refuse_outcome()
    heard = Heard(world, timeout=1.0)
    with pytest.raises(TokenPersistError) as caught:
        heard.manager.get_valid_token("alice")
    assert heard.count == (0, 0, 0)
    waiting = Call(heard.manager.get_valid_token, "alice") if when == "next use" else None
    world.accept()
    if waiting is not None:
        assert waiting.result() == world.tokens()[0]
    heard.manager.close()
    assert heard.refreshed == [("alice", caught.value.tokens)]
    assert heard.count == (1, 0, 0)


# -- one that raises --------------------------------------------------------------------------


def raising(*told: object) -> None:
    raise RuntimeError(str(told))


def test_a_hook_that_raises_changes_nothing_and_is_logged_without_secrets(world: World) -> None:
    world.sign_in()
    manager = world.manager(
        on_refreshed=raising, on_reauthorization_required=raising, on_recovered=raising
    )
    with Told() as told:
        token = manager.get_valid_token("alice")
        world.clock.now += 3600
        die(world, manager)
        manager.save_tokens("alice", world.server.sign_in("alice"))
    assert token is not None
    errors = [record for record in told.records if record.levelno == logging.ERROR]
    assert len(errors) == 3
    for record in told.records:
        assert token not in record.getMessage()
        assert record.exc_info is None
    assert all("alice" in record.getMessage() for record in errors)
    assert world.outcomes() == ["refreshed", "reauthorization"]


def test_a_hook_that_raises_does_not_hide_why_there_is_no_token(world: World) -> None:
    world.sign_in()
    world.server.revoke("alice")
    manager = world.manager(on_reauthorization_required=raising)
    with pytest.raises(TokenRefreshError) as caught:
        manager.ensure_valid_token("alice")
    assert caught.value.error == "invalid_grant"


def test_a_hook_that_changes_what_it_is_given_changes_nothing_else(world: World) -> None:
    world.sign_in()
    manager = world.manager(on_refreshed=lambda _, tokens: tokens.clear())
    assert manager.refresh_token("alice")["access_token"] == world.tokens()[0]
