"""Every integration sends the access token of the scope or resource that it was created for."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import requests
from google.auth.transport.requests import AuthorizedSession

from tests.helpers.refreshes import SOON, World
from tokenstore import AsyncTokenManager, InvalidTokenError
from tokenstore.integrations.google import Credentials
from tokenstore.integrations.httpx import TokenAuth as HttpxAuth
from tokenstore.integrations.requests import TokenAuth as RequestsAuth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.helpers.resource_server import Resource

API = "https://api.example.com"
TARGETS: list[dict[str, Any]] = [
    {"scope": "mail"},
    {"resource": API},
    {"scope": ["mail"], "resource": [API]},
]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, resources=[API]) as world:
        world.clock.now = time.time()
        yield world


def sent(resource: Resource) -> str:
    """Return the access token of the last request."""
    return (resource.tokens[-1] or "").removeprefix("Bearer ")


def with_requests(world: World, url: str, target: dict[str, Any]) -> Callable[[], int]:
    auth = RequestsAuth(world.manager(), "alice", **target)
    return lambda: requests.get(url, auth=auth, timeout=SOON).status_code


def with_httpx(world: World, url: str, target: dict[str, Any]) -> Callable[[], int]:
    auth = HttpxAuth(world.manager(), "alice", **target)
    context = ssl.create_default_context()
    return lambda: httpx.get(url, auth=auth, timeout=SOON, verify=context).status_code


def with_async_httpx(world: World, url: str, target: dict[str, Any]) -> Callable[[], int]:
    auth = HttpxAuth(AsyncTokenManager(world.manager()), "alice", **target)
    context = ssl.create_default_context()

    async def get() -> int:
        async with httpx.AsyncClient(auth=auth, timeout=SOON, verify=context) as client:
            return (await client.get(url)).status_code

    return lambda: asyncio.run(get())


def with_google(world: World, url: str, target: dict[str, Any]) -> Callable[[], int]:
    credentials = Credentials(world.manager(), "alice", **target).with_quota_project("billed")
    session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
    return lambda: int(session.get(url, timeout=SOON).status_code)


@pytest.mark.parametrize("target", TARGETS, ids=["scope", "resource", "both"])
@pytest.mark.parametrize(
    "fetcher", [with_requests, with_httpx, with_async_httpx, with_google], ids=lambda f: f.__name__
)
def test_the_token_of_the_target_is_sent_and_renewed(
    world: World,
    resource: Resource,
    fetcher: Callable[..., Callable[[], int]],
    target: dict[str, Any],
) -> None:
    own = world.server.sign_in("alice", scope="mail openid")
    world.manager().save_tokens("alice", own, provider="test")
    expected = ("mail openid" if "scope" not in target else "mail", (API,) * ("resource" in target))
    fetch = fetcher(
        world,
        resource.url,
        dict(target),
    )
    assert fetch() == 200
    first = sent(resource)
    assert world.server.audience(first) == expected
    resource.accepts = lambda token: token != first and world.server.is_live(token)
    assert fetch() == 200
    renewed = sent(resource)
    assert renewed != first
    assert world.server.audience(renewed) == expected
    assert world.posts == 2
    assert world.tokens()[0] == own["access_token"]


@pytest.mark.parametrize("integration", [RequestsAuth, HttpxAuth, Credentials])
def test_an_empty_target_is_refused_at_once(
    world: World, integration: Callable[..., object]
) -> None:
    with pytest.raises(InvalidTokenError):
        integration(world.manager(), "alice", scope="")
