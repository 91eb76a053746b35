"""ID tokens (OpenID Connect Core section 2)."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from joserfc.jwk import RSAKey

LIFETIME = 3600.0  # seconds


def id_token(
    *,
    issuer: str,
    subject: str,
    client_id: str,
    client_secret: str | None,
    nonce: str | None,
    access_token: str,
    now: float,
) -> str:
    """Return a signed id_token.

    It is signed with the client secret (HS256). For a public client it is signed with a key of
    this process (RS256), which requires joserfc, a dependency of the extra ``login``.
    """
    claims: dict[str, Any] = {
        "iss": issuer,
        "sub": subject,
        "aud": client_id,
        "iat": int(now),
        "exp": int(now + LIFETIME),
        "email": f"{subject}@example.com",
        "email_verified": True,
        "at_hash": _encode(hashlib.sha256(access_token.encode()).digest()[:16]),
    }
    if nonce is not None:
        claims["nonce"] = nonce
    if client_secret is None:
        from joserfc import jwt

        return jwt.encode({"alg": "RS256"}, claims, signing_key(), algorithms=["RS256"])
    header = {"alg": "HS256", "typ": "JWT"}
    signed = ".".join(_encode(json.dumps(part).encode()) for part in (header, claims))
    digest = hmac.digest(client_secret.encode(), signed.encode(), "sha256")
    return f"{signed}.{_encode(digest)}"


@cache
def signing_key() -> RSAKey:
    """Return the signing key for public clients, generated on first use."""
    from joserfc.jwk import RSAKey

    return RSAKey.generate_key(2048)


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
