"""A user with a browser, who submits the sign-in form of the server."""

from __future__ import annotations

from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

_TIMEOUT = 30.0  # seconds for one page


class Page(NamedTuple):
    """The page on which a visit ended.

    Attributes:
        url: Its URL.
        status: Its HTTP status.
        text: Its HTML.
    """

    url: str
    status: int
    text: str


def visit(url: str, username: str, password: str, *, allow: bool, user_code: str = "") -> Page:
    """Submit the form at *url*, follow redirects, and return the last page.

    Args:
        url: A sign-in page, or the page where the code of a device is entered.
        username: The user who signs in.
        password: The user's password.
        allow: Whether the user allows or refuses access.
        user_code: The code to enter if *url* does not contain it.
    """
    form = {
        "username": username,
        "password": password,
        "decision": "allow" if allow else "refuse",
        **({"user_code": user_code} if user_code else {}),
    }
    opener = build_opener(ProxyHandler({}))  # the server is on this machine
    try:
        response = opener.open(url, urlencode(form).encode(), _TIMEOUT)
    except HTTPError as error:
        response = error
    with response:
        return Page(response.url, response.status, response.read().decode())
