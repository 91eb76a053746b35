"""The endpoints for clients: token, revocation and device authorization. No sockets."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from tokenstore.testing.assertions import Assertions
from tokenstore.testing.devices import GRANT as DEVICE_GRANT
from tokenstore.testing.id_tokens import id_token
from tokenstore.testing.protocol import (
    AUTH_METHODS,
    CERTIFICATE_METHODS,
    NO_STORE,
    RESOURCE,
    Client,
    HTTPRequest,
    OAuthError,
    TokenFamily,
    TokenRegistry,
    parse_params,
)
from tokenstore.testing.script import Answer

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tokenstore.testing.codes import Codes
    from tokenstore.testing.devices import Devices

TOKEN, REVOKE, DEVICE = "/token", "/revoke", "/device_authorization"
DEFAULT_SCOPE = "openid"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


class Endpoints:
    """The token, revocation and device authorization endpoints.

    Args:
        issuer: The server's URL.
        clients: The clients by their ids.
        tokens: The tokens.
        codes: The authorization codes.
        devices: The device codes.
        users: The users; a client may act for each of them (RFC 7523 section 2.1).
        offline_access: Whether a sign-in on a page gets a refresh token only with the scope
            ``offline_access``.
    """

    def __init__(
        self,
        issuer: str,
        clients: Mapping[str, Client],
        tokens: TokenRegistry,
        codes: Codes,
        devices: Devices,
        users: Collection[str],
        *,
        offline_access: bool,
    ) -> None:
        self._issuer = issuer
        self._clients = clients
        self._tokens = tokens
        self._codes = codes
        self._devices = devices
        self._users = users
        self._offline_access = offline_access
        self._assertions = Assertions(clients, {issuer, f"{issuer}{TOKEN}"})

    def respond(self, request: HTTPRequest, now: float) -> Answer:
        """Return the response to a request of a client (RFC 6749 section 5)."""
        try:
            params = parse_params(request)
            client_id = self._authenticate(request, params, now)
            if request.path == TOKEN:
                body = self._grant(client_id, params, requested_resources(request), now)
            elif client_id is None:
                raise _unauthenticated()
            elif request.path == REVOKE:
                self._tokens.revoke(client_id, params)
                return Answer(200, headers=NO_STORE, content_type=None)
            else:
                scope, page = params.get("scope", DEFAULT_SCOPE), f"{self._issuer}/device"
                body = self._devices.issue(client_id, scope, page, now)
        except OAuthError as error:
            return error.response
        return Answer(200, body, NO_STORE)

    def _grant(
        self, client_id: str | None, params: dict[str, str], resources: list[str], now: float
    ) -> dict[str, Any]:
        if params.get("grant_type") == JWT_BEARER:
            client, claims = self._assertions.grant(params, client_id, now)
            subject = str(claims.get("sub", client.client_id))
            if subject not in {*self._users, client.client_id}:
                raise OAuthError("invalid_grant", "the client may not act for this subject")
            scope = claims.get("scope") or params.get("scope", DEFAULT_SCOPE)
            return self._unattended(TokenFamily(subject, client.client_id, scope), now)
        if client_id is None:
            raise _unauthenticated()
        match params.get("grant_type"):
            case "client_credentials":
                if self._clients[client_id].method == "none":
                    raise OAuthError("unauthorized_client", "a public client has no such grant")
                scope = params.get("scope", DEFAULT_SCOPE)
                return self._unattended(TokenFamily(client_id, client_id, scope), now)
            case "refresh_token":
                return self._tokens.refresh(client_id, params, now, resources=resources)
            case "authorization_code":
                code = self._codes.redeem(client_id, params, now)
                code.family = TokenFamily(code.subject, client_id, code.request.scope)
                return self._first_tokens(code.family, code.request.nonce, now)
            case grant if grant == DEVICE_GRANT:
                device = self._devices.poll(client_id, params, now)
                family = TokenFamily(device.subject or "", client_id, device.scope)
                return self._first_tokens(family, None, now)
            case None:
                raise OAuthError("invalid_request", "grant_type is missing")
        raise OAuthError("unsupported_grant_type", "the grant_type is not supported")

    def _unattended(self, family: TokenFamily, now: float) -> dict[str, Any]:
        """Return an access token alone (RFC 6749 section 4.4.3)."""
        return self._tokens.sign_in(family, now, offline=False)

    def _first_tokens(self, family: TokenFamily, nonce: str | None, now: float) -> dict[str, Any]:
        """Return the tokens for a user who signed in on a page."""
        scopes = family.scope.split(" ")
        offline = not self._offline_access or "offline_access" in scopes
        response = self._tokens.sign_in(family, now, offline=offline)
        if "openid" in scopes:
            response["id_token"] = id_token(
                issuer=self._issuer,
                subject=family.subject,
                client_id=family.client_id,
                client_secret=self._clients[family.client_id].secret,
                nonce=nonce,
                access_token=response["access_token"],
                now=now,
            )
        return response

    def _authenticate(self, request: HTTPRequest, params: dict[str, str], now: float) -> str | None:
        """Return the client that authenticates, or None if the request names no client."""
        authorization = request.headers.get("authorization")
        if "client_assertion" in params:
            if authorization is not None:
                raise OAuthError("invalid_request", "the client uses two authentication methods")
            return self._assertions.client(params, now).client_id
        if authorization is None and "client_id" not in params:
            return None
        client = Client.from_request(authorization, params)
        registered = self._clients.get(client.client_id)
        if registered == client or _presents_certificate(registered, client, request):
            return client.client_id
        basic = {} if authorization is None else {"WWW-Authenticate": 'Basic realm="tokens"'}
        raise _unauthenticated(basic)


def _presents_certificate(registered: Client | None, client: Client, request: HTTPRequest) -> bool:
    """Return whether a client authenticates by its certificate (RFC 8705 section 2)."""
    if registered is None or registered.certificate is None or client.method != "none":
        return False
    expected = ssl.PEM_cert_to_DER_cert(registered.certificate)
    return registered.method in CERTIFICATE_METHODS and request.certificate == expected


def _unauthenticated(headers: Mapping[str, str] | None = None) -> OAuthError:
    headers = {**NO_STORE, **(headers or {})}
    return OAuthError("invalid_client", "authentication failed", 401, headers)


def requested_resources(request: HTTPRequest) -> list[str]:
    """Return what an access token is requested for: ``resource`` (RFC 8707), or ``audience``."""
    return [value for name, value in request.form or () if name in {RESOURCE, "audience"}]


def metadata(issuer: str, *, iss_parameter: bool) -> dict[str, Any]:
    """Return the server metadata (RFC 8414, OpenID Connect Discovery 1.0)."""
    return {
        "issuer": issuer,
        "authorization_endpoint": f"{issuer}/authorize",
        "token_endpoint": f"{issuer}{TOKEN}",
        "userinfo_endpoint": f"{issuer}/userinfo",
        "device_authorization_endpoint": f"{issuer}{DEVICE}",
        "revocation_endpoint": f"{issuer}{REVOKE}",
        "token_endpoint_auth_methods_supported": list(AUTH_METHODS),
        "grant_types_supported": [
            *("authorization_code", "refresh_token", DEVICE_GRANT),
            *("client_credentials", JWT_BEARER),
        ],
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "code_challenge_methods_supported": ["S256"],
        "scopes_supported": ["openid", "offline_access"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["HS256", "RS256"],
        "authorization_response_iss_parameter_supported": iss_parameter,
    }
