"""The refresh protocol. Nothing else spends a refresh token.

A refresh is a job that owns everything from the lock to the hooks; callers wait for it (`jobs`).

1. Take the account's refresh lock, which dies with its holder.
2. Read the row again: another process may have refreshed the account, or what the caller wants may
   be stored by now.
3. Respect recorded failures, and what the journal knows: spent tokens, refreshes under way.
4. Record that the refresh begins, which proves that its outcome can be stored.
5. Send the request, with no transaction open. It has a hard end.
6. Judge the response (`oauth`).
7. Commit the outcome. A commit that fails is repeated, with the lock still held.
8. Release the lock, call the hooks, tell the callers.
"""

from __future__ import annotations

import errno
import logging
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from tokenstore.errors import (
    ClientRejectedError,
    ProviderConfigurationError,
    ReauthorizationRequired,
    StorageError,
    TokenPersistError,
    TokenRefreshError,
    TransientRefreshError,
)
from tokenstore.lifecycle.eligibility import require_same_issuer, resolve_provider
from tokenstore.lifecycle.grant import of_same_user
from tokenstore.lifecycle.jobs import copy_of, process_is_ending
from tokenstore.lifecycle.request import (
    BUSY,
    Outcome,
    RefreshContext,
    RefreshRequest,
    busy_error,
    hard_end,
    iso,
    longest_hold,
)
from tokenstore.lifecycle.targets import further_token, refresh_token_only, requesting
from tokenstore.lifecycle.unattended import is_unattended, store_if_new, unstored_record
from tokenstore.logs import place_of
from tokenstore.models.failures import Failure
from tokenstore.models.targets import is_refused_target
from tokenstore.models.tokens import lifetime_of
from tokenstore.storage.journal import AccountChanged, SpentToken, UnderWay
from tokenstore.storage.locks import LockTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenstore.lifecycle.jobs import Job
    from tokenstore.models.accounts import HistoryEntry, Record
    from tokenstore.models.further_tokens import FurtherToken
    from tokenstore.models.tokens import TokenSet
    from tokenstore.oauth.client import TokenResponse
    from tokenstore.oauth.provider import Provider
    from tokenstore.storage.journal import Refresh
    from tokenstore.storage.locks import HeldLock

_SLICE = 0.5  # seconds of one wait for a lock; in between, the end of the process is noticed
STORE_PATIENCE = 2.0  # seconds that callers wait at least for a commit
_FIRST_DELAY, _LONGEST_DELAY = 0.05, 5.0  # seconds between two attempts to commit
_END_PATIENCE = 10.0  # seconds that the process waits at its end for a commit that keeps failing
_LOST_CAUSE_SECONDS = 60.0  # a token that is rejected this soon after its refresh is not at fault

_log = logging.getLogger(__name__)


class _Retry(Exception):  # noqa: N818 - not an error: one more attempt may succeed at once
    def __init__(self, error: TokenRefreshError) -> None:
        super().__init__(error)
        self.error = error


