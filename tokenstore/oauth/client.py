"""The client's side of the token endpoint: authentication, and the refresh grant. No storage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenstore.errors import TokenRefreshError
from tokenstore.models.tokens import is_token
from tokenstore.oauth.http import TransportFailure, exchange
from tokenstore.oauth.responses import TokenResponseParser

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import requests

    from tokenstore.oauth.provider import Provider


@dataclass(frozen=True, slots=True)
class TokenResponse:
    """A successful response of the token endpoint (RFC 6749 section 5.1).

    Attributes:
        fields: Its fields (secret!). There is an access token or a new refresh token.
    """

    fields: dict[str, Any] = field(repr=False)

    @property
    def has_access_token(self) -> bool:
        """Whether there is a usable access token."""
        return is_token(self.fields.get("access_token"))


def refresh_grant(
    provider: Provider,
    refresh_token: str,
    *,
    account_name: str,
    timeout: float,
    connect_timeout: float | None = None,
    session: requests.Session | None = None,
    resources: Sequence[str] = (),
) -> TokenResponse:
    """Exchange *refresh_token* for new tokens (RFC 6749 section 6).

    Args:
        provider: The provider, with a token endpoint.
        refresh_token: The token to spend.
        account_name: The account, for errors.
        timeout: Seconds to the last byte of the response; then the connection is closed.
        connect_timeout: Seconds to establish the connection.
        session: A session whose network settings are used, or None.
        resources: What the access token is for (RFC 8707), as `Provider.resource_parameter`.

    Raises:
        ReauthorizationRequired: The refresh token is refused.
        TransientRefreshError: There was no usable response; try again later.
        ClientRejectedError: The provider refuses the client or the request.
    """
    params: dict[str, str | list[str]] = {
        **provider.extra_params,
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
    }
    if provider.scope:
        params["scope"] = provider.scope
    if resources:  # one as text, as JSON bodies and most providers have it
        one, *more = resources
        params[provider.resource_parameter] = [one, *more] if more else one
    headers, form = authenticated_request(provider, params)
    received = exchange(
        "POST",
        provider.token_endpoint or "",
        timeout=timeout,
        connect_timeout=connect_timeout,
        session=session,
        headers=headers,
        data=form,
        as_json=provider.body_format == "json",
    )
    parser = TokenResponseParser(provider, [refresh_token], account_name)
    if isinstance(received, TransportFailure):
        raise parser.error_of_failure(received)
    result = parser.parse(received, refresh_token=refresh_token)
    if isinstance(result, TokenRefreshError):
        raise result
    return TokenResponse(result)


def authenticated_request(
    provider: Provider, params: Mapping[str, str | list[str]]
) -> tuple[dict[str, str | None], dict[str, str | list[str]]]:
    """Return the headers and the form of a request with which the client authenticates.

    That is RFC 6749 section 2.3.1, for the token endpoint and those that work like it.
    """
    form = dict(params)
    headers: dict[str, str | None] = {"Authorization": None}
    if provider.auth_method == "client_secret_basic":
        headers["Authorization"] = f"Basic {provider.basic_credentials}"
    else:
        form["client_id"] = provider.client_id
    if provider.auth_method == "client_secret_post":
        form["client_secret"] = provider.client_secret or ""
    return headers, form
