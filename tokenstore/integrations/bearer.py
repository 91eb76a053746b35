"""Bearer tokens (RFC 6750) of an account, for the HTTP libraries."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from requests.utils import get_environ_proxies, select_proxy

from tokenstore.errors import InvalidTokenError
from tokenstore.models.targets import Target, arguments_of
from tokenstore.oauth.addresses import is_loopback
from tokenstore.redaction import protect

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenstore.aio import AsyncTokenManager
    from tokenstore.manager import TokenManager
    from tokenstore.oauth.provider import Provider

_NAME = re.compile(r"[\w.-]{1,32}", re.ASCII)


def bearer_token(account_name: str, tokens: Mapping[str, Any]) -> str:
    """Return the access token of *tokens*, if it may be sent as ``Bearer``.

    A token of an unknown type must not be sent at all (RFC 6749 section 7.1). Tokens without a
    type count as bearer tokens.

    Raises:
        InvalidTokenError: The token has another type, or does not fit into an HTTP header.
    """
    kind = tokens.get("token_type") or "bearer"
    if not isinstance(kind, str) or kind.lower() != "bearer":
        shown = repr(kind) if isinstance(kind, str) and _NAME.fullmatch(kind) else "another"
        raise InvalidTokenError(
            "token_type",
            f"{account_name} has tokens of the type {shown}, which cannot be sent as Bearer; get "
            "the token from the manager and send it as its type requires",
        )
    token: str = tokens["access_token"]
    if not token.isascii():
        raise InvalidTokenError(
            "access_token",
            f"{account_name} has one with characters that HTTP headers cannot hold; sign in again",
        )
    return token


def require_protected(url: object) -> None:
    """Refuse a URL to which a bearer token would travel in clear text (RFC 6750 section 5.3).

    Plain http is for loopback alone, and only if it is not sent through a proxy, which would take
    it off this machine.

    Args:
        url: The URL of a request, as its library has it.

    Raises:
        InvalidTokenError: The token must not be sent there.
    """
    text = url.decode("utf-8", "replace") if isinstance(url, bytes) else str(url)
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
    except ValueError:
        raise InvalidTokenError("url", "it is not a URL; no token was sent") from None
    if parts.scheme == "https":
        return
    where = host or "a URL without a host"
    # Libraries disagree on what a backslash or an @ makes of the host.
    is_local = parts.scheme == "http" and is_loopback(host) and not set(parts.netloc) & set("\\@")
    if not is_local:
        raise InvalidTokenError(
            "url",
            f"no token was sent to {where}: a bearer token requires https, except on "
            "loopback; use an https URL",
        )
    if select_proxy(text, get_environ_proxies(text)):
        raise InvalidTokenError(
            "url",
            f"no token was sent to {where}: the environment names a proxy for it, which "
            "would receive the token in clear text; add the host to $no_proxy",
        )


def sent_token(headers: Mapping[str, str]) -> str | None:
    """Return the bearer token in the ``Authorization`` header, or None."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token if scheme == "Bearer" and token else None


class Bearer:
    """The bearer token of one account.

    Args:
        manager: The account's manager.
        account_name: The account.
        provider: The provider to use. Defaults to the account's provider.
        scope: Scopes of a further access token, or None for the account's own.
        resource: What a further access token is for, or None.
    """

    def __init__(
        self,
        manager: TokenManager,
        account_name: str,
        provider: str | Provider | None,
        *,
        scope: str | Iterable[str] | None = None,
        resource: str | Iterable[str] | None = None,
    ) -> None:
        self._manager = manager
        self._account_name = account_name
        self._provider = provider
        self._target = arguments_of(Target.of(scope, resource))
        self._known: str | None = None  # a token whose type has been checked

    def token(self) -> str:
        """Return a valid token."""
        account = self._account_name, self._provider
        token = self._manager.ensure_valid_token(*account, **self._target)
        if token != self._known:
            found = self._manager.get_access_token(*account, **self._target)
            self._known = token = bearer_token(self._account_name, found.to_dict())
        return token

    def renewed(self, rejected: str) -> str:
        """Return the token to use instead of *rejected*; the same if another would not help."""
        tokens = self._manager.refresh_token(
            self._account_name, self._provider, rejected=rejected, **self._target
        )
        return bearer_token(self._account_name, tokens)


class AsyncBearer:
    """`Bearer` for asyncio."""

    def __init__(
        self,
        manager: AsyncTokenManager,
        account_name: str,
        provider: str | Provider | None,
        *,
        scope: str | Iterable[str] | None = None,
        resource: str | Iterable[str] | None = None,
    ) -> None:
        self._manager = manager
        self._account_name = account_name
        self._provider = provider
        self._target = arguments_of(Target.of(scope, resource))
        self._known: str | None = None

    async def token(self) -> str:
        """Return a valid token."""
        account = self._account_name, self._provider
        token = await self._manager.ensure_valid_token(*account, **self._target)
        if token != self._known:
            found = await self._manager.get_access_token(*account, **self._target)
            self._known = token = bearer_token(self._account_name, found.to_dict())
        return token

    async def renewed(self, rejected: str) -> str:
        """Return the token to use instead of *rejected*; the same if another would not help."""
        tokens = await self._manager.refresh_token(
            self._account_name, self._provider, rejected=rejected, **self._target
        )
        return bearer_token(self._account_name, tokens)


protect(__name__)
