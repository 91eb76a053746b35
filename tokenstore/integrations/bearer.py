"""An account's access token as a bearer token (RFC 6750): what the HTTP libraries are given."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tokenstore.errors import InvalidTokenError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenstore.aio import AsyncTokenManager
    from tokenstore.manager import TokenManager
    from tokenstore.oauth.provider import Provider

_NAME = re.compile(r"[\w.-]{1,32}", re.ASCII)


def bearer_token(account_name: str, tokens: Mapping[str, Any]) -> str:
    """Return the access token of *tokens*, if it is one to be sent as ``Bearer``.

    A token whose type is not understood must not be sent at all (RFC 6749 section 7.1). A set that
    does not say its type is taken for bearer tokens.

    Raises:
        InvalidTokenError: It is of another type, or nothing that an HTTP header can hold.
    """
    kind = tokens.get("token_type") or "bearer"
    if not isinstance(kind, str) or kind.lower() != "bearer":
        shown = repr(kind) if isinstance(kind, str) and _NAME.fullmatch(kind) else "another"
        raise InvalidTokenError(
            "token_type",
            f"{account_name} has tokens of the type {shown}, which are not sent as Bearer; take "
            "the token from the manager and send it the way that its type asks for",
        )
    token: str = tokens["access_token"]
    if not token.isascii():
        raise InvalidTokenError(
            "access_token",
            f"that of {account_name} has characters which no HTTP header can hold; sign in anew",
        )
    return token


def sent_token(headers: Mapping[str, str]) -> str | None:
    """Return the token that went out in the ``Authorization`` header, if it was a bearer token."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token if scheme == "Bearer" and token else None


class Bearer:
    """The bearer token of one account.

    Args:
        manager: Whose account it is.
        account_name: The account.
        provider: Whom to ask for a new one; None: whom the account is bound to.
    """

    def __init__(
        self, manager: TokenManager, account_name: str, provider: str | Provider | None
    ) -> None:
        self._manager = manager
        self._account_name = account_name
        self._provider = provider
        self._known: str | None = None  # a token whose type was looked up

    def token(self) -> str:
        """Return a live one."""
        token = self._manager.ensure_valid_token(self._account_name, self._provider)
        if token != self._known:
            tokens = self._manager.load_tokens(self._account_name) or {}
            bearer_token(self._account_name, {**tokens, "access_token": token})
            self._known = token
        return token

    def renewed(self, rejected: str) -> str:
        """Return another one than *rejected*, which a resource server has refused."""
        tokens = self._manager.refresh_token(self._account_name, self._provider, rejected=rejected)
        return bearer_token(self._account_name, tokens)


class AsyncBearer:
    """What `Bearer` is, for asyncio."""

    def __init__(
        self, manager: AsyncTokenManager, account_name: str, provider: str | Provider | None
    ) -> None:
        self._manager = manager
        self._account_name = account_name
        self._provider = provider
        self._known: str | None = None

    async def token(self) -> str:
        """Return a live one."""
        token = await self._manager.ensure_valid_token(self._account_name, self._provider)
        if token != self._known:
            tokens = await self._manager.load_tokens(self._account_name) or {}
            bearer_token(self._account_name, {**tokens, "access_token": token})
            self._known = token
        return token

    async def renewed(self, rejected: str) -> str:
        """Return another one than *rejected*, which a resource server has refused."""
        tokens = await self._manager.refresh_token(
            self._account_name, self._provider, rejected=rejected
        )
        return bearer_token(self._account_name, tokens)
