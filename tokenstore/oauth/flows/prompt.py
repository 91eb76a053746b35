"""What the person who signs in has to do, and how they are told."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the person who signs in has to do: open `url`, and enter `user_code` if there is one.

    Attributes:
        account_name: The account.
        provider: The name of its provider.
        url: The page to open.
        expires_at: When it is too late, in UTC epoch seconds.
        user_code: The code to enter there (RFC 8628), None for a sign-in by redirect.
        url_complete: The page with the code filled in already, or None.
        redirect_uri: Where the browser comes back to; None for a device.
        has_device_grant: Whether the provider could be asked for a code in place of a redirect.
    """

    account_name: str
    provider: str
    url: str = field(repr=False)
    expires_at: float
    user_code: str | None = field(default=None, repr=False)
    url_complete: str | None = field(default=None, repr=False)
    redirect_uri: str | None = None
    has_device_grant: bool = False


class Terminal:
    """Opens the browser, and tells a person on stderr what to do.

    Args:
        browser: Whether to open one at all.
        device: How to ask for a sign-in by code.
        port: How to ask for a port.
    """

    def __init__(
        self, *, browser: bool = True, device: str = "device=True", port: str = "port=…"
    ) -> None:
        self._browser = browser
        self._device = device
        self._port = port

    def __call__(self, prompt: Prompt) -> None:
        """Tell what to do; this may take as long as the browser runs."""
        if prompt.user_code is not None:
            _say(_of_device(prompt))
            return
        opens = self._browser and has_display()
        _say(self._of_browser(prompt, opens=opens))
        if opens and not _open(prompt.url):
            _say("No browser could be started.\n")

    def _of_browser(self, prompt: Prompt, *, opens: bool) -> str:
        whom = f"{prompt.account_name} at {prompt.provider}"
        text = f"To sign in {whom}, open this address in a browser on this machine:"
        if opens:
            text = f"The browser opens to sign in {whom}. If it does not, open this address:"
        text = f"{text}\n\n    {prompt.url}\n\n"
        if has_display():
            return text
        return f"{text}Is the browser on another machine? {self._remedy(prompt)}\n"

    def _remedy(self, prompt: Prompt) -> str:
        """Return what helps where the browser is on another machine."""
        if prompt.has_device_grant:
            return f"Stop this, and sign in with a code: {self._device}"
        port = urlsplit(prompt.redirect_uri or "").port
        return (
            f"Forward the port to this one first, as in: ssh -L {port}:127.0.0.1:{port} …; "
            f"{self._port} takes one that you choose."
        )


def has_display() -> bool:
    """Tell whether a browser that is started here shows up before the person."""
    if os.environ.get("BROWSER"):
        return True
    if os.environ.get("SSH_CONNECTION"):
        return False
    shown = {"DISPLAY", "WAYLAND_DISPLAY"} & {name for name in os.environ if os.environ[name]}
    return bool(shown) or sys.platform in {"darwin", "win32"}


def _open(url: str) -> bool:
    import webbrowser

    try:
        return webbrowser.open(url)
    except (webbrowser.Error, OSError):
        return False


def _of_device(prompt: Prompt) -> str:
    whom = f"{prompt.account_name} at {prompt.provider}"
    text = f"To sign in {whom}, open this address on any device and enter the code:\n\n"
    text += f"    {prompt.url}\n    {prompt.user_code}\n\n"
    if prompt.url_complete is not None:
        text += f"or open it with the code filled in:\n\n    {prompt.url_complete}\n\n"
    return text


def _say(text: str) -> None:
    sys.stderr.write(text)  # in one piece, whatever ends meanwhile
    sys.stderr.flush()
