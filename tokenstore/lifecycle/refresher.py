"""Refreshes for callers: each joins the job of an account, or begins it, and waits for it."""

from __future__ import annotations

import errno
import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from tokenstore.errors import (
    StorageError,
    TokenPersistError,
    TokenRefreshError,
    TransientRefreshError,
)
from tokenstore.lifecycle.jobs import Job, Jobs, NoThreadError, copy_of
from tokenstore.lifecycle.refresh import STORE_PATIENCE, RefreshProtocol
from tokenstore.lifecycle.request import (
    Outcome,
    RefreshContext,
    RefreshRequest,
    busy_error,
    hard_end,
)
from tokenstore.logs import provider_name

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    import requests

    from tokenstore.lifecycle.hooks import Hooks
    from tokenstore.models.accounts import Record
    from tokenstore.oauth.provider import Provider
    from tokenstore.oauth.registry import ProviderRegistry
    from tokenstore.storage.repository import TokenRepository

_log = logging.getLogger(__name__)


class _Own(threading.local):
    """The account that the calling thread refreshes, and its database, or None."""

    account: tuple[str, str] | None = None


_own = _Own()


class Refresher:
    """Refreshes accounts of one repository, each at most once at a time, in all processes.

    Args:
        repository: The repository.
        providers: The providers.
        hooks: The application's hooks.
        timeout: Seconds that a caller waits for one token request.
        session: The session that requests go through, or None.
        clock: The time, in UTC epoch seconds.
        changed: Called with the name of every account whose row was changed, by any process.
    """

    def __init__(
        self,
        repository: TokenRepository,
        providers: ProviderRegistry,
        hooks: Hooks,
        *,
        timeout: float,
        session: requests.Session | None,
        clock: Callable[[], float],
        changed: Callable[[str], None],
    ) -> None:
        self._context = RefreshContext(
            repository=repository,
            providers=providers,
            hooks=hooks,
            timeout=timeout,
            session=session,
            clock=clock,
        )
        self._changed = changed
        self._jobs: Jobs[Outcome] = Jobs()

    # -- for callers --------------------------------------------------------------------------

    def refresh(
        self, name: str, provider: str | Provider | None, request: RefreshRequest
    ) -> tuple[Record, bool]:
        """Return a record that meets the request, and whether a refresh was made for it.

        Raises:
            TokenRefreshError: No token is available; the subclass says why.
            TokenPersistError: A provider gave new tokens, and they are not stored yet.
            StorageError: The database cannot be used.
        """
        self._require_no_transaction(name)
        outcome = self._outcome(name, provider, request)
        if outcome.error is not None:
            raise copy_of(outcome.error)
        if outcome.record is None:
            raise busy_error(self._context.repository, name)
        return outcome.record, outcome.refreshed

    def start(
        self,
        name: str,
        provider: str | Provider | None,
        request: RefreshRequest,
        done: Callable[[Callable[[], Outcome]], object],
    ) -> None:
        """Refresh an account without waiting; *done* is called with what returns the outcome.

        Raises:
            StorageError: The calling thread is inside a transaction.
        """
        self._require_no_transaction(name)
        job, is_new = self._join(name, provider, request)
        if is_new:
            job.when_done(lambda: done(partial(self._wait, job, name, provider, request)))
        job.start()
        if not is_new:  # another caller of this process refreshes the account already
            done(Outcome)

    def close(self) -> None:
        """Wait for the refreshes that are at work, within the hard end of their requests.

        Raises:
            TokenPersistError: A provider gave new tokens that still cannot be stored.
        """
        failure: TokenPersistError | None = None
        self._context.hurry.set()
        try:
            left = self._jobs.drain(hard_end(self._context.timeout) + STORE_PATIENCE)
        finally:
            self._context.hurry.clear()
        for job in left:
            error = job.overdue()
            if isinstance(error, TokenPersistError):
                failure = error
            else:
                _log.warning("a refresh is still under way: %s", error)
        if failure is not None:
            raise failure

    def at_work(self) -> int:
        """Return how many refreshes have begun to send a token, and not stored the outcome."""
        return sum(job.must_finish for job in self._jobs.at_work())

    def _join(
        self, name: str, provider: str | Provider | None, request: RefreshRequest
    ) -> tuple[Job[Outcome], bool]:
        key = _key(name, provider, request)
        return self._jobs.join(key, partial(self._work, key, name, provider, request))

    def _outcome(
        self, name: str, provider: str | Provider | None, request: RefreshRequest
    ) -> Outcome:
        if _own.account == (self._context.repository.name, name):  # it would wait for itself
            raise busy_error(self._context.repository, name)
        asked_at = time.monotonic()
        while True:
            job, is_new = self._join(name, provider, request)
            if not is_new and request.patience == 0.0:
                job.start()  # the caller that was about to may have been interrupted
                return Outcome()
            patience = 0.0 if is_new else self._context.timeout
            outcome = self._wait(job, name, provider, request, patience=patience)
            if is_new or outcome.answers(request, asked_at):
                return outcome

    def _wait(
        self,
        job: Job[Outcome],
        name: str,
        provider: str | Provider | None,
        request: RefreshRequest,
        *,
        patience: float = 0.0,
    ) -> Outcome:
        try:
            return job.wait(patience=patience)
        except NoThreadError:
            self._jobs.forget(_key(name, provider, request), job)
            raise TransientRefreshError(
                f"{name}: the system has no thread to spare; try again later", account_name=name
            ) from None

    def _require_no_transaction(self, name: str) -> None:
        if self._context.repository.in_transaction():
            raise StorageError(
                f"{name}: its token is due, and cannot be refreshed inside a transaction; ask for "
                "it before or after",
                self._context.repository.name,
                errno=errno.EDEADLK,
            )

    # -- the job ------------------------------------------------------------------------------

    def _work(
        self,
        key: Hashable,
        name: str,
        provider: str | Provider | None,
        request: RefreshRequest,
        job: Job[Outcome],
    ) -> Outcome:
        """Do one job; see the steps above."""
        refresh = RefreshProtocol(self._context, name, provider, request, job)
        _own.account = self._context.repository.name, name
        try:
            outcome = refresh.run()
        except TokenRefreshError as error:
            outcome = Outcome(error=error, requested_at=refresh.requested_at)
        finally:
            _own.account = None
            self._changed(name)
            self._jobs.forget(key, job)
        for tell in refresh.news:
            tell()
        return outcome


def _key(name: str, provider: str | Provider | None, request: RefreshRequest) -> Hashable:
    """Return the key of the job that a request joins: one for each access token of an account."""
    return name, provider_name(provider), request.target
