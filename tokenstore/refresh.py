"""One refresh: lock, look again, write down, ask, store, unlock. Nothing else spends a token."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tokenstore.accounts import Failure
from tokenstore.errors import (
    ProviderConfigurationError,
    ReauthorizationRequired,
    StorageError,
    TokenPersistError,
    TokenRefreshError,
    TransientRefreshError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import requests

    from tokenstore.accounts import Record
    from tokenstore.providers import Provider
    from tokenstore.registry import Providers
    from tokenstore.repository import Reason, Refresh, TokenRepository
    from tokenstore.tokens import TokenSet

_STORE_ATTEMPTS = 3
_BUSY = 30.0  # seconds that a holder of the lock may spend on the database, besides its requests

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Demand:
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


class Refresher:
    """Refreshes accounts of one repository, each at most once at a time, in all processes.

    Args:
        repository: Where the accounts are.
        providers: Whom to ask.
        timeout: Seconds for one token request, to its last byte.
        session: The session to send it with, or None.
        clock: The time, in UTC epoch seconds.
        changed: Is told the name of every account whose row was changed here.
    """

    def __init__(
        self,
        repository: TokenRepository,
        providers: Providers,
        *,
        timeout: float,
        session: requests.Session | None,
        clock: Callable[[], float],
        changed: Callable[[str], None],
    ) -> None:
        self._repository = repository
        self._providers = providers
        self._timeout = timeout
        self._session = session
        self._clock = clock
        self._changed = changed
        self._metadata: dict[str, Mapping[str, Any]] = {}  # of issuers
        # Answers that the store would not take: they go in before anything is sent again.
        self._unsaved: dict[str, tuple[Refresh, TokenSet, str]] = {}

    def refresh(self, name: str, provider: str | Provider | None, demand: Demand) -> Record:
        """Return a record that meets the demand, after at most one request (or its one retry).

        Raises:
            TokenRefreshError: No token can be had; the subclass says why.
            TokenPersistError: A token was had and could not be stored.
            StorageError: The store cannot be used.
        """
        record = self._read(name)
        if demand.satisfied_by(record):
            return record
        if name not in self._unsaved:
            # Asked before the lock as well, so that a hopeless account costs no lock and no file.
            self._require_hope(record, provider, demand)
        seen = self._last_refresh(record, demand)
        # A holder makes two requests at the most, and may ask the issuer for its metadata.
        patience = 3 * self._timeout + _BUSY if demand.patience is None else demand.patience
        try:
            with self._repository.refresh_lock(name, timeout=patience):
                return self._with_lock(name, provider, demand, seen)
        except TimeoutError:
            return self._without_lock(name, demand, patience)

    def store_unsaved(self) -> None:
        """Store what earlier commits would not take, of every account.

        Raises:
            TokenPersistError: The store still will not.
        """
        failure: TokenPersistError | None = None
        for name in list(self._unsaved):
            try:
                self._store_unsaved(name)
            except TokenPersistError as error:
                failure = error
        if failure is not None:
            raise failure

    # -- under the lock -----------------------------------------------------------------------

    def _with_lock(
        self, name: str, provider: str | Provider | None, demand: Demand, seen: int
    ) -> Record:
        self._store_unsaved(name)
        record = self._read(name)
        if not demand.satisfied_by(record) and (record.refresh_id or 0) > seen:
            return self._shared(record)
        try:
            return self._attempt(record, provider, demand)
        except _Again:
            pass
        try:
            return self._attempt(self._read(name), provider, demand)
        except _Again as again:
            failure = again.error
        raise failure

    def _attempt(self, record: Record, provider: str | Provider | None, demand: Demand) -> Record:
        if demand.satisfied_by(record):
            return record
        chosen = self._require_hope(record, provider, demand)
        asked = self._with_endpoint(chosen, record)
        refresh = self._repository.begin_refresh(record, provider=chosen.name, reason=demand.reason)
        answer = self._ask(asked, refresh)
        if isinstance(answer, TokenRefreshError):
            return self._failed(refresh, chosen, answer, demand)
        tokens = self._merge(refresh, chosen, answer)
        stored = self._store(refresh, tokens, chosen.name)
        return self._usable(refresh, stored, demand, None)

    def _ask(self, provider: Provider, refresh: Refresh) -> dict[str, Any] | TokenRefreshError:
        from tokenstore.oauth import refresh_grant

        record = refresh.record
        try:
            return refresh_grant(
                provider,
                record.tokens.refresh_token or "",
                account_name=record.account_name,
                timeout=self._timeout,
                session=self._session,
                late=lambda answer: self._late(refresh, provider, answer),
            )
        except TokenRefreshError as error:
            return error

    def _failed(
        self, refresh: Refresh, provider: Provider, error: TokenRefreshError, demand: Demand
    ) -> Record:
        if isinstance(error, ReauthorizationRequired):
            error = self._explained(refresh, error)
        failure = Failure.of(error, provider.client, now=self._clock())
        stored = self._repository.finish_refresh(refresh, failure, provider=provider.name)
        self._changed(refresh.record.account_name)
        if stored is None or stored.version != refresh.record.version:
            return self._usable(refresh, stored, demand, error)
        if demand.reason == "due" and _may_try_again(error):
            raise _Again(error)
        raise error

    def _usable(
        self,
        refresh: Refresh,
        stored: Record | None,
        demand: Demand,
        error: TokenRefreshError | None,
    ) -> Record:
        """Return what is stored after a refresh: its own tokens, or those of whoever was faster."""
        if stored is None:
            raise ReauthorizationRequired(
                f"{refresh.record.account_name} was deleted while it was being refreshed",
                account_name=refresh.record.account_name,
            )
        if stored.refresh_id == refresh.id or demand.satisfied_by(stored):
            return stored
        if demand.reason == "forced" and stored.tokens.access_token is not None:
            return stored
        raise _Again(error or _lost(refresh))

    def _shared(self, record: Record) -> Record:
        """Return or raise the outcome of a refresh that this caller has waited for."""
        if record.failure is None:
            return record
        raise record.failure.to_error(
            account_name=record.account_name, provider=record.provider, now=self._clock()
        )

    def _without_lock(self, name: str, demand: Demand, patience: float) -> Record:
        record = self._read(name)
        if demand.satisfied_by(record):
            return record
        raise TransientRefreshError(
            f"{name}: somebody else has been refreshing it for more than {patience:.0f} s; "
            "try again later",
            account_name=name,
            provider=record.provider,
        )

    # -- what speaks against a request --------------------------------------------------------

    def _read(self, name: str) -> Record:
        record = self._repository.record(name)
        if record is None:
            raise ReauthorizationRequired(
                f"{name}: no tokens are stored; sign in first", account_name=name
            )
        return record

    def _require_hope(
        self, record: Record, provider: str | Provider | None, demand: Demand
    ) -> Provider:
        """Return the provider to ask, or raise what is known before asking."""
        name = record.account_name
        if record.tokens.refresh_token is None:
            raise ReauthorizationRequired(
                f"{name}: there is no refresh token; sign in again",
                account_name=name,
                provider=record.provider,
            )
        try:
            chosen = self._providers.get(_bound(record, provider))
        except ProviderConfigurationError as error:
            error.account_name = name
            raise
        registered = record.tokens.extra.get("client_id")
        if isinstance(registered, str) and registered not in {"", chosen.client_id}:
            raise ProviderConfigurationError(
                f"{name}: its tokens belong to another client_id than that of provider "
                f"{chosen.name!r}; configure the provider with the one that they were issued to",
                account_name=name,
                provider=chosen.name,
            )
        failure, now = record.failure, self._clock()
        if demand.reason == "due" and failure and failure.stands(chosen.client, now=now):
            raise failure.to_error(account_name=name, provider=chosen.name, now=now)
        return chosen

    def _last_refresh(self, record: Record, demand: Demand) -> int:
        """Return the refresh after which one counts as an answer to this call.

        A forced call shares only what began after it; any other shares what ended after it.
        """
        if demand.reason == "forced":
            return self._repository.last_refresh_begun(record.account_name)
        return record.refresh_id or 0

    def _with_endpoint(self, provider: Provider, record: Record) -> Provider:
        if provider.token_endpoint:
            return provider
        from tokenstore.oauth import discover

        issuer = provider.issuer or ""
        try:
            if issuer not in self._metadata:
                self._metadata[issuer] = discover(
                    provider, timeout=self._timeout, session=self._session
                )
            return provider.with_metadata(self._metadata[issuer])
        except TokenRefreshError as error:
            error.account_name = record.account_name
            raise

    def _explained(
        self, refresh: Refresh, error: ReauthorizationRequired
    ) -> ReauthorizationRequired:
        """Say so if an earlier use of the token, with unknown end, is why it is dead."""
        earlier = self._repository.suspicion(refresh)
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
        name = refresh.record.account_name
        failure: StorageError | None = None
        for _ in range(_STORE_ATTEMPTS):
            try:
                stored = self._repository.finish_refresh(refresh, tokens, provider=provider)
            except StorageError as error:
                failure = error
            else:
                self._unsaved.pop(name, None)
                self._changed(name)
                return stored
        self._unsaved[name] = refresh, tokens, provider
        raise TokenPersistError(
            f"{name}: the provider gave new tokens and they could not be stored: {failure}. They "
            "are in this error's .tokens and are stored as soon as that is possible; do not "
            "refresh the account elsewhere",
            self._repository.path,
            errno=failure.errno if failure else None,
            tokens=tokens.to_dict(),
        )

    def _store_unsaved(self, name: str) -> None:
        unsaved = self._unsaved.get(name)
        if unsaved is not None:
            self._store(*unsaved)

    def _late(self, refresh: Refresh, provider: Provider, answer: dict[str, Any]) -> None:
        """Store an answer that nobody waits for any more, if nothing has changed since."""
        name = refresh.record.account_name
        try:
            stored = self._store(refresh, self._merge(refresh, provider, answer), provider.name)
        except StorageError as error:
            _log.error("%s: an answer that came late could not be stored: %s", name, error)
        else:
            used = stored is not None and stored.refresh_id == refresh.id
            what = "was stored" if used else "was ignored: the account has changed"
            _log.info("%s: an answer that came late %s", name, what)


def _bound(record: Record, provider: str | Provider | None) -> str | Provider:
    """Return the provider to ask: the one given, unless the account is bound to another."""
    given = provider if provider is None or isinstance(provider, str) else provider.name
    if given is None and record.provider is None:
        raise ProviderConfigurationError(
            f"{record.account_name} is bound to no provider; name one (provider=…)",
            account_name=record.account_name,
        )
    if given is not None and record.provider not in {None, given}:
        raise ProviderConfigurationError(
            f"{record.account_name} is bound to provider {record.provider!r}, not {given!r}; "
            "sign in or save its tokens with the other provider first",
            account_name=record.account_name,
            provider=given,
        )
    return provider or record.provider or ""


def _may_try_again(error: TokenRefreshError) -> bool:
    """Tell whether one more request may be sent at once: none arrived, or the answer was a 5xx."""
    if not isinstance(error, TransientRefreshError) or error.retry_after is not None:
        return False
    if error.status_code is None:
        return not error.maybe_spent
    return error.status_code >= 500  # noqa: PLR2004


def _lost(refresh: Refresh) -> TransientRefreshError:
    return TransientRefreshError(
        f"{refresh.record.account_name} was changed while it was being refreshed; try again",
        account_name=refresh.record.account_name,
        provider=refresh.record.provider,
    )
