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

from tokenstore.testing.protocol import RefusedError

if TYPE_CHECKING:
    from collections.abc import Collection

    from tokenstore.testing.protocol import Family

LIFETIME = 60.0  # seconds
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class CodeRequest:
    """What a client asks a person for, on the sign-in page.

    Attributes:
        client_id: The client.
        redirect_uri: Where the browser is sent back to.
        scope: The scopes, with single spaces between them.
        challenge: The code challenge (S256).
        state: What has to come back unchanged, or None.
        nonce: What the id_token has to repeat, or None.
        login_hint: Who is expected to sign in, or an empty string.
    """

    client_id: str
    redirect_uri: str
    scope: str
    challenge: str
    state: str | None = None
    nonce: str | None = None
    login_hint: str = ""

    @classmethod
    def of(cls, params: dict[str, str], default_scope: str) -> CodeRequest:
        """Read the parameters of a request whose client and redirect URI are known to be right.

        Raises:
            RefusedError: The request is refused; the error is for the redirect.
        """
        if params.get("response_type") != "code":
            raise RefusedError("unsupported_response_type", "only code is known")
        if params.get("code_challenge_method") != "S256":
            raise RefusedError("invalid_request", "code_challenge_method has to be S256")
        if not _CHALLENGE.fullmatch(params.get("code_challenge", "")):
            raise RefusedError("invalid_request", "code_challenge is no SHA-256")
        return cls(
            params["client_id"],
            params["redirect_uri"],
            params.get("scope", default_scope),
            params["code_challenge"],
            params.get("state"),
            params.get("nonce"),
            params.get("login_hint", ""),
        )


@dataclass
class Code:
    """A code: who allowed what, and what became of it.

    Attributes:
        family: The sign-in that it began, once it was redeemed.
    """

    request: CodeRequest
    subject: str
    expires_at: float
    spent: bool = False
    family: Family | None = None


class Codes:
    """Every code ever issued."""

    def __init__(self) -> None:
        self._codes: dict[str, Code] = {}

    def issue(self, request: CodeRequest, subject: str, now: float) -> str:
        """Return a new code, which works once."""
        code = secrets.token_urlsafe()
        self._codes[code] = Code(request, subject, now + LIFETIME)
        return code

    def redeem(self, client_id: str, params: dict[str, str], now: float) -> Code:
        """Return what a code stands for. It is spent, even by a request that is refused."""
        code = self._codes.get(params.get("code", ""))
        if "code" not in params:
            raise RefusedError("invalid_request", "code is missing")
        if code is None or code.request.client_id != client_id:
            raise RefusedError("invalid_grant", "no code of this client")
        if code.spent:
            if code.family is not None:
                code.family.revoked = True
            raise RefusedError("invalid_grant", "the code was used before")
        code.spent = True
        if now >= code.expires_at:
            raise RefusedError("invalid_grant", "the code has expired")
        if params.get("redirect_uri") != code.request.redirect_uri:
            raise RefusedError("invalid_grant", "the redirect_uri is not the one of the request")
        if not _verifies(params.get("code_verifier", ""), code.request.challenge):
            raise RefusedError("invalid_grant", "the code_verifier does not fit the challenge")
        return code


def _verifies(verifier: str, challenge: str) -> bool:
    digest = hashlib.sha256(verifier.encode()).digest()
    computed = urlsafe_b64encode(digest).rstrip(b"=").decode()
    return _VERIFIER.fullmatch(verifier) is not None and computed == challenge


def is_registered(redirect_uri: str, registered: Collection[str]) -> bool:
    """Tell whether a redirect URI is one of those, on loopback with any port (RFC 8252, 7.3)."""
    return redirect_uri in registered or _without_port(redirect_uri) in registered


def _without_port(redirect_uri: str) -> str | None:
    """Return a loopback URI without its port, None if it is none."""
    try:
        parts = urlsplit(redirect_uri)
        host = parts.hostname or ""
        loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return None
    if parts.scheme != "http" or not loopback:
        return None
    return parts._replace(netloc=f"[{host}]" if ":" in host else host).geturl()
