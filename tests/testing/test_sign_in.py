"""The strict server: sign-in pages, codes, devices, revocation."""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING, Any

import pytest
import requests
from joserfc import jwt
from joserfc.jwk import OctKey

from tests.helpers.refreshes import SOON
from tests.helpers.sign_in import callback, claims_of, load
from tokenstore.testing import AuthorizationServer
from tokenstore.testing.id_tokens import signing_key

if TYPE_CHECKING:
    from tests.helpers.refreshes import Clock

SECRET = "p+a/b=:%é€"
REDIRECT_URI = "http://127.0.0.1:4000/callback"
VERIFIER = "v" * 43
CHALLENGE = urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"


def page_url(server: AuthorizationServer, **changes: str | None) -> str:
    """Return the URL of the sign-in page; None omits a parameter."""
    params: dict[str, str | None] = {
        "response_type": "code",
        "client_id": "tokenstore",
        "redirect_uri": REDIRECT_URI,
        "scope": "openid mail",
        "state": "s",
        "nonce": "n",
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
        **changes,
    }
    sent = {name: value for name, value in params.items() if value is not None}
    return str(requests.Request("GET", f"{server.issuer}/authorize", params=sent).prepare().url)


def post(server: AuthorizationServer, path: str, **form: str | None) -> requests.Response:
    sent = {"client_id": "tokenstore", "client_secret": SECRET, **form}
    sent = {name: value for name, value in sent.items() if value is not None}
    return requests.post(f"{server.issuer}{path}", sent, timeout=SOON, allow_redirects=False)


def redeem(server: AuthorizationServer, code: str, **changes: str | None) -> requests.Response:
    form: dict[str, str | None] = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": REDIRECT_URI,
        "code_verifier": VERIFIER,
        **changes,
    }
    return post(server, "/token", **form)


def code_for(server: AuthorizationServer, **changes: str | None) -> str:
    _, params = callback(server, page_url(server, **changes))
    return params["code"]


def refused(response: requests.Response) -> str:
    assert response.status_code == 400
    return str(response.json()["error"])


# -- the sign-in page -----------------------------------------------------------------------------


def test_the_redirect_has_a_code_the_state_and_the_issuer(
    server: AuthorizationServer,
) -> None:
    location, params = callback(server, page_url(server))
    assert location == REDIRECT_URI
    assert {**params, "code": ""} == {"code": "", "state": "s", "iss": server.issuer}
    response = redeem(server, params["code"])
    assert response.headers["Cache-Control"] == "no-store"
    assert response.json()["scope"] == "openid mail"
    assert server.is_live(response.json()["access_token"])


def test_a_refusal_redirects_without_a_code(server: AuthorizationServer) -> None:
    _, params = callback(server, page_url(server, state=None), "refuse")
    assert (params["error"], params["iss"]) == ("access_denied", server.issuer)
    assert params.keys() == {"error", "error_description", "iss"}


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": "nobody"},
        {"client_id": None},
        {"redirect_uri": None},
        {"redirect_uri": "http://127.0.0.1:4000/callback/"},
        {"redirect_uri": "http://127.0.0.1:4000/callback?x=1"},
        {"redirect_uri": "http://127.0.0.2:4000/callback"},
        {"redirect_uri": "http://localhost:4000/callback"},
        {"redirect_uri": "https://127.0.0.1:4000/callback"},
        {"redirect_uri": "http://evil.example/callback"},
    ],
    ids=str,
)
def test_an_unregistered_redirect_uri_gets_no_redirect(
    server: AuthorizationServer, changes: dict[str, str | None]
) -> None:
    page = load(page_url(server, **changes))
    assert (page.status, "Invalid request" in page.text) == (400, True)


def test_a_repeated_parameter_gets_no_redirect(server: AuthorizationServer) -> None:
    assert load(f"{page_url(server)}&state=other").status == 400


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1/callback", "http://127.0.0.1/callback"])
def test_any_port_on_loopback_is_allowed(server: AuthorizationServer, uri: str) -> None:
    assert load(page_url(server, redirect_uri=uri)).status == 200


def test_any_other_port_must_match(server: AuthorizationServer) -> None:
    server.register("web", "secret", redirect_uris=["https://app.example/", f"{REDIRECT_URI}/x"])
    web = {"client_id": "web"}
    assert load(page_url(server, redirect_uri="https://app.example/", **web)).status == 200
    for other in ("https://app.example:444/", "http://127.0.0.1:4001/callback/x"):
        assert load(page_url(server, redirect_uri=other, **web)).status == 400


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"response_type": None}, "unsupported_response_type"),
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
    ],
    ids=str,
)
def test_an_invalid_request_redirects_with_an_error(
    server: AuthorizationServer, changes: dict[str, str | None], error: str
) -> None:
    response = requests.get(page_url(server, **changes), timeout=SOON, allow_redirects=False)
    assert response.status_code == 303
    assert response.headers["Location"].startswith(f"{REDIRECT_URI}?error={error}&")
    assert "state=s" in response.headers["Location"]


