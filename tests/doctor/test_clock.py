"""This machine's clock against those of providers."""

from __future__ import annotations

import time
from email.utils import formatdate
from socket import create_server

import pytest

from tests.helpers.doctor import look
from tests.helpers.refreshes import Raw, World
from tokenstore import Provider


def clocks(world: World, url: str, off: float) -> tuple[str, str]:
    """Compare a clock that is off by so many seconds with the one at *url*."""
    given = {"test": Provider("test", url, "id", client_secret="CANARY")}
    found = look(world.path, providers=given, online=True, clock=lambda: time.time() + off)
    [about] = [finding for finding in found if finding.check == "clock"]
    return about.severity, about.message


@pytest.mark.parametrize(
    ("off", "severity", "words"),
    [
        (0, "ok", "agree"),
        (3600, "warning", "ahead of test's"),
        (-3600, "warning", "behind test's"),
    ],
)
def test_a_clock_is_compared_with_the_providers(
    world: World, off: float, severity: str, words: str
) -> None:
    world.sign_in()

    told = clocks(world, world.server.token_endpoint, off)

    assert told[0] == severity
    assert words in told[1]
    assert world.posts == 0


def test_nothing_is_asked_unless_told_to(world: World) -> None:
    world.sign_in()
    with Raw() as server:
        look(world.path, providers={"test": Provider("test", server.url, "id")})
        assert not server.received


def test_what_is_asked_has_nothing_of_an_account_in_it(world: World) -> None:
    world.sign_in()
    date = formatdate(usegmt=True)
    answer = f"HTTP/1.1 405 No\r\nDate: {date}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with Raw(answer.encode()) as server:
        assert clocks(world, server.url, 0)[0] == "ok"
        [received] = server.received

    assert received.startswith(b"HEAD /token HTTP/1.1\r\n")
    assert received.endswith(b"\r\n\r\n")
    access_token, refresh_token, _ = world.tokens()
    for secret in ("CANARY", "alice", "uthorization", "id=", access_token, refresh_token):
        assert str(secret).encode() not in received


@pytest.mark.parametrize(
    ("answer", "severity", "words"),
    [
        (b"", "warning", "no response from test"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "info", "no valid Date"),
        (
            b"HTTP/1.1 200 OK\r\nDate: yesterday\r\nContent-Length: 0\r\n\r\n",
            "info",
            "no valid Date",
        ),
    ],
    ids=["none", "no Date", "no date"],
)
def test_a_provider_that_does_not_tell_the_time_is_told(
    world: World, answer: bytes, severity: str, words: str
) -> None:
    world.sign_in()
    with Raw(answer) as server:
        told = clocks(world, server.url, 0)

    assert told[0] == severity
    assert words in told[1]


def test_a_provider_that_nobody_reaches_is_told(world: World) -> None:
    world.sign_in()
    with create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    assert clocks(world, f"http://127.0.0.1:{port}/", 0) == (
        "warning",
        f"no response from test at 127.0.0.1:{port}: no connection could be made",
    )
