"""Checks before a request: which provider to use, and whether it is already known to fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenstore.errors import ProviderConfigurationError, ReauthorizationRequired
from tokenstore.lifecycle.unattended import is_unattended
from tokenstore.logs import provider_name
from tokenstore.oauth.issuers import foreign_host

if TYPE_CHECKING:
    from tokenstore.models.accounts import Record
    from tokenstore.oauth.provider import Provider
    from tokenstore.oauth.registry import ProviderRegistry


def resolve_provider(
    record: Record,
    provider: str | Provider | None,
    providers: ProviderRegistry,
    *,
    respect_failure: bool,
    now: float,
) -> Provider:
    """Return the provider that may be sent the record's refresh token.

    Args:
        record: The account.
        provider: The provider that the caller named, or None.
        providers: The registry.
        respect_failure: Whether to raise a recorded failure that still applies.
        now: The current time, in UTC epoch seconds.

    Raises:
        ReauthorizationRequired: There is no refresh token, or the provider has refused it.
        ProviderConfigurationError: The provider is unknown, or the tokens belong to another one.
        ClientRejectedError: The provider has refused the client; try again later.
        TransientRefreshError: The provider must not be contacted yet.
    """
    name = record.account_name
    if record.tokens.refresh_token is None and not is_unattended(
        providers, provider or record.provider
    ):
        raise ReauthorizationRequired(
            f"{name}: there is no refresh token; sign in again",
            account_name=name,
            provider=record.provider,
        )
    try:
        chosen = providers.get(_bound(record, provider))
    except ProviderConfigurationError as error:
        error.account_name = name
        raise
    if chosen.is_unattended:
        _require_no_user(record, chosen)
    else:
        require_same_client(record, chosen)
        require_same_issuer(record, chosen)
    failure = record.failure
    if respect_failure and failure is not None and failure.still_applies(chosen.client, now=now):
        raise failure.to_error(account_name=name, provider=chosen.name, now=now)
    return chosen


def _require_no_user(record: Record, provider: Provider) -> None:
    if record.provider is None and record.tokens.refresh_token is not None:
        raise ProviderConfigurationError(
            f"{record.account_name} is the account of a user who signed in, and provider "
            f"{provider.name!r} obtains tokens without one; name the user's provider",
            account_name=record.account_name,
            provider=provider.name,
        )


def _bound(record: Record, provider: str | Provider | None) -> str | Provider:
    """Return the provider to use: the one given, unless the account is bound to another."""
    if provider is None and record.provider is None:
        raise ProviderConfigurationError(
            f"{record.account_name} is bound to no provider; name one (--provider, or provider=…)",
            account_name=record.account_name,
        )
    require_binding(record.account_name, record.provider, provider)
    return provider or record.provider or ""


def require_binding(account_name: str, bound: str | None, provider: str | Provider | None) -> None:
    """Raise if an account is bound to another provider than the one that a caller names.

    Raises:
        ProviderConfigurationError: It is: a token is not given out as another provider's.
    """
    given = provider_name(provider)
    if given is not None and bound not in {None, given}:
        raise ProviderConfigurationError(
            f"{account_name} is bound to provider {bound!r}, not {given!r}; sign in or save its "
            "tokens with the other provider first",
            account_name=account_name,
            provider=given,
        )


def require_same_client(record: Record, provider: Provider) -> None:
    """Raise unless the record's tokens were issued to this client, as far as that is known.

    Raises:
        ProviderConfigurationError: They were issued to another one.
    """
    registered = record.tokens.extra.get("client_id")
    if isinstance(registered, str) and registered not in {"", provider.client_id}:
        raise ProviderConfigurationError(
            f"{record.account_name}: its tokens belong to another client_id than that of provider "
            f"{provider.name!r}; configure the provider with the one that they were issued to",
            account_name=record.account_name,
            provider=provider.name,
        )


def require_same_issuer(record: Record, provider: Provider) -> None:
    """Raise if the record's tokens say that another provider issued them.

    Raises:
        ProviderConfigurationError: They do; no provider is sent the tokens of another.
    """
    host = foreign_host(record.tokens.extra.get("token_uri"), provider)
    if host is not None:
        raise ProviderConfigurationError(
            f"{record.account_name}: its tokens are from {host}, not from provider "
            f"{provider.name!r}, which is not sent them; bind the account to its own provider, or "
            f"add its address to token_origins of {provider.name!r}",
            account_name=record.account_name,
            provider=provider.name,
        )
