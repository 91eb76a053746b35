"""The strict server: refreshes, client authentication, scripts, connections."""

from __future__ import annotations

import json
import socket
import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote_plus, urlencode

import pytest
import requests

from tests.helpers.refreshes import SOON
from tokenstore.testing import (
    Answer,
    AuthorizationServer,
    Drip,
    Drop,
    Hold,
    Transform,
    Truncate,
)
from tokenstore.testing.protocol import Token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.helpers.refreshes import Clock

SECRET = "p+a/b=:%é€"


def post(server: AuthorizationServer, form: Any, **changes: Any) -> requests.Response:
    options = {"timeout": SOON, "allow_redirects": False, **changes}
    return requests.post(server.token_endpoint, form, **options)


def grant(refresh_token: str, **changes: str) -> dict[str, str]:
    return {
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
        "client_id": "tokenstore",
        "client_secret": SECRET,
        **changes,
    }


def refresh(server: AuthorizationServer, refresh_token: str, **changes: str) -> requests.Response:
    return post(server, grant(refresh_token, **changes))


def basic(client_id: str, secret: str) -> dict[str, str]:
    pair = f"{quote_plus(client_id)}:{quote_plus(secret)}".encode()
    return {"Authorization": f"Basic {b64encode(pair).decode()}"}


def refused(response: requests.Response, status: int, error: str) -> bool:
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    return (response.status_code, response.json()["error"]) == (status, error)


def without(params: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in params.items() if name not in names}


# Rotation


def test_a_refresh_rotates_both_tokens(server: AuthorizationServer) -> None:
    old = server.sign_in(scope="read write")
    response = refresh(server, old["refresh_token"])
    new = response.json()
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert {**new, "access_token": 0, "refresh_token": 0} == {
        "access_token": 0,
        "refresh_token": 0,
        "token_type": "Bearer",
        "expires_in": 3600,
        "scope": "read write",
    }
    assert new["access_token"] != old["access_token"]
    assert new["refresh_token"] != old["refresh_token"]
    assert refresh(server, new["refresh_token"]).status_code == 200
    assert server.refreshes() == 2


def test_reusing_a_refresh_token_revokes_its_whole_family(server: AuthorizationServer) -> None:
    first = server.sign_in()
    other = server.sign_in()
    second = refresh(server, first["refresh_token"]).json()
    assert server.is_live(first["access_token"])
    assert server.is_live(second["access_token"])

    assert refused(refresh(server, first["refresh_token"]), 400, "invalid_grant")
    assert not server.is_live(first["access_token"])
    assert not server.is_live(second["access_token"])
    assert refused(refresh(server, second["refresh_token"]), 400, "invalid_grant")
    assert server.reuses == 1
    assert server.is_live(other["access_token"])
    assert refresh(server, other["refresh_token"]).status_code == 200


def test_without_rotation_the_refresh_token_stays_valid_and_is_omitted(clock: Clock) -> None:
    with AuthorizationServer(rotate=False, clock=clock) as server:
        token = server.sign_in()["refresh_token"]
        for _ in range(2):
            response = refresh(server, token)
            assert response.status_code == 200
            assert "refresh_token" not in response.json()
        assert server.reuses == 0
        assert server.refreshes() == 2


