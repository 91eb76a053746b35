"""The accounts of a store: which logins are dead, or about to die, or may have."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tokenstore.doctor.findings import Finding, Severity, counted, ok
from tokenstore.errors import ProviderConfigurationError
from tokenstore.models.expiry import clock_moved_back

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenstore.doctor.integrity import Unanswered
    from tokenstore.models.accounts import Account
    from tokenstore.oauth.registry import ProviderRegistry

_SOON = 7 * 86400.0  # seconds; a sign-in that is needed within them is told


class Logins:
    """Looks at every account once, and remembers the names of those that need something.

    Args:
        accounts: The accounts, with the forecast of when they die.
        now: The time, in UTC epoch seconds.
    """

    def __init__(self, accounts: Iterable[Account], now: float) -> None:
        self._dead: list[str] = []
        self._dying: list[str] = []
        self._waiting: list[str] = []
        self._unbound: list[str] = []
        self._of_the_future: list[str] = []
        self._providers: dict[str, list[str]] = defaultdict(list)
        self._count = 0
        for account in accounts:
            self._count += 1
            self._look(account, now)

    def _look(self, account: Account, now: float) -> None:
        name, dies_at = account.name, account.refresh_token_expires_at
        if account.state == "sign_in" or (dies_at is not None and dies_at <= now):
            self._dead.append(name)
        elif dies_at is not None and dies_at <= now + _SOON:
            self._dying.append(name)
        if account.state == "retry_later":
            self._waiting.append(name)
        if clock_moved_back(account.refreshed_at, now):
            self._of_the_future.append(name)
        if account.provider is None:
            self._unbound.append(name)
        else:
            self._providers[account.provider].append(name)

    def logins(self) -> Iterator[Finding]:
        """Tell which accounts have to sign in, now or soon."""
        kinds: tuple[tuple[Severity, list[str], str, str | None], ...] = (
            ("warning", self._dead, "can only be used after a new sign-in", "sign in again"),
            ("warning", self._dying, "will need a sign-in within 7 days", "sign in before that"),
            ("info", self._waiting, "wait, as the provider failed or asked for it", None),
            ("info", self._unbound, "bound to no provider", "name it with the first refresh"),
        )
        for severity, names, what, cure in kinds:
            if names:
                message = f"{len(names)} of {counted(self._count, 'account')} {what}"
                yield Finding("logins", severity, message, cure, tuple(names))
        if not self._dead and not self._dying:
            yield ok("logins", f"{counted(self._count, 'account')}, none of which needs a sign-in")

    def clock(self) -> Iterator[Finding]:
        """Tell whether the clock was set back since accounts were refreshed."""
        if self._of_the_future:
            yield Finding(
                "clock",
                "warning",
                f"{counted(len(self._of_the_future), 'account')} refreshed at a time that is still "
                "to come: the clock was set back",
                "set the clock right, with NTP",
                tuple(self._of_the_future),
            )

    def providers(self, providers: ProviderRegistry) -> Iterator[Finding]:
        """Tell which providers, of those that accounts are bound to, cannot be used."""
        sound = True
        try:
            providers.names()
        except ProviderConfigurationError as error:  # the file: it would be told once for each
            yield Finding("providers", "warning", str(error), "correct the file")
            return
        for name, accounts in sorted(self._providers.items()):
            try:
                providers.get(name)
            except ProviderConfigurationError as error:
                sound = False
                yield Finding("providers", "warning", str(error), None, tuple(accounts))
        if sound and self._providers:
            yield ok("providers", f"usable: {', '.join(sorted(self._providers))}")

    @property
    def in_use(self) -> list[str]:
        """The names of the providers that accounts are bound to."""
        return sorted(self._providers)


def interrupted(unanswered: Iterable[Unanswered]) -> Iterator[Finding]:
    """Tell whose refresh token was sent without an answer that anybody knows of."""
    hosts: dict[str, list[str]] = defaultdict(list)
    for _, name, host in sorted(unanswered, key=lambda found: found.account_name):
        hosts[host].append(name)
    for host, names in hosts.items():
        yield Finding(
            "interrupted",
            "warning",
            f"{counted(len(names), 'refresh', 'refreshes')} on {host} ended without an answer, so "
            "that the provider may have rotated the token",
            "run: tokenstore refresh ACCOUNT, which tells whether the login still lives",
            tuple(names),
        )
    if not hosts:
        yield ok("interrupted", "no refresh has ended without an answer")
