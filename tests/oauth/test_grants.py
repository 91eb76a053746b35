"""Every request of a client, against the strict server: refreshes, and grants without a user."""

from __future__ import annotations

import json
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jwt
import pytest
import requests

from tests.helpers.keys import (
    Certificate,
    certificate,
    demanding,
    key_file,
    private_pem,
    public_pem,
)
from tests.helpers.providers import configuration_error, provider
from tokenstore import ClientRejectedError, InsecureStorageError, Provider, TransientRefreshError
from tokenstore.models.tokens import TokenSet
from tokenstore.oauth.client import refresh_grant, require_credentials, unattended_grant
from tokenstore.oauth.discovery import with_endpoints
from tokenstore.oauth.revocation import revoke
from tokenstore.testing import Answer, AuthorizationServer, Drop, Transform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


def refreshed(provider: Provider, server: AuthorizationServer, **options: Any) -> dict[str, Any]:
    token = server.sign_in()["refresh_token"]
    return refresh_grant(provider, token, account_name="alice", timeout=10, **options).fields


def obtained(provider: Provider, **options: Any) -> dict[str, Any]:
    settings = {"account_name": "alice", "timeout": 10, **options}
    return unattended_grant(provider, **settings).fields


def trusting(server: Certificate) -> requests.Session:
    """Return a session that trusts a server, whatever the environment says."""
    session = requests.Session()
    session.trust_env = False
    session.verify = str(server.certificate)
    return session


@contextmanager
def secretless(directory: Path) -> Iterator[tuple[AuthorizationServer, Provider]]:
    """A server whose default client signs with a private key, and its provider."""
    method = "private_key_jwt"
    with AuthorizationServer(
        client_secret=None, token_endpoint_auth_method=method, public_key=public_pem()
    ) as server:
        yield server, server.provider(private_key_file=key_file(directory))


# -- client authentication ------------------------------------------------------------------------


def test_a_signed_assertion_authenticates_refresh_revocation_and_client_credentials(
    tmp_path: Path,
) -> None:
    with secretless(tmp_path) as (server, ours):
        tokens = refreshed(ours, server)
        revoke(
            ours,
            TokenSet(access_token=tokens["access_token"], refresh_token=tokens["refresh_token"]),
            account_name="alice",
            timeout=10,
        )
        own = Provider(**{**vars(ours), "grant_type": "client_credentials"})
        token = obtained(own)["access_token"]

        assert server.is_live(token)
        assert not server.is_live(tokens["access_token"])
        sent = [*server.requests, *server.requests_at("/revoke")]
        assert len({request.params["client_assertion"] for request in sent}) == 4
        assert not any("client_secret" in request.params for request in sent)


def test_a_client_secret_that_signs() -> None:
    method = "client_secret_jwt"
    with AuthorizationServer(token_endpoint_auth_method=method) as server:
        assert server.is_live(refreshed(server.provider(), server)["access_token"])
        assert "client_secret" not in server.requests[0].params


def test_an_assertion_is_not_shown_when_it_is_echoed(tmp_path: Path) -> None:
    with secretless(tmp_path) as (server, ours):

        def echo(_: object) -> dict[str, Any]:
            assertion = server.requests[-1].params["client_assertion"]
            return {"error": "invalid_client", "error_description": f"bad: {assertion}"}

        server.script(Transform(echo))
        with pytest.raises(ClientRejectedError) as caught:
            refreshed(ours, server)

        assert server.requests[0].params["client_assertion"] not in str(caught.value)
        assert "[redacted]" in str(caught.value)


def test_a_wrong_key_is_a_rejected_client(tmp_path: Path) -> None:
    with secretless(tmp_path) as (server, ours):
        wrong = Provider(**{**vars(ours), "private_key_file": key_file(tmp_path, number=1)})

        with pytest.raises(ClientRejectedError, match="invalid_client"):
            refreshed(wrong, server)


@pytest.mark.parametrize("method", ["tls_client_auth", "self_signed_tls_client_auth"])
def test_a_certificate_authenticates_the_client(method: str, tmp_path: Path) -> None:
    own, ours, other = (certificate(tmp_path, name) for name in ("own", "ours", "other"))
    session = trusting(own)
    with AuthorizationServer(
        client_secret=None, token_endpoint_auth_method=method, certificate=ours.pem, tls=own
    ) as server:
        files: dict[str, Any] = {
            "certificate_file": ours.certificate,
            "certificate_key_file": ours.key,
        }
        client = server.provider(**files)
        assert server.is_live(refreshed(client, server, session=session)["access_token"])
        assert server.requests[-1].params.keys() == {"grant_type", "refresh_token", "client_id"}

        own_account = server.provider(grant_type="client_credentials", **files)
        assert server.is_live(obtained(own_account, session=session)["access_token"])

        # One that the server does not know is refused in the handshake: nothing is spent. With
        # TLS 1.3, that may look like a connection that broke.
        assert server._tls is not None
        server._tls.maximum_version = ssl.TLSVersion.TLSv1_2
        unknown = server.provider(
            certificate_file=other.certificate, certificate_key_file=other.key
        )
        with pytest.raises(ClientRejectedError, match="refused the client certificate"):
            refreshed(unknown, server, session=session)
        assert len(server.requests) == 2


