"""Refresh many accounts at once: so many at a time, in random order, sharing with other runs."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

from tokenstore.errors import ProviderConfigurationError, TokenStoreError
from tokenstore.lifecycle.forecast import RefreshTokenForecast
from tokenstore.models.expiry import clock_moved_back
from tokenstore.redaction import clear_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from tokenstore.models.accounts import Account
    from tokenstore.models.expiry import ExpiryPolicy
    from tokenstore.oauth.registry import ProviderRegistry
    from tokenstore.storage.repository import TokenRepository

_WINDOW = 500  # accounts that wait for their turn in memory, and are shuffled


@dataclass(frozen=True, slots=True)
class RefreshResult:
    """What became of one account. No secret is in it.

    Attributes:
        account_name: The account.
        outcome: ``refreshed``, ``skipped`` or ``failed``.
        reason: Why, unless it was refreshed.
        error: The error of one that failed, else None; a `TokenPersistError` has its tokens.
    """

    account_name: str
    outcome: Literal["refreshed", "skipped", "failed"]
    reason: str | None = None
    error: TokenStoreError | None = None


class BulkRefresher:
    """Runs one refresh for each of many accounts.

    Args:
        refresh: Refreshes an account; False if somebody else is at it, or has just done it.
        providers: Where `Provider.max_concurrency` is looked up.
        jobs: Accounts that are refreshed at the same time.
        stop: Asked before an account is begun; once it says True, no other is.
    """

    def __init__(
        self,
        refresh: Callable[[Account], bool],
        providers: ProviderRegistry,
        *,
        jobs: int,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._refresh = refresh
        self._providers = providers
        self._jobs = jobs
        self._stop = stop
        self._limits: dict[str | None, int] = {}
        self._running: dict[Future[RefreshResult], str | None] = {}

    def run(self, accounts: Iterator[Account]) -> Generator[RefreshResult]:
        """Refresh *accounts*; yield a result as each is done.

        If they cannot be read to their end, those that were begun are finished first.
        """
        waiting: list[Account] = []
        failure: TokenStoreError | None = None
        with ThreadPoolExecutor(self._jobs, "tokenstore-refresh") as pool:
            while True:
                if failure is None and len(waiting) < _WINDOW // 2:
                    try:
                        waiting += islice(accounts, _WINDOW - len(waiting))
                    except TokenStoreError as error:
                        failure = error
                    random.shuffle(waiting)  # runs that start together seldom meet
                if failure is not None or self._stop():
                    waiting = []
                waiting = self._start(pool, waiting)
                if not self._running:
                    break
                done, _ = wait(self._running, return_when=FIRST_COMPLETED)
                for future in done:
                    del self._running[future]
                    yield future.result()
        if failure is not None:
            raise failure

    def _start(self, pool: ThreadPoolExecutor, waiting: list[Account]) -> list[Account]:
        """Start as many as may run now; return those that may not."""
        busy = Counter(self._running.values())
        left: list[Account] = []
        for position, account in enumerate(waiting):
            if len(self._running) >= self._jobs:
                return left + waiting[position:]
            if busy[account.provider] >= self._limit(account.provider):
                left.append(account)
                continue
            busy[account.provider] += 1
            self._running[pool.submit(self._one, account)] = account.provider
        return left

    def _limit(self, provider: str | None) -> int:
        if provider not in self._limits:
            limit = None
            if provider is not None:
                try:
                    limit = self._providers.get(provider).max_concurrency
                except ProviderConfigurationError:
                    limit = None  # each of its accounts will say what is wrong
            self._limits[provider] = limit or self._jobs
        return self._limits[provider]

    def _one(self, account: Account) -> RefreshResult:
        try:
            refreshed = self._refresh(account)
        except TokenStoreError as error:
            clear_frames(error)
            return RefreshResult(account.name, "failed", str(error), error)
        if refreshed:
            return RefreshResult(account.name, "refreshed")
        return RefreshResult(account.name, "skipped", "somebody else refreshes it, or just has")


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
        providers: ProviderRegistry,
        freshness: ExpiryPolicy,
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
        if clock_moved_back(self._repository.journal.last_begun_at(), now):
            yield from self._all()  # whatever they say of when they expire
            return
        found = self._repository.listing.due_candidates(
            before=now + max(self._freshness.buffer, within),
            expiry_buffer=self._freshness.buffer,
            client_of=RefreshTokenForecast(self._providers).client_of,
        )
        for account in found:
            refreshed_at = account.refreshed_at
            # One that was refreshed since comes again if its new expiry lies ahead of the scan.
            if refreshed_at is None or refreshed_at <= now or clock_moved_back(refreshed_at, now):
                yield account

    def _all(self) -> Iterator[Account]:
        return self._repository.accounts(
            expiry_buffer=self._freshness.buffer,
            client_of=RefreshTokenForecast(self._providers).client_of,
        )
