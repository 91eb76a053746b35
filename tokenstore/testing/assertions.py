"""Signed assertions (RFC 7523): those with which a client authenticates, and those of a grant."""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64decode
from typing import TYPE_CHECKING, Any

from tokenstore.testing.protocol import NO_STORE, Client, OAuthError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

CLIENT_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
LONGEST = 600.0  # seconds that an assertion may be valid
_TOLERANCE = 60.0  # seconds that the client's clock may be ahead
_KEY_ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
_DIGESTS = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}


class InvalidAssertion(Exception):  # noqa: N818 - becomes an `OAuthError` of the right code
    """An assertion that is refused."""


class Assertions:
    """Verifies assertions. Each may be used once.

    Verifying one that is signed with a private key requires the extra ``jwt``.

    Args:
        clients: The clients by their ids.
        audiences: What an assertion may be for: the URLs of the server and its token endpoint.
    """

    def __init__(self, clients: Mapping[str, Client], audiences: Collection[str]) -> None:
        self._clients = clients
        self._audiences = audiences
        self._used: set[tuple[str, str]] = set()

    def client(self, params: Mapping[str, str], now: float) -> Client:
        """Return the client that authenticates with an assertion (RFC 7523 section 2.2)."""
        if params.get("client_assertion_type") != CLIENT_ASSERTION:
            raise OAuthError("invalid_request", "the client_assertion_type is not supported")
        if "client_secret" in params:
            raise OAuthError("invalid_request", "the client uses two authentication methods")
        try:
            client, claims = self._checked(params["client_assertion"], now)
            if claims.get("sub") != client.client_id:
                raise InvalidAssertion("iss and sub are different")
            if params.get("client_id", client.client_id) != client.client_id:
                raise InvalidAssertion("it is of another client")
        except InvalidAssertion as problem:
            raise OAuthError("invalid_client", f"assertion: {problem}", 401, NO_STORE) from None
        return client

    def grant(
        self, params: Mapping[str, str], client_id: str | None, now: float
    ) -> tuple[Client, dict[str, Any]]:
        """Return the client that issued the assertion of a grant, and its claims (section 2.1).

        Args:
            params: The parameters of the request.
            client_id: The client that has authenticated, or None.
            now: The current time, in UTC epoch seconds.
        """
        if "assertion" not in params:
            raise OAuthError("invalid_request", "assertion is missing")
        try:
            client, claims = self._checked(params["assertion"], now, of_grant=True)
            if client_id not in {None, client.client_id}:
                raise InvalidAssertion("it is of another client")
        except InvalidAssertion as problem:
            raise OAuthError("invalid_grant", f"assertion: {problem}") from None
        return client, claims

    def _checked(
        self, assertion: str, now: float, *, of_grant: bool = False
    ) -> tuple[Client, dict[str, Any]]:
        try:
            return self._verified(assertion, now, of_grant=of_grant)
        except InvalidAssertion:
            raise
        except (TypeError, ValueError):  # a claim, or the signature, is of another kind
            raise InvalidAssertion("it is malformed") from None

    def _verified(
        self, assertion: str, now: float, *, of_grant: bool = False
    ) -> tuple[Client, dict[str, Any]]:
        header, claims = _parts(assertion)
        client = self._clients.get(str(claims.get("iss")))
        if client is None:
            raise InvalidAssertion("its issuer is not registered")
        method = "private_key_jwt" if of_grant else client.method
        self._require_signature(assertion, header, client, method)
        audience, expires, number = (claims.get(name) for name in ("aud", "exp", "jti"))
        if isinstance(audience, list) and len(audience) == 1:
            (audience,) = audience
        if not isinstance(audience, str) or audience not in self._audiences:
            raise InvalidAssertion("it is for another audience")
        if not isinstance(expires, (int, float)) or not now < expires <= now + LONGEST:
            raise InvalidAssertion("it has expired, or expires too late")
        if any(claims.get(name, now) > now + _TOLERANCE for name in ("iat", "nbf")):
            raise InvalidAssertion("it is not valid yet")
        if not isinstance(number, str) or (client.client_id, number) in self._used:
            raise InvalidAssertion("it was used before, or has no jti")
        self._used.add((client.client_id, number))
        return client, claims

    def _require_signature(
        self, assertion: str, header: Mapping[str, Any], client: Client, method: str
    ) -> None:
        algorithm = header.get("alg")
        if method == "client_secret_jwt" and algorithm in _DIGESTS:
            signed, _, signature = assertion.rpartition(".")
            secret = (client.secret or "").encode()
            digest = hmac.digest(secret, signed.encode(), _DIGESTS[algorithm])
            if hmac.compare_digest(digest, _decode(signature)):
                return
        elif method == "private_key_jwt" and client.public_key and algorithm in _KEY_ALGORITHMS:
            import jwt

            try:
                jwt.PyJWS().decode(assertion, client.public_key, algorithms=[algorithm])
            except (jwt.PyJWTError, TypeError, ValueError):
                pass
            else:
                return
        raise InvalidAssertion("its signature is not that of the client's key")


def _parts(assertion: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header and the claims, not verified."""
    try:
        header, claims = (json.loads(_decode(part)) for part in assertion.split(".")[:2])
    except ValueError:
        header = claims = None
    if not (isinstance(header, dict) and isinstance(claims, dict)):
        raise InvalidAssertion("it is not a JSON Web Token")
    return header, claims


def _decode(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