def test_a_wrong_password_shows_the_form_again(server: AuthorizationServer) -> None:
    form = {"username": "<alice>", "password": "wonderland", "decision": "allow"}
    for password in ("wrong", None):
        sent = {**form, "username": "alice", "password": password}
        response = requests.post(page_url(server), sent, timeout=SOON)
        assert (response.status_code, "<form" in response.text) == (400, True)
    unknown = requests.post(page_url(server), form, timeout=SOON)
    assert "Wrong user name or password" in unknown.text
    assert "&lt;alice&gt;" in unknown.text


def test_the_form_is_filled_in_with_the_login_hint(server: AuthorizationServer) -> None:
    page = load(page_url(server, login_hint='"bob"'))
    assert 'value="&quot;bob&quot;"' in page.text


def test_users_can_be_configured() -> None:
    with AuthorizationServer(users={"dora": "explorer"}) as server:
        server.register("x", redirect_uris=[server.issuer])
        page = server.visit(page_url(server, client_id="x", redirect_uri=server.issuer), "dora")
        assert "code=" in page.url
        with pytest.raises(KeyError):
            server.visit(page_url(server), "alice")


# -- codes ----------------------------------------------------------------------------------------


def test_using_a_code_twice_revokes_its_tokens(server: AuthorizationServer) -> None:
    code = code_for(server)
    tokens = redeem(server, code).json()
    assert refused(redeem(server, code)) == "invalid_grant"
    assert not server.is_live(tokens["access_token"])


@pytest.mark.parametrize(
    "changes",
    [
        {"code_verifier": "w" * 43},
        {"code_verifier": None},
        {"code_verifier": VERIFIER[:-1]},
        {"redirect_uri": None},
        {"redirect_uri": "http://127.0.0.1:4001/callback"},
    ],
    ids=str,
)
def test_a_failed_request_uses_up_the_code(
    server: AuthorizationServer, changes: dict[str, str | None]
) -> None:
    code = code_for(server)
    assert refused(redeem(server, code, **changes)) == "invalid_grant"
    assert refused(redeem(server, code)) == "invalid_grant"


def test_a_code_expires_after_a_minute(server: AuthorizationServer, clock: Clock) -> None:
    late, in_time = code_for(server), code_for(server)
    clock.now += 59
    assert redeem(server, in_time).status_code == 200
    clock.now += 1
    assert refused(redeem(server, late)) == "invalid_grant"


def test_a_code_works_only_for_its_client(server: AuthorizationServer) -> None:
    server.register("other")
    code = code_for(server)
    other = redeem(server, code, client_id="other", client_secret=None)
    assert refused(other) == "invalid_grant"
    assert redeem(server, code).status_code == 200
    assert refused(redeem(server, "made up")) == "invalid_grant"
    assert refused(post(server, "/token", grant_type="authorization_code")) == "invalid_request"


def test_a_client_must_authenticate_to_use_a_code(server: AuthorizationServer) -> None:
    code = code_for(server)
    assert redeem(server, code, client_secret="wrong").status_code == 401
    assert redeem(server, code).status_code == 200


# -- id_tokens ------------------------------------------------------------------------------------


def test_an_id_token_is_signed_with_the_secret(clock: Clock) -> None:
    secret = "a secret that is long enough"
    with AuthorizationServer(clock=clock, client_secret=secret) as server:
        token = redeem(server, code_for(server), client_secret=secret).json()["id_token"]
        issuer = server.issuer
    claims = jwt.decode(token, OctKey.import_key(secret), algorithms=["HS256"]).claims
    assert {name: claims[name] for name in ("iss", "sub", "aud", "nonce", "iat")} == {
        "iss": issuer,
        "sub": "alice",
        "aud": "tokenstore",
        "nonce": "n",
        "iat": clock.now,
    }
    assert claims["exp"] > clock.now


def test_an_id_token_for_a_public_client_is_signed_with_a_key(clock: Clock) -> None:
    with AuthorizationServer(clock=clock, client_secret=None) as server:
        token = redeem(server, code_for(server), client_secret=None).json()["id_token"]
        assert jwt.decode(token, signing_key(), algorithms=["RS256"]).claims["sub"] == "alice"


def test_an_id_token_requires_the_scope_openid(server: AuthorizationServer) -> None:
    assert "id_token" not in redeem(server, code_for(server, scope="mail")).json()
    without_nonce = redeem(server, code_for(server, nonce=None)).json()
    assert "nonce" not in claims_of(without_nonce["id_token"])


def test_a_refresh_token_may_require_offline_access(clock: Clock) -> None:
    with AuthorizationServer(clock=clock, offline_access=True) as server:
        assert "refresh_token" not in redeem(server, code_for(server)).json()
        asked = redeem(server, code_for(server, scope="openid offline_access")).json()
        assert "refresh_token" in asked


