"""Instructions for the user who signs in, and how they are shown in a terminal."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import urlsplit

from tokenstore.messages import printable
from tokenstore.oauth.flows.launch_page import LaunchPage
from tokenstore.redaction import protect


@dataclass(frozen=True)
class Prompt:
    """Instructions for the user: open `url`, and enter `user_code` if there is one.

    Attributes:
        account_name: The account.
        provider: The name of its provider.
        url: The page to open. As an argument of another program it would be visible to other
            users of the machine, who could sign in first; use `open_browser`.
        expires_at: When the sign-in times out, in UTC epoch seconds.
        user_code: The code to enter there (RFC 8628), or None for a sign-in by redirect.
        url_complete: The page with the code already filled in, or None.
        redirect_uri: Where the browser returns; None for a sign-in by code.
        has_device_grant: Whether the provider also supports a sign-in by code.
    """

    account_name: str
    provider: str
    url: str = field(repr=False)
    expires_at: float
    user_code: str | None = field(default=None, repr=False)
    url_complete: str | None = field(default=None, repr=False)
    redirect_uri: str | None = None
    has_device_grant: bool = False

    @cached_property
    def _page(self) -> LaunchPage:
        return LaunchPage(self.url_complete or self.url)

    def open_browser(self) -> bool:
        """Open the page in a browser on this machine; return whether one was started.

        The browser is given a private file that redirects to the page, instead of its URL.
        """
        return self._page.open()

    def close(self) -> None:
        """Remove what `open_browser` has created. A sign-in does it at its end."""
        self._page.close()


class Terminal:
    """Opens the browser, and writes the instructions to stderr.

    Args:
        browser: Whether to open a browser.
        device: The argument or command that requests a sign-in by code, to quote in a hint.
        port: The argument or option that sets the port, to quote in a hint.
    """

    def __init__(
        self, *, browser: bool = True, device: str = "device=True", port: str = "port=…"
    ) -> None:
        self._browser = browser
        self._device = device
        self._port = port

    def __call__(self, prompt: Prompt) -> None:
        """Show the instructions; this may take until the browser is closed."""
        if prompt.user_code is not None:
            _write(_device_instructions(prompt))
            return
        opens = self._browser and has_display()
        _write(self._browser_instructions(prompt, opens=opens))
        if opens and not prompt.open_browser():
            _write("No browser could be started.\n")

    def _browser_instructions(self, prompt: Prompt, *, opens: bool) -> str:
        account = f"{prompt.account_name} at {prompt.provider}"
        text = f"To sign in {account}, open this URL in a browser on this machine:"
        if opens:
            text = (
                f"The browser opens to sign in {account}. If the sign-in page does not appear, "
                "open this URL:"
            )
        text = f"{text}\n\n    {prompt.url}\n\n"
        if has_display():
            return text
        return f"{text}Is the browser on another machine? {self._remote_hint(prompt)}\n"

    def _remote_hint(self, prompt: Prompt) -> str:
        """Return how to sign in with a browser on another machine."""
        if prompt.has_device_grant:
            return f"Stop this, and sign in with a code: {self._device}"
        port = urlsplit(prompt.redirect_uri or "").port
        return (
            f"First forward the port to this machine: ssh -L {port}:127.0.0.1:{port} …; "
            f"to choose the port, use {self._port}."
        )


def has_display() -> bool:
    """Return whether a browser that is started here is visible to the user."""
    if os.environ.get("BROWSER"):
        return True
    if os.environ.get("SSH_CONNECTION"):
        return False
    displays = {"DISPLAY", "WAYLAND_DISPLAY"} & {name for name in os.environ if os.environ[name]}
    return bool(displays) or sys.platform in {"darwin", "win32"}


def _device_instructions(prompt: Prompt) -> str:
    account = f"{prompt.account_name} at {prompt.provider}"
    text = f"To sign in {account}, open this URL on any device and enter the code:\n\n"
    text += f"    {prompt.url}\n    {prompt.user_code}\n\n"
    if prompt.url_complete is not None:
        text += f"or open it with the code filled in:\n\n    {prompt.url_complete}\n\n"
    return text


def _write(text: str) -> None:
    if sys.stderr is None:  # this process has started with a closed stderr
        return
    text = printable(text, keep="\n")  # metadata of the provider are part of it
    sys.stderr.write(text)  # in one call, so that the output of other threads cannot split it
    sys.stderr.flush()


protect(__name__)
