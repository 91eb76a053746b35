from __future__ import annotations

import asyncio
import io
import ssl
import threading
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import pytest

from tests.helpers.refreshes import SOON, Call, World, denied
from tests.helpers.resource_server import Resource, refused, stored
from tokenstore import (
    AsyncTokenManager,
    InvalidTokenError,
    ReauthorizationRequired,
    TransientRefreshError,
)
from tokenstore.integrations.httpx import TokenAuth
from tokenstore.testing import Answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


# Each client would load its own context, which is slow.
SETTINGS: dict[str, Any] = {"timeout": SOON, "verify": ssl.create_default_context()}


class Fetch(Protocol):
    def __call__(
        self, url: str, method: str = "GET", *, auth: TokenAuth | None = None, **more: Any
    ) -> httpx.Response:
        """Send one request as alice."""


@pytest.fixture(params=["sync", "async"])
def fetch(request: pytest.FixtureRequest, world: World) -> Fetch:
    """Run the test with each kind of client."""
    ours = TokenAuth(AsyncTokenManager(world.manager()), "alice")
    settings: dict[str, Any] = {**SETTINGS, "follow_redirects": True}

    def sync(
        url: str, method: str = "GET", *, auth: TokenAuth | None = None, **more: Any
    ) -> httpx.Response:
        with httpx.Client(auth=auth or ours, **settings) as client:
            return client.request(method, url, **more)

    def run(
        url: str, method: str = "GET", *, auth: TokenAuth | None = None, **more: Any
    ) -> httpx.Response:
        async def main() -> httpx.Response:
            async with httpx.AsyncClient(auth=auth or ours, **settings) as client:
                return await client.request(method, url, **more)

        return asyncio.run(main())

    return sync if request.param == "sync" else run


def test_every_request_carries_the_valid_token(
    world: World, resource: Resource, fetch: Fetch
) -> None:
    world.sign_in()
    for _ in range(2):
        answer = fetch(resource.url)
        assert (answer.status_code, answer.history) == (200, [])
    assert resource.tokens == [stored(world)] * 2
    assert world.posts == 1  # it had expired


def test_a_refused_token_is_refreshed_and_the_request_is_retried(
    world: World, resource: Resource, fetch: Fetch
) -> None:
    old = refused(world)
    answer = fetch(f"{resource.url}/things", "POST", params={"a": 1}, content=b"body")
    assert answer.json() == {"status": 200, "body": "body"}
    assert resource.tokens == [old, stored(world)]
    assert [(seen.method, seen.path, seen.body) for seen in resource.seen] == [
        ("POST", "/things?a=1", b"body")
    ] * 2
    assert [past.status_code for past in answer.history] == [401]
    assert world.posts == 1


def test_a_second_refusal_is_returned(world: World, resource: Resource, fetch: Fetch) -> None:
    old = refused(world)
    resource.accepts = lambda _: False
    assert fetch(resource.url).status_code == 401
    assert resource.tokens == [old, stored(world)]
    assert world.posts == 1


def test_only_a_401_is_handled(world: World, resource: Resource, fetch: Fetch) -> None:
    world.sign_in(expires_in=3600)
    resource.script = [(403, {})]
    assert fetch(resource.url).status_code == 403
    assert (len(resource.seen), world.posts) == (1, 0)


def test_twenty_threads_with_a_refused_token_cause_one_refresh(
    world: World, resource: Resource
) -> None:
    old = refused(world)
    resource.together = threading.Barrier(20, timeout=SOON)
    auth = TokenAuth(world.manager(), "alice")
    with httpx.Client(auth=auth, **SETTINGS) as client:
        calls = [Call(client.get, resource.url) for _ in range(20)]
        assert {call.result().status_code for call in calls} == {200}
    assert sorted(map(str, resource.tokens)) == sorted([old] * 20 + [stored(world)] * 20)
    assert (world.posts, world.server.reuses) == (1, 0)


def test_twenty_coroutines_with_a_refused_token_cause_one_refresh(
    world: World, resource: Resource
) -> None:
    old = refused(world)
    resource.together = threading.Barrier(20, timeout=SOON)
    auth = TokenAuth(world.manager(), "alice")

    async def main() -> set[int]:
        async with httpx.AsyncClient(auth=auth, **SETTINGS) as client:
            answers = await asyncio.gather(*(client.get(resource.url) for _ in range(20)))
            return {answer.status_code for answer in answers}

    assert asyncio.run(main()) == {200}
    assert sorted(map(str, resource.tokens)) == sorted([old] * 20 + [stored(world)] * 20)
    assert (world.posts, world.server.reuses) == (1, 0)


@pytest.mark.parametrize("when", ["due", "refused"])
def test_a_refresh_does_not_block_the_event_loop(
    when: str, world: World, resource: Resource
) -> None:
    world.sign_in() if when == "due" else refused(world)
    hold = world.hold()
    auth = TokenAuth(world.manager(), "alice")

    async def main() -> int:
        async with httpx.AsyncClient(auth=auth, **SETTINGS) as client:
            request = asyncio.create_task(client.get(resource.url))
            assert await asyncio.to_thread(hold.arrived.wait, SOON)
            hold.release.set()  # impossible if the refresh blocked the loop
            return (await request).status_code

    assert asyncio.run(main()) == 200


