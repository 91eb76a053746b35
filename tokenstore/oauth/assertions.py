"""Signed assertions (RFC 7523): the client's, and those that stand for a grant."""

from __future__ import annotations

import json
import secrets
import time
from functools import cache
from typing import TYPE_CHECKING, Any

from tokenstore.oauth.keys import missing_library, signing_key
from tokenstore.oauth.provider import RSA_ALGORITHMS, SECRET_ALGORITHMS
from tokenstore.redaction import protect

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenstore.oauth.provider import Provider

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
LIFETIME = 300
"""Seconds that an assertion is valid: long enough for clocks that differ, and used once."""


def client_assertion(provider: Provider) -> str:
    """Return the assertion with which a client authenticates (secret!).

    That is RFC 7523 sections 2.2 and 3, and OpenID Connect Core section 9.

    Raises:
        ProviderConfigurationError: It cannot be signed.
        InsecureStorageError: Other users can read or replace the key.
    """
    claims = {"iss": provider.client_id, "sub": provider.client_id, "aud": _audience(provider)}
    if provider.auth_method == "private_key_jwt":
        return _signed_with_key(provider, claims)
    algorithm = provider.signing_alg if provider.signing_alg in SECRET_ALGORITHMS else None
    return _signed(provider, claims, provider.client_secret, algorithm or "HS256", None)


def grant_assertion(provider: Provider, account_name: str) -> str:
    """Return the assertion that is exchanged for an access token (secret!): RFC 7523 section 2.1.

    Google expects the scope in it.

    Args:
        provider: The provider, completed by `with_service_account`.
        account_name: The account, which is the subject unless another one is configured.

    Raises:
        ProviderConfigurationError: It cannot be signed.
        InsecureStorageError: Other users can read or replace the key.
    """
    subject = provider.assertion_subject
    claims = {
        "iss": provider.client_id,
        "sub": account_name if subject is None else subject,
        "aud": _audience(provider),
        "scope": provider.scope if provider.service_account_file else None,
        **provider.assertion_claims,
    }
    return _signed_with_key(provider, {k: v for k, v in claims.items() if v not in (None, "")})


def _signed_with_key(provider: Provider, claims: Mapping[str, Any]) -> str:
    key, fitting = signing_key(provider)
    algorithm = provider.signing_alg
    if algorithm in {None, *SECRET_ALGORITHMS}:  # the latter are for the client secret
        algorithm = fitting
    if algorithm != fitting and not (fitting == "RS256" and algorithm in RSA_ALGORITHMS):
        raise provider.configuration_error(
            f"has a signing_alg that its key cannot be used with; use {fitting}"
        )
    return _signed(provider, claims, key, algorithm, provider.key_id)


def _signed(
    provider: Provider,
    claims: Mapping[str, Any],
    key: Any,
    algorithm: str | None,
    key_id: str | None,
) -> str:
    """Return a token with these claims, which is valid from now on, and only once.

    There is no ``nbf``: the provider's clock may be behind.
    """
    now = int(time.time())
    times = {"iat": now, "exp": now + LIFETIME, "jti": secrets.token_urlsafe()}
    try:
        payload = json.dumps({**claims, **times}).encode()
    except (TypeError, ValueError):
        raise provider.configuration_error(
            "has invalid assertion_claims: JSON cannot represent them"
        ) from None
    headers = {"kid": key_id} if key_id else None
    try:
        signed: str = _signer().encode(payload, key, algorithm, headers=headers)
    except ModuleNotFoundError:
        raise missing_library(provider) from None
    return signed


def _audience(provider: Provider) -> str:
    if provider.assertion_audience == "issuer":
        return provider.issuer or ""
    return provider.assertion_audience or provider.endpoint("token_endpoint")


@cache
def _signer() -> Any:
    """Return what signs. Imported when it is needed: most clients sign nothing."""
    from jwt import PyJWS
    from jwt.algorithms import HMACAlgorithm

    class ClientSecret(HMACAlgorithm):
        """Signs with any secret: the provider chose it, and no warning would change it."""

        def prepare_key(self, key: str | bytes) -> bytes:
            return key.encode() if isinstance(key, str) else key

        def check_key_length(self, key: bytes) -> None:  # noqa: ARG002
            return None

    signer = PyJWS()
    for name in SECRET_ALGORITHMS:
        signer.unregister_algorithm(name)
        digest = getattr(HMACAlgorithm, name.replace("HS", "SHA"))
        signer.register_algorithm(name, ClientSecret(digest))
    return signer


protect(__name__)
