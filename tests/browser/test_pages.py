"""Sign-ins with a real browser, which ends on the callback page."""

from __future__ import annotations

import sys
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

ACCOUNT = "alice.with-a-long-name.that-has-to-be-broken-somewhere:a-long-department.example.com"

every_configuration = pytest.mark.parametrize(
    "browser", ["plain", "no scripts", "dark", "phone"], indirect=True
)


@contextmanager
def login(world: World, browser: Browser, **options: Any) -> Iterator[Call[dict[str, Any]]]:
    """Begin a sign-in, and open its page in the browser."""
    prompts: SimpleQueue[Prompt] = SimpleQueue()
    call = Call(world.manager().login, ACCOUNT, "test", prompt=prompts.put, **options)
    browser.open(prompts.get(timeout=SOON).url)
    yield call


@every_configuration
def test_a_sign_in_ends_on_a_page_with_account_and_user(world: World, browser: Browser) -> None:
    with login(world, browser) as call:
        browser.sign_in("alice", "wonderland")
        tokens = call.result()

    assert browser.heading == "Signed in"
    assert ACCOUNT in browser.text
    assert "alice@example.com" in browser.text
    assert world.tokens(ACCOUNT)[0] == tokens["access_token"]
    browser.check()
    assert browser.console() == []


@every_configuration
def test_a_refusal_ends_on_a_page_with_a_remedy(world: World, browser: Browser) -> None:
    with login(world, browser) as call:
        browser.sign_in("alice", "wonderland", "Refuse")
        error = call.error()

    assert isinstance(error, SignInError)
    assert browser.heading == "Sign-in refused"
    assert "try again" in browser.text
    browser.check()


@every_configuration
def test_a_different_user_ends_on_a_page_with_the_user(world: World, browser: Browser) -> None:
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


def test_a_response_with_a_wrong_state_is_refused_and_the_sign_in_continues(
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


def test_the_browser_is_started_with_a_file_that_redirects(
    world: World, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, program = tmp_path / "seen", tmp_path / "program"
    program.write_text(f'#!/bin/sh\nprintf %s "$1" > {seen}\n')
    program.chmod(0o700)
    monkeypatch.setenv("BROWSER", str(program))
    monkeypatch.delitem(sys.modules, "webbrowser", raising=False)
    opened: SimpleQueue[bool] = SimpleQueue()
    call = Call(
        world.manager().login,
        "alice@example.com",
        "test",
        prompt=lambda prompt: opened.put(prompt.open_browser()),
    )
    assert opened.get(timeout=SOON)
    browser.open(seen.read_text())  # GenericBrowser waits for the program's end
    browser.sign_in("alice", "wonderland")
    assert browser.heading == "Signed in"
    assert call.result()["access_token"] == world.tokens("alice@example.com")[0]
    assert browser.console() == []


def test_a_device_is_allowed(world: World, browser: Browser) -> None:
    prompts: SimpleQueue[Prompt] = SimpleQueue()
    hold: SimpleQueue[None] = SimpleQueue()
    call = Call(
        world.manager().login,
        ACCOUNT,
        "test",
        device=True,
        prompt=prompts.put,
        sleep=lambda _: hold.get(timeout=SOON),
    )
    browser.open(str(prompts.get(timeout=SOON).url_complete))
    browser.sign_in("alice", "wonderland")
    assert browser.heading == "Done"
    hold.put(None)
    assert call.result()["access_token"] == world.tokens(ACCOUNT)[0]


def test_the_authorization_url_has_only_the_parameters_of_the_protocol(
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
        "nonce",
        "redirect_uri",
        "response_type",
        "scope",
        "state",
    }
