from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from selenium import webdriver

from tests.browser.driver import Browser
from tests.helpers.refreshes import SOON
from tests.helpers.requirements import CHROMEDRIVER, CHROMIUM, require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome

FLAGS = """
--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars
--disable-background-networking --disable-component-update --disable-sync --no-proxy-server
"""


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    require("chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=CHROMEDRIVER)
    driver = webdriver.Chrome(options, service)
    driver.set_page_load_timeout(SOON)
    yield driver
    driver.quit()


@pytest.fixture
def browser(request: pytest.FixtureRequest, chromium: Chrome) -> Browser:
    shots = Path(sys.prefix, "screenshots")
    shots.mkdir(exist_ok=True)
    return Browser(chromium, getattr(request, "param", "plain"), shots)
