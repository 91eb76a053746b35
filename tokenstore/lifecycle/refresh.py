"""One refresh: lock, look again, write down, ask, store, unlock. Nothing else spends a token."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tokenstore.errors import (
    ClientRejectedError,
    ReauthorizationRequired,
    StorageError,
    TokenPersistError,
    TokenRefreshError,
    TransientRefreshError,
)
from tokenstore.lifecycle.eligibility import resolve_provider
from tokenstore.models.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import requests

    from tokenstore.lifecycle.hooks import Hooks
    from tokenstore.models.accounts import Record
    from tokenstore.models.tokens import TokenSet
    from tokenstore.oauth.provider import Provider
    from tokenstore.oauth.registry import ProviderRegistry
    from tokenstore.storage.journal import Reason, Refresh
    from tokenstore.storage.locks import HeldLock
    from tokenstore.storage.repository import TokenRepository

_STORE_ATTEMPTS = 3
_BUSY = 30.0  # seconds that a holder of the lock may spend on the database, besides its requests

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RefreshRequest:
    """What a caller wants of a refresh.

    Attributes:
        reason: ``due`` respects a remembered verdict and shares whatever others achieve;
            ``forced`` and ``rejected`` ask the provider all the same.
        satisfied_by: Whether a stored record will do, so that nothing is requested.
        patience: Seconds to wait for others who refresh the account; None: as long as they may
            need.
    """

    reason: Reason
    satisfied_by: Callable[[Record], bool]
    patience: float | None = None


class _Again(Exception):  # noqa: N818 - not an error: try once more
    """The attempt failed in a way that one more may mend at once."""

    def __init__(self, error: TokenRefreshError) -> None:
        super().__init__(error)
        self.error = error


@dataclass(slots=True)
class _Call:
    """One call of `Refresher.refresh`, while it is at work.

    Attributes:
        seen: The refresh after which one counts as an answer to this call.
        before: Why the last refresh before this call failed, or None.
        hold: The account's lock, while this call holds it.
        news: What the hooks are to be told of, once the lock is released.
    """

    name: str
    provider: str | Provider | None
    demand: RefreshRequest
    seen: int
    before: Failure | None
    hold: HeldLock | None = None
    news: list[Callable[[], None]] = field(default_factory=list)


class Refresher:
    """Refreshes accounts of one repository, each at most once at a time, in all processes.

    Args:
        repository: Where the accounts are.
        providers: Whom to ask.
        hooks: Whom to tell.
        timeout: Seconds for one token request, to its last byte.
        session: The session to send it with, or None.
        clock: The time, in UTC epoch seconds.
        changed: Is told the name of every account whose row was changed, here or by somebody else.
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
        self._repository = repository
        self._providers = providers
        self._hooks = hooks
        self._timeout = timeout
        self._session = session
        self._clock = clock
        self._changed = changed
        self._metadata: dict[str, Mapping[str, Any]] = {}  # of issuers
        # Answers that the store would not take yet, by number: they go in before anything is sent.
        self._unsaved: dict[int, tuple[Refresh, TokenSet, str]] = {}
        # Requests that nobody waits for and that have not ended, and the process they are of.
        self._outstanding: dict[str, int] = {}

    def refresh(
        self, name: str, provider: str | Provider | None, demand: RefreshRequest
    ) -> tuple[Record, bool]:
        """Return a record that meets the demand, and whether it was this call that refreshed.

        That takes one request at the most, or its one retry.

        Raises:
            TokenRefreshError: No token can be had; the subclass says why.
            TokenPersistError: A token was had and could not be stored.
            StorageError: The store cannot be used.
        """
        record, refreshed = self.attempt(name, provider, demand)
        if record is None:
            raise TransientRefreshError(
                f"{name}: somebody else has been refreshing it for too long; try again later",
                account_name=name,
                provider=self._read(name).provider,
            )
        return record, refreshed

    def attempt(
        self, name: str, provider: str | Provider | None, demand: RefreshRequest
    ) -> tuple[Record | None, bool]:
        """Do what `refresh` does, but with None for the record of an account that is busy.

        That is one which somebody else refreshes for longer than the demand is patient.
        """
        record = self._read(name)
        if demand.satisfied_by(record):
            self._changed(name)
            return record, False
        if self._outstanding.get(name) == os.getpid():
            raise _unanswered(record)
        if not self._unsaved_of(name):
            # Asked before the lock as well, so that a hopeless account costs no lock and no file.
            self._resolve_provider(record, provider, demand)
        call = _Call(name, provider, demand, self._last_refresh(record, demand), record.failure)
        # A holder makes two requests at the most, and may ask the issuer for its metadata.
        patience = 3 * self._timeout + _BUSY if demand.patience is None else demand.patience
        try:
            with self._repository.refresh_lock(name, timeout=patience) as call.hold:
                stored = self._with_lock(call)
        except TimeoutError:
            record = self._read(name)
            return (record if demand.satisfied_by(record) else None), False
        finally:
            self._changed(name)
            _tell(call.news)
        return stored, bool(call.news)

    def store_unsaved(self) -> None:
        """Store what earlier commits would not take, of every account.

        Raises:
            TokenPersistError: The store still will not.
        """
        failure: TokenPersistError | None = None
        for refresh, _, _ in list(self._unsaved.values()):
            try:
                _tell(self._store_unsaved(refresh.record.account_name))
            except TokenPersistError as error:
                failure = error
        if failure is not None:
            raise failure

    # -- under the lock -----------------------------------------------------------------------

    def _with_lock(self, call: _Call) -> Record:
        call.news += self._store_unsaved(call.name)
        record = self._read(call.name)
        if not call.demand.satisfied_by(record) and (record.refresh_id or 0) > call.seen:
            return self._shared(record)
        try:
            return self._once(call, record)
        except _Again:
            pass
        try:
            return self._once(call, self._read(call.name))
        except _Again as again:
            failure = again.error
        raise failure

    def _once(self, call: _Call, record: Record) -> Record:
        if call.demand.satisfied_by(record):
            return record
        chosen = self._resolve_provider(record, call.provider, call.demand)
        refresh = self._repository.journal.begin(
            record, provider=chosen.name, reason=call.demand.reason
        )
        answer = self._ask(call, chosen, refresh)
        if isinstance(answer, TokenRefreshError):
            return self._failed(call, self._seen_lost(call, refresh), chosen, answer)
        tokens = self._merge(refresh, chosen, answer)
        self._unsaved[refresh.id] = refresh, tokens, chosen.name  # whatever interrupts what follows
        stored = self._store(self._seen_lost(call, refresh), tokens, chosen.name)
        call.news += self._news_of(refresh, stored)
        return self._usable(call, refresh, stored, None)

    def _seen_lost(self, call: _Call, refresh: Refresh) -> Refresh:
        """Return *refresh* with whether somebody else could have the account's lock by now."""
        if call.hold is None or call.hold.kept or not call.hold.is_lost():
            return refresh
        _log.warning("%s: the connection that held its lock was lost meanwhile", call.name)
        return replace(refresh, lock_lost=True)

    def _ask(
        self, call: _Call, provider: Provider, refresh: Refresh
    ) -> dict[str, Any] | TokenRefreshError:
        from tokenstore.oauth.client import refresh_grant

        record = refresh.record
        try:
            return refresh_grant(
                _without_other_scope(self._with_endpoint(provider, record), record),
                record.tokens.refresh_token or "",
                account_name=record.account_name,
                timeout=self._timeout,
                session=self._session,
                abandoned=lambda: self._abandoned(call, provider, refresh),
            )
        except TokenRefreshError as error:
            return error

    def _failed(
        self, call: _Call, refresh: Refresh, provider: Provider, error: TokenRefreshError
    ) -> Record:
        if isinstance(error, ReauthorizationRequired):
            error = self._explained(refresh, error)
        again = call.demand.reason == "due" and _may_try_again(error) and not refresh.lock_lost
        now = self._clock()
        failure = Failure.from_error(error, provider.client, now=now, previous=call.before)
        if isinstance(error, TransientRefreshError) and failure.retry_at is not None:
            error.retry_after = failure.retry_at - now
        stored = self._repository.journal.finish(refresh, failure, provider=provider.name)
        if isinstance(error, ClientRejectedError):
            self._metadata.pop(provider.issuer or "", None)  # it may have moved
        if stored is None or stored.version != refresh.record.version:
            return self._usable(call, refresh, stored, error)
        if isinstance(error, ReauthorizationRequired) and not refresh.record.needs_sign_in:
            told = error
            call.news.append(lambda: self._hooks.reauthorization_required(call.name, told))
        if again:
            raise _Again(error)
        raise error

    def _usable(
        self,
        call: _Call,
        refresh: Refresh,
        stored: Record | None,
        error: TokenRefreshError | None,
    ) -> Record:
        """Return what is stored after a refresh: its own tokens, or those of whoever was faster."""
        if stored is None:
            raise ReauthorizationRequired(
                f"{call.name} was deleted while it was being refreshed", account_name=call.name
            )
        if stored.refresh_id == refresh.id or call.demand.satisfied_by(stored):
            return stored
        if call.demand.reason == "forced" and stored.tokens.access_token is not None:
            return stored
        raise _Again(error or _lost(refresh))

    def _shared(self, record: Record) -> Record:
        """Return or raise the outcome of a refresh that this caller has waited for."""
        if record.failure is None:
            return record
        raise record.failure.to_error(
            account_name=record.account_name, provider=record.provider, now=self._clock()
        )

    def _news_of(self, refresh: Refresh, stored: Record | None) -> list[Callable[[], None]]:
        """Return what the hooks are to be told of a refresh that succeeded."""
        if stored is None or stored.refresh_id != refresh.id:
            return []  # somebody else was faster
        name, tokens = stored.account_name, stored.tokens.to_dict()
        news: list[Callable[[], None]] = [lambda: self._hooks.refreshed(name, tokens)]
        if refresh.record.needs_sign_in:
            news.append(lambda: self._hooks.recovered(name))
        return news

    # -- before asking ------------------------------------------------------------------------

    def _read(self, name: str) -> Record:
        record = self._repository.record(name)
        if record is None:
            raise ReauthorizationRequired(
                f"{name}: no tokens are stored; sign in first", account_name=name
            )
        return record

    def _resolve_provider(
        self, record: Record, provider: str | Provider | None, demand: RefreshRequest
    ) -> Provider:
        return resolve_provider(
            record,
            provider,
            self._providers,
            respect_failure=demand.reason == "due",
            now=self._clock(),
        )

    def _last_refresh(self, record: Record, demand: RefreshRequest) -> int:
        """Return the refresh after which one counts as an answer to this call.

        A forced call shares only what began after it; any other shares what ended after it.
        """
        if demand.reason == "forced":
            return self._repository.journal.last_begun(record.account_name)
        return record.refresh_id or 0

    def _with_endpoint(self, provider: Provider, record: Record) -> Provider:
        from tokenstore.oauth.discovery import with_endpoints

        try:
            return with_endpoints(
                provider, timeout=self._timeout, session=self._session, known=self._metadata
            )
        except TokenRefreshError as error:
            error.account_name = record.account_name
            raise

    def _explained(
        self, refresh: Refresh, error: ReauthorizationRequired
    ) -> ReauthorizationRequired:
        """Say so if an earlier use of the token, with unknown end, is why it is dead."""
        earlier = self._repository.journal.suspicion(refresh)
        if earlier is None:
            return error
        moment = datetime.fromtimestamp(earlier.started_at, UTC).isoformat(timespec="seconds")
        what = (
            f"a refresh was interrupted on {earlier.host} at {moment}"
            if earlier.interrupted
            else f"a refresh on {earlier.host} at {moment} got no usable answer"
        )
        return ReauthorizationRequired(
            f"{error}; {what}; the provider had already rotated the token",
            account_name=error.account_name,
            provider=error.provider,
            status_code=error.status_code,
            error=error.error,
            error_description=error.error_description,
        )

    # -- storing ------------------------------------------------------------------------------

    def _merge(self, refresh: Refresh, provider: Provider, answer: dict[str, Any]) -> TokenSet:
        return refresh.record.tokens.merge(
            answer, now=refresh.started_at, default_expires_in=provider.default_expires_in
        )

    def _store(self, refresh: Refresh, tokens: TokenSet, provider: str) -> Record | None:
        self._unsaved[refresh.id] = refresh, tokens, provider  # whatever interrupts what follows
        failure: StorageError | None = None
        for _ in range(_STORE_ATTEMPTS):
            try:
                stored = self._repository.journal.finish(refresh, tokens, provider=provider)
            except StorageError as error:
                failure = error
            else:
                self._unsaved.pop(refresh.id, None)
                self._changed(refresh.record.account_name)
                return stored
        raise TokenPersistError(
            f"{refresh.record.account_name}: the provider gave new tokens and they could not be "
            f"stored: {failure}. They are in this error's .tokens and are stored as soon as that "
            "is possible; do not refresh the account elsewhere",
            self._repository.name,
            errno=failure.errno if failure else None,
            tokens=tokens.to_dict(),
        )

    def _unsaved_of(self, name: str) -> list[tuple[Refresh, TokenSet, str]]:
        unsaved = sorted(self._unsaved.copy().values(), key=lambda entry: entry[0].id)
        return [entry for entry in unsaved if entry[0].record.account_name == name]

    def _store_unsaved(self, name: str) -> list[Callable[[], None]]:
        news: list[Callable[[], None]] = []
        for refresh, tokens, provider in self._unsaved_of(name):
            news += self._news_of(refresh, self._store(refresh, tokens, provider))
        return news

    def _abandoned(
        self, call: _Call, provider: Provider, refresh: Refresh
    ) -> Callable[[dict[str, Any] | None], None]:
        """Keep the lock for a request that nobody waits for: its refresh token is still out.

        Whoever sent the same token again meanwhile would be taken for a thief.
        """
        hold = call.hold
        assert hold is not None  # noqa: S101 - for the type checker
        hold.keep()
        self._outstanding[call.name] = os.getpid()

        def ended(answer: dict[str, Any] | None) -> None:
            try:
                if answer is not None:
                    self._late(refresh, provider, answer)
            finally:
                self._outstanding.pop(call.name, None)
                hold.release()

        return ended

    def _late(self, refresh: Refresh, provider: Provider, answer: dict[str, Any]) -> None:
        """Store an answer that nobody waits for any more, if nothing has changed since."""
        name = refresh.record.account_name
        try:
            stored = self._store(refresh, self._merge(refresh, provider, answer), provider.name)
        except StorageError as error:
            _log.error("%s: an answer that came late could not be stored: %s", name, error)
        else:
            news = self._news_of(refresh, stored)
            what = "was stored" if news else "was ignored: the account has changed"
            _log.info("%s: an answer that came late %s", name, what)
            _tell(news)


