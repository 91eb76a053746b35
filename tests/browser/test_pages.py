"""A real browser signs in: through the pages of the strict server, to the end on ours."""

from __future__ import annotations

from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.helpers.refreshes import SOON, Call, World
from tokenstore import SignInError, WrongAccountError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.browser.driver import Browser
    from tokenstore import Prompt

pytest_plugins = ["browsing"]

ACCOUNT = "alice.with-a-long-name.that-has-to-be-broken-somewhere@a-long-department.example.com"

every_way = pytest.mark.parametrize(
    "browser", ["plain", "no scripts", "dark", "phone"], indirect=True
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        yield world


@contextmanager
def login(world: World, browser: Browser, **options: Any) -> Iterator[Call[dict[str, Any]]]:
    """Begin a sign-in and open its page; the block goes on from there."""
    prompts: SimpleQueue[Prompt] = SimpleQueue()
    call = Call(world.manager().login, ACCOUNT, "test", prompt=prompts.put, **options)
    browser.open(prompts.get(timeout=SOON).url)
    yield call


@every_way
def test_a_sign_in_ends_on_a_page_that_says_whose_it_is(world: World, browser: Browser) -> None:
    with login(world, browser) as call:
        browser.sign_in("alice", "wonderland")
        tokens = call.result()

    assert browser.heading == "Signed in"
    assert ACCOUNT in browser.text
    assert "alice@example.com" in browser.text
    assert world.tokens(ACCOUNT)[0] == tokens["access_token"]
    browser.check()
    assert browser.complaints() == []


@every_way
def test_a_refusal_ends_on_a_page_that_says_what_to_do(world: World, browser: Browser) -> None:
    with login(world, browser) as call:
        browser.sign_in("alice", "wonderland", "Refuse")
        error = call.error()

    assert isinstance(error, SignInError)
    assert browser.heading == "Sign-in refused"
    assert "try again" in browser.text
    browser.check()


@every_way
def test_somebody_else_ends_on_a_page_that_says_who(world: World, browser: Browser) -> None:
    with login(world, browser) as call:
        browser.sign_in("alice", "wonderland")
        before = call.result()
    with login(world, browser) as call:
        browser.sign_in("bob", "builder")
        error = call.error()

    assert isinstance(error, WrongAccountError)
    assert browser.heading == "Different user"
    assert "bob@example.com" in browser.text
    assert world.tokens(ACCOUNT)[0] == before["access_token"]
    browser.check()


def test_an_answer_to_another_sign_in_is_refused_and_the_right_one_still_counts(
    world: World, browser: Browser
) -> None:
    prompts: SimpleQueue[Prompt] = SimpleQueue()
    call = Call(world.manager().login, ACCOUNT, "test", prompt=prompts.put)
    prompt = prompts.get(timeout=SOON)
    browser.open(f"{prompt.redirect_uri}?code=stolen&state=wrong")

    assert browser.heading == "Not this sign-in"
    browser.check()
    browser.open(prompt.url)
    browser.sign_in("alice", "wonderland")
    assert browser.heading == "Signed in"
    assert call.result()["scope"] == "openid"


def test_a_device_is_let_in(world: World, browser: Browser) -> None:
    prompts: SimpleQueue[Prompt] = SimpleQueue()
    hold: SimpleQueue[None] = SimpleQueue()
    call = Call(
        world.manager().login,
        ACCOUNT,
        "test",
        device=True,
        prompt=prompts.put,
        wait=lambda _: hold.get(timeout=SOON),
    )
    browser.open(str(prompts.get(timeout=SOON).url_complete))
    browser.check()
    browser._press("Go on")
    browser.sign_in("alice", "wonderland")
    assert browser.heading == "Done"
    hold.put(None)
    assert call.result()["access_token"] == world.tokens(ACCOUNT)[0]


def test_the_address_holds_no_secret_but_what_the_protocol_puts_there(
    world: World, browser: Browser
) -> None:
    with login(world, browser) as call:
        sent = parse_qs(urlsplit(browser.value("location.href")).query)
        browser.sign_in("alice", "wonderland")
        call.result()
    assert sent.keys() == {
        "client_id",
        "code_challenge",
        "code_challenge_method",
        "login_hint",
        "nonce",
        "redirect_uri",
        "response_type",
        "scope",
        "state",
    }
