"""The refresh grant (RFC 6749 section 6): ask a provider and have its answer judged; no storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenstore.errors import TokenRefreshError
from tokenstore.oauth.http import HTTPResponse, TransportFailure, exchange
from tokenstore.oauth.responses import TokenResponseParser

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import requests

    from tokenstore.oauth.provider import Provider


def refresh_grant(
    provider: Provider,
    refresh_token: str,
    *,
    account_name: str,
    timeout: float,
    session: requests.Session | None = None,
    abandoned: Callable[[], Callable[[dict[str, Any] | None], None]] | None = None,
) -> dict[str, Any]:
    """Exchange *refresh_token* for new tokens; return the answer, whose access token is usable.

    Args:
        provider: Whom to ask, with a token endpoint.
        refresh_token: The token to spend.
        account_name: Whose it is, for errors.
        timeout: Seconds for the whole request.
        session: A session to use in place of a new connection.
        abandoned: Is called when nobody waits any more while the request is still under way;
            what it returns is called when that ends, in another thread, with a good answer or
            None.

    Raises:
        ReauthorizationRequired: The refresh token is dead.
        TransientRefreshError: Nothing usable came; try later.
        ClientRejectedError: The provider refuses the client or the request.
    """
    judge = TokenResponseParser(provider, [refresh_token], account_name)

    def give_up() -> Callable[[HTTPResponse | TransportFailure], None]:
        ended = abandoned() if abandoned is not None else lambda _: None

        def judge_late(received: HTTPResponse | TransportFailure) -> None:
            verdict = judge.answer(received) if isinstance(received, HTTPResponse) else None
            ended(verdict if isinstance(verdict, dict) else None)

        return judge_late

    params = {
        **provider.extra_params,
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
    }
    if provider.scope:
        params["scope"] = provider.scope
    headers, form = authenticated_request(provider, params)
    received = exchange(
        "POST",
        provider.token_endpoint or "",
        timeout=timeout,
        session=session,
        headers=headers,
        data=form,
        as_json=provider.body_format == "json",
        abandoned=give_up,
    )
    verdict = (
        judge.silence(received)
        if isinstance(received, TransportFailure)
        else judge.answer(received)
    )
    if isinstance(verdict, TokenRefreshError):
        raise verdict
    return verdict


def authenticated_request(
    provider: Provider, params: Mapping[str, str]
) -> tuple[dict[str, str | None], dict[str, str]]:
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