def _tell(news: list[Callable[[], None]]) -> None:
    for tell in news:
        tell()


def _without_other_scope(provider: Provider, record: Record) -> Provider:
    """Return *provider*, which asks for no scope if another was granted (RFC 6749 section 6).

    Without one, all that was granted is renewed. One that was not granted is refused, and one that
    lacks a part loses it.
    """
    granted = record.tokens.extra.get("scope")
    if not isinstance(granted, str) or set(granted.split()) == set((provider.scope or "").split()):
        return provider
    return replace(provider, scope=None)


def _may_try_again(error: TokenRefreshError) -> bool:
    """Tell whether one more request may be sent at once: none arrived, or the answer was a 5xx."""
    if not isinstance(error, TransientRefreshError) or error.retry_after is not None:
        return False
    if error.status_code is None:
        return not error.maybe_spent
    return error.status_code >= 500  # noqa: PLR2004


def _unanswered(record: Record) -> TransientRefreshError:
    return TransientRefreshError(
        f"{record.account_name}: the last request is still without an answer; try again later",
        account_name=record.account_name,
        provider=record.provider,
        maybe_spent=True,
    )


def _lost(refresh: Refresh) -> TransientRefreshError:
    return TransientRefreshError(
        f"{refresh.record.account_name} was changed while it was being refreshed; try again",
        account_name=refresh.record.account_name,
        provider=refresh.record.provider,
    )