class RefreshProtocol:
    """One refresh of one account, in the thread that owns it.

    Attributes:
        requested_at: When it sent its first request (`time.monotonic`), or None.
        news: What the hooks are to be told once the lock is released.
    """

    def __init__(
        self,
        context: RefreshContext,
        name: str,
        provider: str | Provider | None,
        request: RefreshRequest,
        job: Job[Outcome],
    ) -> None:
        self._context = context
        self._repository = context.repository
        self._journal = context.repository.journal
        self._name = name
        self._provider = provider
        self._request = request
        self._job = job
        self._previous: Failure | None = None
        self._client = ""
        self._unattended = False
        self.requested_at: float | None = None
        self.news: list[Callable[[], None]] = []

    def run(self) -> Outcome:
        """Return the outcome, after the lock is released."""
        record = self._read()
        if self._request.satisfied_by(record):
            return Outcome(record)
        provider = self._provider or record.provider
        if self._is_rejected(record) and not is_unattended(self._context.providers, provider):
            self._end_permanent(record)
        # Checked before the lock as well, so that a hopeless account costs no lock and no file.
        self._resolve(record)
        seen = self._last_refresh(record)
        self._previous = record.failure
        try:
            return self._attempt(seen) or self._attempt(seen, again=False) or Outcome()
        except LockTimeoutError:
            record = self._read()
            return Outcome(record) if self._request.satisfied_by(record) else Outcome()

    def _is_rejected(self, record: Record) -> bool:
        """Return whether the account's own token, used until it is rejected, has been."""
        rejected = self._request.rejected == record.tokens.access_token
        return self._request.target is None and record.is_permanent and rejected

    @contextmanager
    def _lock(self) -> Iterator[HeldLock]:
        """Hold the account's lock (step 1)."""
        patience = self._request.patience
        if patience is None:
            patience = longest_hold(self._context.timeout)
        self._job.expect(patience + BUSY, self._busy)
        deadline = time.monotonic() + patience
        while True:
            self._require_time()
            if self._context.hurry.is_set():
                raise self._busy()
            left = max(0.0, deadline - time.monotonic())
            held = self._repository.refresh_lock(self._name, timeout=min(left, _SLICE))
            try:
                lock = held.__enter__()
                break
            except LockTimeoutError:
                if left <= _SLICE:
                    raise
        try:
            yield lock
        finally:
            held.__exit__(None, None, None)

    def _attempt(self, seen: int, *, again: bool = True) -> Outcome | None:
        """Return the outcome, or None if another attempt may follow and needs the lock anew.

        On PostgreSQL a commit on the lock's own transaction releases it.
        """
        with self._lock() as lock:
            record = self._read()
            has_outcome = record.failure is not None or record.tokens.access_token is not None
            is_later = has_outcome and (record.refresh_id or 0) > seen
            if is_later and not self._request.satisfied_by(record):
                return Outcome(record, _recorded(record, self._now()))
            while True:
                try:
                    return self._once(record, lock)
                except _Retry as retry:
                    failure = retry.error
                if not again:
                    raise failure
                if lock.is_lost():
                    return None
                again, record = False, self._read()

    def _once(self, record: Record, lock: HeldLock) -> Outcome:
        """Do steps 2 to 7 once."""
        if self._request.satisfied_by(record):
            return Outcome(record)
        provider = self._resolve(record)
        self._unattended = provider.is_unattended
        self._client = provider.client  # as a recorded failure is compared with: not discovered
        found = self._with_endpoint(provider)
        if not (isinstance(found, TokenRefreshError) or provider.is_unattended):
            require_same_issuer(record, found)
        if self._is_lost_cause(record):
            return Outcome(record)
        if lock.is_lost():
            raise self._busy()
        refresh = self._begin(record, provider)
        self._job.must_finish = True
        try:
            if isinstance(found, TokenRefreshError):
                return self._failed(refresh, provider, found)
            provider = found
            response = self._send_within_window(refresh, provider)
            lost = lock.is_lost()
            refresh = replace(refresh, lock_lost=True) if lost else refresh
            if not isinstance(response, TokenRefreshError):
                response = of_same_user(refresh.record, provider, response)
            if isinstance(response, TokenRefreshError):
                return self._failed(refresh, provider, response)
            return self._succeeded(refresh, provider, response, lock)
        finally:
            self._job.must_finish = False
            self._journal.abandon(refresh)  # nothing, if it was closed

    # -- steps 2 to 4 -------------------------------------------------------------------------

    def _read(self) -> Record:
        record = self._repository.record(self._name, self._request.target) or unstored_record(
            self._name, self._context.providers, self._provider
        )
        if record is None:
            raise ReauthorizationRequired(
                f"{self._name}: no tokens are stored; sign in first", account_name=self._name
            )
        return record

    def _end_permanent(self, record: Record) -> NoReturn:
        """Note that a token that nothing can refresh is rejected."""
        error = ReauthorizationRequired(
            f"{self._name}: its access token was rejected, and there is no refresh token; sign in "
            "again",
            account_name=self._name,
            provider=record.provider,
        )
        with suppress(ProviderConfigurationError):
            self._client = self._context.providers.get(record.provider or "").client
        raise self._remembered(record, error)

    def _remembered(
        self, record: Record, error: ReauthorizationRequired
    ) -> ReauthorizationRequired:
        """Store the error of an account that needs a sign-in, which no request has told."""
        self._journal.note_failure(record, self._failure_of(error))
        self._tell_of_sign_in(record, error)
        return error

    def _resolve(self, record: Record) -> Provider:
        return resolve_provider(
            record,
            self._provider,
            self._context.providers,
            respect_failure=self._request.reason == "due",
            now=self._now(),
        )

    def _last_refresh(self, record: Record) -> int:
        """Return the refresh after which one of another process counts as an answer.

        A forced refresh shares only one that began after it; any other shares one that ended
        after it.
        """
        if self._request.reason == "forced":
            return self._journal.last_begun(self._name)
        return record.refresh_id or 0

    def _with_endpoint(self, provider: Provider) -> Provider | TokenRefreshError:
        from tokenstore.oauth.client import require_credentials
        from tokenstore.oauth.discovery import with_endpoints

        timeout, session = self._context.timeout, self._context.session
        if not provider.token_endpoint:
            self._job.expect(timeout + BUSY, lambda: self._undiscovered(provider.name))
        try:
            found = with_endpoints(
                provider,
                timeout=timeout,
                session=session,
                known=self._context.metadata,
            )
            require_credentials(found)
        except TokenRefreshError as error:
            error.account_name = self._name
            if isinstance(error, ProviderConfigurationError):
                raise
            return error
        return found

    def _undiscovered(self, provider: str) -> TransientRefreshError:
        return TransientRefreshError(
            f"{self._name}: no metadata of the issuer of provider {provider!r} within "
            f"{self._context.timeout:g} s; try again later",
            account_name=self._name,
            provider=provider,
        )

    def _is_lost_cause(self, record: Record) -> bool:
        """Return whether the rejected token has just replaced another one that was rejected.

        Then the token is not at fault, and another refresh would not help.
        """
        rejected = self._request.rejected
        if rejected is None or rejected != record.tokens.access_token:
            return False
        age = self._now() - (record.refreshed_at or float("-inf"))
        if not 0 <= age < _LOST_CAUSE_SECONDS or self._journal.reason_of(record) != "rejected":
            return False
        self.news.append(partial(_warn_about_rejection, self._name))
        return True

    def _begin(self, record: Record, provider: Provider) -> Refresh:
        self._require_time()
        found = store_if_new(record, self._repository)
        if found is None:
            raise _Retry(self._changed_meanwhile())
        record = found
        try:
            return self._journal.begin(
                record,
                provider=provider.name,
                reason=self._request.reason,
                longest=longest_hold(self._context.timeout),
                spends=not provider.is_unattended,
                target=self._request.target,
            )
        except AccountChanged:
            raise _Retry(self._changed_meanwhile()) from None
        except UnderWay as under_way:
            raise self._busy(under_way.entry) from None
        except SpentToken as spent:
            error = ReauthorizationRequired(
                f"{self._name}: the stored refresh token was exchanged for another one at "
                f"{iso(spent.at)}, and that is not stored: an old copy was saved or restored; "
                "sign in again",
                account_name=self._name,
                provider=provider.name,
            )
        raise self._remembered(record, error)

    def _require_time(self) -> None:
        if process_is_ending():
            raise TransientRefreshError(
                f"{self._name}: not refreshed, because the process is ending",
                account_name=self._name,
            )

    # -- steps 5 and 6 ------------------------------------------------------------------------

    def _send_within_window(
        self, refresh: Refresh, provider: Provider
    ) -> TokenResponse | TokenRefreshError:
        """Send the request; inside the provider's replay window once more, if none came back."""
        sent_at, window = time.monotonic(), provider.replay_window or 0.0
        ends_after = hard_end(self._context.timeout)
        first = self._send(refresh, provider, min(ends_after, window / 2) or ends_after)
        lost = isinstance(first, TransientRefreshError) and first.maybe_spent
        if lost and time.monotonic() < sent_at + window and not process_is_ending():
            return self._send(refresh, provider, ends_after)
        return first

    def _send(
        self, refresh: Refresh, provider: Provider, ends_after: float
    ) -> TokenResponse | TokenRefreshError:
        from tokenstore.oauth.client import refresh_grant, unattended_grant

        record, timeout = refresh.record, self._context.timeout
        self.requested_at = self.requested_at or time.monotonic()
        self._job.expect(timeout, lambda: self._unanswered(provider.name))
        chosen = requesting(provider, record, refresh.target)
        grant: Callable[..., TokenResponse] = partial(unattended_grant, chosen)
        if not provider.is_unattended:
            grant = partial(refresh_grant, chosen, record.tokens.refresh_token or "")
        try:
            return grant(
                account_name=self._name,
                timeout=ends_after,
                connect_timeout=0.9 * min(timeout, ends_after),
                session=self._context.session,
                resources=refresh.target.resources if refresh.target else (),
            )
        except TokenRefreshError as error:
            return error
        except Exception as error:  # noqa: BLE001 - the journal's entry must not stay open
            return self._bug(error, provider)

    def _bug(self, error: Exception, provider: Provider) -> TransientRefreshError:
        kind, place = type(error).__name__, place_of(error)
        _log.error("%s: unexpected %s in %s during a refresh", self._name, kind, place)
        return TransientRefreshError(
            f"{self._name}: unexpected {kind} in {place}; {self._unsure()}please report this",
            account_name=self._name,
            provider=provider.name,
            maybe_spent=not self._unattended,
        )

    def _unanswered(self, provider: str) -> TransientRefreshError:
        timeout = self._context.timeout
        return TransientRefreshError(
            f"{self._name}: no complete response from provider {provider!r} within {timeout:g} s; "
            f"{self._unsure()}a late response is still stored",
            account_name=self._name,
            provider=provider,
            maybe_spent=not self._unattended,
        )

    def _unsure(self) -> str:
        return "" if self._unattended else "the refresh token may have been spent; "

    def _failed(self, refresh: Refresh, provider: Provider, error: TokenRefreshError) -> Outcome:
        if isinstance(error, ReauthorizationRequired):
            error = self._explained(refresh, error)
        if is_refused_target(refresh.target, error):
            error = _of_target(error)
        failure = self._failure_of(error)
        if isinstance(error, TransientRefreshError) and failure.retry_at is not None:
            error.retry_after = failure.retry_at - self._now()
        stored = self._store(refresh, provider, failure, None, lambda _: error)
        if isinstance(error, ClientRejectedError):
            self._context.metadata.pop(provider.issuer or "", None)
        if stored is None or stored.refresh_id != refresh.id:
            return self._superseded(stored, error)
        self._tell_of_sign_in(refresh.record, error)
        if self._request.reason == "due" and not refresh.lock_lost and _may_retry(error):
            raise _Retry(error)
        raise error

    def _failure_of(self, error: TokenRefreshError) -> Failure:
        return Failure.from_error(error, self._client, now=self._now(), previous=self._previous)

    def _tell_of_sign_in(self, record: Record, error: TokenRefreshError) -> None:
        """Have the hook told, once, without the frames of *error*: they have secrets."""
        known = (record.own or record).needs_sign_in
        if isinstance(error, ReauthorizationRequired) and not known:
            hooks, told = self._context.hooks, copy_of(error)
            self.news.append(lambda: hooks.reauthorization_required(self._name, told))

    def _explained(
        self, refresh: Refresh, error: ReauthorizationRequired
    ) -> ReauthorizationRequired:
        """Add that an earlier use of the token, with unknown outcome, is why it is refused."""
        earlier = self._journal.unanswered(refresh)
        if earlier is None:
            return error
        at = iso(earlier.started_at)
        if earlier.interrupted:
            what = f"a refresh was interrupted on {earlier.host} at {at}"
        elif earlier.status_code is not None:
            what = f"a refresh on {earlier.host} at {at} was answered HTTP {earlier.status_code}"
        else:
            what = f"a refresh on {earlier.host} at {at} got no usable answer"
        return ReauthorizationRequired(
            f"{error}; {what}; the provider had already rotated the token",
            account_name=error.account_name,
            provider=error.provider,
            status_code=error.status_code,
            error=error.error,
            error_description=error.error_description,
        )

    # -- step 7 -------------------------------------------------------------------------------

    def _succeeded(
        self, refresh: Refresh, provider: Provider, response: TokenResponse, lock: HeldLock
    ) -> Outcome:
        def merge(current: TokenSet) -> TokenSet:
            return current.merge(
                response.fields,
                now=refresh.started_at,
                default_expires_in=provider.default_expires_in,
            )

        outcome: Callable[[TokenSet], TokenSet] = merge
        further: FurtherToken | None = None
        if refresh.target is not None:
            outcome = refresh_token_only(merge)
            further = further_token(
                refresh.target,
                response,
                merge(refresh.record.tokens),
                refreshed_at=refresh.started_at,
                id_=refresh.id,
            )
        overdue = partial(self._not_stored, refresh, merge)
        stored = self._store(refresh, provider, outcome, lock, overdue, further)
        if stored is None or stored.refresh_id != refresh.id:
            return self._superseded(stored, None)
        if not response.has_access_token:
            raise TransientRefreshError(
                f"{self._name}: provider {provider.name!r} gave a new refresh token, which is "
                "stored, and no usable access token; try again",
                account_name=self._name,
                provider=provider.name,
            )
        if lifetime_of(response.fields, now=refresh.started_at) is None:
            self.news.append(partial(_warn_about_lifetime, self._name, provider))
        hooks, tokens = self._context.hooks, (stored.own or stored).tokens.to_dict()
        self.news.append(lambda: hooks.refreshed(self._name, tokens))
        if (refresh.record.own or refresh.record).needs_sign_in:
            self.news.append(lambda: hooks.recovered(self._name))
        return Outcome(stored, refreshed=True, requested_at=self.requested_at)

    def _store(
        self,
        refresh: Refresh,
        provider: Provider,
        outcome: Failure | Callable[[TokenSet], TokenSet],
        lock: HeldLock | None,
        overdue: Callable[[StorageError], Exception],
        further: FurtherToken | None = None,
    ) -> Record | None:
        """Commit the outcome; again and again until it is done, with the lock still held.

        Args:
            refresh: The refresh.
            provider: The provider.
            outcome: The failure, or what merges the response into the stored tokens.
            lock: The lock that a backend may release with the commit, or None.
            overdue: Returns the error for callers that stop waiting, and at the end.
            further: The further access token that the response gave, or None.
        """
        delay, until = _FIRST_DELAY, None
        while True:
            try:
                return self._journal.finish(
                    refresh, outcome, provider=provider.name, lock=lock, further=further
                )
            except StorageError as error:
                failure, cause = overdue(error), error
            self._expect_storage(partial(copy_of, failure), again=delay > _FIRST_DELAY)
            if cause.errno == errno.ESTALE:
                raise failure  # there is nothing any more that it could be stored in
            told = failure if isinstance(failure, TokenPersistError) else f"{self._name}: {cause}"
            if delay == _FIRST_DELAY:
                _log.warning("%s; trying again until it is done", told)
            if process_is_ending():
                until = until or time.monotonic() + _END_PATIENCE
                if time.monotonic() > until:
                    _log.error("%s; the process is ending without it", told)
                    raise failure
            self._job.report_overdue()
            if self._context.hurry.wait(delay):
                time.sleep(_FIRST_DELAY)
            delay = min(2 * delay, _LONGEST_DELAY)

    def _expect_storage(self, overdue: Callable[[], BaseException], *, again: bool) -> None:
        if again:
            self._job.expect_as_before(overdue)
            return
        requested_at = self.requested_at or 0.0
        left = requested_at + self._context.timeout - time.monotonic()
        self._job.expect(max(left, STORE_PATIENCE), overdue)

    def _not_stored(
        self, refresh: Refresh, merge: Callable[[TokenSet], TokenSet], error: StorageError
    ) -> TokenPersistError:
        return TokenPersistError(
            f"{self._name}: the provider gave new tokens, and they could not be stored: {error}. "
            "They are in this error's .tokens, and are stored as soon as that is possible; do not "
            "refresh the account elsewhere",
            self._repository.name,
            errno=error.errno,
            tokens=merge(refresh.record.tokens).to_dict(),
        )

    def _superseded(self, stored: Record | None, error: TokenRefreshError | None) -> Outcome:
        """Return what another process, or a caller, has stored meanwhile, if that will do."""
        if stored is None and self._unattended:
            raise self._changed_meanwhile()
        if stored is None:
            raise ReauthorizationRequired(
                f"{self._name} was deleted while it was being refreshed", account_name=self._name
            )
        forced = self._request.reason == "forced" and stored.tokens.access_token is not None
        if forced or self._request.satisfied_by(stored):
            return Outcome(stored, requested_at=self.requested_at)
        raise _Retry(error or self._changed_meanwhile())

    def _changed_meanwhile(self) -> TransientRefreshError:
        return TransientRefreshError(
            f"{self._name} was changed while it was being refreshed; try again",
            account_name=self._name,
        )

    def _busy(self, entry: HistoryEntry | None = None) -> TransientRefreshError:
        return busy_error(self._context.repository, self._name, entry)

    def _now(self) -> float:
        return self._context.clock()