def test_only_one_of_many_concurrent_uses_of_a_token_succeeds(
    server: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = server.sign_in()["refresh_token"]
    start = threading.Barrier(32)
    both_checked = threading.Barrier(2)
    is_live = Token.is_live

    def is_live_for_two(token: Token, now: float) -> bool:
        with suppress(threading.BrokenBarrierError):
            both_checked.wait(0.2)  # times out if requests are handled one by one
        return is_live(token, now)

    def race() -> int:
        start.wait(SOON)
        return refresh(server, token).status_code

    monkeypatch.setattr(Token, "is_live", is_live_for_two)
    with ThreadPoolExecutor(32) as pool:
        statuses = [each.result() for each in [pool.submit(race) for _ in range(32)]]
    assert sorted(statuses) == [200] + [400] * 31
    assert server.refreshes() == 1
    assert server.reuses == 31


def test_an_unknown_refresh_token_is_an_invalid_grant(server: AuthorizationServer) -> None:
    assert refused(refresh(server, "made-up"), 400, "invalid_grant")
    assert server.reuses == 0


def test_a_refresh_token_expires_by_the_clock(clock: Clock) -> None:
    with AuthorizationServer(refresh_token_lifetime=100, clock=clock) as server:
        first = server.sign_in()
        clock.now += 99
        second = refresh(server, first["refresh_token"]).json()
        clock.now += 99
        third = refresh(server, second["refresh_token"]).json()
        clock.now += 100
        assert refused(refresh(server, third["refresh_token"]), 400, "invalid_grant")
        assert server.reuses == 0


def test_a_revoked_subject_needs_a_new_sign_in(server: AuthorizationServer) -> None:
    alice, bob = server.sign_in("alice"), server.sign_in("bob")
    server.revoke("alice")
    assert not server.is_live(alice["access_token"])
    assert refused(refresh(server, alice["refresh_token"]), 400, "invalid_grant")
    assert refresh(server, bob["refresh_token"]).status_code == 200
    assert refresh(server, server.sign_in("alice")["refresh_token"]).status_code == 200
    with pytest.raises(KeyError):
        server.revoke("nobody")


def test_another_clients_token_is_refused_and_its_family_stays_valid(
    server: AuthorizationServer,
) -> None:
    server.register("other", "s3cret")
    old = server.sign_in()
    new = refresh(server, old["refresh_token"]).json()
    for token in old["refresh_token"], new["refresh_token"]:
        response = refresh(server, token, client_id="other", client_secret="s3cret")
        assert refused(response, 400, "invalid_grant")
    assert server.reuses == 0
    assert server.is_live(new["access_token"])
    assert refresh(server, new["refresh_token"]).status_code == 200


# Scope


def test_a_narrower_scope_is_granted_and_can_be_widened_again(
    server: AuthorizationServer,
) -> None:
    token = server.sign_in(scope="read write")["refresh_token"]
    narrow = refresh(server, token, scope="write").json()
    assert narrow["scope"] == "write"
    assert refresh(server, narrow["refresh_token"]).json()["scope"] == "read write"


@pytest.mark.parametrize("scope", ["admin", "read admin", "read  write", "READ"])
def test_a_scope_beyond_the_grant_is_refused_and_uses_no_token(
    server: AuthorizationServer, scope: str
) -> None:
    token = server.sign_in(scope="read write")["refresh_token"]
    assert refused(refresh(server, token, scope=scope), 400, "invalid_scope")
    assert refresh(server, token).status_code == 200


# The shape of a request


def test_get_is_not_allowed(server: AuthorizationServer) -> None:
    response = requests.get(server.token_endpoint, timeout=SOON)
    assert refused(response, 405, "invalid_request")
    assert response.headers["Allow"] == "POST"


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
def test_only_forms_are_accepted(server: AuthorizationServer, content_type: str) -> None:
    token = server.sign_in()["refresh_token"]
    headers = {"Content-Type": content_type}
    assert refused(post(server, grant(token), headers=headers), 400, "invalid_request")
    assert refresh(server, token).status_code == 200


def test_a_content_type_may_have_a_charset(server: AuthorizationServer) -> None:
    headers = {"Content-Type": "Application/x-www-form-urlencoded; charset=UTF-8"}
    params = grant(server.sign_in()["refresh_token"])
    assert post(server, params, headers=headers).status_code == 200


def test_json_in_a_form_is_refused(server: AuthorizationServer) -> None:
    body = json.dumps(grant(server.sign_in()["refresh_token"]))
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert refused(post(server, body, headers=headers), 400, "invalid_request")


@pytest.mark.parametrize("raw", ["%", "a/b", "a=b", "é", "%ff"])
def test_values_that_are_not_form_encoded_are_refused(
    server: AuthorizationServer, raw: str
) -> None:
    body = f"{urlencode(grant(server.sign_in()['refresh_token']))}&extra={raw}".encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert refused(post(server, body, headers=headers), 400, "invalid_request")


def exchange_bytes(server: AuthorizationServer, data: bytes) -> bytes:
    port = int(server.issuer.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=SOON) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(4096), b""))


