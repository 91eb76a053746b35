from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest

from tests.helpers.providers import ENDPOINT, ISSUER, SECRET, configuration_error, provider
from tokenstore.errors import ProviderConfigurationError
from tokenstore.oauth.provider import AUTH_METHODS, Provider


def test_a_provider_needs_a_name_an_endpoint_and_a_client_id() -> None:
    minimal = Provider("ours", ENDPOINT, "app")

    minimal.require_usable()
    assert dataclasses.asdict(minimal) == {
        "name": "ours",
        "token_endpoint": ENDPOINT,
        "client_id": "app",
        "client_secret": None,
        "token_endpoint_auth_method": None,
        "scope": None,
        "authorization_endpoint": None,
        "device_authorization_endpoint": None,
        "revocation_endpoint": None,
        "redirect_uri": None,
        "sign_in_scope": None,
        "authorization_params": {},
        "authorization_response_iss_parameter_supported": False,
        "extra_params": {},
        "default_expires_in": 3600.0,
        "body_format": "form",
        "basic_form_encode": True,
        "refresh_token_lifetime": None,
        "refresh_token_idle": None,
        "max_concurrency": None,
        "issuer": None,
        "response_path": None,
        "replay_window": None,
        "refresh_token_rotates": None,
        "scope_separator": " ",
        "client_id_parameter": "client_id",
        "token_origins": (),
        "resource_parameter": "resource",
        "failures": (),
        "private_key_file": None,
        "private_key_env": None,
        "key_id": None,
        "signing_alg": None,
        "assertion_audience": None,
        "certificate_file": None,
        "certificate_key_file": None,
        "grant_type": "refresh_token",
        "assertion_subject": None,
        "assertion_claims": {},
        "service_account_file": None,
    }


def test_everything_else_is_keyword_only() -> None:
    with pytest.raises(TypeError):
        Provider("ours", ENDPOINT, "app", SECRET)  # type: ignore[call-arg]


def test_a_provider_does_not_show_its_secret() -> None:
    secretive = provider(client_secret=SECRET, extra_params={"assertion": SECRET})

    assert SECRET not in f"{secretive} {secretive!r}"
    assert pickle.loads(pickle.dumps(secretive)) == secretive


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({}, "none"),
        ({"client_secret": SECRET}, "client_secret_post"),
        (
            {"client_secret": SECRET, "token_endpoint_auth_method": "client_secret_basic"},
            "client_secret_basic",
        ),
        ({"client_secret": SECRET, "token_endpoint_auth_method": "none"}, "none"),
    ],
    ids=["public", "secret", "basic", "secret that is not used"],
)
def test_the_client_authenticates_as_configured_or_by_its_secret(
    settings: dict[str, str], method: str
) -> None:
    chosen = provider(**settings)

    chosen.require_usable()
    assert chosen.auth_method == method


def test_a_failure_applies_to_one_client_at_one_endpoint_with_these_settings() -> None:
    """P1: what is corrected is tried at once."""
    clients = {
        provider(**changes).client
        for changes in (
            {},
            {"client_id": "other"},
            {"token_endpoint": "https://other.example/token"},
            {"token_endpoint": None, "issuer": ISSUER},
            {"client_secret": "new"},
            {"scope": "other"},
            {"token_endpoint_auth_method": "client_secret_basic"},
            {"extra_params": {"audience": "x"}},
            {"body_format": "json"},
            {"private_key_file": "a.pem"},
            {"private_key_file": "b.pem"},
            {"private_key_env": "KEY"},
            {"key_id": "1"},
            {"signing_alg": "PS256"},
            {"assertion_audience": "issuer"},
            {"certificate_file": "c.pem"},
            {"certificate_key_file": "d.pem"},
            {"grant_type": "client_credentials"},
            {"assertion_subject": "bob"},
            {"assertion_claims": {"a": 1}},
            {"service_account_file": "e.json"},
            {"resource_parameter": "audience"},
            {"scope_separator": ","},
            {"client_id_parameter": "client_key"},
        )
    }

    assert len(clients) == 24
    assert provider(refresh_token_lifetime=5.0).client == provider().client
    assert SECRET not in provider(client_secret=SECRET).client


UNUSABLE = {
    "no client_id": ({"client_id": ""}, "client_id"),
    "client_id is a number": ({"client_id": 5}, "client_id"),
    "client_id is None": ({"client_id": None}, "client_id"),
    "unknown auth method": (
        {"token_endpoint_auth_method": SECRET, "client_secret": SECRET},
        "client_secret_basic, client_secret_post, none",
    ),
    "basic without secret": (
        {"token_endpoint_auth_method": "client_secret_basic"},
        "client_secret_basic",
    ),
    "post without secret": (
        {"token_endpoint_auth_method": "client_secret_post"},
        "client_secret_post",
    ),
    "empty secret": ({"client_secret": ""}, "client_secret"),
    "no endpoint": ({"token_endpoint": None}, "token_endpoint"),
    "empty endpoint": ({"token_endpoint": ""}, "token_endpoint"),
    "no lifetime": ({"default_expires_in": 0}, "default_expires_in"),
    "negative lifetime": ({"default_expires_in": -1}, "default_expires_in"),
    "NaN lifetime": ({"default_expires_in": math.nan}, "default_expires_in"),
    "unknown body format": ({"body_format": "xml"}, "body_format"),
    "no life of the refresh token": ({"refresh_token_lifetime": 0}, "refresh_token_lifetime"),
    "negative idle life": ({"refresh_token_idle": -1.5}, "refresh_token_idle"),
    "no concurrency": ({"max_concurrency": 0}, "max_concurrency"),
}


