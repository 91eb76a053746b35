"""What a refresh requests of a grant, and whose response it accepts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tokenstore.errors import ReauthorizationRequired
from tokenstore.oauth.flows.id_token import may_replace, stored_subject

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenstore.errors import TokenRefreshError
    from tokenstore.models.accounts import Record
    from tokenstore.oauth.client import TokenResponse
    from tokenstore.oauth.provider import Provider

_USER_FIELDS = {"id_token", "iss", "sub"}


def without_other_scope(provider: Provider, record: Record) -> Provider:
    """Return *provider*, which requests no scope if another one was granted (RFC 6749 section 6).

    Without a scope, everything that was granted is renewed. A scope that was not granted is
    refused, and one that is narrower narrows the grant.
    """
    granted = _granted_scope(record.tokens.extra)
    if granted is None or granted == set((provider.scope or "").split()):
        return provider
    return replace(provider, scope=None)


def _granted_scope(fields: Mapping[str, Any]) -> set[str] | None:
    """Return the scope of a token set, a string or a list, also under the name ``scopes``."""
    for name in ("scope", "scopes"):
        value = fields.get(name)
        if isinstance(value, str):
            return set(value.replace(",", " ").split())
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return set(value)
    return None


def of_same_user(
    record: Record, provider: Provider, response: TokenResponse
) -> TokenResponse | TokenRefreshError:
    """Return a response without what hides the account's user, or the error of another user's.

    The stored id_token says who signed in; a refresh does not change that (OpenID Connect Core
    section 12.2). One that cannot be read, names no issuer, or is for another client does not
    replace it.
    """
    known, given = stored_subject(record.tokens.extra), stored_subject(response.fields)
    if known is None:
        return response
    ignored = set()
    if given is None or (given.issuer is None and known.issuer is not None):
        ignored = _USER_FIELDS
    elif not may_replace(response.fields.get("id_token"), record.tokens.extra.get("id_token")):
        ignored = {"id_token"}
    kept = {name: value for name, value in response.fields.items() if name not in ignored}
    response = replace(response, fields=kept)
    if given is not None and given.differs_from(known):
        return ReauthorizationRequired(
            f"{record.account_name}: the response of provider {provider.name!r} is for "
            f"{given.name}, but the account belongs to {known.name}; nothing was stored; sign in "
            "again",
            account_name=record.account_name,
            provider=provider.name,
        )
    return response