def exchange_form(server: AuthorizationServer, body: str, length: int | None) -> bytes:
    head = "POST /token HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded"
    if length is not None:
        head += f"\r\nContent-Length: {length}"
    return exchange_bytes(server, f"{head}\r\n\r\n{body}".encode())


def test_a_body_without_a_length_is_refused(server: AuthorizationServer) -> None:
    response = exchange_form(server, "", None)
    assert response.startswith(b"HTTP/1.1 411 ")
    assert b"\r\nConnection: close\r\n" in response


def test_an_incomplete_request_is_ignored(server: AuthorizationServer) -> None:
    body = urlencode(grant(server.sign_in()["refresh_token"]))
    assert exchange_form(server, body, len(body) + 1) == b""
    assert server.requests == []
    assert exchange_form(server, body, len(body)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("name", ["refresh_token", "scope", "unknown"])
def test_a_repeated_parameter_is_refused(server: AuthorizationServer, name: str) -> None:
    token = server.sign_in()["refresh_token"]
    params = {"scope": "openid", "unknown": "x", **grant(token)}
    response = post(server, [*params.items(), (name, params[name])])
    assert refused(response, 400, "invalid_request")
    assert refresh(server, token).status_code == 200


@pytest.mark.parametrize("name", ["refresh_token", "scope", "client_secret", "unknown"])
def test_an_empty_parameter_is_refused(server: AuthorizationServer, name: str) -> None:
    token = server.sign_in()["refresh_token"]
    assert refused(post(server, grant(token) | {name: ""}), 400, "invalid_request")
    assert refresh(server, token).status_code == 200


def test_parameters_in_the_url_are_refused(server: AuthorizationServer) -> None:
    token = server.sign_in()["refresh_token"]
    response = post(server, grant(token), params={"tenant": "x"})
    assert refused(response, 400, "invalid_request")
    assert server.requests[0].path == "/token"


@pytest.mark.parametrize("name", ["grant_type", "refresh_token"])
def test_a_missing_parameter_is_refused(server: AuthorizationServer, name: str) -> None:
    params = without(grant(server.sign_in()["refresh_token"]), name)
    assert refused(post(server, params), 400, "invalid_request")


def test_other_grants_are_unsupported(server: AuthorizationServer) -> None:
    response = refresh(server, "x", grant_type="password")
    assert refused(response, 400, "unsupported_grant_type")


def test_unknown_parameters_are_ignored(server: AuthorizationServer) -> None:
    assert refresh(server, server.sign_in()["refresh_token"], audience="x").status_code == 200


def test_a_refresh_gives_a_token_for_just_what_it_asks_for() -> None:
    with AuthorizationServer(resources=["urn:api", "urn:files"]) as server:
        token = server.sign_in(scope="mail read")["refresh_token"]
        for asked, expected in (
            ({"scope": "mail"}, ("mail", ())),
            ({"resource": ["urn:api", "urn:files"]}, ("mail read", ("urn:api", "urn:files"))),
            ({"audience": "urn:api", "scope": "read"}, ("read", ("urn:api",))),
            ({}, ("mail read", ())),  # the grant of the refresh token is as it was
        ):
            given = refresh(server, token, **asked).json()
            assert server.audience(given["access_token"]) == expected
            token = given["refresh_token"]
        refused = refresh(server, token, resource="urn:other")
        assert (refused.status_code, refused.json()["error"]) == (400, "invalid_target")
        assert refresh(server, token).status_code == 200  # and the token is not used up


# Client authentication


@pytest.fixture
def clients(server: AuthorizationServer) -> AuthorizationServer:
    server.register("id:/é basic", SECRET, "client_secret_basic")
    server.register("post", SECRET, "client_secret_post")
    server.register("public")
    return server


def credentials(client_id: str, method: str, secret: str) -> dict[str, Any]:
    match method:
        case "client_secret_basic":
            return {"headers": basic(client_id, secret)}
        case "client_secret_post":
            return {"params": {"client_id": client_id, "client_secret": secret}}
    return {"params": {"client_id": client_id}}


def authenticated(
    server: AuthorizationServer, client_id: str, method: str, secret: str = SECRET
) -> requests.Response:
    how = credentials(client_id, method, secret)
    token = server.sign_in(client_id=client_id)["refresh_token"]
    params = without(grant(token), "client_id", "client_secret")
    return post(server, params | how.get("params", {}), headers=how.get("headers"))


METHODS = {
    "id:/é basic": "client_secret_basic",
    "post": "client_secret_post",
    "public": "none",
}


@pytest.mark.parametrize("method", METHODS.values())
@pytest.mark.parametrize("client_id", METHODS)
def test_a_client_must_use_its_registered_authentication_method(
    clients: AuthorizationServer, client_id: str, method: str
) -> None:
    response = authenticated(clients, client_id, method)
    if method == METHODS[client_id]:
        assert response.status_code == 200
    else:
        assert refused(response, 401, "invalid_client")
        tried_basic = method == "client_secret_basic"
        assert response.headers.get("WWW-Authenticate", "").startswith("Basic ") == tried_basic


@pytest.mark.parametrize("client_id", ["id:/é basic", "post"])
def test_a_wrong_secret_is_refused(clients: AuthorizationServer, client_id: str) -> None:
    response = authenticated(clients, client_id, METHODS[client_id], secret="wrong")
    assert refused(response, 401, "invalid_client")


def test_an_unknown_client_is_refused(server: AuthorizationServer) -> None:
    token = server.sign_in()["refresh_token"]
    assert refused(refresh(server, token, client_id="stranger"), 401, "invalid_client")
    params = without(grant(token), "client_id", "client_secret")
    assert refused(post(server, params), 401, "invalid_client")


@pytest.mark.parametrize(
    "header",
    [
        "Bearer x",
        "Basic",
        "Basic *" + basic("basic", SECRET)["Authorization"].split()[1],
        "Basic " + b64encode(f"basic:{SECRET}".encode()).decode(),
        "Basic " + b64encode(f"basic:{SECRET}".encode("utf-16")).decode(),
        "Digest " + basic("basic", SECRET)["Authorization"].split()[1],
    ],
    ids=["bearer", "bare", "no base64", "not form-encoded", "not utf-8", "digest"],
)
def test_a_malformed_basic_header_is_refused(server: AuthorizationServer, header: str) -> None:
    server.register("basic", SECRET, "client_secret_basic")
    token = server.sign_in(client_id="basic")["refresh_token"]
    params = without(grant(token), "client_id", "client_secret")
    response = post(server, params, headers={"Authorization": header})
    assert refused(response, 401, "invalid_client")
    assert response.headers["WWW-Authenticate"].startswith("Basic ")


@pytest.mark.parametrize(
    "extra",
    [
        {"client_secret": SECRET},
        {"client_id": "basic", "client_secret": SECRET},
        {"client_id": "x"},
    ],
)
def test_two_authentication_methods_are_refused(
    server: AuthorizationServer, extra: dict[str, str]
) -> None:
    server.register("basic", SECRET, "client_secret_basic")
    token = server.sign_in(client_id="basic")["refresh_token"]
    params = without(grant(token), "client_id", "client_secret")
    headers = basic("basic", SECRET)
    assert refused(post(server, params | extra, headers=headers), 400, "invalid_request")
    assert post(server, params | {"client_id": "basic"}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("secret", "method"),
    [
        ("s", "none"),
        (None, "client_secret_post"),
        (None, "client_secret_basic"),
        ("", None),
        ("s", "private_key_jwt"),
    ],
)
def test_a_client_that_could_never_authenticate_is_not_registered(
    server: AuthorizationServer, secret: str | None, method: str | None
) -> None:
    with pytest.raises(ValueError, match=r"client_secret|token_endpoint_auth_method"):
        server.register("x", secret, method)
    with pytest.raises(KeyError):
        server.sign_in(client_id="x")


# Metadata and the protected resource


@pytest.mark.parametrize("name", ["openid-configuration", "oauth-authorization-server"])
def test_the_metadata_lists_the_endpoints(server: AuthorizationServer, name: str) -> None:
    metadata = requests.get(f"{server.issuer}/.well-known/{name}", timeout=SOON).json()
    assert metadata["issuer"] == server.issuer
    assert metadata["token_endpoint"] == server.token_endpoint == f"{server.issuer}/token"
    assert metadata["authorization_endpoint"].startswith(server.issuer)
    assert set(metadata["token_endpoint_auth_methods_supported"]) == {
        *("client_secret_basic", "client_secret_post", "none"),
        *("client_secret_jwt", "private_key_jwt"),
        *("tls_client_auth", "self_signed_tls_client_auth"),
    }
    assert set(metadata["grant_types_supported"]) == {
        *("authorization_code", "refresh_token", "client_credentials"),
        "urn:ietf:params:oauth:grant-type:device_code",
        "urn:ietf:params:oauth:grant-type:jwt-bearer",
    }
    assert server.requests == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("POST", "/tokens"),
        ("POST", "/userinfo"),
        ("POST", "/.well-known/openid-configuration"),
    ],
)
def test_other_paths_are_not_found(server: AuthorizationServer, method: str, path: str) -> None:
    headers = {"Authorization": f"Bearer {server.sign_in()['access_token']}"}
    response = requests.request(method, server.issuer + path, headers=headers, timeout=SOON)
    assert response.status_code == 404