@pytest.mark.parametrize(("changes", "named"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_provider_is_refused_by_name_and_setting(
    changes: dict[str, Any], named: str
) -> None:
    message = configuration_error(provider(**changes).require_usable)

    assert message.startswith("provider 'ours' ")
    assert named in message


ALLOWED_URLS = [
    "https://auth.example/token",
    "HTTPS://auth.example/token",
    "https://auth.example:8443/token?v=2",
    "https://auth.example",
    "https://[2001:db8::1]/token",
    "http://localhost/token",
    "http://localhost:8080/token",
    "http://127.0.0.1:1/token",
    "http://127.9.8.7/token",
    "http://[::1]:8080/token",
]
REFUSED_URLS = {
    "http": "http://auth.example/token",
    "http to a local network": "http://192.168.1.1/token",
    "http to all addresses": "http://0.0.0.0/token",
    "http to a name like localhost": "http://localhost.example/token",
    "http to a name like 127.0.0.1": "http://127.0.0.1.example/token",
    "http to a short address": "http://127.1/token",
    "user": "https://user@auth.example/token",
    "user and password": f"https://user:{SECRET}@auth.example/token",
    "empty user": "https://@auth.example/token",
    "localhost as user": "http://localhost@auth.example/token",
    "fragment": f"https://auth.example/token#{SECRET}",
    "no host": "https:///token",
    "no scheme": "auth.example/token",
    "ftp": "ftp://auth.example/token",
    "file": "file:///etc/passwd",
    "javascript": "javascript:alert(1)",
    "bad port": "https://auth.example:port/token",
    "port too high": "https://auth.example:65536/token",
    "bad IPv6": "https://[::1/token",
    "blank": "https://auth.example/ token",
    "leading blank": " https://auth.example/token",
    "newline": "https://auth.example/token\n",
    "newline in the host": "https://auth.\nexample/token",
}


@pytest.mark.parametrize("kind", ["token_endpoint", "issuer"])
@pytest.mark.parametrize("url", ALLOWED_URLS)
def test_secrets_are_sent_over_https_or_on_loopback(kind: str, url: str) -> None:
    provider(**{kind: url}).require_usable()


@pytest.mark.parametrize("kind", ["token_endpoint", "issuer"])
@pytest.mark.parametrize("url", REFUSED_URLS.values(), ids=REFUSED_URLS)
def test_any_other_url_is_refused_and_not_quoted(kind: str, url: str) -> None:
    message = configuration_error(provider(**{kind: url}).require_usable)

    assert f"provider 'ours' has an invalid {kind}: it " in message
    assert url not in message


def test_the_auth_methods_are_those_of_the_contract() -> None:
    assert set(AUTH_METHODS) == {
        *("client_secret_basic", "client_secret_post", "none"),
        *("private_key_jwt", "client_secret_jwt"),
        *("tls_client_auth", "self_signed_tls_client_auth"),
    }


# -- metadata of an issuer ------------------------------------------------------------------------

METADATA = {
    "issuer": ISSUER,
    "token_endpoint": ENDPOINT,
    "authorization_endpoint": "https://auth.example/authorize",
    "device_authorization_endpoint": "https://auth.example/device",
    "revocation_endpoint": "https://auth.example/revoke",
    "scopes_supported": ["openid"],
}


def of_issuer(**changes: Any) -> Provider:
    return provider(**{"token_endpoint": None, "issuer": ISSUER, **changes})


def test_metadata_fills_the_missing_endpoints() -> None:
    assert of_issuer().with_metadata(METADATA) == provider(
        issuer=ISSUER,
        authorization_endpoint="https://auth.example/authorize",
        device_authorization_endpoint="https://auth.example/device",
        revocation_endpoint="https://auth.example/revoke",
    )


def test_metadata_does_not_replace_configured_endpoints() -> None:
    configured = of_issuer(revocation_endpoint="https://auth.example/other")

    found = configured.with_metadata(METADATA)

    assert found.revocation_endpoint == "https://auth.example/other"
    assert found.token_endpoint == ENDPOINT


def test_metadata_may_lack_endpoints_or_contain_odd_values() -> None:
    sparse = {**METADATA, "revocation_endpoint": None, "authorization_endpoint": ["x"]}

    found = of_issuer().with_metadata(sparse)

    assert (found.revocation_endpoint, found.authorization_endpoint) == (None, None)


BAD_METADATA = {
    "another issuer": ({**METADATA, "issuer": "https://evil.example"}, "issuer"),
    "issuer with a slash": ({**METADATA, "issuer": f"{ISSUER}/"}, "issuer"),
    "no issuer": ({**METADATA, "issuer": None}, "issuer"),
    "empty": ({}, "issuer"),
    "no token endpoint": ({"issuer": ISSUER}, "token_endpoint"),
    "empty token endpoint": ({**METADATA, "token_endpoint": ""}, "token_endpoint"),
    "token endpoint is a list": ({**METADATA, "token_endpoint": [ENDPOINT]}, "token_endpoint"),
    "http": ({**METADATA, "token_endpoint": "http://auth.example/token"}, "https"),
    "password": ({**METADATA, "token_endpoint": "https://u:p@auth.example/"}, "password"),
}


@pytest.mark.parametrize(("metadata", "named"), BAD_METADATA.values(), ids=BAD_METADATA)
def test_untrustworthy_metadata_is_refused(metadata: dict[str, Any], named: str) -> None:
    with pytest.raises(ProviderConfigurationError) as caught:
        of_issuer().with_metadata(metadata)

    assert named in str(caught.value)
    assert caught.value.provider == "ours"
