"""How providers that exist differ from RFC 6749: what they demand, answer and say. No sockets.

The facts are those of the catalogue (``oauth/catalog.toml``); each has its source there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from tokenstore.testing.protocol import NO_STORE, HTTPRequest, OAuthError
from tokenstore.testing.script import Answer

Fields: TypeAlias = dict[str, Any]
Refusal: TypeAlias = tuple[int, Mapping[str, Any]]  # the status and the body


@dataclass(frozen=True)
class Dialect:
    """What differs at one provider's token endpoint.

    Attributes:
        success: Returns the body of a successful response for the fields of RFC 6749 section 5.1.
        dead_token: The response to a refresh token that is not valid, or None for that of RFC 6749;
            ``{token}`` in a text stands for the token.
        wrong_client: The response to a client that cannot authenticate, or None.
        demands_json: Whether the request must be a JSON object.
        demanded: Parameters that every request must have.
        client_id: The name of the parameter that RFC 6749 calls ``client_id``.
    """

    success: Callable[[Fields], Fields] = dict
    dead_token: Refusal | None = None
    wrong_client: Refusal | None = None
    demands_json: bool = False
    demanded: Mapping[str, str] = field(default_factory=dict)
    client_id: str = "client_id"

    def understood(self, request: HTTPRequest) -> HTTPRequest:
        """Return a request as RFC 6749 has it.

        Raises:
            OAuthError: It is not as this provider demands.
        """
        form, headers = request.form, request.headers
        if self.demands_json:
            form, headers = _of_json(request), {**headers, "content-type": _FORM}
        if form is None:
            return request
        if not dict(form).items() >= self.demanded.items():
            raise OAuthError("invalid_request", f"{', '.join(self.demanded)} is missing")
        form = [
            ("client_id" if name == self.client_id else name, value)
            for name, value in form
            if name not in self.demanded
        ]
        return request._replace(form=form, headers=headers)

    def spoken(self, answer: Answer, request: HTTPRequest) -> Answer:
        """Return a response of RFC 6749 as this provider gives it."""
        if answer.error is None and isinstance(answer.body, Mapping):
            return replace(answer, body=self.success(dict(answer.body)))
        params = dict(request.form or [])
        if answer.error == "invalid_client" and self.wrong_client is not None:
            return _refusal(self.wrong_client, "")
        is_refresh = params.get("grant_type") == "refresh_token"
        if answer.error == "invalid_grant" and is_refresh and self.dead_token is not None:
            return _refusal(self.dead_token, params.get("refresh_token", ""))
        return answer


_FORM = "application/x-www-form-urlencoded"


def _of_json(request: HTTPRequest) -> list[tuple[str, str]]:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise OAuthError("invalid_request", "the Content-Type is not application/json")
    try:
        return list(json.loads(request.body).items())
    except (ValueError, AttributeError):
        raise OAuthError("invalid_request", "the body is not a JSON object") from None


def _refusal(refusal: Refusal, token: str) -> Answer:
    status, body = refusal
    return Answer(status, json.dumps(body).replace("{token}", token), NO_STORE)


# -- the shapes of successful responses -----------------------------------------------------------


def _with(**more: Any) -> Callable[[Fields], Fields]:
    return lambda fields: {**fields, **more}


def _without(*names: str) -> Callable[[Fields], Fields]:
    return lambda fields: {name: fields[name] for name in fields if name not in names}


def _in_commas(fields: Fields) -> Fields:
    return {**fields, "scope": ",".join(fields.get("scope", "").split())}


def _slack(fields: Fields) -> Fields:
    return {"ok": True, **_in_commas(fields), "token_type": "bot"}


def _withings(fields: Fields) -> Fields:
    return {"status": 0, "body": {"userid": "1", **_in_commas(fields)}}


def _listed(name: str) -> Callable[[Fields], Fields]:
    def success(fields: Fields) -> Fields:
        fields = dict(fields)
        return {**fields, name: fields.pop("scope", "").split()}

    return success


def _bitbucket(fields: Fields) -> Fields:
    fields = dict(fields)
    return {**fields, "scopes": fields.pop("scope", ""), "state": "refresh_token"}


# -- the providers --------------------------------------------------------------------------------


def _said(status: int, error: str, description: str | None = None, **more: Any) -> Refusal:
    described = {} if description is None else {"error_description": description}
    return status, {"error": error, **described, **more}


_STRAVA = {"field": "", "code": "invalid"}

DIALECTS: Mapping[str, Dialect] = {
    "atlassian": Dialect(
        demands_json=True,
        dead_token=_said(403, "invalid_grant", "Unknown or invalid refresh token."),
        wrong_client=_said(401, "access_denied", "Unauthorized"),
    ),
    "auth0": Dialect(dead_token=_said(403, "invalid_grant", "Unknown or invalid refresh token.")),
    "bitbucket": Dialect(
        success=_bitbucket,
        dead_token=_said(400, "invalid_request", "Invalid refresh_token"),
    ),
    "box": Dialect(dead_token=_said(400, "invalid_grant", "Refresh token has expired")),
    "discord": Dialect(
        dead_token=_said(400, "invalid_grant", 'Invalid "refresh_token" in request.')
    ),
    "dropbox": Dialect(
        dead_token=_said(400, "invalid_grant", "refresh token is invalid or revoked")
    ),
    "fitbit": Dialect(
        success=_with(user_id="ABC"),
        dead_token=(
            400,
            {
                "errors": [
                    {"errorType": "invalid_grant", "message": "Refresh token invalid: {token}."}
                ],
                "success": False,
            },
        ),
        wrong_client=(
            401,
            {
                "errors": [{"errorType": "invalid_client", "message": "Invalid authorization"}],
                "success": False,
            },
        ),
    ),
    "github": Dialect(
        success=_in_commas,
        dead_token=_said(
            200, "bad_refresh_token", "The refresh token passed is incorrect or expired."
        ),
        wrong_client=_said(200, "incorrect_client_credentials", "The client_id is incorrect."),
    ),
    "gitlab": Dialect(
        success=_with(created_at=1),
        dead_token=_said(400, "invalid_grant", "The grant is invalid, expired or revoked."),
    ),
    "google": Dialect(
        dead_token=_said(400, "invalid_grant", "Token has been expired or revoked."),
        wrong_client=_said(401, "invalid_client", "The OAuth client was not found."),
    ),
    "hubspot": Dialect(
        success=_listed("scopes"),
        dead_token=(
            400,
            {"status": "BAD_REFRESH_TOKEN", "message": "missing or unknown refresh token"},
        ),
    ),
    "keycloak": Dialect(
        success=_with(refresh_expires_in=0, **{"not-before-policy": 0}),
        dead_token=_said(400, "invalid_grant", "Token is not active"),
    ),
    "linkedin": Dialect(
        success=_with(refresh_token_expires_in=31536000),
        dead_token=_said(
            400,
            "invalid_request",
            "The provided authorization grant or refresh token is invalid, expired or revoked",
        ),
    ),
    "mailchimp": Dialect(success=_with(expires_in=0, scope=None)),
    "microsoft": Dialect(
        success=_with(ext_expires_in=3600),
        dead_token=_said(400, "invalid_grant", "AADSTS70043: it has expired.", error_codes=[70043]),
        wrong_client=_said(
            401, "invalid_client", "AADSTS7000215: Wrong secret.", error_codes=[7000215]
        ),
    ),
    "notion": Dialect(success=_without("expires_in", "scope"), demands_json=True),
    "pinterest": Dialect(
        success=_with(response_type="refresh_token", refresh_token_expires_in=5184000),
        dead_token=(401, {"code": 283, "message": "The authorization grant is invalid"}),
    ),
    "quickbooks": Dialect(success=_with(x_refresh_token_expires_in=8640000)),
    "reddit": Dialect(dead_token=(400, {"message": "Bad Request", "error": 400})),
    "salesforce": Dialect(
        success=_without("expires_in"),
        dead_token=_said(400, "invalid_grant", "expired access/refresh token"),
    ),
    "shopify": Dialect(
        success=_with(refresh_token_expires_in=7776000),
        dead_token=_said(401, "invalid_request", "This request requires an active refresh_token"),
    ),
    "slack": Dialect(
        success=_slack,
        dead_token=(200, {"ok": False, "error": "invalid_refresh_token"}),
        wrong_client=(200, {"ok": False, "error": "bad_client_secret"}),
    ),
    "strava": Dialect(
        success=_with(expires_at=4102444800),
        dead_token=(
            400,
            {
                "message": "Bad Request",
                "errors": [{**_STRAVA, "resource": "RefreshToken", "field": "refresh_token"}],
            },
        ),
        wrong_client=(
            400,
            {
                "message": "Bad Request",
                "errors": [{**_STRAVA, "resource": "Application", "field": "client_id"}],
            },
        ),
    ),
    "tiktok": Dialect(
        success=_with(open_id="1", refresh_expires_in=15552000), client_id="client_key"
    ),
    "twitch": Dialect(
        success=_listed("scope"),
        dead_token=(400, {"status": 400, "message": "Invalid refresh token"}),
        wrong_client=(403, {"status": 403, "message": "invalid client secret"}),
    ),
    "withings": Dialect(
        success=_withings,
        dead_token=(
            200,
            {"status": 503, "body": {}, "error": "Invalid Params: invalid refresh_token"},
        ),
        demanded={"action": "requesttoken"},
    ),
    "x": Dialect(
        dead_token=_said(400, "invalid_request", "Value passed for the token was invalid.")
    ),
    "xero": Dialect(dead_token=_said(400, "invalid_grant")),
    "yahoo": Dialect(dead_token=_said(400, "INVALID_REFRESH_TOKEN", "The token is invalid")),
    "zoho": Dialect(
        success=_with(api_domain="https://www.zohoapis.example"),
        dead_token=_said(200, "invalid_code"),
        wrong_client=_said(200, "invalid_client_secret"),
    ),
    "zoom": Dialect(dead_token=_said(400, "invalid_grant", None, reason="Invalid Token!")),
}
"""The providers that differ, by their names in the catalogue."""
