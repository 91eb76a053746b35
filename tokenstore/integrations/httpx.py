"""`TokenAuth`: an account's valid token in every httpx request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenstore.aio import AsyncTokenManager
from tokenstore.integrations.bearer import (
    AsyncBearer,
    Bearer,
    require_protected,
    sent_token,
)
from tokenstore.models.targets import Target, arguments_of
from tokenstore.redaction import protect

try:
    import httpx
except ModuleNotFoundError as error:
    if error.name != "httpx":
        raise
    raise ModuleNotFoundError(
        "tokenstore.integrations.httpx needs its extra; run: pip install 'tokenstore[httpx]'",
        name=error.name,
    ) from None

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterable

    from tokenstore.manager import TokenManager
    from tokenstore.oauth.provider import Provider


class TokenAuth(httpx.Auth):
    """Sends ``Authorization: Bearer`` with an account's valid access token (RFC 6750).

        client = httpx.Client(auth=TokenAuth(manager, "alice@example.com"))

    Works with ``Client`` and, on asyncio, with ``AsyncClient``, whose event loop it never blocks.

    If the response is a 401, the token is refreshed and the request is sent again, once;
    concurrent 401s cause one refresh. A body that httpx does not hold in memory (a file, a
    generator, a multipart upload) is not sent again: its 401 is returned, and the next request has
    the new token. Call ``request.read()`` before sending to hold the body in memory. On a redirect
    to another origin httpx drops the header; then nothing is refreshed or sent again.

    If no token can be obtained, the request raises the reason instead of returning the 401: a
    `TokenRefreshError`, a `StorageError`, or an `InvalidTokenError` for tokens that are not bearer
    tokens, or a URL with plain http, which they are never sent to (loopback excepted).

    Args:
        manager: The account's manager, of either kind, for either kind of client. For an
            `AsyncClient`, prefer one `AsyncTokenManager` that all accounts share.
        account_name: The account.
        provider: The provider to use. Defaults to the account's provider.
        scope: Scopes of a further access token of the login, for this API
            (`TokenManager.get_access_token`). Defaults to the account's own token.
        resource: Likewise, what the token is for (RFC 8707).
    """

    def __init__(
        self,
        manager: TokenManager | AsyncTokenManager,
        account_name: str,
        provider: str | Provider | None = None,
        *,
        scope: str | Iterable[str] | None = None,
        resource: str | Iterable[str] | None = None,
    ) -> None:
        if not isinstance(manager, AsyncTokenManager):
            manager = AsyncTokenManager(manager)  # no threads until a coroutine needs one
        target = arguments_of(Target.of(scope, resource))
        self._bearer = Bearer(manager.manager, account_name, provider, **target)
        self._async_bearer = AsyncBearer(manager, account_name, provider, **target)

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request, and again if the token is refused."""
        _authorize(request, self._bearer.token())
        response = yield request
        rejected = _rejected(response)
        if rejected is not None:
            token = self._bearer.renewed(rejected)
            if token != rejected and _is_in_memory(response.request):
                yield _authorize(response.request, token)

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send the request, and again if the token is refused."""
        _authorize(request, await self._async_bearer.token())
        response = yield request
        rejected = _rejected(response)
        if rejected is not None:
            token = await self._async_bearer.renewed(rejected)
            if token != rejected and _is_in_memory(response.request):
                yield _authorize(response.request, token)


def _authorize(request: httpx.Request, token: str) -> httpx.Request:
    require_protected(request.url)
    request.headers["Authorization"] = f"Bearer {token}"
    return request


def _rejected(response: httpx.Response) -> str | None:
    """Return the refused token, or None.

    After redirects, *response* belongs to the last request, and its header shows what was sent:
    httpx drops the header on a redirect to another origin.
    """
    if response.status_code != httpx.codes.UNAUTHORIZED:
        return None
    return sent_token(response.request.headers)


def _is_in_memory(request: httpx.Request) -> bool:
    """Return whether the body can be sent again; httpx cannot reliably rewind another kind."""
    return isinstance(request.stream, httpx.ByteStream)


protect(__name__)
