"""The shapes of providers that exist: how they are asked, what they answer, how they refuse."""

from __future__ import annotations

import json
import math
from base64 import b64decode
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

import pytest

from tests.helpers.refreshes import SOON, Raw, World
from tokenstore import (
    ClientRejectedError,
    Provider,
    ReauthorizationRequired,
    TokenRefreshError,
    TransientRefreshError,
)
from tokenstore.models.timestamps import NEVER
from tokenstore.oauth.client import refresh_grant
from tokenstore.testing import Answer

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "p+a/b=:%é€"
ANSWER = b'{"access_token": "a", "expires_in": 60}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
    len(ANSWER),
    ANSWER,
)


# -- how they are asked -----------------------------------------------------------------------


class Sent(NamedTuple):
    """A request as it came over the wire."""

    headers: dict[str, str]
    body: bytes

    @property
    def credentials(self) -> bytes:
        scheme, _, encoded = self.headers["authorization"].partition(" ")
        assert scheme == "Basic"
        return b64decode(encoded, validate=True)


def sent_by(**settings: Any) -> Sent:
    """Return what a refresh of a provider with these settings sends."""
    with Raw(OK) as server:
        provider = Provider("p", server.url, "m e", **{"client_secret": SECRET, **settings})
        refresh_grant(provider, "r+é", account_name="alice", timeout=SOON)
        (request,) = server.received
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line.split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:]]
    return Sent({name.lower(): value for name, value in lines}, body)


GRANT = {"grant_type": "refresh_token", "refresh_token": "r+é"}
POSTED = {**GRANT, "client_id": "m e", "client_secret": SECRET}


def test_a_form_is_sent_as_one() -> None:
    sent = sent_by()
    assert sent.headers["content-type"] == "application/x-www-form-urlencoded"
    assert dict(parse_qsl(sent.body.decode("ascii"), strict_parsing=True)) == POSTED


def test_json_is_sent_as_such_where_it_is_wanted() -> None:
    sent = sent_by(body_format="json", scope="a b", extra_params={"audience": "api"})
    assert sent.headers["content-type"] == "application/json"
    assert json.loads(sent.body) == {**POSTED, "scope": "a b", "audience": "api"}
    assert sent.headers["accept"] == "application/json"


def test_json_with_basic_credentials_keeps_them_out_of_the_body() -> None:
    sent = sent_by(body_format="json", token_endpoint_auth_method="client_secret_basic")
    assert json.loads(sent.body) == GRANT
    assert sent.credentials == b"m+e:p%2Ba%2Fb%3D%3A%25%C3%A9%E2%82%AC"


def test_basic_credentials_may_be_sent_as_they_are() -> None:
    method = "client_secret_basic"
    sent = sent_by(token_endpoint_auth_method=method, basic_form_encode=False)
    assert sent.credentials == f"m e:{SECRET}".encode()
    assert dict(parse_qsl(sent.body.decode("ascii"))) == GRANT


def test_a_strict_server_refuses_json_where_it_wants_a_form(world: World) -> None:
    world.sign_in()
    manager = world.manager(providers={"test": world.server.provider(body_format="json")})
    with pytest.raises(ClientRejectedError) as caught:
        manager.refresh_token("alice")
    assert caught.value.error == "invalid_request"


def test_a_strict_server_refuses_credentials_that_are_not_encoded(tmp_path: Path) -> None:
    with World(tmp_path, token_endpoint_auth_method="client_secret_basic") as world:
        world.sign_in()
        odd = world.manager(providers={"test": world.server.provider(basic_form_encode=False)})
        with pytest.raises(ClientRejectedError) as caught:
            odd.refresh_token("alice")
        assert caught.value.error == "invalid_client"
        assert world.manager().refresh_token("alice")


def test_a_secret_that_is_echoed_is_not_shown_however_it_was_sent(world: World) -> None:
    for settings in (
        {"body_format": "json"},
        {"token_endpoint_auth_method": "client_secret_basic", "basic_form_encode": False},
    ):
        saved = world.sign_in()
        provider = world.server.provider(**settings)
        echo = f"bad {provider.client_secret} {saved['refresh_token']}"
        world.server.script(Answer(400, {"error": "odd", "error_description": echo}))
        with pytest.raises(TransientRefreshError) as caught:
            world.manager(providers={"test": provider}).refresh_token("alice")
        shown = f"{caught.value!r} {caught.value} {caught.value.error_description}"
        assert str(provider.client_secret) not in shown
        assert saved["refresh_token"] not in shown