def test_the_certificate_is_never_given_to_the_session_of_the_application(tmp_path: Path) -> None:
    """Its adapters may share one TLS context with all of its requests."""
    own, ours = (certificate(tmp_path, name) for name in ("own", "ours"))
    session, seen = trusting(own), []

    class Watching(requests.adapters.HTTPAdapter):
        def send(self, *args: Any, **kwargs: Any) -> requests.Response:
            seen.append(kwargs)
            return super().send(*args, **kwargs)

    session.mount("https://", Watching())
    with demanding(own, ours) as server:
        client = server.provider(certificate_file=ours.certificate, certificate_key_file=ours.key)
        refreshed(client, server, session=session)

        assert not seen
        assert session.cert is None
        with pytest.raises(requests.ConnectionError):
            session.get(server.issuer, timeout=10)


def test_a_server_that_is_not_trusted_gets_nothing(tmp_path: Path) -> None:
    own, ours = (certificate(tmp_path, name) for name in ("own", "ours"))
    with demanding(own, ours) as server:
        client = server.provider(certificate_file=ours.certificate, certificate_key_file=ours.key)

        with pytest.raises(TransientRefreshError, match="check the certificates") as caught:
            refreshed(client, server)

        assert not caught.value.maybe_spent
        assert not server.requests


def test_the_issuers_endpoints_for_certificates_are_used() -> None:
    """RFC 8705 section 5."""
    issuer = "https://auth.example"
    metadata = {
        "issuer": issuer,
        "token_endpoint": f"{issuer}/token",
        "mtls_endpoint_aliases": {"token_endpoint": "https://mtls.auth.example/token"},
    }
    found = {"token_endpoint": None, "issuer": issuer}

    assert provider(**found).with_metadata(metadata).token_endpoint == f"{issuer}/token"
    with_certificate = provider(**found, certificate_file="c.pem").with_metadata(metadata)
    assert with_certificate.token_endpoint == "https://mtls.auth.example/token"


# -- client credentials ---------------------------------------------------------------------------


def test_client_credentials_request_the_scope_and_the_extra_parameters() -> None:
    with AuthorizationServer() as server:
        ours = server.provider(
            grant_type="client_credentials", scope="read", extra_params={"audience": "api"}
        )

        assert obtained(ours)["scope"] == "read"
        sent = server.requests[0].params
        assert {sent.pop("client_id"), sent.pop("client_secret")}
        assert sent == {"grant_type": "client_credentials", "scope": "read", "audience": "api"}


def test_a_refresh_token_that_nobody_asked_for_is_dropped() -> None:
    with AuthorizationServer() as server:
        server.script(Transform(lambda body: {**body, "refresh_token": "r"}))

        assert "refresh_token" not in obtained(server.provider(grant_type="client_credentials"))


# -- assertions as grants -------------------------------------------------------------------------


def signing(server: AuthorizationServer, directory: Path, **changes: Any) -> Provider:
    settings = {"grant_type": JWT_BEARER, "private_key_file": key_file(directory), **changes}
    return server.provider(**settings)


def test_an_assertion_is_exchanged_for_a_token(tmp_path: Path) -> None:
    with AuthorizationServer(public_key=public_pem()) as server:
        ours = signing(server, tmp_path, scope="read", assertion_claims={"kind": "enterprise"})

        assert server.is_live(obtained(ours)["access_token"])
        sent = server.requests[0].params
        claims = jwt.decode(sent["assertion"], options={"verify_signature": False})
        assert claims["iss"] == ours.client_id
        assert claims["sub"] == "alice"
        assert claims["aud"] == server.token_endpoint
        assert claims["kind"] == "enterprise"
        assert claims["exp"] - claims["iat"] == 300
        assert "scope" not in claims
        assert (sent["grant_type"], sent["scope"]) == (JWT_BEARER, "read")
        assert sent["client_secret"] == ours.client_secret


@pytest.mark.parametrize(
    ("subject", "claim"), [(None, "alice"), ("bob", "bob"), ("", None)], ids=str
)
def test_the_subject_is_the_account_or_as_configured(
    subject: str | None, claim: str | None, tmp_path: Path
) -> None:
    with AuthorizationServer(public_key=public_pem()) as server:
        obtained(signing(server, tmp_path, assertion_subject=subject))

        assertion = server.requests[0].params["assertion"]
        assert jwt.decode(assertion, options={"verify_signature": False}).get("sub") == claim


