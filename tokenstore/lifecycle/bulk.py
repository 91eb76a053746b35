"""Refresh many accounts concurrently, in random order, so that overlapping runs share the work."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Literal

from tokenstore.errors import ProviderConfigurationError, TokenStoreError
from tokenstore.lifecycle.forecast import RefreshTokenForecast
from tokenstore.lifecycle.jobs import LONGEST_WAIT
from tokenstore.models.expiry import clock_moved_back
from tokenstore.redaction import clear_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from tokenstore.models.accounts import Account
    from tokenstore.models.expiry import ExpiryPolicy
    from tokenstore.oauth.registry import ProviderRegistry
    from tokenstore.storage.repository import TokenRepository

_WINDOW = 500  # accounts that are in memory, where they are shuffled


@dataclass(frozen=True, slots=True)
class RefreshResult:
    """The result for one account, without secrets.

    Attributes:
        account_name: The account.
        outcome: ``refreshed``, ``skipped`` or ``failed``.
        reason: Why the account was not refreshed, or None.
        error: The error of a failed account, or None; a `TokenPersistError` has the tokens.
    """

    account_name: str
    outcome: Literal["refreshed", "skipped", "failed"]
    reason: str | None = None
    error: TokenStoreError | None = None


class BulkRefresher:
    """Runs one refresh for each of many accounts.

    Args:
        start: Begins the refresh of an account, and later calls what it is given with what returns
            the outcome, or raises.
        providers: The providers, for their `Provider.max_concurrency`.
        jobs: Accounts that are refreshed at the same time.
        stop: Called before each account; returning True stops the run.
    """

    def __init__(
        self,
        start: Callable[[Account, Callable[[Callable[[], bool]], object]], object],
        providers: ProviderRegistry,
        *,
        jobs: int,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._start_one = start
        self._providers = providers
        self._jobs = jobs
        self._stop = stop
        self._limits: dict[str | None, int] = {}
        self._running: Counter[str | None] = Counter()
        self._results: SimpleQueue[tuple[Account, Callable[[], bool]]] = SimpleQueue()

    def run(self, accounts: Iterator[Account]) -> Generator[RefreshResult]:
        """Refresh *accounts*; yield a result as each is done.

        If they cannot be read to their end, those that were begun are finished first.
        """
        waiting: list[Account] = []
        failure: TokenStoreError | None = None
        while True:
            if failure is None and len(waiting) < _WINDOW // 2:
                try:
                    waiting += islice(accounts, _WINDOW - len(waiting))
                except TokenStoreError as error:
                    failure = error
                random.shuffle(waiting)  # runs that start together seldom meet
            if failure is not None or self._stop():
                waiting = []
            waiting = self._start(waiting)
            if not self._running.total():
                break
            account, outcome = self._next_result()
            self._running[account.provider] -= 1
            yield _result(account, outcome)
        if failure is not None:
            raise failure

    def _next_result(self) -> tuple[Account, Callable[[], bool]]:
        while True:
            with suppress(Empty):
                return self._results.get(timeout=LONGEST_WAIT)

    def _start(self, waiting: list[Account]) -> list[Account]:
        """Start as many as may run now; return those that may not."""
        left: list[Account] = []
        for position, account in enumerate(waiting):
            if self._running.total() >= self._jobs:
                return left + waiting[position:]
            if self._running[account.provider] >= self._limit(account.provider):
                left.append(account)
                continue
            self._running[account.provider] += 1
            self._start_one(account, partial(self._done, account))
        return left

    def _done(self, account: Account, outcome: Callable[[], bool]) -> None:
        self._results.put((account, outcome))

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


def _result(account: Account, outcome: Callable[[], bool]) -> RefreshResult:
    try:
        refreshed = outcome()
    except TokenStoreError as error:
        clear_frames(error)
        return RefreshResult(account.name, "failed", str(error), error)
    if refreshed:
        return RefreshResult(account.name, "refreshed")
    return RefreshResult(account.name, "skipped", "another process is refreshing it or just did")


class Selection:
    """Chooses the accounts to refresh, among those that can be refreshed.

    Args:
        repository: The repository.
        providers: The providers, to ignore failures recorded under other settings.
        freshness: The rule that says when a token is due.
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
        """Yield the accounts that are due, the most urgent first.

        Args:
            within: Seconds; include the accounts that become due within this time.
        """
        for account in self._may_be_due(within):
            due = self._freshness.due_at(account.expires_at, account.refreshed_at, within)
            if account.refreshable and (account.state == "due" or due <= self._clock()):
                yield account

    def idle(self, seconds: float) -> Iterator[Account]:
        """Yield the accounts whose refresh token was not used for this many seconds."""
        forecast = RefreshTokenForecast(self._providers)
        for account in self._all():
            if forecast.is_unattended(account.provider):  # there is nothing that could expire
                continue
            used_at = account.refresh_token_used_at
            idle = used_at is None or used_at <= self._clock() - seconds
            if account.refreshable and idle:
                yield account

    def _may_be_due(self, within: float) -> Iterator[Account]:
        now = self._clock()
        if clock_moved_back(self._repository.journal.last_begun_at(), now):
            yield from self._all()  # their expiry is no help
            return
        forecast = RefreshTokenForecast(self._providers)
        found = self._repository.listing.due_candidates(
            before=now + max(self._freshness.buffer, within),
            expiry_buffer=self._freshness.buffer,
            client_of=forecast.client_of,
            is_unattended=forecast.is_unattended,
        )
        for account in found:
            refreshed_at = account.refreshed_at
            # An account refreshed since the scan began can appear in it again.
            if refreshed_at is None or refreshed_at <= now or clock_moved_back(refreshed_at, now):
                yield account

    def _all(self) -> Iterator[Account]:
        forecast = RefreshTokenForecast(self._providers)
        return self._repository.accounts(
            expiry_buffer=self._freshness.buffer,
            client_of=forecast.client_of,
            is_unattended=forecast.is_unattended,
        )
