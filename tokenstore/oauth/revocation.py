"""Revocation of tokens (RFC 7009): after that, nobody can use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenstore.errors import ReauthorizationRequired
from tokenstore.oauth.client import authenticated_request
from tokenstore.oauth.http import TransportFailure, exchange
from tokenstore.oauth.responses import TokenResponseParser

if TYPE_CHECKING:
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
) -> None:
    """Revoke both tokens, the refresh token first. One that is dead already is as good.

    Args:
        provider: Whose they are, with a revocation endpoint.
        tokens: The tokens.
        account_name: The account, for errors.
        timeout: Seconds for each request.
        session: A session to use in place of new connections.

    Raises:
        ProviderConfigurationError: The provider has no usable revocation endpoint.
        TransientRefreshError: It could not be asked, or is out of order; try again later.
        ClientRejectedError: It refuses the client or the request.
    """
    url = provider.endpoint(_ENDPOINT)
    for hint in ("refresh_token", "access_token"):
        token: str | None = getattr(tokens, hint)
        if token is None:
            continue
        headers, form = authenticated_request(provider, {"token": token, "token_type_hint": hint})
        received = exchange(
            "POST", url, timeout=timeout, session=session, headers=headers, data=form
        )
        judge = TokenResponseParser(
            provider, [token], account_name, endpoint=_ENDPOINT, unsure="try again later"
        )
        if isinstance(received, TransportFailure):
            raise judge.silence(received)
        verdict = judge.answer(received)
        if isinstance(verdict, dict) or _is_dead(verdict, hint):
            continue
        raise verdict


def _is_dead(verdict: TokenRefreshError, hint: str) -> bool:
    """Tell whether an answer means that the token cannot be used any more."""
    status = verdict.status_code or 0
    if 200 <= status < 300 and verdict.error is None:  # noqa: PLR2004
        return True
    # Where access tokens cannot be revoked (section 2.2.1), theirs ended with the refresh token.
    needless = hint == "access_token" and verdict.error == "unsupported_token_type"
    dead = verdict.error == "invalid_token" or isinstance(verdict, ReauthorizationRequired)
    return dead or needless
