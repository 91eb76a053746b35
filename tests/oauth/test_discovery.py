from __future__ import annotations

import json
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
from tokenstore.oauth.discovery import fetch_metadata

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
