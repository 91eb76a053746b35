"""Access tokens without a refresh token: what a caller gets, and a further one as stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenstore.models.accounts import Record
    from tokenstore.models.failures import Failure
    from tokenstore.models.targets import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """An access token and what is known of it, from one moment. The repr does not contain it.

    Attributes:
        token: The access token (secret!).
        token_type: Its type (RFC 6749 section 7.1); ``Bearer`` if the provider named none.
        expires_at: When it expires, in UTC epoch seconds, or None if unknown.
        scope: The scope as granted, separated by spaces, or None if unknown.
        account_name: The account.
    """

    token: str = field(repr=False)
    token_type: str
    expires_at: float | None
    scope: str | None
    account_name: str

    @classmethod
    def of(cls, record: Record) -> AccessToken:
        """Return the access token of a record, which has one."""
        further, extra = record.further, record.tokens.extra
        kind = extra.get("token_type") if further is None else further.token_type
        scope = extra.get("scope", extra.get("scopes")) if further is None else further.scope
        token = record.tokens.access_token
        assert token is not None  # noqa: S101 - for the type checker
        return cls(
            token=token,
            token_type=(kind if isinstance(kind, str) else "unknown") if kind else "Bearer",
            expires_at=record.tokens.expires_at,
            scope=to_scope(scope),
            account_name=record.account_name,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of a token response (secret!), with ``expires_at`` in epoch seconds."""
        return {
            "access_token": self.token,
            "token_type": self.token_type,
            "expires_at": self.expires_at,
            "scope": self.scope,
        }


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
    """Return a scope as one string; some providers send a list. None if it is neither."""
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        value = " ".join(value)
    return value if isinstance(value, str) and value else None
