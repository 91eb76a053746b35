"""Which accounts a run over all of them refreshes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenstore.lifecycle.forecast import Outlook
from tokenstore.models.accounts import went_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenstore.models.accounts import Account
    from tokenstore.models.expiry import Freshness
    from tokenstore.oauth.registry import Providers
    from tokenstore.storage.repository import TokenRepository


class Selection:
    """Chooses accounts that want a refresh, of those that can have one.

    Args:
        repository: Where the accounts are.
        providers: By what a remembered failure is known to be of other settings.
        freshness: When a token is due.
        clock: The time, in UTC epoch seconds.
    """

    def __init__(
        self,
        repository: TokenRepository,
        providers: Providers,
        freshness: Freshness,
        clock: Callable[[], float],
    ) -> None:
        self._repository = repository
        self._providers = providers
        self._freshness = freshness
        self._clock = clock

    def due(self, within: float) -> Iterator[Account]:
        """Yield those that are due, the most urgent first.

        Args:
            within: Seconds; what becomes due within them is taken as well.
        """
        for account in self._may_be_due(within):
            due = self._freshness.due_at(account.expires_at, account.refreshed_at, within)
            if account.refreshable and (account.state == "due" or due <= self._clock()):
                yield account

    def unused(self, seconds: float) -> Iterator[Account]:
        """Yield those whose refresh token was not used for so many seconds."""
        for account in self._all():
            used_at = account.refresh_token_used_at
            idle = used_at is None or used_at <= self._clock() - seconds
            if account.refreshable and idle:
                yield account

    def _may_be_due(self, within: float) -> Iterator[Account]:
        now = self._clock()
        if went_back(self._repository.journal.last_begun_at(), now):
            yield from self._all()  # whatever they say of when they expire
            return
        found = self._repository.listing.may_be_due(
            before=now + max(self._freshness.buffer, within),
            expiry_buffer=self._freshness.buffer,
            client_of=Outlook(self._providers).client_of,
        )
        for account in found:
            refreshed_at = account.refreshed_at
            # One that was refreshed since comes again if its new expiry lies ahead of the scan.
            if refreshed_at is None or refreshed_at <= now or went_back(refreshed_at, now):
                yield account

    def _all(self) -> Iterator[Account]:
        return self._repository.accounts(
            expiry_buffer=self._freshness.buffer, client_of=Outlook(self._providers).client_of
        )
