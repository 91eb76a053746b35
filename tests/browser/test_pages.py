"""A real browser signs in: through the pages of the strict server, to the end on ours."""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from refreshing import SOON, Call, World
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tokenstore import SignInError, WrongAccountError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

    from tokenstore import Prompt

ACCOUNT = "alice.with-a-long-name.that-has-to-be-broken-somewhere@a-long-department.example.com"
FLAGS = """
--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars
--disable-background-networking --disable-component-update --disable-sync --no-proxy-server
"""
PHONE = {"width": 320, "height": 640, "deviceScaleFactor": 2, "mobile": True}
DESKTOP = {"width": 1000, "height": 700, "deviceScaleFactor": 1, "mobile": False}


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    driver.set_page_load_timeout(SOON)
    yield driver
    driver.quit()


class Browser:
    """The browser, in one of the ways that people have it."""

    def __init__(self, driver: Chrome, way: str, shots: Path) -> None:
        self._driver = driver
        self._shots = shots
        self.way = way
        self._do("Emulation.setScriptExecutionDisabled", value=way == "no scripts")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if way == "dark" else "light"}
        self._do("Emulation.setEmulatedMedia", features=[scheme])
        self._do("Emulation.setDeviceMetricsOverride", **(PHONE if way == "phone" else DESKTOP))
        self.complaints()  # those of earlier tests

    def _do(self, command: str, **parameters: Any) -> Any:
        return self._driver.execute_cdp_cmd(command, parameters)

    def value(self, expression: str) -> Any:
        """Return what an expression is in the page; the page's own scripts may be off."""
        return self._do("Runtime.evaluate", expression=expression, returnByValue=True)["result"][
            "value"
        ]

    def open(self, url: str) -> None:
        self._driver.get(url)

    def sign_in(self, username: str, password: str, decision: str = "Allow") -> None:
        """Go through the pages of the server, to wherever they lead."""
        self.check()
        fields = {"username": username, "password": password}
        for name, text in fields.items():
            field = self._driver.find_element(By.NAME, name)
            field.clear()
            field.send_keys(text)
        self._press("Sign in")
        self.check()
        self._press(decision)

    def _press(self, label: str) -> None:
        title = self._driver.title
        self._driver.find_element(By.XPATH, f"//button[normalize-space()='{label}']").click()
        WebDriverWait(self._driver, SOON).until(lambda driver: driver.title != title)

    @property
    def heading(self) -> str:
        return self._driver.find_element(By.TAG_NAME, "h1").text

    @property
    def text(self) -> str:
        return self._driver.find_element(By.TAG_NAME, "body").text

    def check(self) -> None:
        """Check that the page can be read as it is shown, and keep a picture."""
        assert self.value("document.documentElement.scrollWidth <= innerWidth"), "it scrolls"
        ground, ink = (self._brightness(name) for name in ("backgroundColor", "color"))
        assert (ground < 60 and ink > 190) if self.way == "dark" else (ground > 190 and ink < 60)
        name = f"{self.heading} {self.way}".lower().replace(" ", "-").replace("?", "")
        self._driver.save_screenshot(str(self._shots / f"{name}.png"))

    def _brightness(self, of: str) -> float:
        """Return how bright the page's ground or text is, from 0 to 255."""
        shown = self.value(f"getComputedStyle(document.body).{of}")
        return sum(map(int, re.findall(r"\d+", shown)[:3])) / 3

    def complaints(self) -> list[str]:
        """Return what the browser logged: refused styles, missing files."""
        entries = self._driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries]


@pytest.fixture
def browser(
    request: pytest.FixtureRequest, chromium: Chrome, tmp_path_factory: pytest.TempPathFactory
) -> Browser:
    shots = tmp_path_factory.getbasetemp() / "screenshots"
    shots.mkdir(exist_ok=True)
    return Browser(chromium, getattr(request, "param", "plain"), shots)


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
    assert browser.heading == "Somebody else signed in"
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
