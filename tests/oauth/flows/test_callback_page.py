from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
import requests

from tests.helpers.refreshes import SOON, World
from tests.helpers.sign_in import begin, callback
from tokenstore import SignInError, TokenPersistError, WrongAccountError
from tokenstore.oauth.flows import callback_page as page

if TYPE_CHECKING:
    from pathlib import Path

    from tokenstore.oauth.flows.callback_page import Page

MARKUP = "<b onclick='x'>\"&</b>"
PAGES = {
    "success": page.success("alice", "acme", "alice@example.com"),
    "failure": page.failure("alice", "acme", SignInError("alice: no code; start again")),
    "refusal": page.failure("alice", "acme", SignInError("no", error="access_denied")),
    "different user": page.failure("alice", "acme", WrongAccountError("this was bob")),
    "not stored": page.failure("alice", "acme", TokenPersistError("the disk is full")),
    "interrupted": page.INTERRUPTED,
    "wrong state": page.WRONG_STATE,
    "already complete": page.ALREADY_COMPLETE,
    "not found": page.NOT_FOUND,
}
every_page = pytest.mark.parametrize("shown", PAGES.values(), ids=PAGES)


class Tags(HTMLParser):
    """The elements of a page with their attributes; those that are not closed stay open."""

    VOID = ("meta", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@every_page
def test_a_page_stands_alone_and_works_without_scripts(shown: Page) -> None:
    html = shown.html()
    tags = Tags(html)
    assert tags.open == []
    assert not {"script", "img", "iframe", "form", "input", "a"} & {*tags.names}
    assert {name for name, _ in tags.attributes} & {"style", "src", "onclick", "onload"} == set()
    assert re.findall(r"https?:|//|url\(|@import", html) == []
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in html
    assert "color-scheme: light dark" in html
    assert "@media (prefers-color-scheme: dark)" in html
    assert '<html lang="en">' in html
    assert tags.names.count("h1") == 1


@every_page
def test_the_policy_allows_the_style_of_the_page(shown: Page) -> None:
    [style] = re.findall(r"<style>(.*?)</style>", shown.html(), re.DOTALL)
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = page.HEADERS["Content-Security-Policy"]
    assert f"style-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    "shown",
    [
        page.success(MARKUP, MARKUP, MARKUP),
        page.success("alice", MARKUP, MARKUP),
        page.failure(MARKUP, MARKUP, SignInError(MARKUP)),
        page.failure(MARKUP, MARKUP, WrongAccountError(MARKUP)),
    ],
)
def test_every_text_is_escaped(shown: Page) -> None:
    html = shown.html()
    assert "<b" not in html.replace("<body>", "").replace("<bdi>", "")
    assert "&lt;b onclick=&#x27;x&#x27;&gt;&quot;&amp;&lt;/b&gt;" in html
    assert Tags(html).open == []


def test_a_page_shows_the_account_and_the_outcome() -> None:
    shown = PAGES["success"].html()
    for text in ("Signed in", "alice", "acme", "alice@example.com", "close this page"):
        assert text in shown
    shown = PAGES["failure"].html()
    for text in ("Not signed in", "No code.", "alice", "acme", "try again"):
        assert text in shown
    assert "Signed in as" not in page.success("alice", "acme", "alice").html()
    assert "Signed in as" not in page.success("alice", "acme", None).html()


def test_the_headers_keep_the_url_private(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        begun = begin(world.manager())
        location, params = callback(world.server, begun.prompt.url)
        responses = [
            requests.get(location, params=sent, timeout=SOON) for sent in ({"state": "x"}, params)
        ]
        assert begun.call.result()
    for response in responses:
        assert {**response.headers, **page.HEADERS} == response.headers
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["Server"].strip() == "tokenstore"
        assert int(response.headers["Content-Length"]) == len(response.content)
