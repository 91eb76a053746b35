"""``tokenstore login`` and ``logout``."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from tokenstore.cli import output
from tokenstore.cli.context import DONE, Store, login_command, pass_store, require_account
from tokenstore.cli.options import (
    account_argument,
    json_option,
    positive_duration,
    provider_option,
)
from tokenstore.messages import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.status import Status

    from tokenstore.manager import TokenManager
    from tokenstore.oauth.flows.prompt import Prompt, Terminal


@click.command("login")
@account_argument("account")
@provider_option("Provider to sign in at. Defaults to the account's provider.")
@click.option(
    "--scope",
    multiple=True,
    help="Scope to request instead of the provider's default; repeatable.",
)
@click.option("--device", is_flag=True, help="Sign in with a code to enter on any device.")
@click.option("--force", is_flag=True, help="Allow a different user or provider.")
@click.option("--no-browser", is_flag=True, help="Print the URL instead of opening a browser.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Local port for the browser to return to. Defaults to a free port.",
)
@click.option(
    "--timeout",
    type=positive_duration,
    default="5m",
    show_default=True,
    help="How long to wait for the sign-in.",
)
@json_option
@pass_store
def login(
    store: Store,
    *,
    account: str,
    provider: str | None,
    scope: tuple[str, ...],
    device: bool,
    force: bool,
    no_browser: bool,
    port: int | None,
    timeout: float,
    as_json: bool,
) -> int:
    """Sign ACCOUNT in and store its tokens.

    Opens the provider's sign-in page in a browser, which then returns to this machine. Without a
    browser, use --device to show a code to enter on another device.

    An account that was signed in before requires the same user, and an account that is named by an
    e-mail address the user of that address.

    Example: tokenstore login alice@example.com --provider google

    Example: tokenstore login work --provider acme --scope "mail.read mail.send" --device
    """
    from tokenstore.oauth.flows.prompt import Terminal

    if device and (port is not None or no_browser):
        raise click.UsageError("--device cannot be combined with --port or --no-browser")
    options = [*(("--provider", provider) if provider else ()), *(f"--scope={s}" for s in scope)]
    by_code = login_command(account, *options, *(["--force"] if force else []), "--device")
    countdown = _Countdown(Terminal(browser=not no_browser, device=by_code, port="--port"))
    with store.manager() as manager, countdown:
        if provider is None and sys.stdin.isatty() and sys.stderr.isatty():
            provider = _choose_provider(store, manager, account, device=device)
        try:
            tokens = manager.login(
                account,
                provider,
                scope=" ".join(scope) or None,
                device=device,
                force=force,
                timeout=timeout,
                port=port or 0,
                prompt=countdown.prompt,
                sleep=countdown.sleep,
            )
        except ModuleNotFoundError as error:
            raise click.ClickException(str(error)) from None
    output.print_line(printable(_signed_in_as(tokens)), err=True)
    output.print_outcome(account, "signed_in", as_json=as_json)
    return DONE


@click.command("logout")
@account_argument("account")
@click.option("--keep-account", is_flag=True, help="Keep the account; it needs a new sign-in.")
@json_option
@pass_store
def logout(store: Store, *, account: str, keep_account: bool, as_json: bool) -> int:
    """Revoke the tokens of ACCOUNT, then remove the account.

    If the provider cannot revoke them now, the account is not changed. To remove it from the
    database only, use delete.

    Example: tokenstore logout alice@example.com
    """
    with store.manager() as manager:
        require_account(manager, account)
        manager.logout(account, keep_account=keep_account)
    output.print_outcome(account, "signed_out", as_json=as_json)
    return DONE


def _choose_provider(
    store: Store, manager: TokenManager, account: str, *, device: bool
) -> str | None:
    """Ask for one of the providers that are ready, if the account has none."""
    if any(found.provider for found in manager.accounts(names=[account])):
        return None
    registry = store.registry()
    endpoint = "device_authorization_endpoint" if device else "authorization_endpoint"
    ready = [
        entry.name
        for entry in map(registry.describe, registry.names())
        if entry.problem is None and entry.provider is not None
        if getattr(entry.provider, endpoint) or entry.provider.issuer
        if device or entry.built_in is None or entry.built_in.loopback
        if not entry.provider.is_unattended
    ]
    if not ready:
        raise click.UsageError("no provider is ready to sign in at; see: tokenstore providers")
    only_one = ready[0] if len(ready) == 1 else None
    return output.choose("Provider", ready, only_one)


def _signed_in_as(tokens: Mapping[str, Any]) -> str:
    """Return who signed in, as a sentence for the user."""
    from tokenstore.oauth.flows.id_token import stored_subject

    # Without an id_token, what is stored says who signed in before.
    subject = stored_subject(tokens) if tokens.get("id_token") else None
    if subject is None:
        return "Signed in. The provider does not say as which user."
    return f"Signed in as {subject.name}."


class _Countdown:
    """Shows on a terminal how long the code of a device sign-in remains valid.

    Args:
        show: Shows the user what to do.
    """

    def __init__(self, show: Terminal) -> None:
        self._show = show
        self._expires_at = 0.0
        self._status: Status | None = None

    def __enter__(self) -> _Countdown:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def prompt(self, prompt: Prompt) -> None:
        """Show the user what to do, and start the countdown if there is a code."""
        self._show(prompt)
        self._expires_at = prompt.expires_at
        if prompt.user_code is not None and sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status(self._remaining())
            self._status.start()

    def sleep(self, seconds: float) -> None:
        """Sleep, and update the countdown."""
        while seconds > 0:
            if self._status is not None:
                self._status.update(self._remaining())
            time.sleep(min(1.0, seconds))
            seconds -= 1.0

    def _remaining(self) -> str:
        minutes, seconds = divmod(max(0, int(self._expires_at - time.time())), 60)
        return f"waiting for the sign-in, {minutes}:{seconds:02} left"
