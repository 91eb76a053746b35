from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import threading
import warnings
from contextlib import aclosing
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.refreshes import SOON, Call, Told, World, denied, until
from tests.helpers.stores import python
from tokenstore import (
    AsyncTokenManager,
    InvalidTokenError,
    ReauthorizationRequired,
    TokenManager,
    TokenPersistError,
    TransientRefreshError,
)
from tokenstore.aio import WorkerPool, _iterate
from tokenstore.testing import Answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from tokenstore.testing import Hold


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run *main* in its own event loop, which must end and report no problem."""

    async def bounded() -> Any:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: complaints.append(context)
        )
        async with asyncio.timeout(SOON):
            return await main

    complaints: list[Any] = []
    result = asyncio.run(bounded())
    assert complaints == []
    return result


async def arrived(hold: Hold) -> None:
    assert await asyncio.to_thread(hold.arrived.wait, SOON)


async def begun(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Return a task that is waiting for a thread."""
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    return task


@pytest.fixture
def threads() -> Callable[[], set[str]]:
    """Return a function that returns the names of this test's manager threads."""

    def ours() -> set[threading.Thread]:
        kinds = ("tokenstore-store", "tokenstore-wait")
        return {thread for thread in threading.enumerate() if thread.name.startswith(kinds)}

    before = ours()
    return lambda: {thread.name for thread in ours() - before}


# -- the methods ------------------------------------------------------------------------------

METHODS = sorted(name for name in vars(TokenManager) if not name.startswith("_"))


@pytest.mark.parametrize("name", METHODS)
def test_every_manager_method_exists_with_the_same_arguments(name: str) -> None:
    ours, theirs = getattr(AsyncTokenManager, name), getattr(TokenManager, name)
    assert inspect.signature(ours).parameters == inspect.signature(theirs).parameters
    assert inspect.getdoc(ours)


def test_each_method_is_a_coroutine_or_an_async_iterator(world: World) -> None:
    async def main() -> None:
        async with AsyncTokenManager(
            world.path, providers={"test": world.server.provider()}, clock=world.clock
        ) as manager:
            tokens = {**world.server.sign_in("alice"), "expires_in": -1}
            await manager.save_tokens("alice", tokens, provider="test")
            token = await manager.get_valid_token("alice")
            assert token == await manager.ensure_valid_token("alice", min_ttl=600)
            loaded = await manager.load_tokens("alice")
            assert loaded is not None
            assert loaded["access_token"] == token
            assert (await manager.refresh_token("alice", rejected="other")) == loaded
            assert (await manager.refresh_token("alice")) != loaded
            assert [account.name async for account in manager.accounts()] == ["alice"]
            assert [entry.reason async for entry in manager.history()] == ["forced", "due"]
            assert [entry async for entry in manager.history("bob")] == []
            copy = await manager.backup(world.path.with_name("copy.db"))
            assert copy.stat().st_mode & 0o777 == 0o600
            visit = world.server.visit
            assert await manager.login(
                "carol", "test", prompt=lambda p: visit(p.url or "", "carol")
            )
            assert await manager.logout("carol")
            world.clock.now += 3600
            results = [result async for result in manager.refresh_all()]
            assert [(r.account_name, r.outcome) for r in results] == [("alice", "refreshed")]
            assert await manager.delete_tokens("alice") is True
            assert await manager.delete_tokens("alice") is False
            assert await manager.get_valid_token("alice") is None

    run(main())
    assert (world.posts, world.server.reuses) == (4, 0)  # one of them a sign-in


def test_errors_are_the_same_as_those_of_a_manager(world: World) -> None:
    async def main() -> None:
        manager = AsyncTokenManager(world.manager())
        bad: Any = {"a": "mapping"}
        with Told() as told:
            for call in (manager.get_valid_token, manager.ensure_valid_token):
                with pytest.raises(InvalidTokenError):
                    await call(bad)
        assert [vars(record)["operation"] for record in told.records] == [
            "get_valid_token",
            "ensure_valid_token",
        ]
        with pytest.raises(InvalidTokenError):
            await manager.refresh_token(bad, rejected=bad)
        with pytest.raises(TypeError, match="expected a name or a Provider"):
            await manager.refresh_token("alice", bad)
        with pytest.raises(InvalidTokenError):
            await manager.save_tokens("alice", {"access_token": ""})
        with pytest.raises(ReauthorizationRequired):
            await manager.ensure_valid_token("nobody")
        with pytest.raises(ValueError, match="min_ttl"):
            await manager.ensure_valid_token("nobody", min_ttl=-1)
        with pytest.raises(ValueError, match="within"):
            manager.refresh_all(within=-1)

    run(main())