# -- how they answer --------------------------------------------------------------------------


class Success(NamedTuple):
    """An answer that has new tokens, and what is stored then."""

    body: dict[str, Any] | str
    lives: float  # seconds
    refresh_token: str | None = None  # None: the old one
    dies_in: float | None = None  # seconds, the refresh token
    kept: dict[str, Any] = {}  # noqa: RUF012 - other fields
    settings: dict[str, Any] = {}  # noqa: RUF012 - of the provider


NEW = "new-access"
SUCCESSES = {
    "Google, which keeps the refresh token": Success(
        {"access_token": NEW, "expires_in": 3599, "scope": "a b", "token_type": "Bearer"}, 3599
    ),
    "Google, in its text days": Success({"access_token": NEW, "expires_in": "3600"}, 3600),
    "Microsoft, which rotates and adds": Success(
        {
            "token_type": "Bearer",
            "scope": "User.Read profile",
            "expires_in": 4512,
            "ext_expires_in": 4512,
            "access_token": NEW,
            "refresh_token": "new-refresh",
            "id_token": "i",
        },
        4512,
        "new-refresh",
        kept={"ext_expires_in": 4512, "id_token": "i"},
    ),
    "GitHub, as a form": Success(
        urlencode(
            {
                "access_token": NEW,
                "expires_in": 28800,
                "refresh_token": "new-refresh",
                "refresh_token_expires_in": 15897600,
                "scope": "",
                "token_type": "bearer",
            }
        ),
        28800,
        "new-refresh",
        15897600,
    ),
    "Salesforce, which does not say how long": Success(
        {
            "access_token": NEW,
            "instance_url": "https://x.my.salesforce.com",
            "issued_at": "1800000000000",
            "signature": "s=",
        },
        7200,
        kept={"instance_url": "https://x.my.salesforce.com", "issued_at": "1800000000000"},
        settings={"default_expires_in": 7200},
    ),
    "Slack, with ok and rotation": Success(
        {
            "ok": True,
            "access_token": NEW,
            "expires_in": 43200,
            "refresh_token": "new-refresh",
            "team": {"id": "T1", "name": "x"},
        },
        43200,
        "new-refresh",
        kept={"team": {"id": "T1", "name": "x"}},
    ),
    "Slack, without rotation": Success(
        {"ok": True, "access_token": NEW}, NEVER, settings={"default_expires_in": math.inf}
    ),
    "Intuit, which counts the refresh token by an x_ name": Success(
        {
            "access_token": NEW,
            "refresh_token": "new-refresh",
            "expires_in": 3600,
            "x_refresh_token_expires_in": 8726400,
            "token_type": "bearer",
        },
        3600,
        "new-refresh",
        8726400,
    ),
    "Keycloak, which counts it by another": Success(
        {
            "access_token": NEW,
            "expires_in": 300,
            "refresh_expires_in": 1800,
            "refresh_token": "new-refresh",
            "not-before-policy": 0,
            "session_state": "s",
        },
        300,
        "new-refresh",
        1800,
        kept={"not-before-policy": 0, "session_state": "s"},
    ),
    "Keycloak, offline: 0 is for ever": Success(
        {
            "access_token": NEW,
            "expires_in": 300,
            "refresh_expires_in": 0,
            "refresh_token": "new-refresh",
        },
        300,
        "new-refresh",
    ),
    "Strava, which tells the moment too": Success(
        {
            "access_token": NEW,
            "expires_at": 1234567890,
            "expires_in": 20566,
            "refresh_token": "new-refresh",
        },
        20566,
        "new-refresh",
    ),
    "an empty refresh token": Success(
        {"access_token": NEW, "expires_in": 60, "refresh_token": ""}, 60
    ),
}


