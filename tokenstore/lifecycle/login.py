"""A sign-in: nothing is stored before it is known who signed in."""

from __future__ import annotations

import logging
import time
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
from tokenstore.lifecycle.request import longest_hold
from tokenstore.models.accounts import Record, is_address
from tokenstore.models.tokens import TokenSet, is_token
from tokenstore.oauth.client import require_credentials
from tokenstore.oauth.discovery import with_endpoints
from tokenstore.oauth.flows.attempt import SignInContext, TokenGrant, requested_scope
from tokenstore.oauth.flows.authorization_code import sign_in_by_browser
from tokenstore.oauth.flows.device_code import sign_in_by_device
from tokenstore.oauth.flows.id_token import (
    Subject,
    signed_in_subject,
    stored_subject,
    user_fields,
)
from tokenstore.oauth.flows.prompt import Terminal
from tokenstore.oauth.revocation import revoke
from tokenstore.storage.locks import LockTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import requests

    from tokenstore.oauth.flows.prompt import Prompt
    from tokenstore.oauth.provider import Provider
    from tokenstore.oauth.registry import ProviderRegistry
    from tokenstore.storage.repository import TokenRepository

_log = logging.getLogger(__name__)


class Login:
    """Signs accounts of one repository in.

    Args:
        repository: The repository.
        providers: The providers to sign in at.
        timeout: Seconds for one request.
        session: The session to send requests with, or None.
        clock: The time, in UTC epoch seconds.
    """

    def __init__(
        self,
        repository: TokenRepository,
        providers: ProviderRegistry,
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
        self,
        account_name: str,
        provider: str | Provider | None,
        *,
        scope: str | Iterable[str] | None = None,
        device: bool = False,
        force: bool = False,
        patience: float = 300.0,
        port: int = 0,
        prompt: Callable[[Prompt], object] | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> tuple[Record, Record | None]:
        """Sign an account in; return what is stored now, and what was stored before.

        Args:
            account_name: The account.
            provider: The provider to sign in at. Defaults to the account's provider.
            scope: Scopes to request instead of the provider's.
            device: Use the device grant (RFC 8628) instead of a redirect.
            force: Allow a different user or provider than before.
            patience: Seconds to wait for the user.
            port: The loopback port of the redirect; 0 takes a free one.
            prompt: Shows the user what to do. Defaults to the browser and standard error.
            sleep: Waits between two requests of the device grant; called with seconds.

        Raises:
            ModuleNotFoundError: A library that signing in needs is not installed.
            SignInError: The sign-in failed.
            TokenRefreshError: The provider gave no tokens; the subclass says why.
            TokenPersistError: It gave tokens, and they could not be stored.
        """
        _require_library()
        before = self._stored(account_name, force=force)
        context = self._context(
            account_name,
            provider,
            before,
            scope=scope,
            device=device,
            force=force,
            patience=patience,
        )
        prompt = prompt or Terminal()
        if device:
            grant = sign_in_by_device(context, prompt=prompt, sleep=sleep)
            return self._finish(context, grant)[0]
        return sign_in_by_browser(
            context, lambda grant: self._finish(context, grant), prompt=prompt, port=port
        )

    def _stored(self, account_name: str, *, force: bool) -> Record | None:
        """Return what is stored; a damaged row does not prevent its replacement."""
        try:
            return self._repository.record(account_name)
        except StorageError:
            if not force:
                raise
            return None

    def _context(
        self,
        account_name: str,
        provider: str | Provider | None,
        before: Record | None,
        *,
        scope: str | Iterable[str] | None,
        device: bool,
        force: bool,
        patience: float,
    ) -> SignInContext:
        endpoint = "device_authorization_endpoint" if device else "authorization_endpoint"
        try:
            chosen = with_endpoints(
                self._provider(account_name, provider, before, force=force),
                endpoint,
                timeout=self._timeout,
                session=self._session,
            )
            require_credentials(chosen)
        except TokenRefreshError as error:
            error.account_name = account_name
            raise
        return SignInContext(
            account_name=account_name,
            provider=chosen,
            scope=requested_scope(chosen, scope, account_name),
            force=force,
            patience=patience,
            timeout=self._timeout,
            session=self._session,
            clock=self._clock,
        )

    def _provider(
        self,
        account_name: str,
        provider: str | Provider | None,
        before: Record | None,
        *,
        force: bool,
    ) -> Provider:
        bound = None if before is None else before.provider
        wanted = provider or bound
        if wanted is None:
            raise ProviderConfigurationError(
                f"{account_name} is bound to no provider; name the one to sign in at (--provider, "
                "or provider=…)"
            )
        chosen = self._providers.get(wanted)
        if chosen.is_unattended:
            raise ProviderConfigurationError(
                f"{account_name}: provider {chosen.name!r} needs no sign-in: its client obtains "
                f"tokens by itself ({chosen.grant_type}); use the account, and it gets one",
                account_name=account_name,
                provider=chosen.name,
            )
        if bound not in {None, chosen.name} and not force:
            raise ProviderConfigurationError(
                f"{account_name} is bound to provider {bound!r}, not {chosen.name!r}; to sign it "
                "in there nevertheless, use force (--force)",
                provider=chosen.name,
            )
        return chosen

    def _finish(
        self, context: SignInContext, grant: TokenGrant
    ) -> tuple[tuple[Record, Record | None], str | None]:
        """Check who signed in and store the tokens; also return a name to show for the user."""
        subject = signed_in_subject(context, grant)
        response = grant.response
        if context.scope and not response.get("scope"):  # RFC 6749 section 5.1
            response = response | {"scope": context.scope}
        tokens = TokenSet().merge(
            response,
            now=grant.requested_at,
            default_expires_in=context.provider.default_expires_in,
        )
        try:
            stored, before = self._store_alone(context, tokens, subject)
        except WrongAccountError:
            self._revoke_unless_shared(context, tokens, subject)
            raise
        except StorageError as error:
            raise TokenPersistError(
                f"{context.account_name}: the sign-in succeeded, but its tokens could not be "
                f"stored: {error}. They are in this error's .tokens",
                self._repository.name,
                errno=error.errno,
                tokens=tokens.to_dict(),
            ) from None
        _warn(context, grant, subject, stored, before)
        return (stored, before), None if subject is None else subject.name

    def _store_alone(
        self, context: SignInContext, tokens: TokenSet, subject: Subject | None
    ) -> tuple[Record, Record | None]:
        """Store the tokens; keep an older refresh token only while no refresh is under way.

        A refresh under way has spent that token and is about to store its successor.
        """
        if tokens.refresh_token is not None:
            return self._store(context, tokens, subject, keep=False)
        try:
            with self._repository.refresh_lock(
                context.account_name, timeout=longest_hold(self._timeout)
            ):
                return self._store(context, tokens, subject, keep=True)
        except LockTimeoutError:
            return self._store(context, tokens, subject, keep=False)

    def _store(
        self, context: SignInContext, tokens: TokenSet, subject: Subject | None, *, keep: bool
    ) -> tuple[Record, Record | None]:
        name = context.account_name
        with self._repository.transaction():
            before = self._stored(name, force=context.force)
            known = None if before is None else stored_subject(before.tokens.extra)
            if not context.force:
                if known is not None:
                    # A response may name its user without an id_token.
                    named = stored_subject(tokens.extra)
                    is_other = subject is None and named is not None and named.differs_from(known)
                    _require_same_user(context, named if is_other else subject, known)
                elif subject is not None:
                    _require_named_user(context, subject)
            if subject is None and before is not None and not context.force:
                # Nothing says that it is another user: the next sign-in is compared, too.
                extra = {**tokens.extra, **user_fields(before.tokens.extra)}
                tokens = replace(tokens, extra=extra)
            same = subject is not None and known is not None and not subject.differs_from(known)
            if keep and same and before is not None and _is_of(before, context.provider):
                tokens = _with_refresh_token(tokens, before)
            self._repository.put(name, tokens, provider=context.provider.name)
            stored = self._repository.record(name)
        assert stored is not None  # noqa: S101 - it was just stored
        return stored, before

    def _revoke_unless_shared(
        self, context: SignInContext, tokens: TokenSet, subject: Subject | None
    ) -> None:
        """Revoke tokens that are dropped, unless that may sign out another account of this store.

        Some providers revoke everything that a user granted to the client, whichever token is sent.
        """
        with suppress(TokenStoreError):
            if context.provider.revocation_endpoint is None or subject is None:
                return
            if self._may_be_stored(subject, context):
                return
            revoke(
                context.provider,
                tokens,
                account_name=context.account_name,
                timeout=self._timeout,
                session=self._session,
            )

    def _may_be_stored(self, subject: Subject, context: SignInContext) -> bool:
        """Return whether any account of this store belongs to the user, or may belong to them."""
        for record in self._repository.listing.records():
            if not isinstance(record, Record):
                return True
            known = stored_subject(record.tokens.extra)
            if known is not None and not subject.differs_from(known):
                return True
            if known is None and record.provider in {None, context.provider.name}:
                return True
        return False


def _require_same_user(context: SignInContext, subject: Subject | None, known: Subject) -> None:
    if subject is not None and subject.differs_from(known):
        raise WrongAccountError(
            f"{context.account_name}: signed in as {subject.name}, but the account belongs to "
            f"{known.name}; nothing was stored. Sign in as {known.name}; to reassign the "
            "account, use force (--force)",
            account_name=context.account_name,
            provider=context.provider.name,
        )
    if subject is None and "openid" in context.scope.split():
        raise context.sign_in_error(
            f"the provider did not say who signed in (no id_token), and the account belongs to "
            f"{known.name}; nothing was stored. Sign in again, or use force (--force) if you "
            "know that it is the right user"
        )


def _require_named_user(context: SignInContext, subject: Subject) -> None:
    """Raise an error if an account's name is an e-mail address and the user has another one."""
    name = context.account_name
    if is_address(name) and subject.has_address(name) is False:
        raise WrongAccountError(
            f"{name}: signed in as {subject.name}, but the account is named {name}; nothing was "
            f"stored. Sign in as {name}; to store the sign-in under this name nevertheless, use "
            "force (--force)",
            account_name=name,
            provider=context.provider.name,
        )


def _is_of(record: Record, provider: Provider) -> bool:
    """Return whether the tokens of a record were issued to this client of this provider."""
    client_id = record.tokens.extra.get("client_id")
    return record.provider == provider.name and client_id in {None, "", provider.client_id}


def _with_refresh_token(tokens: TokenSet, before: Record) -> TokenSet:
    """Return *tokens* with the older refresh token, if the same user was given no new one."""
    if tokens.refresh_token is not None or before.needs_sign_in:
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


def _warn(
    context: SignInContext,
    grant: TokenGrant,
    subject: Subject | None,
    stored: Record,
    before: Record | None,
) -> None:
    """Log what a successful sign-in lacks, and how to get it."""
    name = context.account_name
    known = None if before is None else stored_subject(before.tokens.extra)
    is_checked = subject is not None and (known is not None or subject.has_address(name))
    if before is not None and not is_checked:
        _log.warning(
            "%s: cannot check that the same user signed in as before: there is no id_token to "
            "compare; request the scope openid",
            name,
        )
    elif subject is not None and is_address(name) and not is_checked and not context.force:
        _log.warning(
            "%s: signed in as %s; cannot check that this is the right user: the provider vouches "
            "for no e-mail address (email_verified); request the scope email",
            name,
            subject.name,
        )
    if not is_token(grant.response.get("refresh_token")):
        kept = stored.tokens.refresh_token is not None
        _log.warning(
            "%s: the provider gave no refresh token%s; %s",
            name,
            ", so the previous one is kept" if kept else ", so the access token is all there is",
            _remedy(context),
        )


def _remedy(context: SignInContext) -> str:
    if "offline_access" in (context.provider.sign_in_scope or "").split():
        return "allow offline access when you sign in"
    if "offline_access" in context.scope.split():
        return (
            "the scope offline_access was requested, which many providers grant only with "
            "prompt = consent in authorization_params"
        )
    return (
        "request the scope offline_access, or set what this provider needs for it in "
        "authorization_params (access_type = offline, prompt = consent)"
    )
