"""A sign-in from its start to its end: nothing is stored before it is known whose it is."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tokenstore.errors import (
    ProviderConfigurationError,
    StorageError,
    TokenPersistError,
    TokenRefreshError,
    TokenStoreError,
    WrongAccountError,
)
from tokenstore.lifecycle.warning import warn
from tokenstore.lifecycle.wish import scope_of
from tokenstore.models.accounts import Record
from tokenstore.models.tokens import TokenSet
from tokenstore.oauth.flows.attempt import Attempt, Granted, with_endpoints
from tokenstore.oauth.flows.authorization_code import by_browser
from tokenstore.oauth.flows.device_code import by_device
from tokenstore.oauth.flows.id_token import Identity, who_it_was, who_signed_in
from tokenstore.oauth.flows.prompt import Terminal
from tokenstore.oauth.revocation import revoke

if TYPE_CHECKING:
    from collections.abc import Callable

    import requests

    from tokenstore.lifecycle.wish import Wish
    from tokenstore.oauth.provider import Provider
    from tokenstore.oauth.registry import Providers
    from tokenstore.storage.repository import TokenRepository


class SignIn:
    """Signs accounts of one repository in.

    Args:
        repository: Where the accounts are.
        providers: Where to sign in.
        timeout: Seconds for one request.
        session: The session to send them with, or None.
        clock: The time, in UTC epoch seconds.
    """

    def __init__(
        self,
        repository: TokenRepository,
        providers: Providers,
        *,
        timeout: float,
        session: requests.Session | None,
        clock: Callable[[], float],
    ) -> None:
        self._repository = repository
        self._providers = providers
        self._timeout = timeout
        self._session = session
        self._clock = clock

    def run(
        self, name: str, provider: str | Provider | None, wish: Wish
    ) -> tuple[Record, Record | None]:
        """Sign in; return what is stored now, and what was before.

        Raises:
            ModuleNotFoundError: What signing in needs is not installed.
            SignInError: It came to nothing.
            TokenRefreshError: The provider did not give tokens; the subclass says why.
            TokenPersistError: It did, and the store would not take them.
        """
        _require_library()
        before = self._before(name, wish)
        chosen = self._chosen(name, provider, before, wish)
        attempt = Attempt(
            account_name=name,
            provider=chosen,
            scope=scope_of(chosen, wish.scope),
            patience=wish.patience,
            timeout=self._timeout,
            session=self._session,
            clock=self._clock,
        )
        prompt = wish.prompt or Terminal()

        def finish(granted: Granted) -> tuple[tuple[Record, Record | None], str | None]:
            return self._finish(attempt, granted, wish)

        if wish.device:
            return finish(by_device(attempt, prompt=prompt, wait=wish.wait))[0]
        return by_browser(attempt, finish, prompt=prompt, port=wish.port)

    # -- before -------------------------------------------------------------------------------

    def _before(self, name: str, wish: Wish) -> Record | None:
        """Return what is stored; what cannot be read is no hindrance if it is to be replaced."""
        try:
            return self._repository.record(name)
        except StorageError:
            if not wish.force:
                raise
            return None

    def _chosen(
        self, name: str, provider: str | Provider | None, before: Record | None, wish: Wish
    ) -> Provider:
        bound = None if before is None else before.provider
        wanted = provider or bound
        try:
            if wanted is None:
                raise ProviderConfigurationError(
                    f"{name} is bound to no provider; name the one to sign in at (--provider, or "
                    "provider=…)"
                )
            chosen = self._providers.get(wanted)
            if bound not in {None, chosen.name} and not wish.force:
                raise ProviderConfigurationError(
                    f"{name} is bound to provider {bound!r}, not {chosen.name!r}; to sign it in "
                    "there all the same, use force (--force)",
                    provider=chosen.name,
                )
            return with_endpoints(
                chosen,
                "device_authorization_endpoint" if wish.device else "authorization_endpoint",
                timeout=self._timeout,
                session=self._session,
            )
        except TokenRefreshError as error:
            error.account_name = name
            raise

    # -- after --------------------------------------------------------------------------------

    def _finish(
        self, attempt: Attempt, granted: Granted, wish: Wish
    ) -> tuple[tuple[Record, Record | None], str | None]:
        """Look who signed in, then store it; return what is to be told."""
        who = who_signed_in(attempt, granted)
        answer = granted.answer
        if attempt.scope and not answer.get("scope"):  # then it is what was asked for
            answer = answer | {"scope": attempt.scope}
        tokens = TokenSet().merge(
            answer,
            now=granted.asked_at,
            default_expires_in=attempt.provider.default_expires_in,
        )
        try:
            stored, before = self._store_alone(attempt, tokens, who, wish)
        except WrongAccountError:
            self._drop(attempt, tokens, who)
            raise
        except StorageError as error:
            raise TokenPersistError(
                f"{attempt.account_name}: the sign-in succeeded and could not be stored: {error}. "
                "Its tokens are in this error's .tokens",
                self._repository.name,
                errno=error.errno,
                tokens=tokens.to_dict(),
            ) from None
        warn(attempt, granted, who, stored, before)
        return (stored, before), None if who is None else who.shown

    def _store_alone(
        self, attempt: Attempt, tokens: TokenSet, who: Identity | None, wish: Wish
    ) -> tuple[Record, Record | None]:
        """Store the tokens; while nobody refreshes, if the refresh token from before may stay.

        A refresh that is under way has spent it, and brings the next one.
        """
        if tokens.refresh_token is not None:
            return self._store(attempt, tokens, who, wish, keep=False)
        try:
            with self._repository.refresh_lock(attempt.account_name, timeout=3 * self._timeout):
                return self._store(attempt, tokens, who, wish, keep=True)
        except TimeoutError:
            return self._store(attempt, tokens, who, wish, keep=False)

    def _store(
        self,
        attempt: Attempt,
        tokens: TokenSet,
        who: Identity | None,
        wish: Wish,
        *,
        keep: bool,
    ) -> tuple[Record, Record | None]:
        name = attempt.account_name
        with self._repository.transaction():
            before = self._before(name, wish)
            was = None if before is None else who_it_was(before.tokens.extra)
            if who is not None and was is not None and who.differs_from(was) and not wish.force:
                raise WrongAccountError(
                    f"{name}: this was {who.shown}, and before it was {was.shown}; nothing was "
                    "stored. Sign in as before, or use force (--force) if the account is to change "
                    "hands",
                    account_name=name,
                    provider=attempt.provider.name,
                )
            unsaid = who is None and "openid" in attempt.scope.split()
            if unsaid and was is not None and not wish.force:
                raise attempt.failed(
                    f"the provider did not say who signed in (no id_token), and before it was "
                    f"{was.shown}; nothing was stored. Sign in again, or use force (--force) if "
                    "you know that it is the right person"
                )
            same = who is not None and was is not None and not who.differs_from(was)
            if keep and same and before is not None and _is_of(before, attempt.provider):
                tokens = _with_refresh_token(tokens, before)
            self._repository.put(name, tokens, provider=attempt.provider.name)
            stored = self._repository.record(name)
        assert stored is not None  # noqa: S101 - it was put there
        return stored, before

    def _drop(self, attempt: Attempt, tokens: TokenSet, who: Identity | None) -> None:
        """Revoke what nobody will use, unless that ends another account of the same person.

        Some providers end all that the person allowed this client, whichever token is revoked.
        """
        with suppress(TokenStoreError):
            if attempt.provider.revocation_endpoint is None or who is None:
                return
            if self._may_be_known(who, attempt):
                return
            revoke(
                attempt.provider,
                tokens,
                account_name=attempt.account_name,
                timeout=self._timeout,
                session=self._session,
            )

    def _may_be_known(self, who: Identity, attempt: Attempt) -> bool:
        """Tell whether an account of this store is that person, or may be for all it says."""
        for record in self._repository.listing.records():
            if not isinstance(record, Record):
                return True
            was = who_it_was(record.tokens.extra)
            if was is not None and not who.differs_from(was):
                return True
            if was is None and record.provider in {None, attempt.provider.name}:
                return True
        return False


def _is_of(record: Record, provider: Provider) -> bool:
    """Tell whether the tokens of a record were issued to this client of this provider."""
    client_id = record.tokens.extra.get("client_id")
    return record.provider == provider.name and client_id in {None, "", provider.client_id}


def _with_refresh_token(tokens: TokenSet, before: Record) -> TokenSet:
    """Return *tokens* with the refresh token from before, if the same person got no new one."""
    if tokens.refresh_token is not None or before.is_dead:
        return tokens
    return replace(
        tokens,
        refresh_token=before.tokens.refresh_token,
        refresh_token_obtained_at=before.tokens.refresh_token_obtained_at,
        refresh_token_expires_at=before.tokens.refresh_token_expires_at,
    )


def _require_library() -> None:
    if find_spec("authlib") is None:
        raise ModuleNotFoundError(
            "signing in needs an extra; run: pip install 'tokenstore[login]'", name="authlib"
        )
