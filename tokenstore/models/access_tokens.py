"""What a caller gets of an account or one of its targets: an access token, no refresh token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenstore.models.further_tokens import to_scope
from tokenstore.redaction import protect

if TYPE_CHECKING:
    from tokenstore.models.accounts import Record


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


protect(__name__)
