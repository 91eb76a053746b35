"""Check the accounts: sign-ins that are needed, refresh times, interrupted refreshes."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tokenstore.doctor.findings import Finding, Severity, counted, ok
from tokenstore.models.expiry import clock_moved_back

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenstore.doctor.integrity import UnansweredRefresh
    from tokenstore.models.accounts import Account

_SOON = 7 * 86400.0  # seconds; a sign-in that is needed within this time is reported


class AccountChecks:
    """Reads every account once, and keeps the names of those that need something.

    Args:
        accounts: The accounts, with the expected expiry of their refresh tokens.
        now: The time, in UTC epoch seconds.

    Attributes:
        by_provider: The names of the accounts of each provider.
    """

    def __init__(self, accounts: Iterable[Account], now: float) -> None:
        self.by_provider: dict[str, list[str]] = defaultdict(list)
        self._need_sign_in: list[str] = []
        self._expire_soon: list[str] = []
        self._wait: list[str] = []
        self._without_provider: list[str] = []
        self._refreshed_in_future: list[str] = []
        self._count = 0
        for account in accounts:
            self._count += 1
            self._add(account, now)

    def _add(self, account: Account, now: float) -> None:
        name, expires_at = account.name, account.refresh_token_expires_at
        if account.state == "sign_in" or (expires_at is not None and expires_at <= now):
            self._need_sign_in.append(name)
        elif expires_at is not None and expires_at <= now + _SOON:
            self._expire_soon.append(name)
        if account.state == "retry_later":
            self._wait.append(name)
        if clock_moved_back(account.refreshed_at, now):
            self._refreshed_in_future.append(name)
        if account.provider is None:
            self._without_provider.append(name)
        else:
            self.by_provider[account.provider].append(name)

    def sign_ins(self) -> Iterator[Finding]:
        """Report the accounts that need a sign-in now or soon, and those that must wait."""
        kinds: tuple[tuple[Severity, list[str], str, str | None], ...] = (
            (
                "warning",
                self._need_sign_in,
                "cannot be used without a new sign-in",
                "sign in again",
            ),
            ("warning", self._expire_soon, "will need a sign-in within 7 days", "sign in by then"),
            ("info", self._wait, "must wait: the provider failed or asked for it", None),
            (
                "info",
                self._without_provider,
                "without a provider",
                "name the provider at the next refresh",
            ),
        )
        for severity, names, what, hint in kinds:
            if names:
                message = f"{len(names)} of {counted(self._count, 'account')} {what}"
                yield Finding("logins", severity, message, hint, tuple(names))
        if not self._need_sign_in and not self._expire_soon:
            yield ok("logins", f"{counted(self._count, 'account')}; none needs a sign-in")

    def clock(self) -> Iterator[Finding]:
        """Report whether the clock was set back since accounts were refreshed."""
        if self._refreshed_in_future:
            yield Finding(
                "clock",
                "warning",
                f"{counted(len(self._refreshed_in_future), 'account')} refreshed at a time in the "
                "future: the clock was set back",
                "synchronize the clock with NTP",
                tuple(self._refreshed_in_future),
            )


def interrupted_refreshes(refreshes: Iterable[UnansweredRefresh]) -> Iterator[Finding]:
    """Report refreshes that used a refresh token and ended without a recorded response."""
    hosts: dict[str, list[str]] = defaultdict(list)
    for _, name, host in sorted(refreshes, key=lambda refresh: refresh.account_name):
        hosts[host].append(name)
    for host, names in hosts.items():
        yield Finding(
            "interrupted",
            "warning",
            f"{counted(len(names), 'refresh', 'refreshes')} on {host} ended without a response; "
            "the provider may have rotated the token",
            "run: tokenstore refresh ACCOUNT, which reports whether a new sign-in is needed",
            tuple(names),
        )
    if not hosts:
        yield ok("interrupted", "no refresh ended without a response")
