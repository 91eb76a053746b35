"""Sign-ins that are needed, interrupted refreshes, a clock that was set back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.helpers.doctor import BEGIN, bad, examined, only, tokens
from tests.helpers.refreshes import SOON, Call, World, denied
from tests.helpers.stores import Process
from tokenstore import TokenRepository
from tokenstore.testing import Drop

if TYPE_CHECKING:
    from pathlib import Path


def test_logins_that_are_dead_or_dying_or_waiting_are_told(world: World) -> None:
    for name in ("alive", "dead", "waiting"):
        world.sign_in(name)
    world.sign_in("dying", refresh_token_expires_in=6 * 86400)
    world.sign_in("lasting", refresh_token_expires_in=8 * 86400)
    world.sign_in("unbound", provider=None)
    world.server.script(denied(), subject="dead")
    world.server.script(denied("slow_down", 429, Retry_After="600"), subject="waiting")
    manager = world.manager()
    assert manager.get_valid_token("dead") is None
    assert manager.get_valid_token("waiting") is None

    found = [finding for finding in examined(world) if finding.check == "logins"]

    assert [(finding.severity, finding.accounts) for finding in found] == [
        ("warning", ("dead",)),
        ("warning", ("dying",)),
        ("info", ("waiting",)),
        ("info", ("unbound",)),
    ]
    assert found[0].message.startswith("1 of 6 accounts ")
    world.clock.now += 7 * 86400
    assert [f.accounts for f in examined(world) if f.check == "logins" and f.is_open] == [
        ("dead", "dying"),
        ("lasting",),
    ]


def test_a_refresh_whose_process_died_is_told_until_the_token_is_another(path: Path) -> None:
    with Process(BEGIN, path, "alice") as process:
        assert process.line() == "begun"
        assert not bad(path)  # it still runs
        process.kill()

        found = only(path)

    assert (found.check, found.accounts) == ("interrupted", ("alice",))
    with TokenRepository(path) as repository:
        repository.save("alice", tokens(3))
    assert not bad(path)


def test_a_refresh_that_nobody_answered_is_told_until_one_is(world: World) -> None:
    world.sign_in()
    world.server.script(Drop(spent=False))
    world.manager().get_valid_token("alice")

    [found] = [finding for finding in examined(world) if finding.is_open]
    assert (found.check, found.accounts) == ("interrupted", ("alice",))

    world.manager().refresh_token("alice")  # as the doctor says
    assert not [finding for finding in examined(world) if finding.is_open]


def test_a_refresh_that_ends_while_the_doctor_looks_is_not_interrupted(tmp_path: Path) -> None:
    with World(tmp_path, rotate=False) as world:
        world.sign_in()
        hold = world.hold()
        call = Call(world.manager().refresh_token, "alice")
        assert hold.arrived.wait(SOON)
        ended: list[object] = []

        def clock() -> float:
            if not ended:
                hold.release.set()
                ended.append(call.result())
            return world.clock.now

        assert not [finding for finding in examined(world, clock=clock) if finding.is_open]
        assert ended


def test_a_clock_that_was_set_back_is_told(world: World) -> None:
    world.sign_in()
    world.manager().refresh_token("alice")
    assert not [finding for finding in examined(world) if finding.is_open]
    world.clock.now -= 3600

    [found] = [finding for finding in examined(world) if finding.is_open]

    assert (found.check, found.accounts) == ("clock", ("alice",))


def test_a_damaged_further_token_is_told_and_obtained_anew(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.manager().save_tokens("alice", world.server.sign_in(), provider="test")
        world.manager().ensure_valid_token("alice", scope="openid")
        assert not [each for each in examined(world) if each.check == "integrity" and each.is_open]
        world.sql("UPDATE access_tokens SET access_token = 'CANARY'")
        (found,) = [each for each in examined(world) if each.check == "integrity" and each.is_open]
        assert (found.severity, found.accounts) == ("warning", ("alice",))
        world.manager().ensure_valid_token("alice", scope="openid")
        assert not [each for each in examined(world) if each.check == "integrity" and each.is_open]
