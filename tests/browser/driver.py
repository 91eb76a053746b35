"""A real browser, in the ways that people have it."""

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