@pytest.mark.parametrize("arguments", [{"jobs": 0}, {"timeout": 0}])
def test_invalid_arguments_are_refused(arguments: dict[str, Any], world: World) -> None:
    with pytest.raises(ValueError, match=r"^(jobs|timeout): "):
        AsyncTokenManager(world.path, **arguments)


def test_an_existing_manager_takes_no_options(world: World) -> None:
    with pytest.raises(TypeError, match="timeout: not accepted with an existing"):
        AsyncTokenManager(world.manager(), timeout=1)


# -- without waiting --------------------------------------------------------------------------


def test_a_cached_token_needs_no_thread_and_is_logged(
    world: World, threads: Callable[[], set[str]]
) -> None:
    world.sign_in()
    manager = world.manager()
    token = manager.ensure_valid_token("alice")
    assert manager.get_valid_token("alice") == token

    async def main() -> None:
        ours = AsyncTokenManager(manager)
        with Told() as told:
            assert await ours.get_valid_token("alice") == token
            assert await ours.ensure_valid_token("alice", "test") == token
        assert threads() == set()
        assert [
            (vars(r)["operation"], vars(r)["account_name"], vars(r)["provider"], vars(r)["outcome"])
            for r in told.records
        ] == [
            ("get_valid_token", "alice", None, "cached"),
            ("ensure_valid_token", "alice", "test", "cached"),
        ]
        assert await ours.ensure_valid_token("alice", min_ttl=60) == token
        assert threads() != set()

    run(main())


def test_changes_by_this_manager_are_visible_at_once(world: World) -> None:
    world.sign_in()
    hold = world.hold()

    async def main() -> None:
        manager = AsyncTokenManager(world.manager())
        waiting = await begun(manager.get_valid_token("alice"))
        await arrived(hold)
        saved = {**world.server.sign_in("alice"), "expires_in": 3600}
        await manager.save_tokens("alice", saved)
        assert await manager.get_valid_token("alice") == saved["access_token"]
        await manager.delete_tokens("alice")
        hold.release.set()
        assert await waiting is None
        assert await manager.get_valid_token("alice") is None

    run(main())


# -- threads ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda manager: manager.get_valid_token("alice"),
        lambda manager: manager.ensure_valid_token("alice"),
        lambda manager: manager.refresh_token("alice"),
        lambda manager: manager.refresh_token("alice", rejected="access"),
    ],
    ids=["get", "ensure", "forced", "rejected"],
)
def test_many_callers_of_one_account_use_one_thread(
    call: Callable[[AsyncTokenManager], Awaitable[Any]],
    world: World,
    threads: Callable[[], set[str]],
) -> None:
    world.sign_in(access_token="access")
    world.sign_in("bob")
    hold = world.hold("alice")

    async def main() -> None:
        manager = AsyncTokenManager(world.manager(), jobs=2)
        waiting = [asyncio.ensure_future(call(manager)) for _ in range(200)]
        await arrived(hold)
        assert await manager.get_valid_token("bob") == world.tokens("bob")[0]
        hold.release.set()
        await asyncio.gather(*waiting)
        assert len([name for name in threads() if name.startswith("tokenstore-wait")]) <= 2

    run(main())
    # Forced refreshes share the first one that starts after their call.
    assert world.server.refreshes("alice") <= 2
    assert world.server.reuses == 0


def test_calls_without_a_provider_do_not_wait_for_those_with_one(world: World) -> None:
    world.sign_in()
    fresh = world.sign_in("bob", expires_in=3600)
    hold = world.hold("alice")

    async def main() -> None:
        manager = AsyncTokenManager(world.manager(), jobs=1)
        waiting = await begun(manager.get_valid_token("alice"))
        await arrived(hold)
        assert await manager.get_valid_token("bob") == fresh["access_token"]
        assert await manager.ensure_valid_token("bob", min_ttl=600) == fresh["access_token"]
        await manager.save_tokens("carol", {"access_token": "a"})
        assert await manager.load_tokens("carol") is not None
        assert len([account async for account in manager.accounts()]) == 3
        assert await manager.delete_tokens("carol")
        hold.release.set()
        assert await waiting == world.tokens()[0]

    run(main())


