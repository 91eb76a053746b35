"""Authorization codes (RFC 6749 section 4.1) with PKCE (RFC 7636). No sockets."""

from __future__ import annotations

import hashlib
import re
import secrets
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tokenstore.testing.protocol import ANY_CALLBACK, OAuthError

if TYPE_CHECKING:
    from collections.abc import Collection

    from tokenstore.testing.protocol import TokenFamily

LIFETIME = 60.0  # seconds
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_ANY_CALLBACK = re.compile(rf"{re.escape(ANY_CALLBACK[:-1])}[^/?#]+")
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class CodeRequest:
    """An authorization request (RFC 6749 section 4.1.1).

    Attributes:
        client_id: The client.
        redirect_uri: The URL to which the browser is redirected.
        scope: The scopes, separated by single spaces.
        challenge: The code challenge (S256).
        nonce: The nonce for the id_token, or None.
        login_hint: The user who is expected to sign in, or an empty string.
    """

    client_id: str
    redirect_uri: str
    scope: str
    challenge: str
    nonce: str | None = None
    login_hint: str = ""

    @classmethod
    def from_params(cls, params: dict[str, str], default_scope: str) -> CodeRequest:
        """Parse a request whose client and redirect URI have been checked.

        Raises:
            OAuthError: The request is invalid; the error belongs into the redirect.
        """
        if params.get("response_type") != "code":
            raise OAuthError("unsupported_response_type", "response_type must be code")
        if params.get("code_challenge_method") != "S256":
            raise OAuthError("invalid_request", "code_challenge_method must be S256")
        if not _CHALLENGE.fullmatch(params.get("code_challenge", "")):
            raise OAuthError("invalid_request", "code_challenge is not a SHA-256 digest")
        return cls(
            params["client_id"],
            params["redirect_uri"],
            params.get("scope", default_scope),
            params["code_challenge"],
            params.get("nonce"),
            params.get("login_hint", ""),
        )


@dataclass
class Code:
    """An authorization code.

    Attributes:
        family: The tokens issued for it, or None before it is redeemed.
    """

    request: CodeRequest
    subject: str
    expires_at: float
    used: bool = False
    family: TokenFamily | None = None


class Codes:
    """Every code ever issued."""

    def __init__(self) -> None:
        self._codes: dict[str, Code] = {}

    def issue(self, request: CodeRequest, subject: str, now: float) -> str:
        """Return a new code, which can be redeemed once."""
        code = secrets.token_urlsafe()
        self._codes[code] = Code(request, subject, now + LIFETIME)
        return code

    def redeem(self, client_id: str, params: dict[str, str], now: float) -> Code:
        """Redeem a code. A request with the wrong parameters uses it up, too."""
        code = self._codes.get(params.get("code", ""))
        if "code" not in params:
            raise OAuthError("invalid_request", "code is missing")
        if code is None or code.request.client_id != client_id:
            raise OAuthError("invalid_grant", "the code was not issued to this client")
        if code.used:
            if code.family is not None:
                code.family.revoked = True
            raise OAuthError("invalid_grant", "the code was used before")
        code.used = True
        if now >= code.expires_at:
            raise OAuthError("invalid_grant", "the code has expired")
        if params.get("redirect_uri") != code.request.redirect_uri:
            raise OAuthError("invalid_grant", "the redirect_uri differs from the request's")
        if not _verifies(params.get("code_verifier", ""), code.request.challenge):
            raise OAuthError("invalid_grant", "code_verifier does not match code_challenge")
        return code


def _verifies(verifier: str, challenge: str) -> bool:
    digest = hashlib.sha256(verifier.encode()).digest()
    computed = urlsafe_b64encode(digest).rstrip(b"=").decode()
    return _VERIFIER.fullmatch(verifier) is not None and computed == challenge


def is_registered(redirect_uri: str, registered: Collection[str]) -> bool:
    """Return whether a redirect URI is registered, on loopback with any port (RFC 8252, 7.3)."""
    without_port = _without_port(redirect_uri) or ""
    if ANY_CALLBACK in registered and _ANY_CALLBACK.fullmatch(without_port):
        return True
    return redirect_uri in registered or without_port in registered


def _without_port(redirect_uri: str) -> str | None:
    """Return a loopback URI without its port, or None for any other URI."""
    try:
        parts = urlsplit(redirect_uri)
        host = parts.hostname or ""
        loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return None
    if parts.scheme != "http" or not loopback:
        return None
    return parts._replace(netloc=f"[{host}]" if ":" in host else host).geturl()
