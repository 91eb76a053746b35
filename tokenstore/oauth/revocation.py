"""Revocation of tokens at the provider (RFC 7009)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenstore.errors import ReauthorizationRequired
from tokenstore.oauth.client import authenticated_request
from tokenstore.oauth.http import TransportFailure
from tokenstore.oauth.responses import TokenResponseParser

if TYPE_CHECKING:
    from collections.abc import Iterable

    import requests

    from tokenstore.errors import TokenRefreshError
    from tokenstore.models.tokens import TokenSet
    from tokenstore.oauth.provider import Provider

_ENDPOINT = "revocation_endpoint"


def revoke(
    provider: Provider,
    tokens: TokenSet,
    *,
    account_name: str,
    timeout: float,
    session: requests.Session | None = None,
    further: Iterable[str] = (),
) -> None:
    """Revoke all tokens, the refresh token first. Tokens that are already invalid are accepted.

    Args:
        provider: The provider that issued the tokens, with a revocation endpoint.
        tokens: The tokens.
        account_name: The account, for errors.
        timeout: Seconds for each request.
        session: The session to send the requests with. Defaults to new connections.
        further: Further access tokens of the login.

    Raises:
        ProviderConfigurationError: The provider has no usable revocation endpoint.
        TransientRefreshError: The provider is not available; try again later.
        ClientRejectedError: The provider rejects the client or the request.
    """
    url = provider.endpoint(_ENDPOINT)
    for hint, token in (
        ("refresh_token", tokens.refresh_token),
        *(("access_token", each) for each in (tokens.access_token, *further)),
    ):
        if token is None:
            continue
        request = authenticated_request(provider, {"token": token, "token_type_hint": hint})
        response = request.send(url, timeout=timeout, session=session)
        parser = TokenResponseParser(
            provider,
            [token, *request.secrets],
            account_name,
            endpoint=_ENDPOINT,
            unsure="try again later",
        )
        if isinstance(response, TransportFailure):
            raise parser.error_of_failure(response)
        result = parser.parse(response)
        if isinstance(result, dict) or _is_revoked(result, hint):
            continue
        raise result


def _is_revoked(error: TokenRefreshError, hint: str) -> bool:
    """Return whether a response to a revocation means that the token is no longer valid."""
    status = error.status_code or 0
    if 200 <= status < 300 and error.error is None:  # noqa: PLR2004
        return True
    # Where access tokens cannot be revoked (section 2.2.1), they ended with the refresh token.
    ended = hint == "access_token" and error.error == "unsupported_token_type"
    invalid = error.error == "invalid_token" or isinstance(error, ReauthorizationRequired)
    return invalid or ended
