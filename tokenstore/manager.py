"""`TokenManager`: a live access token for every account, at any moment."""

from __future__ import annotations

import time
from functools import partial
from logging import DEBUG
from typing import TYPE_CHECKING, Any

from tokenstore.errors import TokenRefreshError
from tokenstore.lifecycle.cache import TokenCache
from tokenstore.lifecycle.eligibility import require_binding
from tokenstore.lifecycle.forecast import RefreshTokenForecast
from tokenstore.lifecycle.hooks import Hooks
from tokenstore.lifecycle.refresh import RefreshRequest
from tokenstore.lifecycle.refresher import Refresher
from tokenstore.logs import Operation, is_enabled, log_operation, provider_name
from tokenstore.models.expiry import ExpiryPolicy, clock_moved_back
from tokenstore.models.timestamps import expiry_of
from tokenstore.models.tokens import TokenSet, normalize_account_name
from tokenstore.oauth.registry import ProviderRegistry
from tokenstore.redaction import protect, protected, unprotected
from tokenstore.storage.location import providers_file
from tokenstore.storage.repository import TokenRepository

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
    from pathlib import Path

    import requests
    from sqlalchemy.engine import URL

    from tokenstore.errors import ReauthorizationRequired
    from tokenstore.lifecycle.bulk import RefreshResult
    from tokenstore.lifecycle.refresh import Outcome
    from tokenstore.models.accounts import Account, HistoryEntry, Record
    from tokenstore.oauth.flows.prompt import Prompt
    from tokenstore.oauth.provider import Provider
    from tokenstore.storage.base import JournalMode
    from tokenstore.storage.journal import Reason


_LONGEST = 86400.0  # seconds; beyond a day nobody waits, and beyond some years nothing can


