from __future__ import annotations

import html
import os
import re
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

from tests.helpers.refreshes import until
from tokenstore import Prompt

if TYPE_CHECKING:
    from collections.abc import Callable

URL = "https://acme.example/authorize?state=CANARY&scope=a%20b&x='\"<>"


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What a browser is started with; files are created in a directory of the test."""
    seen, browser = tmp_path / "seen", tmp_path / "browser"
    code = f"import sys; open({str(seen)!r}, 'w').write(sys.argv[1])"
    browser.write_text(f"#!{sys.executable}\n{code}\n")
    browser.chmod(0o700)
    monkeypatch.setenv("BROWSER", str(browser))
    monkeypatch.delitem(sys.modules, "webbrowser", raising=False)  # it reads the variable once
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def arguments() -> list[str]:
        until(lambda: seen.exists() and bool(seen.read_text()))
        return [seen.read_text()]

    return arguments


def prompt(url: str = URL, complete: str | None = None) -> Prompt:
    return Prompt("alice", "acme", url, 0.0, url_complete=complete)


def file_of(argument: str) -> Path:
    return Path(unquote(urlsplit(argument).path))


def target_of(file: Path) -> str:
    found = re.search(r'<meta http-equiv="refresh" content="0; url=([^"]*)">', file.read_text())
    assert found
    return html.unescape(found[1])


def test_a_browser_is_started_with_a_private_file_instead_of_the_url(
    opened: Callable[[], list[str]],
) -> None:
    asked = prompt()
    old = os.umask(0)
    try:
        assert asked.open_browser()
    finally:
        os.umask(old)
    [argument] = opened()
    assert argument.startswith("file:///")
    assert "CANARY" not in argument
    file = file_of(argument)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file, file.parent)] == [0o600, 0o700]
    assert target_of(file) == URL
    assert "<script" not in file.read_text()

    asked.close()
    assert not file.parent.exists()
    assert not asked.open_browser()


def test_the_code_of_a_device_is_not_an_argument_either(opened: Callable[[], list[str]]) -> None:
    asked = prompt(complete="https://acme.example/device?user_code=CANARY")
    assert asked.open_browser()
    [argument] = opened()
    assert "CANARY" not in argument
    assert target_of(file_of(argument)) == asked.url_complete
    asked.close()


def test_a_directory_that_cannot_be_written_starts_no_browser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    asked = prompt()
    assert not asked.open_browser()
    asked.close()


def test_an_unused_prompt_creates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    prompt().close()
    assert list(tmp_path.iterdir()) == []
