from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
import requests
import responses

from tests.helpers.refreshes import SOON, Raw, World
from tokenstore import (
    Provider,
    ProviderConfigurationError,
    ReauthorizationRequired,
    TokenRefreshError,
    TransientRefreshError,
)
from tokenstore.oauth.addresses import foreign_network
from tokenstore.oauth.discovery import _require_public, fetch_metadata

URL = "https://provider.example/token"
ISSUER = "https://issuer.example/tenant"
METADATA = f"{ISSUER}/.well-known/openid-configuration"


def discovered(**response: Any) -> Provider:
    provider = Provider("p", None, "me", issuer=ISSUER)
    with responses.RequestsMock() as mock:
        mock.get(METADATA, **response)
        return provider.with_metadata(fetch_metadata(provider, timeout=SOON))


def test_an_issuer_fills_the_endpoints_that_are_missing() -> None:
    provider = discovered(
        json={"issuer": ISSUER, "token_endpoint": URL, "revocation_endpoint": f"{URL}/revoke"}
    )
    assert provider.token_endpoint == URL
    assert provider.revocation_endpoint == f"{URL}/revoke"


@pytest.mark.parametrize(
    ("response", "raised", "why"),
    [
        ({"json": [ISSUER]}, ProviderConfigurationError, "returned HTTP 200"),
        ({"body": "<html>"}, ProviderConfigurationError, "returned HTTP 200"),
        ({"body": b"[" * 100_000}, ProviderConfigurationError, "returned HTTP 200"),
        ({"status": 404}, ProviderConfigurationError, "returned HTTP 404"),
        (
            {"status": 302, "headers": {"Location": "https://other.example"}},
            ProviderConfigurationError,
            "returned HTTP 302",
        ),
        ({"status": 503}, TransientRefreshError, "HTTP 503"),
        ({"status": 429}, TransientRefreshError, "HTTP 429"),
        ({"body": requests.ConnectTimeout()}, TransientRefreshError, "no connection"),
        ({"body": b"x" * (2 << 20)}, TransientRefreshError, "HTTP 200"),
    ],
    ids=[
        "a list",
        "HTML",
        "brackets",
        "not found",
        "redirect",
        "down",
        "busy",
        "unreachable",
        "endless",
    ],
)
def test_unusable_metadata_is_a_typed_error(
    response: dict[str, Any], raised: type[TokenRefreshError], why: str
) -> None:
    with pytest.raises(TokenRefreshError, match=why) as caught:
        discovered(**response)
    assert type(caught.value) is raised
    assert caught.value.provider == "p"


# -- metadata that lead elsewhere ----------------------------------------------------------------

PRIVATE = [
    *("http://127.0.0.1/t", "https://127.0.0.1:8443/t", "http://localhost/t", "https://[::1]/t"),
    *("https://a.localhost/t", "https://0.0.0.0/t", "https://[::ffff:127.0.0.1]/t"),
    *("https://169.254.169.254/latest", "https://[fe80::1]/t", "https://[fd00::1]/t"),
    *(
        "https://10.1.2.3/t",
        "https://172.16.0.1/t",
        "https://192.168.0.1/t",
        "https://100.64.0.1/t",
    ),
    *("https://[::ffff:10.0.0.1]/t", "https://[2002:a00:1::]/t", "https://224.0.0.1/t"),
    *("https://[64:ff9b::7f00:1]/t", "https://[64:ff9b:1::a00:1]/t", "https://[::127.0.0.1]/t"),
]
RESOLVED = ["https://127.1/t", "https://2130706433/t", "https://0x7f000001/t"]


@pytest.mark.parametrize("endpoint", ["token_endpoint", "authorization_endpoint"])
@pytest.mark.parametrize("url", [*PRIVATE, *RESOLVED])
def test_metadata_of_the_internet_name_no_private_endpoint(endpoint: str, url: str) -> None:
    metadata = {"issuer": ISSUER, "token_endpoint": "https://9.9.9.9/t", endpoint: url}

    with pytest.raises(ProviderConfigurationError, match=f"{endpoint} with a .* address; set"):
        discovered(json=metadata)


@pytest.mark.parametrize("url", PRIVATE)
def test_without_a_lookup_addresses_are_refused_at_least(url: str) -> None:
    provider = Provider("p", None, "me", issuer=ISSUER)

    with pytest.raises(ProviderConfigurationError, match="address"):
        provider.with_metadata({"issuer": ISSUER, "token_endpoint": url})


def test_an_endpoint_that_is_configured_is_not_looked_at() -> None:
    provider = Provider("p", "https://10.0.0.1/t", "me", issuer=ISSUER)
    metadata = {"issuer": ISSUER, "token_endpoint": "https://10.0.0.2/t"}

    assert provider.with_metadata(metadata).token_endpoint == "https://10.0.0.1/t"


