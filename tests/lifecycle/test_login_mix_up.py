"""Mix-up (RFC 9700 section 4.4): a hostile provider sends the browser on to an honest one."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
import requests

from tests.helpers.refreshes import SOON, World
from tests.helpers.sign_in import Visitor
from tokenstore import Prompt, Provider, SignInError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHARED = "http://127.0.0.1/callback"  # registered for the client at the honest provider


class _Hostile(ThreadingHTTPServer):
    """Sends each browser on to another sign-in page; keeps what its token endpoint receives."""

    def __init__(self, page: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.page = page
        self.received: dict[str, str] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: _Hostile

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path.startswith("/authorize"):
            asked = dict(parse_qsl(urlsplit(self.path).query)) | {"client_id": "tokenstore"}
            self.send_response(307)
            self.send_header("Location", f"{self.server.page}?{urlencode(asked)}")
        else:
            self.server.received |= dict(parse_qsl(body))
            self.send_response(400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@contextmanager
def hostile(world: World) -> Iterator[_Hostile]:
    with _Hostile(f"{world.server.issuer}/authorize") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class Follower(Visitor):
    """A user whose browser follows the redirect with the form; gives up where nothing returns."""

    def __call__(self, prompt: Prompt) -> None:
        form = {"username": "alice", "password": "wonderland", "decision": "allow"}
        with requests.Session() as session:
            session.trust_env = False
            response = session.post(prompt.url, form, timeout=SOON)
        self.returned = response.url.startswith(str(prompt.redirect_uri))
        if not self.returned:
            raise LookupError(f"HTTP {response.status_code}")


def provider_of(server: _Hostile, issuer: str | None, redirect_uri: str | None) -> Provider:
    return Provider(
        "hostile",
        f"{server.url}/token",
        "its-own-client",
        authorization_endpoint=f"{server.url}/authorize",
        issuer=issuer,
        redirect_uri=redirect_uri,
        sign_in_scope="openid",
    )


@pytest.mark.parametrize("known", [True, False], ids=["issuer known", "issuer unknown"])
def test_a_code_of_a_provider_that_names_itself_is_not_sent_to_another(
    world: World, *, known: bool
) -> None:
    with hostile(world) as server:
        evil = provider_of(server, server.url if known else None, SHARED)
        follower = Follower(world)
        with pytest.raises(SignInError, match=r"another provider.*RFC 9207"):
            world.manager(providers={"hostile": evil}).login("alice", "hostile", prompt=follower)
    assert follower.returned
    assert server.received == {}
    assert world.manager().load_tokens("alice") is None


def test_a_code_does_not_return_to_the_path_of_another_provider(tmp_path: Path) -> None:
    """RFC 8252 section 8.10, RFC 9700 section 4.4.2.2: for providers without ``iss``."""
    with World(tmp_path, iss_parameter=False) as world, hostile(world) as server:
        honest = world.server.provider("honest")
        evil = provider_of(server, None, None)
        manager = world.manager(providers={"hostile": evil, "honest": honest})
        assert manager.login("bob", "honest", prompt=Visitor(world, "bob"))
        follower = Follower(world)
        with pytest.raises(LookupError, match="HTTP 400"):
            manager.login("alice", "hostile", prompt=follower)
        assert not follower.returned
        assert server.received == {}


def test_an_issuer_that_is_not_configured_needs_the_origin_of_the_sign_in_page(
    world: World,
) -> None:
    provider = world.server.provider(issuer=None)
    manager = world.manager(providers={"test": provider})
    assert manager.login("alice", "test", prompt=Visitor(world))
    page = f"{world.server.issuer}/authorize".replace("127.0.0.1", "localhost")
    elsewhere = world.server.provider(issuer=None, authorization_endpoint=page)
    with pytest.raises(SignInError, match="another provider"):
        world.manager(providers={"test": elsewhere}).login("alice", "test", prompt=Follower(world))