def userinfo(server: AuthorizationServer, authorization: str) -> requests.Response:
    headers = {"Authorization": authorization}
    return requests.get(f"{server.issuer}/userinfo", headers=headers, timeout=SOON)


def test_userinfo_returns_the_subject_of_the_token(server: AuthorizationServer) -> None:
    response = userinfo(server, f"Bearer {server.sign_in('bob')['access_token']}")
    assert (response.status_code, response.json()) == (200, {"sub": "bob"})


@pytest.mark.parametrize(
    "template", ["Bearer made-up", "Bearer {refresh_token}", "Basic {access_token}"]
)
def test_userinfo_refuses_anything_but_an_access_token(
    server: AuthorizationServer, template: str
) -> None:
    response = userinfo(server, template.format(**server.sign_in()))
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


def test_an_access_token_expires_by_the_clock(server: AuthorizationServer, clock: Clock) -> None:
    token = server.sign_in()["access_token"]
    clock.now += 3599
    assert server.is_live(token)
    assert userinfo(server, f"Bearer {token}").status_code == 200
    clock.now += 1
    assert not server.is_live(token)
    assert userinfo(server, f"Bearer {token}").status_code == 401


def test_a_token_without_a_lifetime_never_expires(clock: Clock) -> None:
    with AuthorizationServer(expires_in=None, clock=clock) as server:
        response = server.sign_in()
        clock.now += 1e9
        assert "expires_in" not in response
        assert server.is_live(response["access_token"])