class TokenManager:
    """Keeps the tokens of many accounts and refreshes them when they are due.

    One manager may be used by many threads, and many managers, in many processes, on one
    database. Creating one does no I/O: an unusable store shows at the first call.

    Args:
        database: A path to the SQLite file, or an SQLAlchemy URL. None:
            ``$TOKENSTORE_DATABASE``, else ``tokens.db`` in the user's data directory.
        providers: Name to `Provider`, looked up before ``providers.toml`` and the built-in
            ``google`` and ``microsoft``.
        expiry_buffer: Seconds; a token is due when ``expires_at <= clock() + expiry_buffer``.
        cache_ttl: Seconds for which `get_valid_token` may answer from memory, never beyond the
            moment at which the token is due; 0 turns that off. What this manager changes it sees
            at once, what another process changes within this time.
        timeout: Seconds for a whole token request, to its last byte.
        serve_stale: When a refresh fails, or another process is busy with it, return the stored
            token as long as it has not really expired.
        upgrade: Migrate an older database, after a backup, in place of raising
            `SchemaOutdatedError`.
        journal_mode: ``wal``, or ``delete`` for file systems without shared memory.
        session: A `requests.Session` for the token requests (proxies, test adapters).
        clock: The wall clock, in UTC epoch seconds.
        on_refreshed: Called with an account's name and its tokens (secret!), after a refresh.
        on_reauthorization_required: Called with the name and the `ReauthorizationRequired`, once
            when a login turns out to be dead.
        on_recovered: Called with the name, once when a dead login works again.

    Hooks run after the commit and outside every lock, and may call the manager. One that raises is
    logged and changes nothing.

    Every method may raise a `StorageError`, and an `InvalidTokenError` for what is no account
    name: 1 to 512 characters, none of them a control character.
    """

    def __init__(
        self,
        database: str | os.PathLike[str] | URL | None = None,
        *,
        providers: Mapping[str, Provider] | None = None,
        expiry_buffer: float = 300.0,
        cache_ttl: float = 60.0,
        timeout: float = 30.0,
        serve_stale: bool = False,
        upgrade: bool = False,
        journal_mode: JournalMode = "wal",
        session: requests.Session | None = None,
        clock: Callable[[], float] = time.time,
        on_refreshed: Callable[[str, dict[str, Any]], object] | None = None,
        on_reauthorization_required: Callable[[str, ReauthorizationRequired], object] | None = None,
        on_recovered: Callable[[str], object] | None = None,
    ) -> None:
        _require_seconds(expiry_buffer=expiry_buffer, cache_ttl=cache_ttl)
        if not 0 < timeout <= _LONGEST:
            raise ValueError(f"timeout: a number of seconds is needed, up to {_LONGEST:.0f}")
        self._repository = TokenRepository(
            database, upgrade=upgrade, journal_mode=journal_mode, clock=clock
        )
        self._freshness = ExpiryPolicy(clock, expiry_buffer)
        self._serve_stale = serve_stale
        self._clock = clock
        self._cache = TokenCache(cache_ttl, clock)
        file, required = providers_file(self._repository.location)
        self._providers = ProviderRegistry(providers, file, required=required)
        self._timeout, self._session = timeout, session
        self._hooks = Hooks(on_refreshed, on_reauthorization_required, on_recovered)
        self._refresher = Refresher(
            self._repository,
            self._providers,
            self._hooks,
            timeout=timeout,
            session=session,
            clock=clock,
            changed=self._cache.forget,
        )

    def __enter__(self) -> TokenManager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the refreshes that are under way, then close; a later call opens again.

        It waits twice the `timeout` at most, as a request has ended by then.

        Raises:
            TokenPersistError: A provider gave new tokens that still cannot be stored. The process
                goes on trying until it ends.
        """
        try:
            self._refresher.close()
        finally:
            self._repository.close()

    def save_tokens(
        self,
        account_name: str,
        tokens: Mapping[str, Any],
        *,
        provider: str | Provider | None = None,
    ) -> None:
        """Store *tokens* in one durable transaction, in place of all that the account had.

        That clears what is remembered of failed refreshes.

        Args:
            account_name: The account; one that does not exist is created.
            tokens: What a provider answers: ``access_token``; optionally ``refresh_token``,
                ``expires_in`` (seconds from now) or ``expires_at`` (UTC epoch seconds or
                milliseconds, ISO 8601, ``datetime``; naive means local time); whatever else JSON
                can hold.
            provider: What to bind the account to; None leaves that as it is.

        Raises:
            InvalidTokenError: *tokens* is no token set; the error names the field and nothing is
                written.
        """
        with Operation("save_tokens", account_name, provider) as operation:
            name = normalize_account_name(account_name)
            # Looked up only for who wants to know: saving is a hot path.
            before = self._repository.record(name) if self._hooks.on_recovered else None
            token_set = TokenSet.from_mapping(tokens, now=self._clock())
            self._repository.put(name, token_set, provider=provider_name(provider))
            self._cache.forget(name)
            operation.outcome = "saved"
        if before is not None and before.needs_sign_in:
            self._hooks.recovered(name)

    def load_tokens(self, account_name: str) -> dict[str, Any] | None:
        """Return every field that was saved, ``expires_at`` in UTC epoch seconds.

        None if there is no such account. Nothing is refreshed.
        """
        with Operation("load_tokens", account_name) as operation:
            tokens = self._repository.load(account_name)
            operation.outcome = "missing" if tokens is None else "loaded"
            return tokens

    def delete_tokens(self, account_name: str) -> bool:
        """Remove an account, its secrets' bytes too; tell whether there was one."""
        with Operation("delete_tokens", account_name) as operation:
            name = normalize_account_name(account_name)
            deleted = self._repository.delete(name)
            self._cache.forget(name)
            operation.outcome = "deleted" if deleted else "missing"
            return deleted

    def backup(self, target: str | os.PathLike[str], *, replace: bool = False) -> Path:
        """Copy the database to a file, 0600, while others go on writing.

        The copy is one state of the database and appears as a whole, or not at all. It is checked
        before that, so that a damaged database does not take the place of a sound backup. It holds
        the refresh tokens of this moment: one that is rotated after it is dead in the copy.

        Args:
            target: The file; directories that are missing are made, 0700.
            replace: Replace a file that is there already.

        Returns:
            Its absolute path.
        """
        with Operation("backup", None) as operation:
            path = self._repository.backup(target, replace=replace)
            operation.outcome = "backed up"
            return path

    def login(
        self,
        account_name: str,
        provider: str | Provider | None = None,
        *,
        scope: str | None = None,
        device: bool = False,
        force: bool = False,
        timeout: float = 300.0,
        port: int = 0,
        prompt: Callable[[Prompt], object] | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> dict[str, Any]:
        """Let a person sign an account in, store the tokens and return them.

        That is the authorization code grant with PKCE through a browser on this machine, which
        comes back to a port on loopback (RFC 8252), or the device grant (RFC 8628). It needs the
        extra ``login``. An account that belonged to somebody before goes to nobody else: the
        id_token tells, where there is one.

        Args:
            account_name: The account; one that does not exist is created. An e-mail address is
                named to the provider as the one that is expected.
            provider: Where to sign in; None: where the account is bound to.
            scope: Scopes to ask for, with spaces between them; None: the provider's.
            device: Sign in with a code that is entered on any device.
            force: Store it even if it is somebody else than before, or another provider.
            timeout: Seconds to wait for the person.
            port: The port to come back to; 0: the one of the provider's redirect URI, or a free
                one.
            prompt: Called with what the person has to do, in a thread of its own if that is to
                use a browser here; None opens the browser and tells on stderr.
            sleep: Called with the seconds to wait between two requests of the device grant.

        Raises:
            ModuleNotFoundError: The extra is not installed.
            WrongAccountError: Somebody else signed in than before; their tokens were dropped.
            SignInError: The sign-in was refused, given up or is not to be trusted.
            TokenRefreshError: The provider gave no tokens; the subclass says why.
            TokenPersistError: It did, and the store would not take them.
        """
        from tokenstore.lifecycle.login import Login

        if not 0 < timeout <= _LONGEST:
            raise ValueError(f"timeout: a number of seconds is needed, up to {_LONGEST:.0f}")
        with Operation("login", account_name, provider) as operation:
            name = normalize_account_name(account_name)
            sign_in = Login(
                self._repository,
                self._providers,
                timeout=self._timeout,
                session=self._session,
                clock=self._clock,
            )
            stored, before = sign_in.run(
                name,
                provider,
                scope=scope,
                device=device,
                force=force,
                patience=timeout,
                port=port,
                prompt=prompt,
                sleep=sleep,
            )
            self._cache.forget(name)
            operation.provider, operation.outcome = stored.provider, "signed_in"
        if before is not None and before.needs_sign_in:
            self._hooks.recovered(name)
        return stored.tokens.to_dict()

    def logout(self, account_name: str, *, keep_account: bool = False) -> bool:
        """Revoke an account's tokens at its provider (RFC 7009), then remove the account.

        Args:
            account_name: The account.
            keep_account: Keep it, without its tokens, as one that has to sign in.

        Returns:
            Whether the provider was told. It was not if it has no way to, which is logged, or if
            there is no such account.

        Raises:
            TokenRefreshError: The tokens could not be revoked, so the account stays as it is; the
                subclass says why. `delete_tokens` removes it all the same.
        """
        from tokenstore.lifecycle.logout import Logout

        with Operation("logout", account_name) as operation:
            name = normalize_account_name(account_name)
            sign_out = Logout(
                self._repository, self._providers, timeout=self._timeout, session=self._session
            )
            try:
                revoked = sign_out.run(name, keep=keep_account)
            finally:
                self._cache.forget(name)
            operation.outcome = "signed_out" if revoked else "removed"
            return revoked

    def accounts(self, *, names: Iterable[str] | None = None) -> Iterator[Account]:
        """Yield every account in the order of names, without any secret.

        They are read in pages; no transaction stays open between them.

        Args:
            names: Yield only the accounts of these names, those that there are.
        """
        outlook = RefreshTokenForecast(self._providers)
        with Operation("accounts", None) as operation:
            for account in self._repository.accounts(
                expiry_buffer=self._freshness.buffer, client_of=outlook.client_of, names=names
            ):
                yield outlook.forecast(account)
            operation.outcome = "listed"

    def history(self, account_name: str | None = None) -> Iterator[HistoryEntry]:
        """Yield the remembered refreshes, of one account or of all, the newest first.

        The last 50 of each account are remembered, without any secret.
        """
        with Operation("history", account_name) as operation:
            yield from self._repository.journal.history(account_name)
            operation.outcome = "listed"

    def refresh_all(
        self,
        *,
        within: float = 0.0,
        idle_for: float | None = None,
        provider: str | None = None,
        jobs: int = 16,
        dry_run: bool = False,
        stop: Callable[[], bool] | None = None,
    ) -> Generator[RefreshResult]:
        """Refresh every account that is due; yield a result as each is done, in no order.

        Accounts that need a sign-in, and those whose provider is to be left alone for a while,
        are left out. One that fails stops nothing. One that somebody else is refreshing is
        skipped, so that several runs at once share the work.

        Args:
            within: Seconds; what becomes due within them is taken as well.
            idle_for: Seconds; take the accounts whose refresh token was not used for so long,
                in place of those that are due, so that it does not die of disuse.
            provider: Take only the accounts that are bound to this one.
            jobs: How many to refresh at the same time; of one provider no more than its
                `Provider.max_concurrency`.
            dry_run: Only tell which accounts would be refreshed, as ``skipped``.
            stop: Asked before an account is begun; once it says True, no other is. None: never.
        """
        from tokenstore.lifecycle.bulk import BulkRefresher, RefreshResult, Selection

        _require_seconds(within=within, idle_for=idle_for or 0.0)
        if jobs < 1:
            raise ValueError("jobs: a whole number, 1 or more, is needed")
        select = Selection(self._repository, self._providers, self._freshness, self._clock)
        found = select.due(within) if idle_for is None else select.unused(idle_for)
        chosen = (account for account in found if provider in {None, account.provider})
        if dry_run:
            return (RefreshResult(a.name, "skipped", "dry run") for a in chosen)

        def start(account: Account, done: Callable[[Callable[[], bool]], object]) -> None:
            fresh, used = self._freshness.check(within), _used_since(account)
            request = RefreshRequest(
                "due", lambda record: used(record) or fresh(record), patience=0.0
            )
            if idle_for is not None:
                request = RefreshRequest("forced", used, patience=0.0)

            def outcome(of_job: Callable[[], Outcome]) -> bool:
                with Operation("refresh_all", account.name, account.provider) as operation:
                    found = of_job()
                    if found.error is not None:
                        raise found.error
                    operation.outcome = "refreshed" if found.refreshed else "skipped"
                    return found.refreshed

            self._refresher.start(
                account.name, None, request, lambda of_job: done(partial(outcome, of_job))
            )

        return BulkRefresher(start, self._providers, jobs=jobs, stop=stop or _never).run(chosen)

    def refresh_token(
        self,
        account_name: str,
        provider: str | Provider | None = None,
        *,
        rejected: str | None = None,
    ) -> dict[str, Any]:
        """Refresh an account now (RFC 6749 section 6) and return its tokens.

        Neither its expiry nor a remembered failure is asked. A call that waited for another
        refresh which began after it shares that one's outcome.

        Args:
            account_name: The account.
            provider: Whom to ask; None: whom the account is bound to.
            rejected: An access token that a resource server refused. If another one is stored by
                now, that is returned and nothing is requested.

        Raises:
            TokenRefreshError: There are no new tokens; the subclass says why.
            TokenPersistError: There are, and the store would not take them.
        """

        def differs(record: Record) -> bool:
            stored, expires_at = record.tokens.access_token, record.tokens.expires_at
            lives = expires_at is None or self._clock() < expires_at
            return rejected is not None and stored not in {None, rejected} and lives

        with Operation("refresh_token", account_name, provider) as operation:
            reason: Reason = "forced" if rejected is None else "rejected"
            demand = RefreshRequest(reason, differs, rejected=rejected)
            name = normalize_account_name(account_name)
            record, refreshed = self._refresher.refresh(name, provider, demand)
            operation.provider = record.provider or operation.provider
            operation.outcome = "refreshed" if refreshed else "shared"
            return record.tokens.to_dict()

    @unprotected("a dict lookup; no variable is left when an error passes")
    def get_valid_token(
        self, account_name: str, provider: str | Provider | None = None
    ) -> str | None:
        """Return a live access token: from memory, from the store, or refreshed.

        Args:
            account_name: The account.
            provider: Whom to ask for a new one; None: whom the account is bound to.

        Returns:
            The token, or None if none can be had: then the reason is logged, and
            `ensure_valid_token` raises it.

        Raises:
            TokenPersistError: There are new tokens and the store would not take them.
        """
        try:
            if is_enabled(DEBUG):
                return self._get_valid_token(account_name, provider)
            return self._cache.get(account_name, provider) or self._get_valid_token(
                account_name, provider
            )
        except BaseException:
            del account_name, provider
            raise

    @protected
    def _get_valid_token(self, account_name: str, provider: str | Provider | None) -> str | None:
        if is_enabled(DEBUG) and (token := self._cache.get(account_name, provider)) is not None:
            log_operation(DEBUG, "get_valid_token", account_name, provider, "cached")
            return token
        try:
            with Operation("get_valid_token", account_name, provider) as operation:
                return self._ensure(account_name, provider, None, operation)
        except TokenRefreshError:
            return None

    def ensure_valid_token(
        self,
        account_name: str,
        provider: str | Provider | None = None,
        *,
        min_ttl: float | None = None,
    ) -> str:
        """Return a live access token as `get_valid_token` does, or raise why there is none.

        Args:
            account_name: The account.
            provider: Whom to ask for a new one; None: whom the account is bound to.
            min_ttl: Seconds for which the token is needed. One that was just refreshed is
                returned even if it lives shorter.

        Raises:
            TokenRefreshError: No token can be had; the subclass says why.
            TokenPersistError: There are new tokens and the store would not take them.
        """
        if min_ttl is not None:
            _require_seconds(min_ttl=min_ttl)
        with Operation("ensure_valid_token", account_name, provider) as operation:
            return self._ensure(account_name, provider, min_ttl, operation)

    @protected
    def _is_token_expired(self, tokens: Mapping[str, Any]) -> bool:
        """Tell whether *tokens* expire within the buffer, or nobody knows when.

        ``expires_at`` counts (as for `save_tokens`), else ``expires_in`` from now. What is
        malformed counts as expired and is logged.
        """
        now = self._clock()
        return self._freshness.due_at(expiry_of(tokens, now=now), None) <= now

    def _ensure(
        self,
        account_name: str,
        provider: str | Provider | None,
        min_ttl: float | None,
        operation: Operation,
    ) -> str:
        name = normalize_account_name(account_name)
        epoch = self._cache.epoch
        now = self._clock()
        found = self._repository.access_token(name) or (None, None, None, None)
        token, expires_at, refreshed_at, bound = found
        due = self._freshness.due_at(expires_at, refreshed_at, min_ttl)
        if token is not None and (expires_at is None or now < expires_at):
            require_binding(name, bound, provider)  # a refresh does it after other checks
        if token is not None and now < due and not clock_moved_back(refreshed_at, now):
            self._cache.put(name, token, bound, until=due, epoch=epoch)
            operation.outcome = "fresh"
            return token
        live = expires_at is not None and now + (min_ttl or 0.0) < expires_at
        live = live and not clock_moved_back(refreshed_at, now)
        stale = token if self._serve_stale and live else None
        try:
            demand = RefreshRequest(
                "due", self._freshness.check(min_ttl), None if stale is None else 0.0
            )
            record, refreshed = self._refresher.refresh(name, provider, demand)
        except TokenRefreshError as error:
            if stale is None:
                raise
            operation.outcome, operation.failure = "stale", error
            return stale
        operation.provider = record.provider or operation.provider
        operation.outcome = "refreshed" if refreshed else "shared"
        return self._access_token_of(record)

    def _refreshes_at_work(self) -> int:
        """Return how many refreshes are under way."""
        return self._refresher.at_work()

    def _cached(self, account_name: str, provider: str | Provider | None) -> str | None:
        """Return the token that is in memory, without any I/O."""
        return self._cache.get(account_name, provider)

    def _is_fresh(self, account_name: str, min_ttl: float | None) -> bool:
        """Tell whether the stored token will do, so that nothing is requested."""
        record = self._repository.record(normalize_account_name(account_name))
        return record is not None and self._freshness.check(min_ttl)(record)

    def _access_token_of(self, record: Record) -> str:
        token = record.tokens.access_token
        assert token is not None  # noqa: S101 - every refresh stores one
        return token


def _never() -> bool:
    return False


def _used_since(account: Account) -> Callable[[Record], bool]:
    """Return what tells that somebody else has refreshed *account* since it was listed."""
    return lambda record: record.refreshed_at != account.refreshed_at


def _require_seconds(**arguments: float) -> None:
    for name, value in arguments.items():
        if not value >= 0:
            raise ValueError(f"{name}: a number of seconds, not negative, is needed")


protect(__name__)
