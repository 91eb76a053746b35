"""A further access token of a login, as it is stored next to the account's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenstore.models.tokens import is_token

if TYPE_CHECKING:
    from tokenstore.models.failures import Failure
    from tokenstore.models.targets import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherToken:
    """A further access token of a login, as it is stored. The repr does not contain it.

    Attributes:
        target: What it is for.
        access_token: The access token, or None if none was given yet.
        token_type: Its type, or None.
        scope: The scope as granted, or None.
        expires_at: When it expires, in UTC epoch seconds; None without an access token.
        refreshed_at: When a refresh produced it, in UTC epoch seconds, or None.
        refresh_id: The journal's id of the refresh that produced it or the failure.
        failure: Why the provider refused the target, or None.
    """

    target: Target
    access_token: str | None = field(default=None, repr=False)
    token_type: str | None = None
    scope: str | None = None
    expires_at: float | None = None
    refreshed_at: float | None = None
    refresh_id: int | None = None
    failure: Failure | None = None


def to_scope(value: object) -> str | None:
    """Return a scope as one string; some providers send a list. None if it cannot be stored."""
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        value = " ".join(value)
    return str(value) if is_token(value) else None
