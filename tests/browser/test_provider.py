"""Sign-ins with a real browser at "oidc-provider", a certified OpenID provider."""

from __future__ import annotations

import subprocess
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest
import requests
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.helpers.refreshes import SOON, Call
from tests.helpers.requirements import OIDC_PROVIDER, require
from tokenstore import Provider, ReauthorizationRequired, TokenManager, WrongAccountError
from tokenstore.integrations.requests import TokenAuth

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome

    from tokenstore import Prompt

ACCOUNT = "alice@example.com"


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    """The provider, which ends with its stdin, and so with us."""
    require("node")
    script = Path(__file__).with_name("provider") / "server.mjs"
    with subprocess.Popen(
        ["node", script, OIDC_PROVIDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        lines = (line.strip() for line in server.stdout)
        yield next((line for line in lines if line.startswith("http://127.0.0.1:")), "")
        server.kill()


@pytest.fixture
def manager(issuer: str, tmp_path: Path) -> Iterator[TokenManager]:
    acme = Provider(
        "acme",
        None,
        "app",
        issuer=issuer,
        scope="email offline_access",
        authorization_params={"prompt": "consent"},
    )
    with TokenManager(tmp_path / "tokens.db", providers={"acme": acme}) as manager:
        yield manager


def press(browser: Chrome) -> None:
    """Press the button of a page of the provider, and wait for the next page."""
    button = browser.find_element(By.CSS_SELECTOR, "button[type=submit]")
    address = browser.current_url
    button.click()
    WebDriverWait(browser, SOON).until(lambda driver: driver.current_url != address)


def agree(browser: Chrome, url: str, username: str) -> None:
    """Sign in and consent on the pages of the provider."""
    browser.delete_all_cookies()
    browser.get(url)
    name = browser.find_element(By.NAME, "login")
    name.clear()  # contains the login_hint
    name.send_keys(username)
    browser.find_element(By.NAME, "password").send_keys("any")
    press(browser)
    press(browser)


def login(manager: TokenManager, browser: Chrome, username: str = "alice") -> Call[dict[str, Any]]:
    prompts: SimpleQueue[Prompt] = SimpleQueue()
    call = Call(manager.login, ACCOUNT, "acme", prompt=prompts.put)
    agree(browser, prompts.get(timeout=SOON).url, username)
    return call


def test_login_refresh_revocation_login_and_logout(
    issuer: str, manager: TokenManager, chromium: Chrome
) -> None:
    first = login(manager, chromium).result()
    assert chromium.find_element(By.TAG_NAME, "h1").text == "Signed in"

    second = manager.refresh_token(ACCOUNT)
    assert second["refresh_token"] != first["refresh_token"]  # it rotates
    with requests.Session() as session:
        session.auth = TokenAuth(manager, ACCOUNT)
        answer = session.get(f"{issuer}/me", timeout=SOON)
        assert answer.json() == {"sub": "alice", "email": ACCOUNT}

    sent = {"token": second["refresh_token"], "client_id": "app"}
    requests.post(f"{issuer}/token/revocation", data=sent, timeout=SOON).raise_for_status()
    with pytest.raises(ReauthorizationRequired):
        manager.refresh_token(ACCOUNT)
    assert [account.state for account in manager.accounts()] == ["sign_in"]

    third = login(manager, chromium).result()
    assert [account.state for account in manager.accounts()] == ["valid"]
    fourth = manager.refresh_token(ACCOUNT)
    assert fourth["access_token"] != third["access_token"]

    assert manager.logout(ACCOUNT)
    headers = {"Authorization": f"Bearer {fourth['access_token']}"}
    assert requests.get(f"{issuer}/me", headers=headers, timeout=SOON).status_code == 401
    assert manager.load_tokens(ACCOUNT) is None


def test_a_different_user_is_refused(manager: TokenManager, chromium: Chrome) -> None:
    tokens = login(manager, chromium).result()
    error = login(manager, chromium, "bob").error()

    assert isinstance(error, WrongAccountError)
    assert chromium.find_element(By.TAG_NAME, "h1").text == "Different user"
    assert manager.load_tokens(ACCOUNT) == tokens


def test_a_device_is_allowed(manager: TokenManager, chromium: Chrome) -> None:
    prompts: SimpleQueue[Prompt] = SimpleQueue()
    hold: SimpleQueue[None] = SimpleQueue()
    call = Call(
        manager.login,
        ACCOUNT,
        "acme",
        device=True,
        prompt=prompts.put,
        sleep=lambda _: hold.get(timeout=SOON),
    )
    chromium.delete_all_cookies()
    chromium.get(str(prompts.get(timeout=SOON).url_complete))
    press(chromium)
    chromium.find_element(By.NAME, "login").send_keys("alice")
    chromium.find_element(By.NAME, "password").send_keys("any")
    press(chromium)
    press(chromium)
    hold.put(None)
    assert call.result()["access_token"]
