"""``tokenstore status``: an overview of all accounts, most urgent first."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import click

from tokenstore.cli import output
from tokenstore.cli.context import DONE, Store, login_command, pass_store, require_account
from tokenstore.cli.options import account_argument, json_option, provider_option
from tokenstore.messages import did_you_mean, printable
from tokenstore.models.timestamps import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenstore.manager import TokenManager
    from tokenstore.models.accounts import Account
    from tokenstore.models.further_tokens import FurtherToken

_STYLES = {
    "misconfigured": "bold red",
    "sign_in": "bold red",
    "retry_later": "yellow",
    "due": "cyan",
    "valid": "green",
}
_LABELS = {
    "misconfigured": "misconfigured",
    "sign_in": "sign in",
    "retry_later": "retry later",
    "due": "due",
    "valid": "valid",
}
_URGENCY = {state: place for place, state in enumerate(_STYLES)}
_SIGN_IN = "sign in again"
_SHOWN = 50  # accounts on a terminal without --all
_WIDE = 100  # characters; a narrower terminal gets fewer columns


@click.command("status")
@account_argument("accounts", nargs=-1, metavar="[ACCOUNT]...")
@provider_option("Only this provider's accounts.")
@click.option(
    "--state",
    type=click.Choice(list(_STYLES)),
    multiple=True,
    metavar="STATE",
    help=f"Only accounts in this state ({', '.join(_STYLES)}); repeatable.",
)
@click.option(
    "--all", "show_all", is_flag=True, help=f"Show all accounts, even more than {_SHOWN}."
)
@json_option
@pass_store
def status(
    store: Store,
    *,
    accounts: tuple[str, ...],
    provider: str | None,
    state: tuple[str, ...],
    show_all: bool,
    as_json: bool,
) -> int:
    """Show accounts and what to do about them, most urgent first.

    \b
    valid        the access token is valid
    due          will be refreshed at the next use
    retry later  the provider failed or asked to wait
    sign in      needs a new sign-in

    Reads only the database: sends no request, changes nothing and shows no secret. JSON and
    piped output contain every account, ordered by name. For each ACCOUNT that is named, also
    shows which further access tokens are stored, except in piped output.

    \b
    Examples: tokenstore status --provider google
              tokenstore status --state sign_in --json
    """  # noqa: D301 - click requires the character
    selection = _Selection(provider, state)
    with store.manager() as manager:
        for name in accounts:
            require_account(manager, name)
        selected = selection.filter(output.until_lost(manager.accounts(names=accounts or None)))
        if as_json:
            rows: Iterator[dict[str, Any]] = map(asdict, selected)
            if accounts:
                rows = (row | {"access_tokens": _further(manager, row["name"])} for row in rows)
            output.print_results(rows, key="accounts")
        elif output.is_terminal():
            _print_overview(selected, selection, store.name, None if show_all else _SHOWN)
            _print_further(manager, accounts)
        else:
            for account in selected:
                output.print_columns(asdict(account).values())
    if not selection.providers:
        store.report_missing()
    selection.report_unknown_provider()
    return DONE


@dataclass(slots=True)
class _Selection:
    """Selects accounts and counts them in passing, so that there may be any number.

    Attributes:
        provider: Select only this provider's accounts.
        states: Select only accounts in these states.
        counts: The number of selected accounts by state.
        providers: The providers of all accounts.
    """

    provider: str | None
    states: tuple[str, ...]
    counts: Counter[str] = field(default_factory=Counter)
    providers: set[str] = field(default_factory=set)

    def filter(self, accounts: Iterable[Account]) -> Iterator[Account]:
        for account in accounts:
            self.providers.add(account.provider or "")
            if self._matches(account):
                self.counts[account.state] += 1
                yield account

    def report_unknown_provider(self) -> None:
        if self.provider in {None, *self.providers} or not self.providers:
            return
        hint = did_you_mean(str(self.provider), self.providers) or "see: tokenstore status"
        output.print_message(f"no account uses provider {self.provider!r}; {hint}")

    def _matches(self, account: Account) -> bool:
        in_state = not self.states or account.state in self.states
        return in_state and self.provider in {None, account.provider}


def _print_overview(
    accounts: Iterable[Account], selection: _Selection, database: str, limit: int | None
) -> None:
    shown = (
        sorted(accounts, key=_urgency)
        if limit is None
        else heapq.nsmallest(limit, accounts, key=_urgency)
    )
    no_match = "no matching accounts"
    none_yet = f"no accounts yet in {database}; sign in or import some"
    if_empty = no_match if selection.providers else none_yet
    wide = output.width() >= _WIDE
    _print_table(shown, time.time(), if_empty, wide=wide)
    if not shown:
        return
    counts, total = selection.counts, selection.counts.total()
    states = ", ".join(f"{counts[state]} {_LABELS[state]}" for state in _STYLES if counts[state])
    output.print_line(f"\n{total} account{'s' * (total != 1)}: {states}")
    if total > len(shown):
        output.print_line(f"Showing the {len(shown)} most urgent; use --all to show all.")
    if counts["sign_in"] and not wide:
        only_one = counts["sign_in"] == 1
        command = _login(shown[0]) if only_one else login_command("ACCOUNT")
        output.print_line(f"To sign in again: {command}")


def _further(manager: TokenManager, name: str) -> list[dict[str, Any]]:
    """Return which further access tokens an account has, without the tokens."""
    return [
        {
            "scope": each.target.scope,
            "resource": list(each.target.resources),
            "granted_scope": each.scope,
            "expires_at": each.expires_at,
            "refreshed_at": each.refreshed_at,
            "last_error": _last_error(name, each),
        }
        for each in manager._further(name)  # noqa: SLF001 - it exists for this
    ]


def _print_further(manager: TokenManager, names: Iterable[str]) -> None:
    now = time.time()
    table = output.table("ACCOUNT", "FURTHER TOKEN FOR", "EXPIRES", "LAST ERROR")
    for name in names:
        for each in manager._further(name):  # noqa: SLF001 - it exists for this
            expires = output.time_span(each.expires_at, now)
            error = _last_error(name, each) or "-"
            output.add_row(table, name, each.target.text, expires, error)
    if table.row_count:
        output.print_line("")
        output.print_table(table, "")


def _last_error(name: str, further: FurtherToken) -> str | None:
    failure = further.failure
    return None if failure is None else failure.message.removeprefix(f"{name}: ")


def _urgency(account: Account) -> tuple[int, float, str]:
    end = account.refresh_token_expires_at if account.state == "valid" else account.expires_at
    return _URGENCY[account.state], end if end is not None else NEVER, account.name


def _print_table(accounts: Iterable[Account], now: float, if_empty: str, *, wide: bool) -> None:
    more = ("PROVIDER", "REFRESHED") if wide else ()
    table = output.table("ACCOUNT", "STATE", "EXPIRES", *more, "ACTION")
    for account in accounts:
        refreshed_at = account.refreshed_at
        refreshed = "-" if refreshed_at is None else output.time_span(refreshed_at, now)
        facts = (account.provider or "-", refreshed)
        output.add_row(
            table,
            account.name,
            (_LABELS[account.state], _STYLES[account.state]),
            output.time_span(account.expires_at, now),
            *(fact for fact in facts if wide),
            "\n".join(map(printable, _action(account, now, wide=wide))),
        )
    output.print_table(table, if_empty)


def _action(account: Account, now: float, *, wide: bool) -> list[str]:
    """Return what to do and why, in lines; with the command if the terminal is *wide*."""
    advice = _advice(account, now)
    if not wide:
        return [advice]
    reason = _reason(account)
    if advice == _SIGN_IN:
        return [_login(account), *filter(None, [reason])]
    return [f"{advice}: {reason}" if reason else advice]


def _login(account: Account) -> str:
    options = [] if account.provider else ["--provider=PROVIDER"]
    return login_command(account.name, *options)


def _advice(account: Account, now: float) -> str:
    expires_at = account.refresh_token_expires_at
    if account.state == "sign_in" or (expires_at is not None and expires_at <= now):
        return _SIGN_IN
    if account.state == "retry_later":
        return "wait"
    return "-" if expires_at is None else f"{_SIGN_IN} with{output.time_span(expires_at, now)}"


def _reason(account: Account) -> str:
    if account.last_error is not None:
        return account.last_error.removesuffix("; sign in again")
    return "there is no refresh token" if account.state == "sign_in" else ""
