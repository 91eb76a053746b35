"""The client's side of the token endpoint: authentication, and the grants. No storage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenstore.errors import TokenRefreshError
from tokenstore.models.tokens import is_token
from tokenstore.oauth.assertions import ASSERTION_TYPE, client_assertion, grant_assertion
from tokenstore.oauth.http import TransportFailure, exchange
from tokenstore.oauth.keys import client_tls
from tokenstore.oauth.provider import JWT_BEARER
from tokenstore.oauth.responses import TokenResponseParser

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence

    import requests

    from tokenstore.oauth.http import HTTPResponse
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
    params = {"grant_type": "refresh_token", "refresh_token": refresh_token}
    if provider.scope:
        params["scope"] = provider.joined(provider.scope)
    return _exchanged(
        provider,
        params,
        refresh_token=refresh_token,
        resources=resources,
        account_name=account_name,
        timeout=timeout,
        connect_timeout=connect_timeout,
        session=session,
    )


def unattended_grant(
    provider: Provider,
    *,
    account_name: str,
    timeout: float,
    connect_timeout: float | None = None,
    session: requests.Session | None = None,
    resources: Sequence[str] = (),
) -> TokenResponse:
    """Obtain an access token without a user (RFC 6749 section 4.4, RFC 7523 section 2.1).

    A refresh token in the response is dropped: the grant takes its place (RFC 6749 section 4.4.3).

    Args:
        provider: The provider, with a token endpoint; its ``grant_type`` says how.
        account_name: The account, for errors, and as the subject of an assertion.
        timeout: Seconds to the last byte of the response; then the connection is closed.
        connect_timeout: Seconds to establish the connection.
        session: A session whose network settings are used, or None.
        resources: What the access token is for (RFC 8707).

    Raises:
        TransientRefreshError: There was no usable response; try again later.
        ClientRejectedError: The provider refuses the client, the assertion or the request.
        ProviderConfigurationError: The client's key or certificate cannot be used.
        InsecureStorageError: Other users can read or replace it.
    """
    params = {"grant_type": provider.grant_type}
    if provider.grant_type == JWT_BEARER:
        params["assertion"] = grant_assertion(provider, account_name)
    if provider.scope and not provider.service_account_file:  # there the assertion has it
        params["scope"] = provider.joined(provider.scope)
    response = _exchanged(
        provider,
        params,
        resources=resources,
        account_name=account_name,
        timeout=timeout,
        connect_timeout=connect_timeout,
        session=session,
    )
    response.fields.pop("refresh_token", None)
    return response


def _exchanged(
    provider: Provider,
    params: Mapping[str, str],
    *,
    refresh_token: str = "",
    resources: Sequence[str],
    account_name: str,
    timeout: float,
    connect_timeout: float | None,
    session: requests.Session | None,
) -> TokenResponse:
    all_params: dict[str, str | list[str]] = {**provider.extra_params, **params}
    if resources:  # one as text, as JSON bodies and most providers have it
        one, *more = resources
        all_params[provider.resource_parameter] = [one, *more] if more else one
    request = authenticated_request(provider, all_params)
    received = request.send(
        provider.token_endpoint or "",
        timeout=timeout,
        connect_timeout=connect_timeout,
        session=session,
        as_json=provider.body_format == "json",
    )
    parser = TokenResponseParser(provider, [refresh_token, *request.secrets], account_name)
    if isinstance(received, TransportFailure):
        raise parser.error_of_failure(received)
    result = parser.parse(received, refresh_token=refresh_token)
    if isinstance(result, TokenRefreshError):
        raise result
    return TokenResponse(result)


@dataclass(frozen=True, slots=True)
class AuthenticatedRequest:
    """A request in which the client authenticates.

    Attributes:
        headers: Its headers (secret!).
        form: Its parameters (secret!).
        tls: A TLS context with the client's certificate, or None.
    """

    headers: Mapping[str, str | None] = field(repr=False)
    form: Mapping[str, str | list[str]] = field(repr=False)
    tls: ssl.SSLContext | None = None

    @property
    def secrets(self) -> list[str]:
        """The assertions in it; no message may repeat them."""
        names = ("client_assertion", "assertion")
        return [str(self.form[name]) for name in names if name in self.form]

    def send(
        self,
        url: str,
        *,
        timeout: float,
        connect_timeout: float | None = None,
        session: requests.Session | None = None,
        as_json: bool = False,
    ) -> HTTPResponse | TransportFailure:
        """Send it once, and return the response (see `exchange`)."""
        return exchange(
            "POST",
            url,
            timeout=timeout,
            connect_timeout=connect_timeout,
            session=session,
            headers=self.headers,
            data=self.form,
            as_json=as_json,
            tls=self.tls,
        )


def authenticated_request(
    provider: Provider, params: Mapping[str, str | list[str]]
) -> AuthenticatedRequest:
    """Return a request with which the client authenticates.

    That is RFC 6749 section 2.3, RFC 7523 section 2.2 and RFC 8705 section 2, for the token
    endpoint and those that work like it.

    Args:
        provider: The provider, with a token endpoint if assertions are for that.
        params: The other parameters of the request.

    Raises:
        ProviderConfigurationError: The client's key or certificate cannot be used.
        InsecureStorageError: Other users can read or replace it.
    """
    form = dict(params)
    headers: dict[str, str | None] = {"Authorization": None}
    method = provider.auth_method
    if method == "client_secret_basic":
        headers["Authorization"] = f"Basic {provider.basic_credentials}"
    elif not provider.service_account_file:  # there the assertion names the client
        form[provider.client_id_parameter] = provider.client_id or ""
    if method == "client_secret_post":
        form["client_secret"] = provider.client_secret or ""
    elif method in {"private_key_jwt", "client_secret_jwt"}:
        form["client_assertion_type"] = ASSERTION_TYPE
        form["client_assertion"] = client_assertion(provider)
    return AuthenticatedRequest(headers, form, client_tls(provider))


def require_credentials(provider: Provider) -> None:
    """Raise if the client's key or certificate cannot be used, before anything is begun.

    Raises:
        ProviderConfigurationError: It cannot be used.
        InsecureStorageError: Other users can read or replace it.
    """
    authenticated_request(provider, {})
    if provider.grant_type == JWT_BEARER:
        grant_assertion(provider, provider.name)
