"""What the tests of signing in and out share: people before browsers, and what they tamper with."""

from __future__ import annotations

import json
import re
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
    """Somebody who is sent to the sign-in page and does what it says."""

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
        """The page on which the visit ended."""
        return self._pages.get(timeout=SOON)


class Tampering(Visitor):
    """Somebody whose browser comes back with another query than the server sent it with."""

    def __init__(self, world: World, change: Callable[[dict[str, str]], Any]) -> None:
        super().__init__(world)
        self._change = change

    def __call__(self, prompt: Prompt) -> None:
        self.prompts.append(prompt)
        location, params = callback(self._server, prompt.url)
        self._change(params)
        self._pages.put(load(f"{location}?{urlencode(params)}"))


def nobody(_: Prompt) -> None:
    """Stand where nobody must be sent off."""
    raise AssertionError("somebody was asked to sign in")


class Begun(NamedTuple):
    """A sign-in that waits for somebody."""

    call: Call[dict[str, Any]]
    prompt: Prompt


def begin(manager: TokenManager, account: str = "alice", **options: Any) -> Begun:
    """Begin a sign-in; return it as soon as somebody may go to the page."""
    prompts: SimpleQueue[Prompt] = SimpleQueue()
    call = Call(manager.login, account, "test", prompt=prompts.put, **options)
    return Begun(call, prompts.get(timeout=SOON))


def load(url: str, **options: Any) -> Page:
    """Open an address as a browser does."""
    answer = requests.get(url, timeout=SOON, allow_redirects=False, **options)
    return Page(url, answer.status_code, answer.text)


def callback(
    server: AuthorizationServer, url: str, decision: str = "allow"
) -> tuple[str, dict[str, str]]:
    """Sign alice in; return where the browser is sent back to, and with what."""
    text = load(url).text
    for path, form in (
        ("sign-in", {"username": "alice", "password": "wonderland"}),
        ("consent", {"decision": decision}),
    ):
        [ticket] = re.findall(r'name="ticket" value="(.*?)"', text)
        answer = requests.post(
            f"{server.issuer}/{path}",
            {"ticket": ticket, **form},
            timeout=SOON,
            allow_redirects=False,
        )
        text = answer.text
    location, _, query = answer.headers["Location"].partition("?")
    return location, dict(parse_qsl(query))


def query_of(url: str) -> dict[str, str]:
    """Return the parameters of an address."""
    return dict(parse_qsl(urlsplit(url).query))


def claims_of(token: str) -> dict[str, Any]:
    """Return what an id_token says."""
    part = token.split(".")[1]
    claims: dict[str, Any] = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return claims


def with_claims(**changes: object) -> Transform:
    """Change what the id_token of the next answer says; None removes a claim."""

    def change(answer: dict[str, Any]) -> Mapping[str, Any]:
        header, _, signature = answer["id_token"].split(".")
        claims = {
            k: v for k, v in (claims_of(answer["id_token"]) | changes).items() if v is not None
        }
        payload = urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
        return answer | {"id_token": f"{header}.{payload}.{signature}"}

    return Transform(change)