def test_a_forced_refresh_does_not_share_an_earlier_one(world: World) -> None:
    world.sign_in()
    hold = world.hold()

    async def main() -> None:
        manager = AsyncTokenManager(world.manager())
        first = await begun(manager.refresh_token("alice"))
        await arrived(hold)
        rest = [await begun(manager.refresh_token("alice")) for _ in range(50)]
        hold.release.set()
        before = (await first)["access_token"]
        after = {tokens["access_token"] for tokens in await asyncio.gather(*rest)}
        assert after == {world.tokens()[0]}
        assert before not in after

    run(main())
    assert (world.posts, world.server.reuses) == (2, 0)


def test_callers_that_share_a_result_get_separate_objects(world: World) -> None:
    world.sign_in(nested={"a": [1]}, expires_in=3600)
    hold = world.hold()

    async def main() -> None:
        manager = AsyncTokenManager(world.manager())
        calls = [await begun(manager.refresh_token("alice", rejected=t)) for t in ("x", "x")]
        assert len({id(await call) for call in calls}) == 2

    async def refused() -> None:
        manager = AsyncTokenManager(world.manager())
        rejected = world.tokens()[0]
        calls = [await begun(manager.refresh_token("alice", rejected=rejected)) for _ in "ab"]
        await arrived(hold)
        hold.release.set()
        one, other = await asyncio.gather(*calls)
        assert one == other
        one["nested"]["a"].append(2)
        assert other["nested"] == {"a": [1]}

    run(main())
    run(refused())
    assert world.posts == 1


def test_waiting_callers_share_a_failure(world: World) -> None:
    world.sign_in()
    hold = world.hold()

    async def main() -> None:
        manager = AsyncTokenManager(world.manager())
        calls = [await begun(manager.ensure_valid_token("alice")) for _ in range(20)]
        await arrived(hold)
        world.server.revoke("alice")
        hold.release.set()
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(error) for error in errors} == {ReauthorizationRequired}

    run(main())
    assert world.posts == 1


def test_several_event_loops_may_share_a_manager(world: World) -> None:
    world.sign_in()
    manager = AsyncTokenManager(world.manager())
    together = threading.Barrier(4, timeout=SOON)
    hold = world.hold()

    async def main() -> list[str | None]:
        together.wait()
        return await asyncio.gather(*(manager.get_valid_token("alice") for _ in range(10)))

    calls = [Call(run, main()) for _ in range(4)]
    assert hold.arrived.wait(SOON)
    hold.release.set()
    assert {token for call in calls for token in call.result()} == {world.tokens()[0]}
    assert world.posts == 1


