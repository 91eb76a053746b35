"""`Credentials`: a stored account for Google's client libraries (google-auth)."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tokenstore.errors import TokenRefreshError
from tokenstore.integrations.bearer import bearer_token, require_protected
from tokenstore.models.targets import Target, arguments_of
from tokenstore.redaction import protect

try:
    from google.auth.credentials import CredentialsWithQuotaProject
    from google.auth.exceptions import RefreshError
except ModuleNotFoundError as error:
    if error.name not in {"google", "google.auth"}:
        raise
    raise ModuleNotFoundError(
        "tokenstore.integrations.google needs its extra; run: pip install 'tokenstore[google]'",
        name=error.name,
    ) from None

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

    from tokenstore.manager import TokenManager
    from tokenstore.oauth.provider import Provider


class Credentials(CredentialsWithQuotaProject):
    """google-auth credentials of one account, for googleapiclient and the google-cloud clients.

        service = build("gmail", "v1", credentials=Credentials(manager, "alice@example.com"))

    They hold the account's access token and never its refresh token: the manager makes and stores
    each refresh, once for all callers. The store is read at the first request, not before.

    Args:
        manager: The account's manager. Threads may share it, and this object as well.
        account_name: The account.
        provider: The provider to use. Defaults to the account's provider.
        scope: Scopes of a further access token of the login, for this API
            (`TokenManager.get_access_token`). Defaults to the account's own token.
        resource: Likewise, what the token is for (RFC 8707).
        quota_project_id: The project that usage is billed to, or None.

    Attributes:
        token: The access token (secret!), or None before the first refresh.
        expiry: When it expires, as a naive datetime in UTC, or None.
    """

    token: str | None
    expiry: datetime | None

    def __init__(
        self,
        manager: TokenManager,
        account_name: str,
        provider: str | Provider | None = None,
        *,
        scope: str | Iterable[str] | None = None,
        resource: str | Iterable[str] | None = None,
        quota_project_id: str | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._manager = manager
        self._account_name = account_name
        self._provider = provider
        self._target = arguments_of(Target.of(scope, resource))
        self._quota_project_id = quota_project_id
        self._thread = threading.local()

    def with_quota_project(self, quota_project_id: str | None) -> Credentials:
        """Return credentials of the same account that bill usage to another project."""
        return type(self)(
            self._manager,
            self._account_name,
            self._provider,
            **self._target,
            quota_project_id=quota_project_id,
        )

    def refresh(self, request: object) -> None:  # noqa: ARG002 - google-auth's transport
        """Get a valid token from the store, or a new one if a resource server refused this one.

        It was refused if this thread has just sent it, or if it has not expired. Threads that
        report the same token cause one token request.

        Args:
            request: Ignored; the manager sends its own requests.

        Raises:
            google.auth.exceptions.RefreshError: No token could be obtained; ``__cause__`` is the
                `TokenRefreshError` with the reason.
            InvalidTokenError: The account's tokens are not bearer tokens.
            StorageError: The database operation failed.
        """
        rejected = self._sent or (self.token if self.valid else None)
        try:
            tokens = self._live() if rejected is None else self._renewed(rejected)
        except TokenRefreshError as error:
            raise RefreshError(str(error), retryable=error.retryable) from error  # type: ignore[no-untyped-call]
        self._sent = None
        self.token = bearer_token(self._account_name, tokens)
        self.expiry = _naive_utc(tokens.get("expires_at"))

    def before_request(
        self, request: object, method: str, url: str, headers: MutableMapping[str, str]
    ) -> None:
        """Put a valid token into *headers*; google-auth calls this before each request.

        Raises:
            InvalidTokenError: *url* has plain http, and is not on loopback.
        """
        require_protected(url)
        self._sent = None
        super().before_request(request, method, url, headers)  # type: ignore[no-untyped-call]

    def apply(self, headers: MutableMapping[str, str], token: str | None = None) -> None:
        """Put *token*, or the current token, into *headers*."""
        token = token or self.token
        super().apply(headers, token)  # type: ignore[no-untyped-call]
        self._sent = token

    @property
    def _sent(self) -> str | None:
        """The token that this thread sent last; another thread may have a newer one."""
        return getattr(self._thread, "sent", None)

    @_sent.setter
    def _sent(self, token: str | None) -> None:
        self._thread.sent = token

    def _live(self) -> dict[str, Any]:
        found = self._manager.get_access_token(self._account_name, self._provider, **self._target)
        return found.to_dict()

    def _renewed(self, rejected: str) -> dict[str, Any]:
        return self._manager.refresh_token(
            self._account_name, self._provider, rejected=rejected, **self._target
        )


def _naive_utc(moment: float | None) -> datetime | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).replace(tzinfo=None)


protect(__name__)