@pytest.mark.parametrize(
    ("issuer", "url", "network"),
    [
        ("https://10.0.0.1", "https://10.0.0.1/t", None),
        ("https://10.0.0.1", "https://192.168.1.1/t", None),
        ("https://10.0.0.1", "https://1.1.1.1/t", None),
        ("https://10.0.0.1", "http://127.0.0.1/t", "loopback"),
        ("https://10.0.0.1", "https://169.254.169.254/t", "link-local"),
        ("https://127.0.0.1", "https://10.0.0.1/t", None),
        ("http://localhost:8080", "http://127.0.0.1:9090/t", None),
        ("https://issuer.example", "https://other.example/t", None),
        ("https://issuer.example", "https://[2606:4700::1]/t", None),
        ("https://127.1", "https://10.0.0.1/t", None),
    ],
)
def test_an_issuer_may_name_its_own_network(issuer: str, url: str, network: str | None) -> None:
    assert foreign_network(issuer, url, resolve=True) == network


def test_an_issuer_of_the_internet_that_names_this_machine_too_is_of_the_internet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def addresses(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        found = {"issuer.example": ["203.0.114.5", "127.0.0.1"]}.get(host, [host])
        return [(None, None, None, None, (address, 0)) for address in found]

    monkeypatch.setattr("socket.getaddrinfo", addresses)
    for url, network in [("http://127.0.0.1/t", "loopback"), ("https://10.0.0.1/t", "private")]:
        assert foreign_network("https://issuer.example", url, resolve=True) == network


def test_a_lookup_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: release.wait(SOON) and [])
    began = time.monotonic()
    try:
        metadata = {"issuer": ISSUER, "token_endpoint": "https://slow.example/t"}
        _require_public(Provider("p", None, "me", issuer=ISSUER), metadata, 0.05)
    finally:
        release.set()
    assert time.monotonic() - began < SOON


def test_nothing_is_sent_to_an_endpoint_that_is_refused(world: World) -> None:
    world.sign_in()
    provider = world.server.provider(token_endpoint=None, issuer=ISSUER)
    body = {"issuer": ISSUER, "token_endpoint": world.server.token_endpoint}

    manager = world.manager(providers={"test": provider})

    with responses.RequestsMock() as mock:
        mock.get(METADATA, json=body)
        with pytest.raises(ProviderConfigurationError):
            manager.ensure_valid_token("alice")

    assert world.posts == 0


# -- in a refresh ---------------------------------------------------------------------------------


def test_an_account_of_a_provider_with_only_an_issuer_is_refreshed(world: World) -> None:
    world.sign_in()
    issuer = world.server.issuer
    provider = world.server.provider(token_endpoint=None, issuer=issuer)
    manager = world.manager(providers={"test": provider})
    token = manager.get_valid_token("alice")
    assert token is not None
    assert world.server.is_live(token)


def test_unavailable_metadata_spends_no_token_and_names_the_account(world: World) -> None:
    world.sign_in()
    with Raw(b"HTTP/1.1 503 Down\r\nContent-Length: 0\r\n\r\n") as issuer:
        provider = world.server.provider(token_endpoint=None, issuer=f"http://{issuer.host}")
        with pytest.raises(TransientRefreshError) as caught:
            world.manager().ensure_valid_token("alice", provider)
    assert caught.value.account_name == "alice"
    assert not caught.value.maybe_spent
    assert world.posts == 0
    assert set(world.outcomes()) == {"transient"}
    assert world.tokens()[1] is not None


def test_metadata_is_fetched_once_for_many_refreshes(world: World) -> None:
    world.sign_in()
    body = json.dumps({"issuer": "HERE", "token_endpoint": world.server.token_endpoint}).encode()
    with Raw() as issuer:
        url = f"http://{issuer.host}"
        issuer.answer = b"HTTP/1.1 200 OK\r\n\r\n" + body.replace(b"HERE", url.encode())
        provider = world.server.provider(token_endpoint=None, issuer=url)
        manager = world.manager(providers={"test": provider})
        for _ in range(3):
            manager.refresh_token("alice")
    assert world.posts == 3
    assert [line.split(b"\r\n")[0] for line in issuer.received] == [
        b"GET /.well-known/openid-configuration HTTP/1.1"
    ]


def test_a_recorded_failure_applies_to_a_discovered_provider(world: World) -> None:
    world.sign_in()
    world.server.revoke("alice")
    provider = world.server.provider(token_endpoint=None, issuer=world.server.issuer)
    for _ in range(3):
        with pytest.raises(ReauthorizationRequired):
            world.manager(providers={"test": provider}).ensure_valid_token("alice")
    assert world.posts == 1