def test_work_has_the_context_of_its_caller(world: World) -> None:
    number: ContextVar[int] = ContextVar("number")
    seen = []

    class Handler(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            seen.append(number.get())

    async def main() -> None:
        number.set(7)
        await AsyncTokenManager(world.manager()).save_tokens("alice", {"access_token": "a"})

    handler = Handler(logging.INFO)
    logger = logging.getLogger("tokenstore")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        run(main())
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert seen == [7]


# -- cancellation -----------------------------------------------------------------------------


def test_cancelling_a_caller_does_not_lose_the_rotated_token(world: World) -> None:
    old = world.sign_in()
    hold = world.hold()

    async def main() -> None:
        manager = AsyncTokenManager(world.manager())
        call = await begun(manager.get_valid_token("alice"))
        await arrived(hold)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert world.tokens()[1] == old["refresh_token"]
        hold.release.set()
        await asyncio.to_thread(until, lambda: world.outcomes() == ["refreshed"])
        assert await manager.get_valid_token("alice") == world.tokens()[0]
        assert (await manager.refresh_token("alice"))["access_token"] == world.tokens()[0]

    run(main())
    assert (world.posts, world.server.reuses) == (2, 0)


def test_cancelling_some_callers_does_not_affect_the_others(world: World) -> None:
    world.sign_in()
    hold = world.hold()

    async def main() -> None:
        manager = AsyncTokenManager(world.manager())
        calls = [await begun(manager.get_valid_token("alice")) for _ in range(10)]
        await arrived(hold)
        for call in calls[:5]:
            call.cancel()
        hold.release.set()
        assert set(await asyncio.gather(*calls[5:])) == {world.tokens()[0]}

    run(main())
    assert world.posts == 1


def test_cancelling_a_queued_caller_does_not_affect_the_others(world: World) -> None:
    world.sign_in()
    world.sign_in("bob")
    hold = world.hold("alice")

    async def main() -> None:
        manager = AsyncTokenManager(world.manager(), jobs=1)
        first = await begun(manager.refresh_token("alice"))
        await arrived(hold)
        calls = [await begun(manager.refresh_token("bob", rejected="access")) for _ in range(3)]
        calls[0].cancel()
        await asyncio.wait(calls[:1])
        hold.release.set()
        await first
        tokens = await asyncio.gather(*calls[1:])
        assert {each["access_token"] for each in tokens} == {world.tokens("bob")[0]}

    run(main())


def test_a_loop_that_ends_during_a_refresh_loses_nothing(world: World) -> None:
    world.sign_in()
    hold = world.hold()
    manager = AsyncTokenManager(world.manager())

    async def main() -> None:
        await begun(manager.get_valid_token("alice"))
        await arrived(hold)  # then the loop cancels the rest and closes

    with Told("concurrent.futures") as told, Told("asyncio") as told_by_asyncio:
        run(main())
        hold.release.set()
        until(lambda: world.outcomes() == ["refreshed"])
        assert run(manager.get_valid_token("alice")) == world.tokens()[0]
        manager.close()
    assert [r for r in told.records + told_by_asyncio.records if r.levelno > logging.DEBUG] == []
    assert (world.posts, world.server.reuses) == (1, 0)


def test_a_process_that_ends_during_a_refresh_stores_the_response(world: World) -> None:
    world.sign_in()
    hold = world.hold()

    def release() -> None:
        assert hold.arrived.wait(SOON)
        hold.release.set()

    released = Call(release)
    code = """
import asyncio
from tokenstore import AsyncTokenManager, Provider

async def main():
    provider = Provider("test", *sys.argv[2:4], client_secret=sys.argv[4])
    manager = AsyncTokenManager(sys.argv[1], providers={"test": provider})
    call = asyncio.create_task(manager.refresh_token("alice"))
    while not manager._waiting.running(("refresh_token", "alice", None, None)):
        await asyncio.sleep(0.002)

asyncio.run(main())
tell("ended")
"""
    provider = world.server.provider()
    out = python(
        *(code, world.path, provider.token_endpoint, provider.client_id, provider.client_secret)
    )
    released.result()
    assert out == "ended\n"
    assert world.outcomes() == ["refreshed"]
    assert world.server.is_live(str(world.tokens()[0]))


# -- iterating --------------------------------------------------------------------------------


def test_many_accounts_are_listed_in_order(world: World) -> None:
    names = [f"account-{number:04}" for number in range(1201)]
    with world.manager()._repository.transaction() as repository:
        for name in names:
            repository.save(name, {"access_token": "a"})

    async def main() -> None:
        manager = AsyncTokenManager(world.manager())
        assert [account.name async for account in manager.accounts()] == names
        async with aclosing(manager.accounts()) as accounts:
            async for account in accounts:
                assert account.name == names[0]
                break

    run(main())


def test_refresh_all_yields_each_result_when_it_is_ready(world: World) -> None:
    world.sign_in("alice")
    world.sign_in("bob")
    hold = world.hold("bob")

    async def main() -> None:
        manager = AsyncTokenManager(world.manager(), jobs=1)
        results = manager.refresh_all()
        assert (await anext(results)).account_name == "alice"
        await arrived(hold)
        hold.release.set()
        assert (await anext(results)).account_name == "bob"
        with pytest.raises(StopAsyncIteration):
            await anext(results)

    run(main())


def test_cancelling_refresh_all_stores_running_refreshes(world: World) -> None:
    world.sign_in()
    hold = world.hold()

    async def main() -> None:
        async with AsyncTokenManager(world.manager()) as manager:
            call = await begun(anext(manager.refresh_all()))
            await arrived(hold)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            hold.release.set()

    run(main())
    assert world.outcomes() == ["refreshed"]
    assert world.server.is_live(str(world.tokens()[0]))


def test_leaving_refresh_all_does_not_block_the_loop(world: World) -> None:
    world.sign_in("alice")
    world.sign_in("bob")
    hold = world.hold("bob")

    async def main() -> None:
        async with AsyncTokenManager(world.manager()) as manager:
            async with aclosing(manager.refresh_all()) as results:
                assert (await anext(results)).account_name == "alice"
                await arrived(hold)
            hold.release.set()  # impossible if the loop waited for bob's

    run(main())
    assert world.outcomes("bob") == ["refreshed"]


def test_an_iterator_is_closed_once_its_thread_leaves_it() -> None:
    inside, leave, closed = threading.Event(), threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        try:
            inside.set()
            leave.wait(SOON)
            yield 1
        finally:
            closed.set()

    generator = items()

    async def main() -> None:
        call = await begun(anext(_iterate(WorkerPool(2, "test"), generator, 1)))
        await asyncio.to_thread(inside.wait, SOON)
        call.cancel()
        await asyncio.wait([call])
        leave.set()
        assert await asyncio.to_thread(closed.wait, SOON)

    run(main())


def test_an_error_while_iterating_is_raised(world: World) -> None:
    world.path.write_bytes(b"no database, but long enough to be taken for something" * 10)

    async def main() -> None:
        manager = AsyncTokenManager(world.manager())
        for items in (manager.accounts(), manager.history(), manager.refresh_all()):
            with pytest.raises(OSError, match=str(world.path)):
                await anext(items)

    run(main())


# -- closing ----------------------------------------------------------------------------------


def test_closing_waits_for_running_work_and_a_later_call_reopens(
    world: World, threads: Callable[[], set[str]]
) -> None:
    world.sign_in()
    hold = world.hold()

    async def main() -> None:
        manager = AsyncTokenManager(world.manager())
        call = await begun(manager.get_valid_token("alice"))
        await arrived(hold)
        closing = await begun(manager.aclose())
        hold.release.set()
        await closing
        assert world.outcomes() == ["refreshed"]
        assert threads() == set()
        assert await call == world.tokens()[0]
        assert await manager.load_tokens("alice") is not None
        manager.close()
        assert threads() == set()

    run(main())


def test_closing_reports_tokens_that_could_not_be_stored(
    world: World, impatient: TokenManager
) -> None:
    world.sign_in()

    async def main() -> None:
        manager = AsyncTokenManager(impatient)
        world.refuse_outcome()
        with pytest.raises(TokenPersistError):
            await manager.get_valid_token("alice")
        with pytest.raises(TokenPersistError):
            await manager.aclose()
        world.accept()
        await manager.aclose()

    run(main())
    assert world.outcomes()[-1] == "refreshed"


def test_a_discarded_manager_leaves_no_thread(
    world: World, threads: Callable[[], set[str]]
) -> None:
    async def main() -> None:
        await AsyncTokenManager(world.manager()).load_tokens("alice")

    run(main())
    until(lambda: threads() == set())


def test_a_forked_child_can_continue_to_use_it(world: World) -> None:
    world.sign_in()
    hold = world.hold()
    manager = AsyncTokenManager(world.manager())

    async def main() -> None:
        call = await begun(manager.get_valid_token("alice"))
        await arrived(hold)
        assert await manager.load_tokens("bob") is None  # so that there are threads
        assert await asyncio.to_thread(child_works)
        hold.release.set()
        assert await call == world.tokens()[0]

    def child_works() -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns about a fork with threads
            pid = os.fork()
        if not pid:
            signal.alarm(int(SOON))
            try:
                asyncio.run(manager.save_tokens("bob", {"access_token": "a"}))
                call = asyncio.run(asyncio.wait_for(manager.load_tokens("bob"), SOON))
                os._exit(0 if call else 1)
            finally:
                os._exit(2)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    run(main())


def test_a_transient_failure_is_raised_and_a_later_call_retries(world: World) -> None:
    world.sign_in()
    world.server.script(Answer(503), Answer(503), denied("slow_down"))

    async def main() -> None:
        manager = AsyncTokenManager(world.manager())
        with pytest.raises(TransientRefreshError):
            await manager.ensure_valid_token("alice")
        assert await manager.get_valid_token("alice") is None
        assert await manager.get_valid_token("alice") == world.tokens()[0]

    run(main())


def test_a_further_access_token_is_had_by_scope_or_resource(world: World) -> None:
    async def main() -> None:
        own = world.server.sign_in("alice", scope="mail read")
        async with AsyncTokenManager(world.manager()) as manager:
            await manager.save_tokens("alice", own, provider="test")
            token = await manager.get_valid_token("alice", scope="mail")
            assert token is not None
            assert world.server.audience(token) == ("mail", ())
            assert await manager.ensure_valid_token("alice", scope=["mail"]) == token
            found = await manager.get_access_token("alice", resource="urn:api")
            assert world.server.audience(found.token) == ("mail read", ("urn:api",))
            renewed = await manager.refresh_token("alice", rejected=token, scope="mail")
            assert renewed["access_token"] != token
            assert await manager.get_valid_token("alice") == own["access_token"]
            assert world.posts == 3

    asyncio.run(main())
