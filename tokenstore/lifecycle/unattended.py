"""Accounts that belong to no user: the client obtains their tokens by itself (RFC 6749 4.4).

They need no sign-in, and nothing has to be stored before their first use. Once there is a row,
everything else is as for other accounts; only that no refresh token is spent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenstore.models.accounts import Record
from tokenstore.models.tokens import TokenSet

if TYPE_CHECKING:
    from tokenstore.oauth.provider import Provider
    from tokenstore.oauth.registry import ProviderRegistry
    from tokenstore.storage.repository import TokenRepository

_NOT_STORED = -1  # versions are not negative


def is_unattended(providers: ProviderRegistry, provider: str | Provider | None) -> bool:
    """Return whether the accounts of a provider belong to no user, as far as it is known."""
    found = None if provider is None else providers.find(provider)
    return found is not None and found.is_unattended


def unstored_record(
    account_name: str, providers: ProviderRegistry, provider: str | Provider | None
) -> Record | None:
    """Return a record without tokens for an account that is not stored, None if it must be."""
    found = None if provider is None else providers.find(provider)
    if found is None or not found.is_unattended:
        return None
    return Record(
        account_name=account_name,
        provider=found.name,
        tokens=TokenSet(),
        version=_NOT_STORED,
        refreshed_at=None,
        refresh_id=None,
        failure=None,
    )


def store_if_new(record: Record, repository: TokenRepository) -> Record | None:
    """Store a record that is not stored yet; return what is stored, None if it changed meanwhile.

    The caller is about to send a request: what cannot be configured leaves no account behind.
    """
    if record.version != _NOT_STORED:
        return record
    name = record.account_name
    if not repository.put(name, record.tokens, provider=record.provider, existing="keep"):
        return None  # another process has stored an account of this name
    return repository.record(name)
