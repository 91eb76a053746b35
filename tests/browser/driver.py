"""A real browser in several configurations: without scripts, dark, on a phone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.helpers.refreshes import SOON

if TYPE_CHECKING:
    from pathlib import Path

    from selenium.webdriver import Chrome

PHONE = {"width": 320, "height": 640, "deviceScaleFactor": 2, "mobile": True}
DESKTOP = {"width": 1000, "height": 700, "deviceScaleFactor": 1, "mobile": False}


class Browser:
    """The browser in one configuration."""

    def __init__(self, driver: Chrome, configuration: str, screenshots: Path) -> None:
        self._driver = driver
        self._screenshots = screenshots
        self.configuration = configuration
        self._do("Emulation.setScriptExecutionDisabled", value=configuration == "no scripts")
        scheme = {
            "name": "prefers-color-scheme",
            "value": "dark" if configuration == "dark" else "light",
        }
        self._do("Emulation.setEmulatedMedia", features=[scheme])
        self._do(
            "Emulation.setDeviceMetricsOverride", **(PHONE if configuration == "phone" else DESKTOP)
        )
        self.console()  # drops the messages of earlier tests

    def _do(self, command: str, **parameters: Any) -> Any:
        return self._driver.execute_cdp_cmd(command, parameters)

    def value(self, expression: str) -> Any:
        """Evaluate an expression in the page, even if the page's own scripts are disabled."""
        return self._do("Runtime.evaluate", expression=expression, returnByValue=True)["result"][
            "value"
        ]

    def open(self, url: str) -> None:
        self._driver.get(url)

    def sign_in(self, username: str, password: str, decision: str = "Allow") -> None:
        """Submit the sign-in form of the server, and wait for the next page."""
        for name, text in {"username": username, "password": password}.items():
            field = self._driver.find_element(By.NAME, name)
            field.clear()
            field.send_keys(text)
        title = self._driver.title
        self.console()  # drops the messages about the form
        self._driver.find_element(By.XPATH, f"//button[normalize-space()='{decision}']").click()
        WebDriverWait(self._driver, SOON).until(lambda driver: driver.title != title)

    @property
    def heading(self) -> str:
        return self._driver.find_element(By.TAG_NAME, "h1").text

    @property
    def text(self) -> str:
        return self._driver.find_element(By.TAG_NAME, "body").text

    def check(self) -> None:
        """Check that the page is readable, and save a screenshot."""
        assert self.value("document.documentElement.scrollWidth <= innerWidth"), "it scrolls"
        background, text = (self._brightness(name) for name in ("backgroundColor", "color"))
        if self.configuration == "dark":
            assert background < 60
            assert text > 190
        else:
            assert background > 190
            assert text < 60
        name = f"{self.heading} {self.configuration}".lower().replace(" ", "-").replace("?", "")
        self._driver.save_screenshot(str(self._screenshots / f"{name}.png"))

    def _brightness(self, name: str) -> float:
        """Return the brightness of a color of the page, from 0 to 255."""
        color = self.value(f"getComputedStyle(document.body).{name}")
        return sum(map(int, re.findall(r"\d+", color)[:3])) / 3

    def console(self) -> list[str]:
        """Return the new messages of the console, such as blocked styles and missing files."""
        entries = self._driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries]
