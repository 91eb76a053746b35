"""``tokenstore status``: every account at a glance, the most urgent first."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import click

from tokenstore.cli import output
from tokenstore.cli.accounts import require_account
from tokenstore.cli.app import DONE, Store, app, json_option, login_command, pass_store
from tokenstore.cli.completion import account_argument, provider_option
from tokenstore.models.timestamps import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenstore.models.accounts import Account

_STYLES = {"sign_in": "bold red", "retry_later": "yellow", "due": "cyan", "valid": "green"}
_NAMES = {"sign_in": "sign in", "retry_later": "retry later", "due": "due", "valid": "valid"}
_URGENCY = {state: place for place, state in enumerate(_STYLES)}
_SIGN_IN = "sign in again"
_SHOWN = 50  # accounts that a person is shown; the rest is counted
_WIDE = 100  # characters; a narrower terminal is shown fewer columns


@app.command("status")
@account_argument("accounts", nargs=-1, metavar="[ACCOUNT]...")
@provider_option("Only the accounts of this provider.")
@click.option(
    "--state", type=click.Choice(list(_STYLES)), multiple=True, help="Only accounts in this state."
)
@click.option("--all", "every", is_flag=True, help=f"Show all, also where that is over {_SHOWN}.")
@json_option
@pass_store
def status(
    store: Store,
    *,
    accounts: tuple[str, ...],
    provider: str | None,
    state: tuple[str, ...],
    every: bool,
    as_json: bool,
) -> int:
    """Show the accounts and what to do about them, the most urgent first.

    \b
    valid        has a live access token
    due          is refreshed by its next use
    retry later  the provider failed, or asked to wait
    sign in      cannot be refreshed any more

    It reads the database alone: no request, no change, no secret. JSON, and what goes to a pipe,
    has every account, in the order of names.

    \b
    Examples: tokenstore status --provider google
              tokenstore status --state sign_in --json
    """  # noqa: D301 - click wants the character
    choice = _Choice(provider, state)
    with store.manager() as manager:
        for name in accounts:
            require_account(manager, name)
        chosen = choice.of(manager.accounts(names=accounts or None))
        if as_json:
            output.print_results(map(asdict, chosen), key="accounts")
        elif output.for_terminal():
            _show(chosen, choice, None if every else _SHOWN)
        else:
            for account in chosen:
                values = asdict(account).values()
                click.echo("\t".join("" if v is None else output.printable(str(v)) for v in values))
    choice.explain_emptiness()
    return DONE


@dataclass(slots=True)
class _Choice:
    """Chooses accounts and counts them as they come by, so that there may be any number."""

    provider: str | None
    states: tuple[str, ...]
    chosen: Counter[str] = field(default_factory=Counter)  # by state
    providers: set[str] = field(default_factory=set)  # of all accounts

    def of(self, accounts: Iterable[Account]) -> Iterator[Account]:
        for account in accounts:
            self.providers.add(account.provider or "")
            if self._fits(account):
                self.chosen[account.state] += 1
                yield account

    def explain_emptiness(self) -> None:
        if self.provider in {None, *self.providers} or not self.providers:
            return
        import difflib

        near = difflib.get_close_matches(str(self.provider), self.providers, 1)
        hint = f"did you mean {near[0]!r}?" if near else "see: tokenstore status"
        click.echo(f"tokenstore: no account is of provider {self.provider!r}; {hint}", err=True)

    def _fits(self, account: Account) -> bool:
        wanted = not self.states or account.state in self.states
        return wanted and self.provider in {None, account.provider}


def _show(accounts: Iterable[Account], choice: _Choice, limit: int | None) -> None:
    urgent = (
        sorted(accounts, key=_urgency)
        if limit is None
        else heapq.nsmallest(limit, accounts, key=_urgency)
    )
    empty = "no such accounts" if choice.providers else "no accounts yet; sign in or import some"
    wide = _is_wide()
    _print_table(urgent, time.time(), empty, wide=wide)
    if not urgent:
        return
    total = choice.chosen.total()
    states = ", ".join(f"{choice.chosen[s]} {_NAMES[s]}" for s in _STYLES if choice.chosen[s])
    click.echo(f"\n{total} account{'s' * (total != 1)}: {states}")
    if total > len(urgent):
        click.echo(f"The {len(urgent)} most urgent are shown; --all shows every one.")
    if choice.chosen["sign_in"] and not wide:
        only = choice.chosen["sign_in"] == 1
        click.echo(f"To sign in again: {_login(urgent[0]) if only else login_command('ACCOUNT')}")


def _urgency(account: Account) -> tuple[int, float, str]:
    moment = account.refresh_token_expires_at if account.state == "valid" else account.expires_at
    return _URGENCY[account.state], moment if moment is not None else NEVER, account.name


def _is_wide() -> bool:
    from rich.console import Console

    return Console().width >= _WIDE


def _print_table(accounts: Iterable[Account], now: float, empty: str, *, wide: bool) -> None:
    from rich.text import Text

    more = ("PROVIDER", "REFRESHED", "WHAT TO DO") if wide else ("TO DO",)
    table = output.table("ACCOUNT", "STATE", "EXPIRES", *more)
    for account in accounts:
        refreshed = "-" if account.refreshed_at is None else output.span(account.refreshed_at, now)
        facts = (account.provider or "-", refreshed)
        table.add_row(
            Text(output.printable(account.name)),
            Text(_NAMES[account.state], style=_STYLES[account.state]),
            Text(output.span(account.expires_at, now)),
            *(Text(fact) for fact in facts if wide),
            Text("\n".join(map(output.printable, _to_do(account, now, wide=wide)))),
        )
    output.show(table, empty)


def _to_do(account: Account, now: float, *, wide: bool) -> list[str]:
    """Say what somebody has to do and why, in lines; with the command, if there is room."""
    advice = _advice(account, now)
    if not wide:
        return [advice]
    reason = _reason(account)
    if advice == _SIGN_IN:
        return [_login(account), *filter(None, [reason])]
    return [f"{advice}: {reason}" if reason else advice]


def _login(account: Account) -> str:
    options = [] if account.provider else ["--provider=PROVIDER"]
    return output.printable(login_command(account.name, *options))


def _advice(account: Account, now: float) -> str:
    dies_at = account.refresh_token_expires_at
    if account.state == "sign_in" or (dies_at is not None and dies_at <= now):
        return _SIGN_IN
    if account.state == "retry_later":
        return "wait"
    return "-" if dies_at is None else f"{_SIGN_IN} with{output.span(dies_at, now)}"


def _reason(account: Account) -> str:
    if account.last_error is not None:
        return account.last_error.removesuffix("; sign in again")
    return "there is no refresh token" if account.state == "sign_in" else ""
