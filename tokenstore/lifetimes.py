"""How long refresh tokens live, going by what providers say or are configured to do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tokenstore.accounts import min_of
from tokenstore.errors import ProviderConfigurationError
from tokenstore.tokens import NEVER

if TYPE_CHECKING:
    from tokenstore.accounts import Account
    from tokenstore.registry import Providers


class RefreshTokenLifetimes:
    """Forecasts for many accounts; each provider is looked up once.

    Args:
        providers: Where `Provider.refresh_token_lifetime` and `Provider.refresh_token_idle` are.
    """

    def __init__(self, providers: Providers) -> None:
        self._providers = providers
        self._known: dict[str, tuple[float | None, float | None]] = {}

    def forecast(self, account: Account) -> Account:
        """Return *account* with the earliest moment at which its refresh token dies."""
        lifetime, idle = self._of(account.provider)
        dies_at = min_of(
            account.refresh_token_expires_at,
            _after(account.refresh_token_obtained_at, lifetime),
            _after(account.refresh_token_used_at, idle),
        )
        dies = dies_at is not None and dies_at < NEVER
        return replace(account, refresh_token_expires_at=dies_at if dies else None)

    def _of(self, provider: str | None) -> tuple[float | None, float | None]:
        if provider is None:
            return None, None
        if provider not in self._known:
            try:
                found = self._providers.get(provider)
            except ProviderConfigurationError:  # its refresh will tell; a forecast is not the place
                self._known[provider] = None, None
            else:
                self._known[provider] = found.refresh_token_lifetime, found.refresh_token_idle
        return self._known[provider]


def _after(moment: float | None, seconds: float | None) -> float | None:
    return None if moment is None or seconds is None else moment + seconds
