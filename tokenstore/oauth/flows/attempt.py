"""What one sign-in needs: its account and provider, how to send requests, how to report failure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenstore.errors import ReauthorizationRequired, SignInError, TokenRefreshError
from tokenstore.models.accounts import is_address
from tokenstore.oauth.client import authenticated_request
from tokenstore.oauth.http import TransportFailure
from tokenstore.oauth.responses import TokenResponseParser

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import requests

    from tokenstore.oauth.provider import Provider


@dataclass(frozen=True, slots=True)
class TokenGrant:
    """The successful response of the token endpoint to a sign-in.

    Attributes:
        response: The response (secret!).
        requested_at: When the request was sent, in UTC epoch seconds.
        nonce: The value that the id_token must contain, or None.
    """

    response: dict[str, Any] = field(repr=False)
    requested_at: float
    nonce: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInContext:
    """The settings of one sign-in.

    Attributes:
        account_name: The account.
        provider: The provider, with all endpoints that the sign-in needs.
        scope: The scopes to request, separated by single spaces; may be empty.
        force: Whether to allow a different user or provider than before.
        patience: Seconds to wait for the user.
        timeout: Seconds for one request.
        session: The session to send requests with, or None for new connections.
        clock: Returns the current time, in UTC epoch seconds.
    """

    account_name: str
    provider: Provider
    scope: str
    force: bool
    patience: float
    timeout: float
    session: requests.Session | None
    clock: Callable[[], float]

    def request(
        self,
        endpoint: str,
        params: Mapping[str, str],
        *,
        secrets: tuple[str, ...] = (),
        needed: str = "access_token",
    ) -> dict[str, Any] | TokenRefreshError:
        """Send one request; return a successful response, or the error for any other.

        Args:
            endpoint: The endpoint's name in RFC 8414.
            params: The parameters, without those that authenticate the client.
            secrets: The values among them that are secret.
            needed: The field that a successful response contains.
        """
        url = self.provider.endpoint(endpoint)
        request = authenticated_request(self.provider, params)
        parser = TokenResponseParser(
            self.provider,
            (*secrets, *request.secrets),
            self.account_name,
            endpoint=endpoint,
            unsure="start the sign-in again",
        )
        response = request.send(
            url,
            timeout=self.timeout,
            session=self.session,
            as_json=self.provider.body_format == "json",
        )
        if isinstance(response, TransportFailure):
            return parser.error_of_failure(response)
        return parser.parse(response, needed=needed)

    def sign_in_error(self, problem: str, error: str | None = None) -> SignInError:
        """Return the error that ends this sign-in.

        Args:
            problem: What happened, and what to do next.
            error: The error code of the provider, or None.
        """
        return SignInError(
            f"{self.account_name}: {problem}",
            account_name=self.account_name,
            provider=self.provider.name,
            error=error,
        )

    def denied_error(self) -> SignInError:
        """Return the error for a sign-in that the user or the provider has refused."""
        return self.sign_in_error(
            "the sign-in was refused at the provider, by the user or by its rules; start again",
            "access_denied",
        )

    def as_sign_in_error(self, error: TokenRefreshError) -> TokenRefreshError:
        """Return the error to raise for a failed request of this sign-in.

        A refused code does not mean that the account needs a new sign-in, so a
        `ReauthorizationRequired` becomes a `SignInError`.
        """
        if not isinstance(error, ReauthorizationRequired):
            return error
        return SignInError(
            str(error),
            account_name=error.account_name,
            provider=error.provider,
            status_code=error.status_code,
            error=error.error,
            error_description=error.error_description,
        )


def requested_scope(
    provider: Provider, scope: str | Iterable[str] | None, account_name: str
) -> str:
    """Return the scopes to request at a sign-in, without duplicates.

    With an issuer, they include ``openid`` unless `Provider.sign_in_scope` says otherwise, and
    ``email`` if the account's name is an address, which is compared.

    Args:
        provider: The provider.
        scope: The scopes that the caller requests. Defaults to the provider's.
        account_name: The account.

    Raises:
        ValueError: *scope* is neither a string nor strings.
    """
    chosen = provider.scope if scope is None else _joined(scope)
    always = provider.sign_in_scope
    if always is None and provider.issuer is not None:
        always = "openid email" if is_address(account_name) else "openid"
    return " ".join(dict.fromkeys(f"{always or ''} {chosen or ''}".split()))


def _joined(scope: str | Iterable[str]) -> str:
    if isinstance(scope, str):
        return scope
    parts = list(scope) if isinstance(scope, Iterable) else [scope]
    if not all(isinstance(part, str) for part in parts):
        kinds = ", ".join(sorted({type(part).__name__ for part in parts}))
        raise ValueError(f"scope: expected a string or an iterable of strings, got {kinds}")
    return " ".join(parts)
