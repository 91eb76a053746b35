"""The commands that sign in and out."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from tokenstore.cli import output
from tokenstore.cli.accounts import require_account
from tokenstore.cli.app import DONE, Store, app, json_option, login_command, pass_store
from tokenstore.cli.completion import account_argument, provider_option
from tokenstore.cli.options import duration

if TYPE_CHECKING:
    from rich.status import Status

    from tokenstore.oauth.flows.prompt import Prompt, Terminal


@app.command("login")
@account_argument("account")
@provider_option("Where to sign in; without it, where the account is bound to.")
@click.option("--scope", multiple=True, help="Ask for this, not the provider's; may be repeated.")
@click.option("--device", is_flag=True, help="Sign in with a code that is entered on any device.")
@click.option("--force", is_flag=True, help="Even as somebody else, or at another provider.")
@click.option("--no-browser", is_flag=True, help="Print the address in place of opening a browser.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="The port on this machine that the browser comes back to; without it, a free one.",
)
@click.option(
    "--timeout", type=duration, default="5m", metavar="5m", help="Wait so long for you (5m)."
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

    A browser opens with the provider's sign-in page and comes back to this machine. Where there
    is no browser, --device shows a code to enter on any other device.

    An account that was signed in before has to be signed in by the same person.

    Example: tokenstore login alice@example.com --provider google

    Example: tokenstore login work --provider acme --scope "mail.read mail.send" --device
    """
    from tokenstore.oauth.flows.prompt import Terminal

    if device and (port is not None or no_browser):
        raise click.UsageError("--device needs neither --port nor --no-browser")
    options = [*(("--provider", provider) if provider else ()), *(f"--scope={s}" for s in scope)]
    by_code = login_command(account, *options, *(["--force"] if force else []), "--device")
    pause = _Pause(Terminal(browser=not no_browser, device=by_code, port="--port"))
    with store.manager() as manager, pause:
        try:
            manager.login(
                account,
                provider,
                scope=" ".join(scope) or None,
                device=device,
                force=force,
                timeout=timeout,
                port=port or 0,
                prompt=pause.prompt,
                wait=pause.wait,
            )
        except ModuleNotFoundError as error:
            raise click.ClickException(str(error)) from None
    return _done(account, "signed_in", as_json=as_json)


@app.command("logout")
@account_argument("account")
@click.option("--keep", is_flag=True, help="Keep the account, as one that has to sign in.")
@json_option
@pass_store
def logout(store: Store, *, account: str, keep: bool, as_json: bool) -> int:
    """Sign ACCOUNT out: its provider revokes the tokens, then they are removed here.

    If the provider cannot be told, the account stays as it is. To remove it here alone, there is
    the command delete.

    Example: tokenstore logout alice@example.com
    """
    with store.manager() as manager:
        require_account(manager, account)
        manager.logout(account, keep=keep)
    return _done(account, "signed_out", as_json=as_json)


def _done(account: str, outcome: str, *, as_json: bool) -> int:
    if as_json:
        output.print_results([{"account_name": account, "outcome": outcome, "reason": None}])
    else:
        output.print_result(outcome, account)
    return DONE


class _Pause:
    """What is seen while a device waits: on a terminal, how long the code is still good for."""

    def __init__(self, tell: Terminal) -> None:
        self._tell = tell
        self._expires_at = 0.0
        self._status: Status | None = None

    def __enter__(self) -> _Pause:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def prompt(self, prompt: Prompt) -> None:
        """Tell the person what to do."""
        self._tell(prompt)
        self._expires_at = prompt.expires_at
        if prompt.user_code is not None and sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status(self._left())
            self._status.start()

    def wait(self, seconds: float) -> None:
        """Sleep, and count down meanwhile."""
        while seconds > 0:
            if self._status is not None:
                self._status.update(self._left())
            time.sleep(min(1.0, seconds))
            seconds -= 1.0

    def _left(self) -> str:
        minutes, seconds = divmod(max(0, int(self._expires_at - time.time())), 60)
        return f"waiting for you, {minutes}:{seconds:02} left"
