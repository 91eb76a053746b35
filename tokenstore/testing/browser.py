"""Somebody in front of a browser, who fills in the forms of the server."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlencode, urljoin
from urllib.request import ProxyHandler, build_opener

_TIMEOUT = 30.0  # seconds for one page
_PAGES = 10  # more of them than any sign-in has


class Page(NamedTuple):
    """The page on which a visit ended.

    Attributes:
        url: Its address.
        status: Its HTTP status.
        text: Its HTML.
    """

    url: str
    status: int
    text: str


class _Forms(HTMLParser):
    """The first form of a page: where it goes and what its fields hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "form" and self.action is None:
            self.action = found.get("action", "")
        if tag in {"input", "button"} and "name" in found:
            self.fields.setdefault(found["name"], found.get("value", ""))


def visit(url: str, username: str, password: str, *, allow: bool, user_code: str = "") -> Page:
    """Open *url*, sign in, decide, and return the page after that.

    Args:
        url: A sign-in page, or the one where a device's code is entered.
        username: Who signs in.
        password: With which password.
        allow: What the person decides.
        user_code: The code to enter where the page does not have it yet.
    """
    opener = build_opener(ProxyHandler({}))  # the server is on this machine

    def load(url: str, form: dict[str, str] | None = None) -> Page:
        data = None if form is None else urlencode(form).encode()
        try:
            response = opener.open(url, data, _TIMEOUT)
        except HTTPError as error:
            response = error
        with response:
            return Page(response.url, response.status, response.read().decode())

    page = load(url)
    for _ in range(_PAGES):
        found = _Forms(page.text)
        if page.status >= 400 or found.action is None:  # noqa: PLR2004
            break
        known = {
            "username": username,
            "password": password,
            "decision": "allow" if allow else "refuse",
            "user_code": user_code or found.fields.get("user_code", ""),
        }
        form = {name: known.get(name, value) for name, value in found.fields.items()}
        page = load(urljoin(page.url, found.action), form)
    return page