# Scripts


def test_an_answer_replaces_the_response_and_uses_no_token(
    server: AuthorizationServer,
) -> None:
    token = server.sign_in()["refresh_token"]
    server.script(
        Answer(503, "busy", {"Retry-After": "7"}, "text/plain"),
        Answer(body={"ok": False, "error": "invalid_refresh_token"}),
        Answer(599, b"\xff", content_type=None),
    )
    busy, wrong, odd = (refresh(server, token) for _ in range(3))
    assert (busy.status_code, busy.text, busy.headers["Retry-After"]) == (503, "busy", "7")
    assert busy.headers["Content-Type"] == "text/plain"
    assert (wrong.status_code, wrong.json()["ok"]) == (200, False)
    assert (odd.status_code, odd.content) == (599, b"\xff")
    assert "Content-Type" not in odd.headers
    assert refresh(server, token).status_code == 200
    assert [each.status for each in server.requests] == [503, 200, 599, 200]
    assert [each.error for each in server.requests] == [None, "invalid_refresh_token", None, None]


def test_a_redirect_has_its_location(server: AuthorizationServer) -> None:
    token = server.sign_in()["refresh_token"]
    server.script(Answer.redirect("https://elsewhere.example/token"), Answer.redirect("/", 302))
    first, second = refresh(server, token), refresh(server, token)
    assert (first.status_code, second.status_code) == (307, 302)
    assert first.headers["Location"] == "https://elsewhere.example/token"
    assert refresh(server, token).status_code == 200


