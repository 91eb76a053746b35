"""A sign-out: the provider revokes the tokens, and only then are they removed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tokenstore.errors import (
    ProviderConfigurationError,
    TokenRefreshError,
    TransientRefreshError,
)
from tokenstore.lifecycle.eligibility import require_same_client, require_same_issuer
from tokenstore.lifecycle.request import busy_error, longest_hold
from tokenstore.models.tokens import TokenSet
from tokenstore.oauth.discovery import with_endpoints
from tokenstore.oauth.revocation import revoke
from tokenstore.storage.locks import LockTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    import requests

    from tokenstore.models.accounts import Record
    from tokenstore.oauth.registry import ProviderRegistry
    from tokenstore.storage.repository import TokenRepository

_log = logging.getLogger(__name__)


class Logout:
    """Signs accounts of one repository out.

    Args:
        repository: The repository.
        providers: The providers.
        timeout: Seconds for one request.
        session: The session that requests go through, or None.
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

    def run(self, name: str, *, keep: bool) -> bool:
        """Revoke the account's tokens and remove it; return whether the provider revoked them.

        The account is not refreshed meanwhile.

        Args:
            name: The account.
            keep: Keep the account without its tokens.

        Raises:
            TokenRefreshError: The tokens could not be revoked, and the account is unchanged; the
                subclass says why.
        """
        try:
            with self._repository.refresh_lock(name, timeout=longest_hold(self._timeout)):
                record = self._repository.record(name)
                if record is None:
                    return False
                try:
                    revoked = self._revoke(record)
                except TokenRefreshError as error:
                    raise _kept(error, name) from None
                self._remove(record, keep=keep)
        except LockTimeoutError:
            raise busy_error(self._repository, name) from None
        return revoked

    def _revoke(self, record: Record) -> bool:
        if record.provider is None:
            raise ProviderConfigurationError(f"{record.account_name} is bound to no provider")
        provider = with_endpoints(
            self._providers.get(record.provider),
            "revocation_endpoint",
            timeout=self._timeout,
            session=self._session,
        )
        if not provider.is_unattended:
            require_same_client(record, provider)
            require_same_issuer(record, provider)
        if provider.revocation_endpoint is None:
            _log.warning(
                "%s: provider %r cannot revoke tokens; the account is only removed from the "
                "database. End its sessions on the provider's own pages",
                record.account_name,
                provider.name,
            )
            return False
        revoke(
            provider,
            record.tokens,
            account_name=record.account_name,
            timeout=self._timeout,
            session=self._session,
            further=self._further_tokens(record.account_name),
        )
        return True

    def _further_tokens(self, name: str) -> list[str]:
        """Return the further access tokens of an account that may still be accepted."""
        return [
            each.access_token
            for each in self._repository.further.of(name)
            if each.access_token is not None
            and (each.expires_at is None or self._clock() < each.expires_at)
        ]

    def _remove(self, record: Record, *, keep: bool) -> None:
        """Remove the revoked tokens, unless the account has changed meanwhile."""
        name = record.account_name
        with self._repository.transaction():
            now = self._repository.record(name)
            if now is not None and now.version != record.version:
                raise TransientRefreshError(
                    f"{name} was signed in again during the sign-out; try again",
                    account_name=name,
                    provider=record.provider,
                )
            if now is not None and keep:
                self._repository.put(name, _without_tokens(record.tokens))
            elif now is not None:
                self._repository.delete(name)


def _without_tokens(tokens: TokenSet) -> TokenSet:
    """Return the fields to keep: who the user is, and what else was saved."""
    gone = {"expires_in", "client_secret", "token_response"}  # the last two of imported files
    return TokenSet(extra={k: v for k, v in tokens.extra.items() if k not in gone})


def _kept(error: TokenRefreshError, name: str) -> TokenRefreshError:
    """Return *error* with its consequence for the account."""
    error.account_name = name
    error.args = (
        f"{error}; {name} is still stored; try again, or delete it without telling the provider",
    )
    return error
