"""Every built-in provider, against a loopback server that speaks as it does."""

from __future__ import annotations

import math
import tomllib
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tokenstore import (
    ClientRejectedError,
    ProviderConfigurationError,
    ReauthorizationRequired,
    TokenManager,
    TransientRefreshError,
)
from tokenstore.oauth.builtin import built_in
from tokenstore.oauth.providers_toml import _checked
from tokenstore.oauth.registry import ProviderRegistry
from tokenstore.testing import Answer, AuthorizationServer

if TYPE_CHECKING:
    from pathlib import Path

    from tokenstore import Provider

pytestmark = pytest.mark.usefixtures("bare_environment")

PROVIDERS = (
    *(
        "google",
        "microsoft",
        "github",
        "gitlab",
        "bitbucket",
        "atlassian",
        "slack",
        "discord",
        "dropbox",
    ),
    *("box", "zoom", "salesforce", "hubspot", "zoho", "notion", "linear", "asana", "x"),
    *(
        "linkedin",
        "reddit",
        "twitch",
        "spotify",
        "strava",
        "fitbit",
        "withings",
        "yahoo",
        "fastmail",
    ),
    *("xero", "quickbooks", "stripe", "shopify", "pinterest", "tiktok", "wordpress", "mailchimp"),
)
TEMPLATES = ["auth0", "okta", "keycloak", "cognito", "entra", "zitadel"]
WITHOUT_REFRESH_TOKEN = {"wordpress", "mailchimp"}


def configured(name: str) -> Provider:
    """Return a built-in provider with a client, and its variables filled in."""
    found = built_in()[name]
    values = dict.fromkeys(found.variables, "sso.example") | {"url": "https://sso.example"}
    given = {v: values[v] for v, default in found.variables.items() if not default}
    return found.provider(name, {**given, "client_id": "app", "client_secret": "s"})


def test_the_catalogue_has_every_provider_and_template() -> None:
    assert {*PROVIDERS, *TEMPLATES} <= set(built_in())
    without_default = [n for n, b in built_in().items() if not all(b.variables.values())]
    assert {*TEMPLATES} <= set(without_default)


@pytest.mark.parametrize("name", built_in())
def test_each_table_is_held_to_the_schema(name: str) -> None:
    found = built_in()[name]
    _checked(name, dict(found.settings), None, found)  # an unknown key would be refused
    provider = configured(name)

    provider.require_usable()
    for kind in ("token_endpoint", "authorization_endpoint"):
        assert urlsplit(provider.endpoint(kind)).scheme == "https"
    assert not [v for v in vars(provider).values() if isinstance(v, str) and "{" in v]
    assert urlsplit(found.documentation).scheme == "https"
    assert found.registration
    assert not found.registration.isspace()
    assert (found.registration_url or "https://").startswith("https://")


@pytest.mark.parametrize(
    "given",
    [
        {"token_endpoint": "https://git.example/oauth/token"},
        {"issuer": "https://git.example"},
    ],
    ids=["token_endpoint", "issuer"],
)
def test_a_server_of_the_users_own_shares_no_endpoint_with_the_vendors(
    given: dict[str, str],
) -> None:
    provider = built_in()["gitlab"].provider("gitlab", {**given, "client_id": "app"})

    assert "gitlab.com" not in str(vars(provider))
    assert provider.refresh_token_rotates is True


def test_a_template_is_no_obstacle_for_a_table_of_its_name(file: Path) -> None:
    file.write_text('[keycloak]\nissuer = "https://sso.example/realms/a"\nclient_id = "app"\n')

    provider = ProviderRegistry(None, file).get("keycloak")

    assert (provider.issuer, provider.token_endpoint) == ("https://sso.example/realms/a", None)


def test_a_provider_without_a_client_is_known_but_not_usable() -> None:
    registry = ProviderRegistry(None, None)
    for name in registry.names():
        assert registry.find(name) is not None
        assert registry.describe(name).problem


def test_each_source_is_named_in_the_file() -> None:
    text = files("tokenstore.oauth").joinpath("catalog.toml").read_text("utf-8")

    assert set(tomllib.loads(text)) == set(built_in())
    for table in text.split("\n[")[1:]:
        assert "documentation = " in table, table[:20]


@pytest.mark.parametrize("name", [n for n in built_in() if n not in WITHOUT_REFRESH_TOKEN])
def test_a_login_is_refreshed_and_its_end_is_recognized(name: str, tmp_path: Path) -> None:
    with AuthorizationServer(dialect=name) as server:
        world = _manager(server, name, tmp_path)
        with world as manager:
            old = server.sign_in("alice")
            manager.save_tokens("alice", old, provider=name)
            new = manager.refresh_token("alice")
            assert server.is_live(new["access_token"])
            assert new["refresh_token"] != old["refresh_token"]
            assert manager.get_valid_token("alice") == new["access_token"]

            server.revoke("alice")
            with pytest.raises(ReauthorizationRequired) as ended:
                manager.refresh_token("alice")
            assert new["refresh_token"] not in str(ended.value)
            (account,) = manager.accounts()
            assert account.state == "sign_in"


@pytest.mark.parametrize("name", [n for n in built_in() if n not in WITHOUT_REFRESH_TOKEN])
def test_a_wrong_secret_is_not_the_end_of_a_login(name: str, tmp_path: Path) -> None:
    with (
        AuthorizationServer(dialect=name) as server,
        _manager(server, name, tmp_path, client_secret="wrong") as manager,
    ):
        manager.save_tokens("alice", server.sign_in("alice"), provider=name)
        with pytest.raises(ClientRejectedError):
            manager.refresh_token("alice")
        (account,) = manager.accounts()
        assert account.state == "misconfigured"