@pytest.mark.parametrize("spent", [True, False])
def test_a_dropped_connection_gets_no_response(server: AuthorizationServer, spent: bool) -> None:
    token = server.sign_in()["refresh_token"]
    server.script(Drop(spent=spent))
    with pytest.raises(requests.ConnectionError, match="without response"):
        refresh(server, token)
    assert server.refreshes() == spent
    assert server.requests[0].status is None
    assert refresh(server, token).status_code == (400 if spent else 200)
    assert server.reuses == spent


@pytest.mark.parametrize("headers", [True, False])
def test_a_dripping_response_is_complete(server: AuthorizationServer, headers: bool) -> None:
    token = server.sign_in()["refresh_token"]
    server.script(Drip(0.0001, headers=headers))
    assert server.is_live(refresh(server, token).json()["access_token"])


def test_a_dripping_body_comes_after_its_headers(server: AuthorizationServer) -> None:
    token = server.sign_in()["refresh_token"]
    server.script(Drip(3600))
    with closing(post(server, grant(token), stream=True)) as response:
        assert response.status_code == 200
        assert response.raw.read1(100) == b"{"
        assert server.refreshes() == 1


def test_dripping_headers_do_not_arrive_in_time(server: AuthorizationServer) -> None:
    token = server.sign_in()["refresh_token"]
    server.script(Drip(3600, headers=True))
    with pytest.raises(requests.ReadTimeout):
        post(server, grant(token), timeout=0.1)


def test_a_drip_stops_when_the_client_disconnects(
    server: AuthorizationServer, capfd: pytest.CaptureFixture[str]
) -> None:
    token = server.sign_in()["refresh_token"]
    server.script(Drip(0.2))
    before = set(threading.enumerate())
    post(server, grant(token), stream=True).close()
    for thread in set(threading.enumerate()) - before:
        thread.join(SOON)  # the whole response takes longer than this
        assert not thread.is_alive()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("missing", [1, 20, 250])
def test_a_truncated_response_lacks_its_end(server: AuthorizationServer, missing: int) -> None:
    body = urlencode(grant(server.sign_in()["refresh_token"]))
    server.script(Truncate(missing))
    head, _, sent = exchange_form(server, body, len(body)).partition(b"\r\n\r\n")
    length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
    assert len(sent) == max(0, length - missing)
    assert server.refreshes() == 1


def test_a_client_detects_the_truncation(server: AuthorizationServer) -> None:
    server.script(Truncate())
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        refresh(server, server.sign_in()["refresh_token"])


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def test_a_held_request_is_handled_when_released(
    server: AuthorizationServer, pool: ThreadPoolExecutor
) -> None:
    token = server.sign_in()["refresh_token"]
    hold = Hold()
    server.script(hold)
    response = pool.submit(refresh, server, token)
    assert hold.arrived.wait(SOON)
    assert len(server.requests) == 1
    assert server.requests[0].status is None
    assert server.refreshes() == 0
    hold.release.set()
    assert response.result(SOON).status_code == 200
    assert server.requests[0].status == 200


def test_one_event_can_hold_requests(server: AuthorizationServer, pool: ThreadPoolExecutor) -> None:
    release = threading.Event()
    holds = [Hold(release) for _ in range(3)]
    server.script(*holds)
    tokens = [server.sign_in()["refresh_token"] for _ in holds]
    responses = [pool.submit(refresh, server, token) for token in tokens]
    assert all(hold.arrived.wait(SOON) for hold in holds)
    release.set()
    assert [each.result(SOON).status_code for each in responses] == [200] * 3