def _recorded(record: Record, now: float) -> TokenRefreshError | None:
    """Return the error of the refresh that a record comes from, None if it succeeded."""
    if record.failure is None:
        return None
    return record.failure.to_error(
        account_name=record.account_name, provider=record.provider, now=now
    )


def _warn_about_lifetime(name: str, provider: Provider) -> None:
    _log.warning(
        "%s: the response of provider %r has no usable expires_in; assuming %s seconds",
        name,
        provider.name,
        provider.default_expires_in,
    )


def _warn_about_rejection(name: str) -> None:
    _log.warning(
        "%s: the token that replaced a rejected one is rejected, too; it is not refreshed again "
        "for a minute. Check what the account is permitted to do",
        name,
    )


def _of_target(error: TokenRefreshError) -> ClientRejectedError:
    """Return a refusal of a scope or resource, which is not the end of the login."""
    return ClientRejectedError(
        str(error),
        account_name=error.account_name,
        provider=error.provider,
        status_code=error.status_code,
        error=error.error,
        error_description=error.error_description,
    )


def _may_retry(error: TokenRefreshError) -> bool:
    """Return whether one more request may follow at once: none was sent, or a 5xx came back."""
    if not isinstance(error, TransientRefreshError) or error.retry_after is not None:
        return False
    if error.status_code is None:
        return not error.maybe_spent
    return error.status_code >= 500  # noqa: PLR2004
