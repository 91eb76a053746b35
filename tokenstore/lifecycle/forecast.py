"""Forecast when refresh tokens expire, from the configuration of their providers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tokenstore.errors import InsecureStorageError, ProviderConfigurationError
from tokenstore.lifecycle.unattended import is_unattended
from tokenstore.models.timestamps import NEVER, earliest

if TYPE_CHECKING:
    from tokenstore.models.accounts import Account
    from tokenstore.oauth.provider import Provider
    from tokenstore.oauth.registry import ProviderRegistry


class RefreshTokenForecast:
    """Forecasts for many accounts; each provider is looked up once.

    Args:
        providers: The providers.
    """

    def __init__(self, providers: ProviderRegistry) -> None:
        self._providers = providers
        self._known: dict[str, Provider | None] = {}
        self._unattended: dict[str | None, bool] = {}

    def client_of(self, provider: str | None) -> str | None:
        """Return the `Provider.client` of a provider, or None if it is not usable."""
        found = self._provider(provider)
        return None if found is None else found.client

    def is_unattended(self, provider: str | None) -> bool:
        """Return whether a provider's accounts need no sign-in, even if it is not usable now."""
        if provider not in self._unattended:
            try:
                self._unattended[provider] = is_unattended(self._providers, provider)
            except InsecureStorageError:  # a refresh reports it
                self._unattended[provider] = False
        return self._unattended[provider]

    def apply(self, account: Account) -> Account:
        """Return *account* with the earliest time at which its refresh token expires."""
        if self.is_unattended(account.provider):
            return replace(account, refresh_token_expires_at=None)
        found = self._provider(account.provider)
        expires_at = earliest(
            account.refresh_token_expires_at,
            _after(
                account.refresh_token_obtained_at, found.refresh_token_lifetime if found else None
            ),
            _after(account.refresh_token_used_at, found.refresh_token_idle if found else None),
        )
        expires = expires_at is not None and expires_at < NEVER
        return replace(account, refresh_token_expires_at=expires_at if expires else None)

    def _provider(self, name: str | None) -> Provider | None:
        if name is None:
            return None
        if name not in self._known:
            try:
                self._known[name] = self._providers.get(name)
            except (ProviderConfigurationError, InsecureStorageError):  # a refresh reports it
                self._known[name] = None
        return self._known[name]


def _after(timestamp: float | None, seconds: float | None) -> float | None:
    return None if timestamp is None or seconds is None else timestamp + seconds