@pytest.mark.parametrize("case", SUCCESSES.values(), ids=SUCCESSES.keys())
def test_a_success_is_stored_whatever_its_shape(world: World, case: Success) -> None:
    saved = world.sign_in(realmId="kept", refresh_token="old-refresh")
    manager = world.manager(providers={"test": world.server.provider(**case.settings)})
    world.clock.now += 10
    content_type = "application/json" if isinstance(case.body, dict) else "text/plain"
    world.server.script(Answer(200, case.body, content_type=content_type))
    tokens = manager.refresh_token("alice")
    assert tokens == manager.load_tokens("alice")
    expires_at = NEVER if case.lives == NEVER else world.clock.now + case.lives
    refresh_token = case.refresh_token or saved["refresh_token"]
    assert world.tokens() == (NEW, refresh_token, expires_at)
    assert {name: tokens[name] for name in case.kept} == case.kept
    assert tokens["realmId"] == "kept"
    (account,) = manager.accounts()
    assert account.refresh_token_obtained_at == world.clock.now - (0 if case.refresh_token else 10)
    dies_at = None if case.dies_in is None else world.clock.now + case.dies_in
    assert account.refresh_token_expires_at == dies_at


# -- how they refuse --------------------------------------------------------------------------


class Refusal(NamedTuple):
    """An answer without tokens, and what is made of it."""

    answer: Answer
    raised: type[TokenRefreshError]
    error: str | None


REFUSALS = {
    "Google": Refusal(
        Answer(400, {"error": "invalid_grant", "error_description": "expired or revoked"}),
        ReauthorizationRequired,
        "invalid_grant",
    ),
    "Microsoft, dead": Refusal(
        Answer(
            400,
            {
                "error": "invalid_grant",
                "error_description": "AADSTS700082: inactive\r\nTrace ID: 1",
                "error_codes": [700082],
                "suberror": "bad_token",
            },
        ),
        ReauthorizationRequired,
        "invalid_grant",
    ),
    "Microsoft, consent": Refusal(
        Answer(400, {"error": "interaction_required", "error_codes": [50076]}),
        ReauthorizationRequired,
        "interaction_required",
    ),
    "Microsoft, wrong secret": Refusal(
        Answer(401, {"error": "invalid_client", "error_codes": [7000215]}),
        ClientRejectedError,
        "invalid_client",
    ),
    "GitHub, as a form with 200": Refusal(
        Answer(
            200,
            "error=bad_refresh_token&error_description=incorrect+or+expired&error_uri=https%3A%2F%2Fx",
            content_type="application/x-www-form-urlencoded; charset=utf-8",
        ),
        ReauthorizationRequired,
        "bad_refresh_token",
    ),
    "GitHub, wrong secret with 200": Refusal(
        Answer(200, {"error": "incorrect_client_credentials"}),
        ClientRejectedError,
        "incorrect_client_credentials",
    ),
    "Slack": Refusal(
        Answer(200, {"ok": False, "error": "invalid_refresh_token"}),
        ReauthorizationRequired,
        "invalid_refresh_token",
    ),
    "Slack, too often": Refusal(
        Answer(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": "30"}),
        TransientRefreshError,
        "ratelimited",
    ),
    "Fitbit, with a list": Refusal(
        Answer(400, {"errors": [{"errorType": "invalid_grant", "message": "x"}], "success": False}),
        ReauthorizationRequired,
        None,
    ),
    "a gateway": Refusal(
        Answer(502, "<html><h1>Bad Gateway</h1></html>", content_type="text/html"),
        TransientRefreshError,
        None,
    ),
    "a captive portal": Refusal(
        Answer(200, "<html>Welcome to the hotel</html>", content_type="text/html"),
        TransientRefreshError,
        None,
    ),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_is_understood_whatever_its_shape(world: World, case: Refusal) -> None:
    world.sign_in()
    before = world.tokens()
    world.server.script(case.answer)
    with pytest.raises(TokenRefreshError) as caught:
        world.manager().refresh_token("alice")
    assert type(caught.value) is case.raised
    assert caught.value.error == case.error
    assert "\n" not in str(caught.value)
    assert "<html>" not in str(caught.value)
    assert world.tokens() == before