def test_a_subject_that_is_not_delegated_is_a_matter_of_the_configuration(tmp_path: Path) -> None:
    with AuthorizationServer(public_key=public_pem()) as server:
        with pytest.raises(ClientRejectedError) as caught:
            obtained(signing(server, tmp_path), account_name="mallory")

        assert caught.value.error == "invalid_grant"
        assert "sign in" not in str(caught.value)
        assert "check this machine's clock, the client's key" in str(caught.value)


@pytest.mark.parametrize("step", [Drop(spent=True), Answer(200, {"hello": "world"})])
def test_nothing_is_spent_by_a_response_that_is_lost(step: Any) -> None:
    with AuthorizationServer() as server:
        server.script(step)

        with pytest.raises(TransientRefreshError) as caught:
            obtained(server.provider(grant_type="client_credentials"))

        assert not caught.value.maybe_spent
        assert "spent" not in str(caught.value)


# -- service accounts of Google -------------------------------------------------------------------


def service_account(directory: Path, **changes: Any) -> Path:
    content = {
        "type": "service_account",
        "client_email": "robot@project.example",
        "client_id": "1042",
        "private_key": private_pem("RSA"),
        "private_key_id": "key-1",
        "token_uri": "https://auth.example/t",
        **changes,
    }
    path = directory / "robot.json"
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    path.chmod(0o600)
    return path


def google(file: Path, **changes: Any) -> Provider:
    settings = {"grant_type": JWT_BEARER, "service_account_file": file, **changes}
    return Provider("robot", None, None, **settings)


def test_the_key_file_of_a_service_account_says_everything(tmp_path: Path) -> None:
    with AuthorizationServer() as server:
        server.register("robot@project.example", public_key=public_pem("RSA"))
        file = service_account(tmp_path, token_uri=server.token_endpoint)
        ours = google(file, scope="read write", assertion_subject="alice")
        ours.require_usable()

        token = obtained(with_endpoints(ours, timeout=10))

        assert token["scope"] == "read write"
        sent = server.requests[0].params
        assert sent.keys() == {"grant_type", "assertion"}
        claims = jwt.decode(sent["assertion"], options={"verify_signature": False})
        assert claims["iss"] == "robot@project.example"
        assert claims["aud"] == server.token_endpoint
        assert claims["scope"] == "read write"
        header = jwt.get_unverified_header(sent["assertion"])
        assert (header["kid"], header["alg"]) == ("key-1", "RS256")


BAD_KEY_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "of a user": ({"type": "authorized_user"}, "not the JSON key file of a service account"),
    "no key": ({"private_key": None}, "it has no private_key"),
    "no address": ({"client_email": 5}, "it has no client_email"),
    "bad key": ({"private_key": "canary"}, "not a private key in PEM format"),
    "plain http": ({"token_uri": "http://auth.example/t"}, "has an invalid token_endpoint"),
}


@pytest.mark.parametrize(("changes", "problem"), BAD_KEY_FILES.values(), ids=BAD_KEY_FILES)
def test_an_unusable_key_file_is_described_and_not_quoted(
    changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    file = service_account(tmp_path, **changes)

    message = configuration_error(
        lambda: require_credentials(with_endpoints(google(file), timeout=1))
    )

    assert problem in message
    assert "canary" not in message
    assert "PRIVATE" not in message


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = service_account(tmp_path)
    file.chmod(0o640)

    with pytest.raises(InsecureStorageError, match="accessible to other users"):
        with_endpoints(google(file), timeout=1)


# -- the configuration ----------------------------------------------------------------------------

PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown grant": ({"grant_type": "password"}, "has an unknown grant_type"),
    "public client": ({"grant_type": "client_credentials"}, "has no client authentication"),
    "nothing signs": (
        {"grant_type": JWT_BEARER},
        "has no private_key_file or private_key_env or service_account_file",
    ),
    "key file without its grant": ({"service_account_file": "r.json"}, "requires grant_type urn:"),
    "times": (
        {"grant_type": JWT_BEARER, "private_key_file": "k", "assertion_claims": {"exp": 5}},
        "has invalid assertion_claims",
    ),
    "no client": (
        {"grant_type": JWT_BEARER, "private_key_file": "k", "client_id": None},
        "has no client_id",
    ),
    "no endpoint": (
        {"grant_type": "client_credentials", "client_secret": "s", "token_endpoint": None},
        "has neither a token_endpoint nor an issuer",
    ),
}


@pytest.mark.parametrize(("settings", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_settings_that_cannot_work_are_found_before_any_request(
    settings: dict[str, Any], problem: str
) -> None:
    assert problem in configuration_error(provider(**settings).require_usable)


def test_claims_that_json_cannot_represent_are_refused(tmp_path: Path) -> None:
    with AuthorizationServer() as server:
        ours = signing(server, tmp_path, assertion_claims={"a": object()})

        assert "JSON cannot" in configuration_error(require_credentials, ours)
