"""The refresh grant (RFC 6749 section 6): ask a provider and have its answer judged; no storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenstore.errors import TokenRefreshError, TransientRefreshError
from tokenstore.oauth.http import Answer, NoAnswer, exchange, host_of
from tokenstore.oauth.responses import Judge, is_transient, parse_json

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
    judge = Judge(provider, [refresh_token], account_name)

    def give_up() -> Callable[[Answer | NoAnswer], None]:
        ended = abandoned() if abandoned is not None else lambda _: None

        def judge_late(received: Answer | NoAnswer) -> None:
            verdict = judge.answer(received) if isinstance(received, Answer) else None
            ended(verdict if isinstance(verdict, dict) else None)

        return judge_late

    params = {
        **provider.extra_params,
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
    }
    if provider.scope:
        params["scope"] = provider.scope
    headers, form = request_of(provider, params)
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
    verdict = judge.silence(received) if isinstance(received, NoAnswer) else judge.answer(received)
    if isinstance(verdict, TokenRefreshError):
        raise verdict
    return verdict


def discover(
    provider: Provider, *, timeout: float, session: requests.Session | None = None
) -> dict[str, Any]:
    """Return the metadata of the provider's issuer (RFC 8414, OpenID Connect Discovery 1.0).

    Raises:
        ProviderConfigurationError: The issuer has no such metadata.
        TransientRefreshError: It could not be asked; try later.
    """
    url = f"{(provider.issuer or '').rstrip('/')}/.well-known/openid-configuration"
    received = exchange("GET", url, timeout=timeout, session=session)
    if isinstance(received, NoAnswer) or is_transient(received.status) or received.body is None:
        why = received.reason if isinstance(received, NoAnswer) else f"HTTP {received.status}"
        raise TransientRefreshError(
            f"the metadata of {provider.name!r} could not be read from {host_of(url)}: {why}",
            provider=provider.name,
        )
    metadata: object = parse_json(received.body, "utf-8")
    if received.status != 200 or not isinstance(metadata, dict):  # noqa: PLR2004
        raise provider.misconfigured(
            f"has an issuer without metadata: {url} answered HTTP {received.status}; "
            "set token_endpoint"
        )
    return metadata


def request_of(
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