def without_lifetime(response: dict[str, Any]) -> dict[str, Any]:
    del response["expires_in"]
    return response


def with_bom(response: dict[str, Any]) -> bytes:
    return b"\xef\xbb\xbf" + json.dumps(response).encode()


@pytest.mark.parametrize(
    ("change", "content_type", "read"),
    [
        (without_lifetime, "application/json", lambda body: json.loads(body)["access_token"]),
        (with_bom, None, lambda body: json.loads(body.decode("utf-8-sig"))["access_token"]),
        (urlencode, "text/plain", lambda body: parse_qs(body.decode())["access_token"][0]),
    ],
)
def test_a_response_can_be_transformed(
    server: AuthorizationServer,
    change: Callable[[dict[str, Any]], Any],
    content_type: str | None,
    read: Callable[[bytes], str],
) -> None:
    token = server.sign_in()["refresh_token"]
    seen: dict[str, Any] = {}
    server.script(Transform(lambda real: change(seen.setdefault("real", real)), content_type))
    response = refresh(server, token)
    assert response.status_code == 200
    assert response.headers.get("Content-Type") == content_type
    assert read(response.content) == seen["real"]["access_token"]
    assert server.is_live(read(response.content))
    assert server.refreshes() == 1


def test_a_transformed_error_keeps_its_status(server: AuthorizationServer) -> None:
    server.script(Transform(lambda real: {**real, "error": "bad_refresh_token"}))
    assert refused(refresh(server, "made-up"), 400, "bad_refresh_token")
    assert server.requests[0].error == "bad_refresh_token"