# -- bodies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        ({"content": "text"}, b"text"),
        ({"data": {"a": "1"}}, b"a=1"),
        ({"json": {"a": 1}}, b'{"a":1}'),
        ({}, b""),
    ],
    ids=["text", "form", "json", "none"],
)
def test_a_body_in_memory_is_sent_again(
    arguments: dict[str, Any], body: bytes, world: World, resource: Resource, fetch: Fetch
) -> None:
    refused(world)
    assert fetch(resource.url, "PUT", **arguments).status_code == 200
    assert [seen.body.replace(b": ", b":") for seen in resource.seen] == [body, body]


def a_generator() -> Any:
    return (part for part in [b"a ", b"stream"])


def an_iterator() -> Any:
    return iter([b"a ", b"stream"])


def a_file() -> Any:
    return io.BytesIO(b"a stream")


@pytest.mark.parametrize("make", [a_generator, an_iterator, a_file])
def test_a_stream_is_sent_once(make: Callable[[], Any], world: World, resource: Resource) -> None:
    old = refused(world)
    with httpx.Client(auth=TokenAuth(world.manager(), "alice"), **SETTINGS) as client:
        assert client.post(resource.url, content=make()).status_code == 401
        assert [seen.body for seen in resource.seen] == [b"a stream"]
        assert client.get(resource.url).status_code == 200  # with the new token
    assert resource.tokens == [old, stored(world)]
    assert world.posts == 1


def test_an_async_stream_is_sent_once(world: World, resource: Resource) -> None:
    old = refused(world)

    async def stream() -> AsyncIterator[bytes]:
        yield b"a "
        yield b"stream"

    async def main() -> list[int]:
        auth = TokenAuth(world.manager(), "alice")
        async with httpx.AsyncClient(auth=auth, **SETTINGS) as client:
            answers = [await client.post(resource.url, content=stream())]
            answers.append(await client.get(resource.url))
            return [answer.status_code for answer in answers]

    assert asyncio.run(main()) == [401, 200]
    assert [seen.body for seen in resource.seen] == [b"a stream", b""]
    assert resource.tokens == [old, stored(world)]
    assert world.posts == 1


def test_a_stream_that_was_read_into_memory_is_sent_again(world: World, resource: Resource) -> None:
    refused(world)
    with httpx.Client(auth=TokenAuth(world.manager(), "alice"), **SETTINGS) as client:
        request = client.build_request("POST", resource.url, content=a_generator())
        request.read()
        assert client.send(request).status_code == 200
    assert [seen.body for seen in resource.seen] == [b"a stream"] * 2


# -- redirects --------------------------------------------------------------------------------


def test_another_origin_gets_no_token_and_its_401_refreshes_nothing(
    world: World, resource: Resource, fetch: Fetch
) -> None:
    world.sign_in(expires_in=3600)
    with Resource(lambda _: False) as elsewhere:
        resource.moved["/away"] = (307, f"{elsewhere.url}/there")
        answer = fetch(f"{resource.url}/away", "POST", content=b"body")
    assert (answer.status_code, str(answer.url)) == (401, f"{elsewhere.url}/there")
    assert resource.tokens == [stored(world)]
    assert elsewhere.tokens == [None]
    assert world.posts == 0


def test_only_the_refused_request_is_sent_again(
    world: World, resource: Resource, fetch: Fetch
) -> None:
    old = refused(world)
    resource.moved["/make"] = (303, "/made")
    assert fetch(f"{resource.url}/make", "POST", content=b"body").status_code == 200
    assert [(seen.method, seen.path, seen.body) for seen in resource.seen] == [
        ("POST", "/make", b"body"),
        ("GET", "/made", b""),
        ("GET", "/made", b""),
    ]
    assert resource.tokens == [old, old, stored(world)]
    assert world.posts == 1


def test_after_a_refresh_another_origin_gets_no_token(
    world: World, resource: Resource, fetch: Fetch
) -> None:
    old = refused(world)
    with Resource(lambda _: False) as elsewhere:
        resource.script = [(401, {}), (302, {"Location": elsewhere.url})]
        assert fetch(resource.url).status_code == 401
    assert resource.tokens == [old, stored(world)]
    assert elsewhere.tokens == [None]
    assert world.posts == 1


# -- failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mac", "DPoP", 1])
def test_a_token_that_is_not_bearer_is_refused_and_not_sent(
    kind: Any, world: World, resource: Resource, fetch: Fetch
) -> None:
    world.sign_in(expires_in=3600, token_type=kind)
    for _ in range(2):
        with pytest.raises(
            InvalidTokenError, match=r"alice has tokens of .* cannot be sent as Bearer"
        ):
            fetch(resource.url)
    assert resource.seen == []


def test_without_a_token_nothing_is_sent_and_the_reason_is_raised(
    resource: Resource, fetch: Fetch
) -> None:
    with pytest.raises(ReauthorizationRequired, match="no tokens are stored"):
        fetch(resource.url)
    assert resource.seen == []


@pytest.mark.parametrize(
    ("answer", "error"),
    [(denied(), ReauthorizationRequired), (Answer(503), TransientRefreshError)],
    ids=["dead", "transient"],
)
def test_a_failed_refresh_is_raised_instead_of_the_401(
    answer: Answer, error: type[Exception], world: World, resource: Resource, fetch: Fetch
) -> None:
    old = refused(world)
    world.server.script(answer)
    with pytest.raises(error):
        fetch(resource.url)
    assert resource.tokens == [old]


def test_a_provider_can_be_given(world: World, resource: Resource, fetch: Fetch) -> None:
    world.sign_in(provider=None)
    auth = TokenAuth(world.manager(), "alice", "test")
    assert fetch(resource.url, auth=auth).status_code == 200
    assert world.row()["provider"] == "test"