# -- devices --------------------------------------------------------------------------------------


def begin(server: AuthorizationServer) -> dict[str, Any]:
    response = post(server, "/device_authorization", scope="openid")
    assert response.headers["Cache-Control"] == "no-store"
    begun: dict[str, Any] = response.json()
    return begun


def poll(server: AuthorizationServer, begun: dict[str, Any]) -> requests.Response:
    return post(server, "/token", grant_type=DEVICE, device_code=begun["device_code"])


def test_a_device_code_works_once_after_the_user_allows_it(
    server: AuthorizationServer, clock: Clock
) -> None:
    begun = begin(server)
    assert refused(poll(server, begun)) == "authorization_pending"
    clock.now += 5
    assert "Done" in server.visit(begun["verification_uri_complete"], "bob").text
    tokens = poll(server, begun).json()
    assert claims_of(tokens["id_token"])["sub"] == "bob"
    clock.now += 5
    assert refused(poll(server, begun)) == "invalid_grant"


def test_a_device_that_polls_too_often_is_slowed_down_for_good(
    server: AuthorizationServer, clock: Clock
) -> None:
    begun = begin(server)
    for wait, error in ((0, "authorization_pending"), (4, "slow_down"), (9, "slow_down")):
        clock.now += wait
        assert refused(poll(server, begun)) == error
    clock.now += 15
    assert refused(poll(server, begun)) == "authorization_pending"


def test_a_device_can_be_refused(server: AuthorizationServer) -> None:
    begun = begin(server)
    server.visit(begun["verification_uri_complete"], allow=False)
    assert refused(poll(server, begun)) == "access_denied"


def test_a_device_code_expires(server: AuthorizationServer, clock: Clock) -> None:
    begun = begin(server)
    clock.now += 600
    assert refused(poll(server, begun)) == "expired_token"
    page = server.visit(begun["verification_uri_complete"])
    assert (page.status, "unknown, used or expired" in page.text) == (400, True)


def test_a_user_code_is_decided_once(server: AuthorizationServer) -> None:
    begun = begin(server)
    typed = begun["user_code"].lower().replace("-", " ")
    assert "Done" in server.visit(begun["verification_uri"], user_code=typed).text
    assert server.visit(begun["verification_uri_complete"], allow=False).status == 400
    assert server.visit(begun["verification_uri"], user_code="AAAA-AAAA").status == 400
    assert poll(server, begun).status_code == 200


def test_a_device_code_works_only_for_its_client(server: AuthorizationServer) -> None:
    server.register("other")
    begun = begin(server)
    form = {"grant_type": DEVICE, "device_code": begun["device_code"]}
    other = post(server, "/token", client_id="other", client_secret=None, **form)
    assert refused(other) == "invalid_grant"
    assert refused(post(server, "/token", grant_type=DEVICE)) == "invalid_request"


def test_a_client_must_authenticate_to_get_a_device_code(server: AuthorizationServer) -> None:
    assert post(server, "/device_authorization", client_secret="wrong").status_code == 401


# -- revocation -----------------------------------------------------------------------------------


def test_revoking_a_refresh_token_revokes_its_access_tokens(server: AuthorizationServer) -> None:
    tokens, other = server.sign_in("alice"), server.sign_in("alice")
    response = post(server, "/revoke", token=tokens["refresh_token"])
    assert (response.status_code, response.text) == (200, "")
    assert not server.is_live(tokens["access_token"])
    assert server.is_live(other["access_token"])
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
    assert refused(post(server, "/token", **form)) == "invalid_grant"
    assert server.reuses == 0


def test_revoking_an_access_token_keeps_the_refresh_token(server: AuthorizationServer) -> None:
    tokens = server.sign_in("alice")
    assert post(server, "/revoke", token=tokens["access_token"]).status_code == 200
    assert not server.is_live(tokens["access_token"])
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
    assert post(server, "/token", **form).status_code == 200


def test_revoking_an_unknown_token_succeeds(server: AuthorizationServer) -> None:
    assert post(server, "/revoke", token="made up").status_code == 200
    assert refused(post(server, "/revoke")) == "invalid_request"


def test_only_its_client_can_revoke_a_token(server: AuthorizationServer) -> None:
    server.register("other")
    tokens = server.sign_in("alice")
    other = {"client_id": "other", "client_secret": None}
    response = post(server, "/revoke", token=tokens["refresh_token"], **other)
    assert refused(response) == "unauthorized_client"
    assert post(server, "/revoke", token="x", client_secret="wrong").status_code == 401
    assert server.is_live(tokens["access_token"])


def test_requests_are_recorded_by_endpoint(server: AuthorizationServer) -> None:
    post(server, "/revoke", token="x")
    begin(server)
    assert server.requests == []
    assert [r.params["token"] for r in server.requests_at("/revoke")] == ["x"]
    assert [r.status for r in server.requests_at("/device_authorization")] == [200]
