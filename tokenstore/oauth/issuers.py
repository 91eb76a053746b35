"""Which provider issued tokens: no provider is sent the refresh token of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenstore.oauth.provider import origin

if TYPE_CHECKING:
    from tokenstore.oauth.provider import Provider


def foreign_host(issued_at: object, provider: Provider) -> str | None:
    """Return the host that issued tokens if it is not the provider's, else None.

    Args:
        issued_at: What the tokens say of it: a URL, such as the ``token_uri`` that Google's
            libraries store with them. Anything else counts as unknown.
        provider: The provider. Without a token endpoint of its own, every host counts as its own.
    """
    found = origin(issued_at) if isinstance(issued_at, str) else None
    own = origin(provider.token_endpoint or "")
    if found is None or own is None:
        return None
    others = (provider.issuer or "", *provider.token_origins)
    return None if found in {own, *map(origin, others)} else found[1]
