"""Metadata of an issuer: the URLs of its endpoints (RFC 8414, OpenID Connect Discovery 1.0)."""

from __future__ import annotations

import time
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Any

from tokenstore.errors import TransientRefreshError
from tokenstore.oauth.addresses import host_of
from tokenstore.oauth.http import TransportFailure, exchange
from tokenstore.oauth.keys import with_service_account
from tokenstore.oauth.refusals import is_transient
from tokenstore.oauth.responses import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    import requests

    from tokenstore.oauth.provider import Provider

_OK = 200


def with_endpoints(
    provider: Provider,
    *needed: str,
    timeout: float,
    session: requests.Session | None = None,
    known: MutableMapping[str, Any] | None = None,
) -> Provider:
    """Return the provider with what it lacks from its service account and its issuer's metadata.

    Args:
        provider: The provider.
        *needed: Names of endpoints that are needed besides the token endpoint.
        timeout: Seconds for the request.
        session: The session to send the request with. Defaults to a new connection.
        known: Metadata by issuer; fetched metadata is added to it.

    Raises:
        ProviderConfigurationError: The issuer has no usable metadata, or the key file of the
            service account cannot be used.
        InsecureStorageError: Other users can read or replace the key file.
        TransientRefreshError: The metadata could not be fetched; try again later.
    """
    provider = with_service_account(provider)
    if provider.issuer is None or all(getattr(provider, n) for n in ("token_endpoint", *needed)):
        return provider
    known = {} if known is None else known
    if provider.issuer not in known:
        known[provider.issuer] = fetch_metadata(provider, timeout=timeout, session=session)
    return provider.with_metadata(known[provider.issuer])


def fetch_metadata(
    provider: Provider, *, timeout: float, session: requests.Session | None = None
) -> dict[str, Any]:
    """Return the metadata of the provider's issuer.

    Args:
        provider: The provider.
        timeout: Seconds for the request.
        session: The session to send the request with. Defaults to a new connection.

    Raises:
        ProviderConfigurationError: The issuer has no metadata, or they lead from the internet to
            this machine or the local network.
        TransientRefreshError: The metadata could not be fetched; try again later.
    """
    deadline = time.monotonic() + timeout
    url = f"{(provider.issuer or '').rstrip('/')}/.well-known/openid-configuration"
    response = exchange("GET", url, timeout=timeout, session=session)
    if isinstance(response, TransportFailure):
        raise _unavailable(provider, url, response.reason)
    if is_transient(response.status) or response.body is None:
        raise _unavailable(provider, url, f"HTTP {response.status}")
    metadata: object = parse_json(response.body, "utf-8")
    if response.status != _OK or not isinstance(metadata, dict):
        raise provider.configuration_error(
            f"has an issuer without metadata: {url} returned HTTP {response.status}; "
            "set token_endpoint"
        )
    _require_public(provider, metadata, max(0.0, deadline - time.monotonic()))
    return metadata


def _require_public(provider: Provider, metadata: Mapping[str, Any], seconds: float) -> None:
    """Check where host names lead, too; one that takes longer to look up counts as public."""
    outcome: Future[None] = Future()

    def check() -> None:
        try:
            provider.require_public(metadata, resolve=True)
            outcome.set_result(None)
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            outcome.set_exception(error)

    Thread(target=check, name="tokenstore-lookup", daemon=True).start()
    with suppress(TimeoutError):
        outcome.result(seconds)


def _unavailable(provider: Provider, url: str, reason: str) -> TransientRefreshError:
    return TransientRefreshError(
        f"cannot fetch the metadata of provider {provider.name!r} from {host_of(url)}: {reason}; "
        "try again later",
        provider=provider.name,
    )
