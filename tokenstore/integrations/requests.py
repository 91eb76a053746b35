"""`TokenAuth`: an account's valid token in every request of the requests library."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from requests.auth import AuthBase

from tokenstore.integrations.bearer import Bearer, require_protected, sent_token
from tokenstore.redaction import protect

if TYPE_CHECKING:
    from collections.abc import Iterable

    from requests import PreparedRequest, Response

    from tokenstore.manager import TokenManager
    from tokenstore.oauth.provider import Provider

_UNAUTHORIZED = 401


class TokenAuth(AuthBase):
    """Sends ``Authorization: Bearer`` with an account's valid access token (RFC 6750).

        session.auth = TokenAuth(manager, "alice@example.com")

    If the response is a 401, the token is refreshed and the request is sent again, once;
    concurrent 401s cause one refresh. A body that cannot be rewound, such as a generator, is not
    sent again: its 401 is returned, and the next request has the new token. On a redirect to
    another origin requests drops the header; then nothing is refreshed or sent again. (On any
    redirect requests prefers the credentials in ~/.netrc, if the session's ``trust_env`` is set.)

    If no token can be obtained, the request raises the reason instead of returning the 401: a
    `TokenRefreshError`, a `StorageError`, or an `InvalidTokenError` for tokens that are not bearer
    tokens, or a URL with plain http, which they are never sent to (loopback excepted).

    Args:
        manager: The account's manager. Threads may share it, and this object as well.
        account_name: The account.
        provider: The provider to use. Defaults to the account's provider.
        scope: Scopes of a further access token of the login, for this API
            (`TokenManager.get_access_token`). Defaults to the account's own token.
        resource: Likewise, what the token is for (RFC 8707).
    """

    def __init__(
        self,
        manager: TokenManager,
        account_name: str,
        provider: str | Provider | None = None,
        *,
        scope: str | Iterable[str] | None = None,
        resource: str | Iterable[str] | None = None,
    ) -> None:
        self._bearer = Bearer(manager, account_name, provider, scope=scope, resource=resource)

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        """Put the token into *request*."""
        require_protected(request.url)
        request.headers["Authorization"] = f"Bearer {self._bearer.token()}"
        request.register_hook("response", partial(self.handle_401, start=_position(request.body)))  # type: ignore[no-untyped-call]
        return request

    def handle_401(self, response: Response, *, start: int | None, **settings: Any) -> Response:
        """Refresh a refused token and send the request again; requests calls this.

        Args:
            response: Any response; only a 401 is handled.
            start: Where the request's body starts, if it is a file.
            **settings: How requests sent the request.
        """
        self._keep_from_plain_http(response)
        # The header shows what was sent: requests drops it on a redirect to another origin.
        rejected = sent_token(response.request.headers)
        if response.status_code != _UNAUTHORIZED or rejected is None:
            return response
        try:
            token = self._bearer.renewed(rejected)
        except BaseException:
            response.close()
            raise
        if token == rejected or not _rewound(response.request.body, start):
            return response
        _ = response.content  # so that the connection can be reused
        response.close()
        request = response.request.copy()
        request.headers["Authorization"] = f"Bearer {token}"
        second = response.connection.send(request, **settings)
        second.history.append(response)
        return second

    def _keep_from_plain_http(self, response: Response) -> None:
        """Drop the token before a redirect to plain http, also if the session would keep it."""
        headers = response.request.headers
        if not response.is_redirect or sent_token(headers) is None:
            return
        try:
            require_protected(urljoin(response.url, response.headers["Location"]))
        except ValueError:  # an InvalidTokenError is one, too
            del headers["Authorization"]


def _position(body: Any) -> int | None:
    """Return where the body starts, if it is a file, else None."""
    try:
        position = body.tell()
    except (AttributeError, OSError, ValueError):
        return None
    return position if isinstance(position, int) else None


def _rewound(body: Any, start: int | None) -> bool:
    """Return whether *body* can be sent again, and rewind a file to *start*."""
    if body is None or isinstance(body, (str, bytes)):
        return True
    if start is None:
        return False
    try:
        body.seek(start)
    except (AttributeError, OSError, ValueError):
        return False
    return True


protect(__name__)