def _manager(server: AuthorizationServer, name: str, path: Path, **changes: Any) -> TokenManager:
    provider = server.provider(name, **changes)
    return TokenManager(path / "tokens.db", providers={name: provider})


@pytest.mark.parametrize(
    "name", [n for n, b in built_in().items() if b.settings.get("default_expires_in") == math.inf]
)
def test_a_token_without_end_is_used_until_it_is_rejected(name: str, tmp_path: Path) -> None:
    with AuthorizationServer(dialect=name) as server, _manager(server, name, tmp_path) as manager:
        manager.save_tokens("alice", {"access_token": "forever"}, provider=name)

        assert manager.get_valid_token("alice") == "forever"
        (account,) = manager.accounts()
        assert (account.state, server.requests) == ("valid", [])
        with pytest.raises(ReauthorizationRequired):
            manager.refresh_token("alice", rejected="forever")
        assert manager.get_valid_token("alice") is None


@pytest.mark.parametrize(
    "name", [n for n, b in built_in().items() if b.settings.get("scope_separator") == ","]
)
def test_scopes_are_separated_as_the_provider_demands(name: str, tmp_path: Path) -> None:
    with (
        AuthorizationServer(dialect=name) as server,
        _manager(server, name, tmp_path, scope="a b") as manager,
    ):
        tokens = {**server.sign_in("alice", scope="a b"), "scope": "a,b"}
        manager.save_tokens("alice", tokens, provider=name)
        with pytest.raises(ClientRejectedError):  # for the strict server, "a,b" is one scope
            manager.refresh_token("alice")

        assert server.requests[0].params["scope"] == "a,b"


@pytest.mark.parametrize(
    ("name", "variable", "value", "expected"),
    [
        ("auth0", "domain", "staff.auth0.example/", "https://staff.auth0.example/oauth/token"),
        ("shopify", "shop", "x.myshopify.com", "https://x.myshopify.com/admin/oauth/access_token"),
        ("auth0", "domain", "https://staff.auth0.example", None),
        ("okta", "domain", "a.example/oauth2", None),
        ("keycloak", "realm", "a/../b", None),
    ],
)
def test_a_variable_is_a_part_of_the_address(
    name: str, variable: str, value: str, expected: str | None
) -> None:
    given = {"url": "https://sso.example", "realm": "a"} if name == "keycloak" else {}

    def endpoint() -> str | None:
        settings = {**given, variable: value, "client_id": "app"}
        return built_in()[name].provider(name, settings).token_endpoint

    if expected is not None:
        assert endpoint() == expected
    else:
        with pytest.raises(ProviderConfigurationError, match=f"invalid {variable}"):
            endpoint()


def test_the_vendors_secret_is_not_for_the_client_of_another_server(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITLAB_CLIENT_SECRET", "of the vendor")
    file.write_text('[gitlab]\ntoken_endpoint = "https://git.example/t"\nclient_id = "app"\n')

    assert ProviderRegistry(None, file).get("gitlab").client_secret is None


def test_a_table_without_a_client_is_known_with_its_own_address(file: Path) -> None:
    file.write_text(
        '[gitlab]\ntoken_endpoint = "https://git.example/t"\n[work]\npreset = "github"\n'
    )
    registry = ProviderRegistry(None, file)

    assert registry.find("gitlab") is not None
    assert getattr(registry.find("gitlab"), "token_endpoint", "") == "https://git.example/t"
    described = registry.describe("work")
    assert described.built_in is built_in()["github"]
    assert described.needs == ("client_id",)


def test_an_expires_in_of_0_is_no_end_where_tokens_have_none(tmp_path: Path) -> None:
    with (
        AuthorizationServer(dialect="mailchimp") as server,
        _manager(server, "mailchimp", tmp_path) as manager,
    ):
        manager.save_tokens("a", {"access_token": "x", "expires_in": 0}, provider="mailchimp")

        assert manager.get_valid_token("a") == "x"


def test_a_temporary_refusal_is_not_the_end_of_a_login(tmp_path: Path) -> None:
    with (
        AuthorizationServer(dialect="fastmail") as server,
        _manager(server, "fastmail", tmp_path) as manager,
    ):
        manager.save_tokens("alice", server.sign_in("alice"), provider="fastmail")
        server.script(Answer(400, {"error": "invalid_grant", "temporary": True}))
        with pytest.raises(TransientRefreshError):
            manager.refresh_token("alice")

        assert manager.refresh_token("alice")["access_token"]


@pytest.mark.parametrize("by", ["token_endpoint", "issuer"])
def test_tokens_of_another_provider_are_not_sent(by: str, tmp_path: Path) -> None:
    with AuthorizationServer() as server:
        changes = {"token_endpoint": None} if by == "issuer" else {"issuer": None}
        provider = server.provider("ours", **changes)
        with TokenManager(tmp_path / "tokens.db", providers={"ours": provider}) as manager:
            theirs = {"token_uri": "https://oauth2.googleapis.com/token"}
            manager.save_tokens("alice", server.sign_in("alice") | theirs, provider="ours")
            for spend in (manager.refresh_token, manager.logout):
                with pytest.raises(ProviderConfigurationError, match="googleapis"):
                    spend("alice")

            assert server.requests == server.requests_at("/revoke") == []
            assert manager.load_tokens("alice") is not None


def test_an_unknown_dialect_is_refused() -> None:
    with pytest.raises(ValueError, match="google, microsoft"):
        AuthorizationServer(dialect="klingon")
