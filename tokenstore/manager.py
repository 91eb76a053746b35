"""`TokenManager`: a valid access token for every account, whenever it is needed."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from logging import DEBUG
from typing import TYPE_CHECKING, Any

from tokenstore.errors import StorageError, TokenRefreshError
from tokenstore.lifecycle.cache import TokenCache
from tokenstore.lifecycle.eligibility import require_binding
from tokenstore.lifecycle.forecast import RefreshTokenForecast
from tokenstore.lifecycle.hooks import Hooks
from tokenstore.lifecycle.refresher import Refresher
from tokenstore.lifecycle.request import RefreshRequest
from tokenstore.lifecycle.shared import warn_of_shared_token
from tokenstore.lifecycle.unattended import is_unattended
from tokenstore.logs import Operation, is_enabled, log_operation, provider_name
from tokenstore.models.access_tokens import AccessToken
from tokenstore.models.expiry import ExpiryPolicy, clock_moved_back
from tokenstore.models.targets import Target
from tokenstore.models.timestamps import expiry_of, has_end
from tokenstore.models.tokens import TokenSet, normalize_account_name
from tokenstore.oauth.registry import ProviderRegistry
from tokenstore.redaction import protect, protected, unprotected
from tokenstore.storage.location import providers_file
from tokenstore.storage.repository import TokenRepository, refuse_pickling

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
    from pathlib import Path

    import requests
    from sqlalchemy.engine import URL

    from tokenstore.errors import ReauthorizationRequired
    from tokenstore.lifecycle.bulk import RefreshResult
    from tokenstore.lifecycle.request import Outcome
    from tokenstore.models.accounts import Account, HistoryEntry, Record
    from tokenstore.models.further_tokens import FurtherToken
    from tokenstore.oauth.flows.prompt import Prompt
    from tokenstore.oauth.provider import Provider
    from tokenstore.storage.base import JournalMode
    from tokenstore.storage.journal import Reason


_LONGEST = 86400.0  # seconds; no request takes a day


class TokenManager:
    """Keeps the tokens of many accounts and refreshes them when they are due.

    One manager may be used by many threads, and many managers, in many processes, on one
    database. Creating one does no I/O: an unusable database raises at the first call.

    Args:
        database: A path to the SQLite file, or an SQLAlchemy URL. Defaults to
            ``$TOKENSTORE_DATABASE``, else to ``tokens.db`` in the user's data directory.
        providers: Name to `Provider`, consulted before ``providers.toml`` and the built-in ones.
        expiry_buffer: Seconds; a token is due when ``expires_at <= clock() + expiry_buffer``.
        cache_ttl: Seconds for which `get_valid_token` may return a token from memory, never past
            the time when it is due; 0 disables that. Changes by this manager are seen at once,
            those by other processes within this time.
        timeout: Seconds that a caller waits for a token request, to its last byte. The request
            itself ends after twice that time, and a late response is still stored.
        serve_stale: When a refresh fails, or another process is busy with it, return the stored
            token as long as it has not expired.
        upgrade: Migrate an older database, after a backup, instead of raising
            `SchemaOutdatedError`.
        journal_mode: ``wal``, or ``delete`` for file systems without shared memory.
        session: A `requests.Session` whose proxies, ``verify``, ``cert`` and adapters are used for
            requests to providers, and nothing else of it.
        clock: The wall clock, in UTC epoch seconds.
        on_refreshed: Called with an account's name and its tokens (secret!), after a refresh.
        on_reauthorization_required: Called with the name and the `ReauthorizationRequired`, once
            when an account needs a new sign-in.
        on_recovered: Called with the name, once when such an account works again.

    Hooks run after the commit and outside every lock, and may call the manager. A hook that raises
    is logged and changes nothing.

    Every method may raise a `StorageError`, and an `InvalidTokenError` for an invalid account
    name: it must have 1 to 512 characters, none of them a control character.
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
            raise ValueError(f"timeout: expected seconds, more than 0, up to {_LONGEST:.0f}")
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

    __reduce__ = refuse_pickling

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
        """Store *tokens* in one durable transaction; they replace all tokens of the account.

        The recorded failure of the account is cleared, and its further access tokens are dropped.

        Args:
            account_name: The account, which is created if it does not exist.
            tokens: A token response: ``access_token``; optionally ``refresh_token``,
                ``expires_in`` (seconds from now) or ``expires_at`` (UTC epoch seconds or
                milliseconds, ISO 8601, ``datetime``; naive means local time); and any other fields
                that JSON can represent. Without an expiry, `Provider.default_expires_in` counts
                from now.
            provider: The provider to bind the account to. Defaults to the current one.

        Raises:
            InvalidTokenError: *tokens* is not a token set; the error names the field, and nothing
                is written.
            SupersededTokenError: The refresh token was exchanged for another one before.
        """
        with Operation("save_tokens", account_name, provider) as operation:
            name = normalize_account_name(account_name)
            # Read only if there is a hook: saving is a hot path.
            before = self._repository.record(name) if self._hooks.on_recovered else None
            token_set = TokenSet.from_mapping(tokens, now=(now := self._clock()))
            if token_set.expires_at is None or token_set.expires_at <= now:
                token_set = self._with_default_lifetime(name, token_set, provider, now)
            self._repository.put(name, token_set, provider=provider_name(provider))
            self._cache.forget(name)
            if token_set.refresh_token is not None:
                warn_of_shared_token(self._repository, name, token_set.refresh_token)
            operation.outcome = "saved"
        if before is not None and before.needs_sign_in:
            self._hooks.recovered(name)

    def load_tokens(self, account_name: str) -> dict[str, Any] | None:
        """Return every field that was saved, or None if there is no such account.

        ``expires_at`` is in UTC epoch seconds. Nothing is refreshed.
        """
        with Operation("load_tokens", account_name) as operation:
            tokens = self._repository.load(account_name)
            operation.outcome = "missing" if tokens is None else "loaded"
            return tokens

    def delete_tokens(self, account_name: str) -> bool:
        """Remove an account and the bytes of its secrets; return whether it existed."""
        with Operation("delete_tokens", account_name) as operation:
            name = normalize_account_name(account_name)
            deleted = self._repository.delete(name)
            self._cache.forget(name)
            operation.outcome = "deleted" if deleted else "missing"
            return deleted

    def backup(self, target: str | os.PathLike[str], *, replace: bool = False) -> Path:
        """Copy the database to a file, 0600, while other processes continue to write.

        The copy is a consistent state of the database. It is checked first and then appears
        completely or not at all, so that a damaged database never replaces a sound backup. It
        holds the current refresh tokens: one that is rotated later is invalid in the copy.

        Args:
            target: The file. Missing directories are created, 0700.
            replace: Replace an existing file.

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
        scope: str | Iterable[str] | None = None,
        device: bool = False,
        force: bool = False,
        timeout: float = 300.0,
        port: int = 0,
        prompt: Callable[[Prompt], object] | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> dict[str, Any]:
        """Sign a user in, store the tokens of the account and return them.

        This uses the authorization code grant with PKCE, in a browser on this machine that returns
        to a loopback port (RFC 8252), or the device grant (RFC 8628). It requires the extra
        ``login``. An account that belongs to one user is not given to another, nor one that is
        named by an e-mail address to the user of another address: the id_token says who signed in,
        where there is one.

        Args:
            account_name: The account, which is created if it does not exist. If it is an e-mail
                address, the provider is told which user is expected.
            provider: The provider to sign in at. Defaults to the account's provider.
            scope: Scopes to request: a string with spaces, or strings. Defaults to the provider's.
            device: Sign in with a code that the user enters on any device.
            force: Allow a different user or provider than before.
            timeout: Seconds to wait for the user.
            port: The port that the browser returns to. Defaults to the port of the provider's
                redirect URI, or a free one.
            prompt: Called with what the user has to do; in its own thread for a browser on this
                machine. Defaults to opening the browser and writing to standard error.
            sleep: Called with the seconds to wait between two requests of the device grant.

        Raises:
            ModuleNotFoundError: The extra is not installed.
            ValueError: An argument is invalid.
            WrongAccountError: A different user signed in; their tokens were dropped.
            SignInError: The sign-in was refused or abandoned, or failed a check.
            TokenRefreshError: The provider gave no tokens; the subclass says why.
            TokenPersistError: It gave tokens, and they could not be stored.
        """
        from tokenstore.lifecycle.login import Login

        _require_seconds(timeout=timeout)
        if not 0 < timeout <= _LONGEST:
            raise ValueError(f"timeout: expected seconds, more than 0, up to {_LONGEST:.0f}")
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
            keep_account: Keep the account without its tokens.

        Returns:
            Whether the provider revoked the tokens. It did not if it cannot, which is logged, or
            if the account does not exist.

        Raises:
            TokenRefreshError: The tokens could not be revoked, and the account is unchanged; the
                subclass says why. `delete_tokens` removes it without the provider.
        """
        from tokenstore.lifecycle.logout import Logout

        with Operation("logout", account_name) as operation:
            name = normalize_account_name(account_name)
            sign_out = Logout(
                self._repository,
                self._providers,
                timeout=self._timeout,
                session=self._session,
                clock=self._clock,
            )
            try:
                revoked = sign_out.run(name, keep=keep_account)
            finally:
                self._cache.forget(name)
            operation.outcome = "signed_out" if revoked else "removed"
            return revoked

    def accounts(self, *, names: Iterable[str] | None = None) -> Iterator[Account]:
        """Yield every account in the order of names, without secrets.

        Accounts are read in pages, and no transaction stays open between them.

        Args:
            names: Yield only the accounts with these names, if they exist.
        """
        forecast = RefreshTokenForecast(self._providers)
        with Operation("accounts", None) as operation:
            for account in self._repository.accounts(
                expiry_buffer=self._freshness.buffer,
                client_of=forecast.client_of,
                is_unattended=forecast.is_unattended,
                names=names,
            ):
                yield forecast.apply(account)
            operation.outcome = "listed"

    def history(self, account_name: str | None = None) -> Iterator[HistoryEntry]:
        """Yield the recorded refreshes, of one account or of all, newest first.

        The last 50 of each account are recorded, without secrets.
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
        """Refresh every account that is due; yield a result for each as it completes.

        Accounts that need a sign-in or a pause are left out. A failed account does not stop the
        run. An account that another process is refreshing is skipped: overlapping runs share the
        work.

        Args:
            within: Seconds; include the accounts that become due within this time.
            idle_for: Seconds; refresh the accounts whose refresh token was not used for this
                long, instead of those that are due, so that it does not expire from disuse.
            provider: Refresh only the accounts of this provider.
            jobs: Accounts to refresh concurrently; for each provider at most its
                `Provider.max_concurrency`.
            dry_run: Only list the accounts that would be refreshed, as ``skipped``.
            stop: Called before each account; returning True stops the run. Defaults to never.
        """
        from tokenstore.lifecycle.bulk import BulkRefresher, RefreshResult, Selection

        _require_seconds(within=within, idle_for=idle_for or 0.0)
        if jobs < 1:
            raise ValueError("jobs: expected a whole number, at least 1")
        select = Selection(self._repository, self._providers, self._freshness, self._clock)
        found = select.due(within) if idle_for is None else select.idle(idle_for)
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
        scope: str | Iterable[str] | None = None,
        resource: str | Iterable[str] | None = None,
    ) -> dict[str, Any]:
        """Refresh an account now (RFC 6749 section 6) and return its tokens.

        Ignores expiry and recorded failures. A call that waited for another refresh shares its
        outcome if that refresh began after the call.

        Args:
            account_name: The account.
            provider: Provider to use. Defaults to the account's provider.
            rejected: An access token that a resource server rejected. If a different one is stored
                and has not expired, it is returned without a request. A token that has just
                replaced a rejected one and is rejected itself is returned as it is.
            scope: Refresh the further access token for this scope (`get_access_token`), and
                return that without the refresh token.
            resource: Likewise, for this resource.

        Raises:
            InvalidTokenError: *scope* or *resource* is empty or has invalid characters.
            TokenRefreshError: No new tokens are available; the subclass says why.
            TokenPersistError: There are new tokens, and they are not stored yet.
        """

        def differs(record: Record) -> bool:
            stored, expires_at = record.tokens.access_token, record.tokens.expires_at
            lives = expires_at is None or self._clock() < expires_at
            return rejected is not None and stored not in {None, rejected} and lives

        with Operation("refresh_token", account_name, provider) as operation:
            reason: Reason = "forced" if rejected is None else "rejected"
            target = Target.of(scope, resource)
            request = RefreshRequest(reason, differs, rejected=rejected, target=target)
            name = normalize_account_name(account_name)
            record, refreshed = self._refresher.refresh(name, provider, request)
            operation.provider = record.provider or operation.provider
            operation.outcome = "refreshed" if refreshed else "shared"
            return (record.tokens if target is None else AccessToken.of(record)).to_dict()

    @unprotected("a dict lookup; no variable is left when an error passes")
    def get_valid_token(
        self,
        account_name: str,
        provider: str | Provider | None = None,
        *,
        scope: str | Iterable[str] | None = None,
        resource: str | Iterable[str] | None = None,
    ) -> str | None:
        """Return a valid access token: from memory, from the database, or refreshed.

        An account that belongs to no user (`Provider.grant_type`) is created if it does not exist.

        Args:
            account_name: The account.
            provider: Provider to use. Defaults to the account's provider.
            scope: Return a further access token, for this scope (`get_access_token`).
            resource: Return a further access token, for this resource.

        Returns:
            The token, or None if none is available: the reason is logged, and
            `ensure_valid_token` raises it.

        Raises:
            InvalidTokenError: *scope* or *resource* is empty or has invalid characters.
            TokenPersistError: There are new tokens, and they are not stored yet.
        """
        try:
            if scope is not None or resource is not None or is_enabled(DEBUG):
                return self._get_valid_token(account_name, provider, scope, resource)
            return self._cache.get(account_name, provider) or self._get_valid_token(
                account_name, provider
            )
        except BaseException:
            del account_name, provider, scope, resource
            raise

    @protected
    def _get_valid_token(
        self,
        account_name: str,
        provider: str | Provider | None,
        scope: str | Iterable[str] | None = None,
        resource: str | Iterable[str] | None = None,
    ) -> str | None:
        target = Target.of(scope, resource)
        if (target is not None or is_enabled(DEBUG)) and (
            token := self._cached(account_name, provider, target)
        ) is not None:
            log_operation(DEBUG, "get_valid_token", account_name, provider, "cached")
            return token
        try:
            with Operation("get_valid_token", account_name, provider) as operation:
                if target is None:
                    return self._ensure(account_name, provider, None, operation)
                return self._ensure_record(account_name, provider, None, operation, target).token
        except TokenRefreshError:
            return None

    def ensure_valid_token(
        self,
        account_name: str,
        provider: str | Provider | None = None,
        *,
        min_ttl: float | None = None,
        scope: str | Iterable[str] | None = None,
        resource: str | Iterable[str] | None = None,
    ) -> str:
        """Return a valid access token as `get_valid_token` does, or raise the reason.

        Args:
            account_name: The account.
            provider: Provider to use. Defaults to the account's provider.
            min_ttl: Seconds that the token must stay valid, at most half of what a refreshed one
                is valid for. A token that was just refreshed is returned even if it expires
                earlier.
            scope: Return a further access token, for this scope (`get_access_token`).
            resource: Return a further access token, for this resource.

        Raises:
            InvalidTokenError: *scope* or *resource* is empty or has invalid characters.
            TokenRefreshError: No token is available; the subclass says why.
            TokenPersistError: There are new tokens, and they are not stored yet.
        """
        if min_ttl is not None:
            _require_seconds(min_ttl=min_ttl)
        with Operation("ensure_valid_token", account_name, provider) as operation:
            if scope is None and resource is None:
                return self._ensure(account_name, provider, min_ttl, operation)
            target = Target.of(scope, resource)
            return self._ensure_record(account_name, provider, min_ttl, operation, target).token

    def get_access_token(
        self,
        account_name: str,
        provider: str | Provider | None = None,
        *,
        min_ttl: float | None = None,
        scope: str | Iterable[str] | None = None,
        resource: str | Iterable[str] | None = None,
    ) -> AccessToken:
        """Return a valid access token with its type, expiry and scope, or raise the reason.

        Without *scope* and *resource* it is the account's own. With them, it is a further access
        token of the same login, for another API: it is requested with the account's refresh token,
        stored and cached next to the account's own, and refreshed when it is due. An account keeps
        32 of them; `save_tokens` and a new sign-in drop them.

        Args:
            account_name: The account.
            provider: Provider to use. Defaults to the account's provider.
            min_ttl: As for `ensure_valid_token`.
            scope: Scopes to request: a string with spaces, or strings, in any order.
            resource: What the token is for (RFC 8707): a URI, or several. The request's parameter
                is the provider's `Provider.resource_parameter`.

        Raises:
            InvalidTokenError: *scope* or *resource* is empty or has invalid characters.
            TokenRefreshError: No token is available; the subclass says why. A
                `ClientRejectedError` about the scope or resource concerns these alone.
            TokenPersistError: There are new tokens, and they are not stored yet.
        """
        if min_ttl is not None:
            _require_seconds(min_ttl=min_ttl)
        target = Target.of(scope, resource)
        with Operation("get_access_token", account_name, provider) as operation:
            return self._ensure_record(account_name, provider, min_ttl, operation, target)

    @protected
    def _is_token_expired(self, tokens: Mapping[str, Any]) -> bool:
        """Return whether *tokens* expire within the buffer, or at an unknown time.

        ``expires_at`` is used (as for `save_tokens`), else ``expires_in`` from now. A malformed
        value counts as expired and is logged.
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
        if token is not None and not has_end(expires_at):
            due = self._due_without_end(name, due)
        if token is not None and now < due and not clock_moved_back(refreshed_at, now):
            self._cache.put(name, token, bound, until=due, epoch=epoch)
            operation.outcome = "fresh"
            return token
        live = expires_at is not None and now + (min_ttl or 0.0) < expires_at
        live = live and not clock_moved_back(refreshed_at, now)
        stale = token if self._serve_stale and live else None
        record = self._refreshed(name, provider, min_ttl, operation, has_stale=stale is not None)
        return stale if record is None else record.tokens.access_token  # type: ignore[return-value]

    def _ensure_record(
        self,
        account_name: str,
        provider: str | Provider | None,
        min_ttl: float | None,
        operation: Operation,
        target: Target | None,
    ) -> AccessToken:
        """Return the access token of a target, None being the account's own, from its record."""
        name = normalize_account_name(account_name)
        epoch, now = self._cache.epoch, self._clock()
        record = self._repository.record(name, target)
        live = False
        if record is not None and record.tokens.access_token is not None:
            expires_at, refreshed_at = record.tokens.expires_at, record.refreshed_at
            if expires_at is None or now < expires_at:
                require_binding(name, record.provider, provider)
            if self._freshness.check(min_ttl)(record):
                token = record.tokens.access_token
                due = self._freshness.due_at(expires_at, refreshed_at, min_ttl)
                until = float("inf") if record.is_permanent else due
                self._cache.put(
                    name, token, record.provider, until=until, epoch=epoch, target=target
                )
                operation.outcome = "fresh"
                return AccessToken.of(record)
            live = expires_at is not None and now + (min_ttl or 0.0) < expires_at
            live = self._serve_stale and live and not clock_moved_back(refreshed_at, now)
        found = self._refreshed(name, provider, min_ttl, operation, has_stale=live, target=target)
        stored = found or record
        assert stored is not None  # noqa: S101 - a stale token is one that was found
        return AccessToken.of(stored)

    def _refreshed(
        self,
        name: str,
        provider: str | Provider | None,
        min_ttl: float | None,
        operation: Operation,
        *,
        has_stale: bool,
        target: Target | None = None,
    ) -> Record | None:
        """Return the record after a refresh that was due, None if the stale token must do."""
        patience = 0.0 if has_stale else None
        request = RefreshRequest("due", self._freshness.check(min_ttl), patience, target=target)
        try:
            record, refreshed = self._refresher.refresh(name, provider, request)
        except TokenRefreshError as error:
            if not has_stale:
                raise
            operation.outcome, operation.failure = "stale", error
            return None
        operation.provider = record.provider or operation.provider
        operation.outcome = "refreshed" if refreshed else "shared"
        return record

    def _with_default_lifetime(
        self, name: str, tokens: TokenSet, provider: str | Provider | None, now: float
    ) -> TokenSet:
        """Return tokens of unknown or no expiry with the provider's default, if it is known."""
        if provider is None:
            with suppress(StorageError):  # a damaged row, which can be replaced
                found = self._repository.access_token(name)
                provider = None if found is None else found[3]
        known = None if provider is None else self._providers.find(provider)
        if known is None:
            return tokens
        lifetime = known.default_expires_in
        if tokens.expires_at is not None and not math.isinf(lifetime):
            return tokens
        # Some providers say with an expires_in of 0 that a token has no end.
        return replace(tokens, expires_at=None).with_default_lifetime(lifetime, since=now)

    def _refreshes_at_work(self) -> int:
        """Return how many refreshes are under way."""
        return self._refresher.at_work()

    def _cached(
        self, account_name: str, provider: str | Provider | None, target: Target | None = None
    ) -> str | None:
        """Return the token that is in memory, without any I/O."""
        if target is None:
            return self._cache.get(account_name, provider)
        return self._cache.get_further(account_name, target, provider)

    def _further(self, account_name: str) -> Iterator[FurtherToken]:
        """Yield the further access tokens of an account (secret!), in the order of targets."""
        return self._repository.further.of(normalize_account_name(account_name))

    def _is_unattended(self, provider: str | None) -> bool:
        """Return whether a provider's accounts need no sign-in, and may not be stored yet."""
        return is_unattended(self._providers, provider)

    def _due_without_end(self, name: str, due: float) -> float:
        """Return when a token without a known end is due: never, unless something else is known."""
        record = self._repository.record(name)
        if record is None or not record.is_endless:
            return due
        return float("inf") if record.is_permanent else float("-inf")

    def _is_fresh(
        self, account_name: str, min_ttl: float | None, target: Target | None = None
    ) -> bool:
        """Return whether the stored token is valid long enough, so that no request is needed."""
        record = self._repository.record(normalize_account_name(account_name), target)
        return record is not None and self._freshness.check(min_ttl)(record)


def _never() -> bool:
    return False


def _used_since(account: Account) -> Callable[[Record], bool]:
    """Return a check whether a record was refreshed since *account* was listed."""
    return lambda record: record.refreshed_at != account.refreshed_at


def _require_seconds(**arguments: float) -> None:
    for name, value in arguments.items():
        if not isinstance(value, (int, float)):
            raise ValueError(f"{name}: expected seconds, got {type(value).__name__}")  # noqa: TRY004
        if not value >= 0:
            raise ValueError(f"{name}: expected seconds, at least 0")


protect(__name__)
