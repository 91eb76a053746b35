"""A refresh for a further access token: what is requested, and what is stored of a response."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tokenstore.lifecycle.grant import without_other_scope
from tokenstore.models.further_tokens import FurtherToken, to_scope
from tokenstore.models.tokens import is_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenstore.models.accounts import Record
    from tokenstore.models.targets import Target
    from tokenstore.models.tokens import TokenSet
    from tokenstore.oauth.client import TokenResponse
    from tokenstore.oauth.provider import Provider


def requesting(provider: Provider, record: Record, target: Target | None) -> Provider:
    """Return *provider* with the scope that a refresh requests.

    For a target that names none, it is the scope of a refresh for the account's own token.
    """
    if target is None or target.scope is None:
        return provider if provider.is_unattended else without_other_scope(provider, record)
    return replace(provider, scope=target.scope)


def refresh_token_only(
    merge: Callable[[TokenSet], TokenSet],
) -> Callable[[TokenSet], TokenSet]:
    """Return what stores of a response a new refresh token, and keeps everything else.

    Args:
        merge: Merges the response into a token set.
    """

    def merge_refresh_token(current: TokenSet) -> TokenSet:
        merged = merge(current)
        return replace(
            current,
            refresh_token=merged.refresh_token,
            refresh_token_obtained_at=merged.refresh_token_obtained_at,
            refresh_token_expires_at=merged.refresh_token_expires_at,
        )

    return merge_refresh_token


def further_token(
    target: Target, response: TokenResponse, merged: TokenSet, *, refreshed_at: float, id_: int
) -> FurtherToken:
    """Return the further access token of a response.

    Args:
        target: What it is for.
        response: The response.
        merged: What the response makes of the tokens that were there.
        refreshed_at: When the request was sent, in UTC epoch seconds.
        id_: The journal's id of the refresh.
    """
    kind = response.fields.get("token_type")
    return FurtherToken(
        target=target,
        access_token=merged.access_token,
        token_type=str(kind) if is_token(kind) else None,  # it must be storable
        # Without one, the scope is what was requested (RFC 6749 section 5.1).
        scope=to_scope(response.fields.get("scope")) or target.scope,
        expires_at=None if merged.access_token is None else merged.expires_at,
        refreshed_at=refreshed_at,
        refresh_id=id_,
    )
