"""A bearer token never travels in clear text (RFC 6750 section 5.3), whichever library sends it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import httpx
import pytest
import requests
from google.auth.transport.requests import AuthorizedSession
from requests.adapters import BaseAdapter

from tests.helpers.refreshes import SOON, World
from tests.helpers.resource_server import Resource, stored
from tokenstore import InvalidTokenError
from tokenstore.integrations import google, mail
from tokenstore.integrations import httpx as for_httpx
from tokenstore.integrations import requests as for_requests

CLEAR = [
    "http://api.example.com/",
    "HTTP://api.example.com/",
    "http://10.0.0.1/",
    "http://192.168.1.1:8080/",
    "http://127.0.0.1.example.com/",
    "http://localhost.example.com/",
    "http://[2001:db8::1]/",
]
LOCAL = ["http://127.0.0.1:9/", "http://localhost:9/", "http://[::1]:9/", "http://127.1.2.3/"]


class Wire(BaseAdapter):
    """Records what would be sent, and responds as the test says."""

    def __init__(self, *responses: tuple[int, dict[str, str]]) -> None:
        super().__init__()
        self.responses = list(responses)
        self.sent: list[tuple[str | None, str | None]] = []

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:  # type: ignore[override]
        self.sent.append((request.url, request.headers.get("Authorization")))
        response = requests.Response()
        response.status_code, headers = self.responses.pop(0) if self.responses else (200, {})
        response.headers.update(headers)
        response.request, response.url, response._content = request, str(request.url), b""
        response.connection = self  # type: ignore[assignment]
        return response

    def close(self) -> None:
        """Do nothing."""


def by_requests(world: World, url: str, wire: Wire) -> None:
    with requests.Session() as session:
        session.auth = for_requests.TokenAuth(world.manager(), "alice")
        session.mount("http://", wire)
        session.mount("https://", wire)
        session.get(url, timeout=SOON)


def by_google(world: World, url: str, wire: Wire) -> None:
    with AuthorizedSession(google.Credentials(world.manager(), "alice")) as session:  # type: ignore[no-untyped-call]
        session.mount("http://", wire)
        session.mount("https://", wire)
        session.get(url, timeout=SOON)


def _through(wire: Wire) -> httpx.MockTransport:
    def respond(request: httpx.Request) -> httpx.Response:
        wire.sent.append((str(request.url), request.headers.get("Authorization")))
        status, headers = wire.responses.pop(0) if wire.responses else (200, {})
        return httpx.Response(status, headers=headers)

    return httpx.MockTransport(respond)


def by_httpx(world: World, url: str, wire: Wire) -> None:
    auth = for_httpx.TokenAuth(world.manager(), "alice")
    with httpx.Client(auth=auth, transport=_through(wire), follow_redirects=True) as client:
        client.get(url)


def by_async_httpx(world: World, url: str, wire: Wire) -> None:
    async def get() -> None:
        auth = for_httpx.TokenAuth(world.manager(), "alice")
        async with httpx.AsyncClient(
            auth=auth, transport=_through(wire), follow_redirects=True
        ) as client:
            await client.get(url)

    asyncio.run(get())


Send = Any
every_library = pytest.mark.parametrize("send", [by_requests, by_google, by_httpx, by_async_httpx])


@every_library
@pytest.mark.parametrize("url", CLEAR)
def test_no_token_is_sent_to_plain_http(world: World, send: Send, url: str) -> None:
    world.sign_in(expires_in=3600)
    wire = Wire()

    with pytest.raises(InvalidTokenError, match="requires https") as raised:
        send(world, url, wire)

    assert raised.value.field == "url"
    assert wire.sent == []
    assert str(world.tokens()[0]) not in str(raised.value)


@every_library
@pytest.mark.parametrize("url", [*LOCAL, "https://api.example.com/"])
def test_loopback_and_https_are_fine(world: World, send: Send, url: str) -> None:
    world.sign_in(expires_in=3600)
    wire = Wire()

    send(world, url, wire)

    assert [token for _, token in wire.sent] == [stored(world)]


@every_library
def test_a_redirect_to_plain_http_takes_no_token_along(world: World, send: Send) -> None:
    world.sign_in(expires_in=3600)
    wire = Wire((302, {"Location": "http://api.example.com/plain"}), (403, {}))

    send(world, "https://api.example.com/", wire)

    assert wire.sent == [
        ("https://api.example.com/", stored(world)),
        ("http://api.example.com/plain", None),
    ]


def test_not_even_if_the_session_keeps_credentials(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests.Session, "should_strip_auth", lambda *_: False)
    world.sign_in(expires_in=3600)
    wire = Wire((302, {"Location": "http://api.example.com/plain"}), (401, {}))

    by_requests(world, "https://api.example.com/", wire)

    assert [token for _, token in wire.sent] == [stored(world), None]


@every_library
def test_loopback_through_a_proxy_is_not_loopback(
    world: World, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    world.sign_in(expires_in=3600)
    wire = Wire()
    send(world, LOCAL[0], wire)

    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    with pytest.raises(InvalidTokenError, match="no_proxy"):
        send(world, LOCAL[0], wire)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    send(world, LOCAL[0], wire)

    assert [token for _, token in wire.sent] == [stored(world)] * 2


@pytest.mark.parametrize(
    "url", [r"http://api.example.com\@127.0.0.1/", "http://a@127.0.0.1/", b"x"]
)
def test_a_url_that_libraries_read_differently_is_refused(world: World, url: Any) -> None:
    world.sign_in(expires_in=3600)
    headers: dict[str, str] = {}

    with pytest.raises(InvalidTokenError):
        google.Credentials(world.manager(), "alice").before_request(None, "GET", url, headers)

    assert headers == {}


# -- mail --------------------------------------------------------------------------------------


def test_mail_on_a_connection_with_tls_or_on_loopback(resource: Resource) -> None:
    context = ssl.create_default_context()
    with socket.create_connection(("127.0.0.1", resource.server_address[1])) as plain:
        assert mail.xoauth2("a", "token", connection=plain)
        assert b"token" in mail.xoauth2("a", "token")
        with context.wrap_socket(
            plain, server_hostname="mail.example.com", do_handshake_on_connect=False
        ) as encrypted:
            assert mail.xoauth2("a", "token", connection=encrypted)
    left, right = socket.socketpair()
    with left, right:
        assert mail.xoauth2("a", "token", connection=left)


class Client:
    """What imaplib and smtplib have: a connection to another machine, or to none."""

    def __init__(self, sock: object) -> None:
        self.sock = sock


class Elsewhere(socket.socket):
    def getpeername(self) -> tuple[str, int]:
        return "192.0.2.1", 143


@pytest.mark.parametrize("wrap", [Client, lambda sock: sock])
def test_mail_without_tls_is_refused(wrap: Any) -> None:
    with Elsewhere() as sock, pytest.raises(InvalidTokenError, match="starttls") as raised:
        mail.xoauth2("a", "token", connection=wrap(sock))

    assert raised.value.field == "connection"


def test_a_client_that_is_not_connected_gets_no_token() -> None:
    with pytest.raises(InvalidTokenError):
        mail.xoauth2("a", "token", connection=Client(None))
