"""The strict server: signed assertions, certificates, and grants without a user."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import jwt
import pytest
import requests

from tests.helpers.keys import certificate, demanding, private_key, public_pem
from tests.helpers.refreshes import SOON
from tokenstore.testing import AuthorizationServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLIENT_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
SECRET = "s" * 64


@pytest.fixture
def server() -> Iterator[AuthorizationServer]:
    with AuthorizationServer(
        client_secret=None, token_endpoint_auth_method="private_key_jwt", public_key=public_pem()
    ) as server:
        yield server


def assertion(
    server: AuthorizationServer, key: Any = None, algorithm: str = "ES256", **changes: Any
) -> str:
    now = int(time.time())
    claims = {
        "iss": "tokenstore",
        "sub": "tokenstore",
        "aud": server.token_endpoint,
        "iat": now,
        "exp": now + 300,
        "jti": "1",
        **changes,
    }
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key or private_key(), algorithm)


def post(server: AuthorizationServer, **form: str) -> tuple[int, dict[str, Any]]:
    response = requests.post(server.token_endpoint, form, timeout=SOON)
    return response.status_code, response.json()


def authenticate(server: AuthorizationServer, signed: str, **form: str) -> tuple[int, Any]:
    given = {"grant_type": "client_credentials", "client_assertion_type": CLIENT_ASSERTION}
    return post(server, **{**given, "client_assertion": signed, **form})


def test_an_assertion_authenticates_the_client_and_client_credentials_give_a_token_alone(
    server: AuthorizationServer,
) -> None:
    status, body = authenticate(server, assertion(server), scope="read")

    assert status == 200
    assert body["scope"] == "read"
    assert "refresh_token" not in body
    assert server.is_live(body["access_token"])
    server.revoke("tokenstore")
    assert not server.is_live(body["access_token"])


@pytest.mark.parametrize("audience", ["issuer", "list"])
def test_the_audience_may_be_the_issuer_and_a_list(
    audience: str, server: AuthorizationServer
) -> None:
    value = server.issuer if audience == "issuer" else [server.token_endpoint]

    assert authenticate(server, assertion(server, aud=value))[0] == 200


# Times are in seconds from now.
BAD_ASSERTIONS: dict[str, dict[str, Any]] = {
    "key of another client": {"key": private_key(number=1)},
    "other algorithm": {"key": SECRET, "algorithm": "HS256"},
    "unknown issuer": {"iss": "nobody"},
    "another subject": {"sub": "alice"},
    "no subject": {"sub": None},
    "another audience": {"aud": "https://elsewhere.example/token"},
    "two audiences": {"aud": ["https://elsewhere.example/token", "x"]},
    "no audience": {"aud": None},
    "expired": {"exp": -1},
    "valid for too long": {"exp": 700},
    "no expiry": {"exp": None},
    "no jti": {"jti": None},
    "not valid yet": {"nbf": 300},
    "issued later": {"iat": 300},
}


@pytest.mark.parametrize("changes", BAD_ASSERTIONS.values(), ids=BAD_ASSERTIONS)
def test_any_other_assertion_is_refused(
    changes: dict[str, Any], server: AuthorizationServer
) -> None:
    now = int(time.time())
    is_time = {"exp", "nbf", "iat"}
    claims = {k: v + now if k in is_time and v is not None else v for k, v in changes.items()}

    status, body = authenticate(server, assertion(server, **claims))

    assert (status, body["error"]) == (401, "invalid_client")


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "e30.e30.", "W10.W10.x", "e30.bnVsbA.x"])
def test_what_is_no_token_is_refused(text: str, server: AuthorizationServer) -> None:
    status, body = authenticate(server, text)

    assert (status, body["error"]) in [(401, "invalid_client"), (400, "invalid_request")]


def test_an_assertion_can_be_used_once(server: AuthorizationServer) -> None:
    signed = assertion(server)

    assert authenticate(server, signed)[0] == 200
    assert authenticate(server, signed)[1]["error"] == "invalid_client"
    assert authenticate(server, assertion(server, jti="2"))[0] == 200


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"client_assertion_type": "other"}, "invalid_request"),
        ({"client_secret": "x"}, "invalid_request"),
        ({"client_id": "other"}, "invalid_client"),
    ],
)
def test_an_assertion_is_the_only_authentication(
    changes: dict[str, str], error: str, server: AuthorizationServer
) -> None:
    assert authenticate(server, assertion(server), **changes)[1]["error"] == error


def test_a_client_authenticates_with_its_registered_method_only(
    server: AuthorizationServer,
) -> None:
    bare = post(server, grant_type="client_credentials", client_id="tokenstore")
    server.register("other", SECRET)
    signed = assertion(server, SECRET, "HS256", iss="other", sub="other")

    assert bare[1]["error"] == "invalid_client"
    assert authenticate(server, signed)[1]["error"] == "invalid_client"


def test_a_secret_may_sign(server: AuthorizationServer) -> None:
    server.register("other", SECRET, "client_secret_jwt")

    right = assertion(server, SECRET, "HS256", iss="other", sub="other")
    wrong = assertion(server, SECRET[1:], "HS256", iss="other", sub="other", jti="2")
    assert authenticate(server, right)[0] == 200
    assert authenticate(server, wrong)[1]["error"] == "invalid_client"


def test_a_public_client_has_no_credentials(server: AuthorizationServer) -> None:
    server.register("public")

    _, body = post(server, grant_type="client_credentials", client_id="public")
    assert body["error"] == "unauthorized_client"


# -- the grant ------------------------------------------------------------------------------------


def test_an_assertion_is_exchanged_for_a_token_of_its_subject(server: AuthorizationServer) -> None:
    signed = assertion(server, sub="alice", scope="read")

    status, body = post(server, grant_type=JWT_BEARER, assertion=signed)

    assert (status, body["scope"]) == (200, "read")
    assert "refresh_token" not in body
    headers = {"Authorization": f"Bearer {body['access_token']}"}
    userinfo = requests.get(f"{server.issuer}/userinfo", headers=headers, timeout=SOON)
    assert userinfo.json() == {"sub": "alice"}


def test_without_a_subject_it_is_the_client(server: AuthorizationServer) -> None:
    _, body = post(server, grant_type=JWT_BEARER, assertion=assertion(server, sub=None))

    assert server.is_live(body["access_token"])


@pytest.mark.parametrize(
    "changes",
    [{"sub": "mallory"}, {"key": private_key(number=1)}, {"exp": 5}, {"aud": "x"}],
    ids=["subject that is not delegated", "key", "expired", "audience"],
)
def test_any_other_assertion_is_an_invalid_grant(
    changes: dict[str, Any], server: AuthorizationServer
) -> None:
    signed = assertion(server, **{"sub": "alice", **changes})

    status, body = post(server, grant_type=JWT_BEARER, assertion=signed)

    assert (status, body["error"]) == (400, "invalid_grant")


def test_a_client_that_authenticates_uses_its_own_assertion(server: AuthorizationServer) -> None:
    server.register("other", SECRET)
    signed = assertion(server, sub="alice")

    form = {"grant_type": JWT_BEARER, "client_id": "other", "client_secret": SECRET}
    assert post(server, **form, assertion=signed)[1]["error"] == "invalid_grant"
    assert post(server, **form)[1]["error"] == "invalid_request"


# -- certificates ----------------------------------------------------------------------------------


def test_a_certificate_is_demanded_and_compared(tmp_path: Path) -> None:
    own, ours, theirs = (certificate(tmp_path, name) for name in ("own", "ours", "theirs"))
    form = {"grant_type": "client_credentials", "client_id": "tokenstore"}
    with demanding(own, ours) as server:
        server.register("other", None, "self_signed_tls_client_auth", certificate=theirs.pem)

        def answer(**options: Any) -> Any:
            return requests.post(
                server.token_endpoint, form, verify=str(own.certificate), timeout=SOON, **options
            ).json()

        assert server.issuer.startswith("https://")
        assert "access_token" in answer(cert=(str(ours.certificate), str(ours.key)))
        refused = answer(cert=(str(theirs.certificate), str(theirs.key)))
        assert refused["error"] == "invalid_client"
        with pytest.raises(requests.ConnectionError):
            answer()


@pytest.mark.parametrize(
    "settings",
    [
        {"client_secret": None, "token_endpoint_auth_method": "private_key_jwt"},
        {"client_secret": None, "token_endpoint_auth_method": "tls_client_auth"},
        {"client_secret": None, "token_endpoint_auth_method": "client_secret_jwt"},
        {"token_endpoint_auth_method": "private_key_jwt", "public_key": "k"},
        {"certificate": "c"},
    ],
)
def test_a_client_is_registered_with_what_its_method_needs(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="require"):
        AuthorizationServer(**settings)
