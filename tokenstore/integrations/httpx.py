"""`TokenAuth`: an account's live token in every request of the httpx library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenstore.aio import AsyncTokenManager
from tokenstore.integrations.bearer import AsyncBearer, Bearer, sent_token

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
    from collections.abc import AsyncGenerator, Generator

    from tokenstore.manager import TokenManager
    from tokenstore.oauth.provider import Provider


class TokenAuth(httpx.Auth):
    """Sends ``Authorization: Bearer`` with the live access token of an account (RFC 6750).

        client = httpx.Client(auth=TokenAuth(manager, "alice@example.com"))

    Works with ``Client`` and, on asyncio, with ``AsyncClient``, whose event loop it never blocks.

    If the answer is a 401, the token is refreshed and the refused request sent again, once;
    requests that are refused together cause one refresh. A body that httpx does not hold in memory
    (a file, a generator, a multipart upload) is not sent again: its 401 is returned, and the next
    request has the new token; ``request.read()`` before it is sent makes it one that is. Where
    httpx leaves out the header, on a redirect to another origin, nothing is refreshed or sent
    again.

    What goes wrong with the token is raised, rather than a 401 returned that does not say why: a
    `TokenRefreshError`, a `StorageError`, or an `InvalidTokenError` for tokens of another type
    than bearer, which are never sent.

    Args:
        manager: The manager that keeps the account, of either kind, for either kind of client. An
            `AsyncClient` is served best by an `AsyncTokenManager`, which all accounts share.
        account_name: The account.
        provider: Whom to ask for a new token; None: whom the account is bound to.
    """

    def __init__(
        self,
        manager: TokenManager | AsyncTokenManager,
        account_name: str,
        provider: str | Provider | None = None,
    ) -> None:
        if not isinstance(manager, AsyncTokenManager):
            manager = AsyncTokenManager(manager)  # costs nothing until a coroutine uses it
        self._bearer = Bearer(manager.manager, account_name, provider)
        self._async_bearer = AsyncBearer(manager, account_name, provider)

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request, and once more if it is refused."""
        _authorize(request, self._bearer.token())
        response = yield request
        rejected = _rejected(response)
        if rejected is not None:
            token = self._bearer.renewed(rejected)
            if _is_in_memory(response.request):
                yield _authorize(response.request, token)

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send the request, and once more if it is refused."""
        _authorize(request, await self._async_bearer.token())
        response = yield request
        rejected = _rejected(response)
        if rejected is not None:
            token = await self._async_bearer.renewed(rejected)
            if _is_in_memory(response.request):
                yield _authorize(response.request, token)


def _authorize(request: httpx.Request, token: str) -> httpx.Request:
    request.headers["Authorization"] = f"Bearer {token}"
    return request


def _rejected(response: httpx.Response) -> str | None:
    """Return the token that was refused, if one was.

    After redirects, *response* is that of the last request, and the header of that tells what was
    sent: httpx drops it on its way to another origin.
    """
    if response.status_code != httpx.codes.UNAUTHORIZED:
        return None
    return sent_token(response.request.headers)


def _is_in_memory(request: httpx.Request) -> bool:
    """Tell whether the body can be sent once more: httpx can rewind nothing else for sure."""
    return isinstance(request.stream, httpx.ByteStream)
