"""`TokenAuth`: an account's live token in every request of the requests library."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from requests.auth import AuthBase

from tokenstore.integrations.bearer import Bearer, sent_token

if TYPE_CHECKING:
    from requests import PreparedRequest, Response

    from tokenstore.manager import TokenManager
    from tokenstore.oauth.provider import Provider

_UNAUTHORIZED = 401


class TokenAuth(AuthBase):
    """Sends ``Authorization: Bearer`` with the live access token of an account (RFC 6750).

        session.auth = TokenAuth(manager, "alice@example.com")

    If the answer is a 401, the token is refreshed and the request sent again, once; requests that
    are refused together cause one refresh. A body that cannot be rewound, such as a generator, is
    not sent again: its 401 is returned, and the next request has the new token. Where requests
    leaves out the header, on a redirect to another origin, nothing is refreshed or sent again. (On
    any redirect requests prefers what ~/.netrc has for the host, if the session's ``trust_env`` is
    set.)

    What goes wrong with the token is raised, rather than a 401 returned that does not say why: a
    `TokenRefreshError`, a `StorageError`, or an `InvalidTokenError` for tokens of another type
    than bearer, which are never sent.

    Args:
        manager: The manager that keeps the account. It may be shared by threads, and so may this.
        account_name: The account.
        provider: Whom to ask for a new token; None: whom the account is bound to.
    """

    def __init__(
        self, manager: TokenManager, account_name: str, provider: str | Provider | None = None
    ) -> None:
        self._bearer = Bearer(manager, account_name, provider)

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        """Put the token into *request*."""
        request.headers["Authorization"] = f"Bearer {self._bearer.token()}"
        request.register_hook("response", partial(self._answered, start=_position(request.body)))  # type: ignore[no-untyped-call]
        return request

    def _answered(self, response: Response, *, start: int | None, **settings: Any) -> Response:
        # The header itself tells what was sent: requests drops it on its way to another origin.
        rejected = sent_token(response.request.headers)
        if response.status_code != _UNAUTHORIZED or rejected is None:
            return response
        try:
            token = self._bearer.renewed(rejected)
        except BaseException:
            response.close()
            raise
        if not _rewound(response.request.body, start):
            return response
        _ = response.content  # so that its connection can be used again
        response.close()
        request = response.request.copy()
        request.headers["Authorization"] = f"Bearer {token}"
        answer = response.connection.send(request, **settings)
        answer.history.append(response)
        return answer


def _position(body: Any) -> int | None:
    """Return where a file begins that is to be sent, or None."""
    try:
        position = body.tell()
    except (AttributeError, OSError, ValueError):
        return None
    return position if isinstance(position, int) else None


def _rewound(body: Any, start: int | None) -> bool:
    """Tell whether *body* can be sent once more, a file from where it began."""
    if body is None or isinstance(body, (str, bytes)):
        return True
    if start is None:
        return False
    try:
        body.seek(start)
    except (AttributeError, OSError, ValueError):
        return False
    return True
