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
    payload = json.dumps({**claims, **times}).encode()
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
