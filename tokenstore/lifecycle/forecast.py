"""What lies ahead of accounts, going by how their providers are configured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tokenstore.errors import ProviderConfigurationError
from tokenstore.models.timestamps import NEVER, earliest

if TYPE_CHECKING:
    from tokenstore.models.accounts import Account
    from tokenstore.oauth.provider import Provider
    from tokenstore.oauth.registry import ProviderRegistry


class RefreshTokenForecast:
    """Looks at many accounts, and looks each provider up once.

    Args:
        providers: Where they are looked up.
    """

    def __init__(self, providers: ProviderRegistry) -> None:
        self._providers = providers
        self._known: dict[str, Provider | None] = {}

    def client_of(self, provider: str | None) -> str | None:
        """Return the `Provider.client` of a provider, None if it is not usable."""
        found = self._provider(provider)
        return None if found is None else found.client

    def forecast(self, account: Account) -> Account:
        """Return *account* with the earliest moment at which its refresh token dies."""
        found = self._provider(account.provider)
        dies_at = earliest(
            account.refresh_token_expires_at,
            _after(
                account.refresh_token_obtained_at, found.refresh_token_lifetime if found else None
            ),
            _after(account.refresh_token_used_at, found.refresh_token_idle if found else None),
        )
        dies = dies_at is not None and dies_at < NEVER
        return replace(account, refresh_token_expires_at=dies_at if dies else None)

    def _provider(self, name: str | None) -> Provider | None:
        if name is None:
            return None
        if name not in self._known:
            try:
                self._known[name] = self._providers.get(name)
            except ProviderConfigurationError:  # a refresh will tell; this is not the place
                self._known[name] = None
        return self._known[name]


def _after(moment: float | None, seconds: float | None) -> float | None:
    return None if moment is None or seconds is None else moment + seconds