def test_an_error_in_a_transform_is_printed(
    server: AuthorizationServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.script(Transform(lambda real: real["no such key"]))
    with pytest.raises(requests.ConnectionError):
        refresh(server, server.sign_in()["refresh_token"])
    server.close()
    assert "KeyError: 'no such key'" in capfd.readouterr().err


def test_each_step_applies_once_and_in_order(server: AuthorizationServer) -> None:
    server.script(Answer(500), Answer(501))
    server.script(Answer(502))
    token = server.sign_in()["refresh_token"]
    assert [refresh(server, token).status_code for _ in range(4)] == [500, 501, 502, 200]


def test_a_step_can_apply_to_one_subject(server: AuthorizationServer) -> None:
    alice, bob = (server.sign_in(name)["refresh_token"] for name in ("alice", "bob"))
    server.script(Answer(500), subject="alice")
    server.script(Answer(501))
    assert refresh(server, bob).status_code == 501
    assert refresh(server, bob).status_code == 200
    assert refresh(server, "made-up").status_code == 400
    assert refresh(server, alice).status_code == 500
    assert refresh(server, alice).status_code == 200


def test_holding_one_subject_does_not_block_others(
    server: AuthorizationServer, pool: ThreadPoolExecutor
) -> None:
    alice, bob = (server.sign_in(name)["refresh_token"] for name in ("alice", "bob"))
    hold = Hold()
    server.script(hold, subject="alice")
    held = pool.submit(refresh, server, alice)
    assert hold.arrived.wait(SOON)
    assert refresh(server, bob).status_code == 200
    assert server.sign_in("carol")
    hold.release.set()
    assert held.result(SOON).status_code == 200


# Recorded requests


def test_requests_are_recorded(server: AuthorizationServer) -> None:
    token = server.sign_in("bob")["refresh_token"]
    post(server, grant(token), headers={"X-Trace": "7"})
    refresh(server, "made-up")
    good, bad = server.requests
    assert (good.method, good.path, good.subject, good.status, good.error) == (
        "POST",
        "/token",
        "bob",
        200,
        None,
    )
    assert good.params == grant(token)
    assert good.headers["x-trace"] == "7"
    assert (bad.subject, bad.status, bad.error) == (None, 400, "invalid_grant")


def test_refreshes_are_counted_by_subject(server: AuthorizationServer) -> None:
    for subject, times in ("alice", 2), ("bob", 1):
        token = server.sign_in(subject)["refresh_token"]
        for _ in range(times):
            token = refresh(server, token).json()["refresh_token"]
    assert server.refreshes("alice") == 2
    assert server.refreshes("bob") == 1
    assert server.refreshes("nobody") == 0
    assert server.refreshes() == 3


def test_no_repr_contains_a_secret(server: AuthorizationServer) -> None:
    token = server.sign_in()["refresh_token"]
    server.register("basic", "s3cret", "client_secret_basic")
    post(server, grant(token), headers=basic("basic", "s3cret"), params={"token": token})
    refresh(server, token)
    shown = f"{server!r} {vars(server)!r} {Answer(body={'access_token': token})!r}"
    for secret in token, SECRET, "s3cret", basic("basic", "s3cret")["Authorization"]:
        assert secret not in shown


def test_provider_returns_the_default_client(server: AuthorizationServer) -> None:
    provider = server.provider()
    assert (provider.name, provider.token_endpoint) == ("test", server.token_endpoint)
    assert (provider.client_id, provider.client_secret) == ("tokenstore", SECRET)
    assert provider.token_endpoint_auth_method == "client_secret_post"
    changed = server.provider("other", scope="read", client_id="x")
    assert (changed.name, changed.scope, changed.client_id) == ("other", "read", "x")


def test_a_public_default_client_has_no_secret() -> None:
    with AuthorizationServer(client_id="app", client_secret=None) as server:
        token = server.sign_in()["refresh_token"]
        params = without(grant(token, client_id="app"), "client_secret")
        assert post(server, params).status_code == 200
        assert server.provider().token_endpoint_auth_method == "none"


# Connections


def test_a_connection_serves_many_requests(server: AuthorizationServer) -> None:
    before = set(threading.enumerate())
    with requests.Session() as session:
        for _ in range(3):
            params = grant(server.sign_in()["refresh_token"])
            assert session.post(server.token_endpoint, params, timeout=SOON).status_code == 200
            assert len(set(threading.enumerate()) - before) == 1


@pytest.mark.slow
def test_two_hundred_concurrent_connections_are_served(server: AuthorizationServer) -> None:
    release = threading.Event()
    holds = [Hold(release) for _ in range(200)]
    server.script(*holds)
    with ThreadPoolExecutor(200) as pool:
        tokens = [server.sign_in(f"user-{n}")["refresh_token"] for n in range(200)]
        responses = [pool.submit(refresh, server, token) for token in tokens]
        try:
            assert all(hold.arrived.wait(30) for hold in holds)
        finally:
            release.set()
        assert {each.result(30).status_code for each in responses} == {200}
    assert server.refreshes() == 200


def test_close_ends_held_and_dripping_connections(pool: ThreadPoolExecutor) -> None:
    with AuthorizationServer() as server:
        before = set(threading.enumerate())
        hold = Hold()
        server.script(Drip(3600), hold)
        dripping = post(server, grant(server.sign_in()["refresh_token"]), stream=True)
        held = pool.submit(refresh, server, server.sign_in("bob")["refresh_token"])
        assert hold.arrived.wait(SOON)
        new = set(threading.enumerate()) - before
        handlers = [thread for thread in new if "process_request" in thread.name]
        assert len(handlers) == 2
        server.close()
        assert not any(thread.is_alive() for thread in handlers)
        assert not hold.release.is_set()
        with pytest.raises(requests.ConnectionError):
            held.result(SOON)
        with closing(dripping), pytest.raises(requests.exceptions.ChunkedEncodingError):
            dripping.json()
        assert server.refreshes("bob") == 0


def test_close_can_be_called_twice(server: AuthorizationServer) -> None:
    server.close()
    server.close()
    with pytest.raises(requests.ConnectionError):
        refresh(server, "x")


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with AuthorizationServer() as server:
        refresh(server, "made-up")
        requests.put(server.token_endpoint, timeout=SOON)
        exchange_bytes(server, b"nonsense\r\n\r\n")
    assert capfd.readouterr() == ("", "")
