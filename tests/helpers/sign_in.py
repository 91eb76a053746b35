"""Helpers for the tests of login and logout: users with browsers, and tampered responses."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

import requests

from tests.helpers.refreshes import SOON, Call
from tokenstore.testing import Transform
from tokenstore.testing.browser import Page

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.helpers.refreshes import World
    from tokenstore import Prompt, TokenManager
    from tokenstore.testing import AuthorizationServer


class Visitor:
    """A user who signs in on the page of a prompt."""

    def __init__(self, world: World, username: str = "alice", *, allow: bool = True) -> None:
        self._server = world.server
        self._username = username
        self._allow = allow
        self._pages: SimpleQueue[Page] = SimpleQueue()
        self.prompts: list[Prompt] = []

    def __call__(self, prompt: Prompt) -> None:
        self.prompts.append(prompt)
        url = prompt.url_complete or prompt.url
        self._pages.put(self._server.visit(url, self._username, allow=self._allow))

    @property
    def page(self) -> Page:
        """The last page of the visit."""
        return self._pages.get(timeout=SOON)


class Tampering(Visitor):
    """A user whose browser returns with a different query than the server's."""

    def __init__(self, world: World, change: Callable[[dict[str, str]], Any]) -> None:
        super().__init__(world)
        self._change = change

    def __call__(self, prompt: Prompt) -> None:
        self.prompts.append(prompt)
        location, params = callback(self._server, prompt.url)
        self._change(params)
        self._pages.put(load(f"{location}?{urlencode(params)}"))


def nobody(_: Prompt) -> None:
    """Fail: no sign-in is expected."""
    raise AssertionError("a user was asked to sign in")


class Begun(NamedTuple):
    """A sign-in that waits for a user."""

    call: Call[dict[str, Any]]
    prompt: Prompt


def begin(manager: TokenManager, account: str = "alice", **options: Any) -> Begun:
    """Begin a sign-in; return it as soon as it waits for the user."""
    prompts: SimpleQueue[Prompt] = SimpleQueue()
    call = Call(manager.login, account, "test", prompt=prompts.put, **options)
    return Begun(call, prompts.get(timeout=SOON))


def load(url: str, **options: Any) -> Page:
    """Open a URL as a browser does."""
    response = requests.get(url, timeout=SOON, allow_redirects=False, **options)
    return Page(url, response.status_code, response.text)


def callback(
    server: AuthorizationServer, url: str, decision: str = "allow"
) -> tuple[str, dict[str, str]]:
    """Sign alice in; return the redirect URI and the parameters of the redirect."""
    assert url.startswith(f"{server.issuer}/authorize?")
    form = {"username": "alice", "password": "wonderland", "decision": decision}
    response = requests.post(url, form, timeout=SOON, allow_redirects=False)
    location, _, query = response.headers["Location"].partition("?")
    return location, dict(parse_qsl(query))


def query_of(url: str) -> dict[str, str]:
    """Return the parameters of a URL."""
    return dict(parse_qsl(urlsplit(url).query))


def claims_of(token: str) -> dict[str, Any]:
    """Return the claims of an id_token."""
    part = token.split(".")[1]
    claims: dict[str, Any] = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return claims


def with_claims(**changes: object) -> Transform:
    """Change claims of the id_token in the next response; None removes a claim."""

    def change(response: dict[str, Any]) -> Mapping[str, Any]:
        header, _, signature = response["id_token"].split(".")
        claims = {
            k: v for k, v in (claims_of(response["id_token"]) | changes).items() if v is not None
        }
        payload = urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
        return response | {"id_token": f"{header}.{payload}.{signature}"}

    return Transform(change)
