"""No secret is shown: every one here has CANARY in it, and nothing that can be read has."""

from __future__ import annotations

import asyncio
import html
import json
import pickle
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

import httpx
import pytest
import requests
from google.auth.exceptions import RefreshError
from requests.adapters import BaseAdapter
from sqlalchemy.exc import DBAPIError

from tests.helpers.canary import NEW, OLD, SECRET, STEPS, Watch, chain, variables, watching
from tests.helpers.refreshes import SOON, Call, Told, World, until
from tests.helpers.resource_server import Resource
from tokenstore import (
    AsyncTokenManager,
    InvalidTokenError,
    Provider,
    TokenManager,
    TokenPersistError,
    TokenRepository,
    TokenStoreError,
    migrate,
)
from tokenstore.integrations import google
from tokenstore.integrations import httpx as for_httpx
from tokenstore.integrations import requests as for_requests
from tokenstore.jsonfiles import export_accounts, import_accounts
from tokenstore.models.tokens import TokenSet
from tokenstore.oauth.http import exchange
from tokenstore.testing import Answer, Drip, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, client_secret=SECRET) as world:
        yield world


@pytest.fixture
def watch(world: World, capfd: pytest.CaptureFixture[str]) -> Iterator[Watch]:
    with watching(world, capfd) as watch:
        yield watch


@pytest.fixture
def manager(world: World, watch: Watch) -> TokenManager:  # noqa: ARG001 - watch that as well
    manager = world.manager()
    manager.save_tokens("alice", OLD, provider="test")
    return manager


def basic(world: World) -> Provider:
    world.server.register("tokenstore", SECRET, "client_secret_basic")
    return world.server.provider(token_endpoint_auth_method="client_secret_basic")


def test_variables_on_the_way_of_an_error_are_seen() -> None:
    """Inside the package they are there; it is its public functions that let none of them out."""
    with pytest.raises(InvalidTokenError) as caught:
        TokenSet.from_mapping({"access_token": "CANARY\n"}, now=0)
    assert "CANARY" in "".join(variables(caught.value))


# -- all goes well --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["client_secret_post", "client_secret_basic"])
def test_no_success_shows_a_secret(
    world: World, manager: TokenManager, watch: Watch, method: str
) -> None:
    provider = basic(world) if method == "client_secret_basic" else world.server.provider()
    world.server.script(Answer(200, NEW), Answer(200, NEW))
    assert manager.get_valid_token("alice", provider) == NEW["access_token"]
    assert manager.get_valid_token("alice") == NEW["access_token"]
    assert manager.ensure_valid_token("alice", min_ttl=60) == NEW["access_token"]
    assert manager.refresh_token("alice", provider)["id_token"] == NEW["id_token"]
    assert manager.refresh_token("alice", rejected=str(OLD["access_token"]))
    loaded = manager.load_tokens("alice")
    assert loaded is not None
    assert loaded["refresh_token"] == NEW["refresh_token"]
    watch.show(*manager.accounts())
    assert manager.delete_tokens("alice")
    manager.close()
    assert world.posts == 2


def test_no_repr_shows_a_secret(world: World, manager: TokenManager, watch: Watch) -> None:
    provider = world.server.provider(extra_params={"client_assertion": "CANARY"})
    repository = TokenRepository(world.path)
    record = repository.record("alice")
    assert record is not None
    begun = repository.journal.begin(record, provider="test", reason="due", longest=60)
    tokens = TokenSet.from_mapping(OLD, now=0)
    watch.show(manager, provider, repository, record, begun, tokens, *manager.accounts())
    watch.show(manager._refresher, manager._cache, Answer(200, NEW), world.server)
    watch.show(vars(manager), vars(repository))
    answer = exchange("POST", world.server.token_endpoint, timeout=SOON, data={"a": "CANARY"})
    watch.show(answer, *world.server.requests)


# -- something goes wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize("method", ["client_secret_post", "client_secret_basic"])
def test_no_failure_shows_a_secret(
    world: World, manager: TokenManager, watch: Watch, step: Step, method: str
) -> None:
    provider = basic(world) if method == "client_secret_basic" else world.server.provider()
    tokens = {**world.server.sign_in(), "id_token": OLD["id_token"], "expires_in": -1}
    if isinstance(step, Answer):
        tokens = OLD  # the server does not look at it
    manager = world.manager(timeout=0.3 if isinstance(step, Drip) else SOON)
    manager.save_tokens("alice", tokens, provider="test")
    world.server.script(step, step, step)
    watch.catch(manager.refresh_token, "alice", provider)
    assert manager.get_valid_token("alice", provider) is None
    watch.show(*manager.accounts())


SPELT: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "percent": lambda text: quote(text, safe=""),
    "percent, twice": lambda text: quote(quote(text, safe=""), safe=""),
    "form": quote_plus,
    "JavaScript": lambda text: quote(text, safe="!~*'()"),  # encodeURIComponent
    "HTML": html.escape,
    "JSON in JSON": lambda text: json.dumps(text)[1:-1],
    "JSON in JSON, slashes too": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "JSON in JSON, for HTML": lambda text: text.replace("&", "\\u0026").replace("'", "\\u0027"),
    "form, decoded wrongly": lambda text: text.replace("+", " "),
}


@pytest.mark.parametrize("spell", SPELT.values(), ids=SPELT)
@pytest.mark.parametrize("which", ["refresh token", "client secret"])
def test_no_echo_shows_a_secret_however_it_is_spelt(
    world: World, watch: Watch, which: str, spell: Callable[[str], str]
) -> None:
    odd = "M.C5-CANARY!abc*def$g/h+i=&j'k~(l)"  # some providers' tokens have most of these
    provider = world.server.provider(client_secret=odd if which == "client secret" else "other")
    manager = world.manager(providers={"test": provider})
    token = odd if which == "refresh token" else "other"
    manager.save_tokens("alice", {"access_token": "a", "refresh_token": token}, provider="test")
    said = f"what is {spell(odd)}?"
    world.server.script(Answer(400, {"error": "invalid_request", "error_description": said}))
    watch.catch(manager.refresh_token, "alice")


@pytest.mark.parametrize(
    "settings",
    [
        {"token_endpoint": "http://127.0.0.1:1/token"},
        {"token_endpoint": "http://provider.example/token"},
        {"token_endpoint": "https://user:CANARY@provider.example/token"},
        {"token_endpoint": "https://CANARY@[/token"},
        {"token_endpoint": None, "issuer": "http://127.0.0.1:1/"},
        {"token_endpoint_auth_method": "none", "client_id": ""},
        {"token_endpoint_auth_method": "CANARY"},
        {"client_id": "other"},
    ],
    ids=[
        "unreachable",
        "plain http",
        "user name in the URL",
        "no URL",
        "unreachable issuer",
        "no client",
        "unknown method",
        "another client",
    ],
)
def test_no_configuration_error_shows_a_secret(
    world: World, manager: TokenManager, watch: Watch, settings: dict[str, Any]
) -> None:
    manager.save_tokens("alice", {**OLD, "client_id": "tokenstore"}, provider="test")
    provider = world.server.provider(**settings)
    watch.catch(manager.refresh_token, "alice", provider)
    watch.catch(manager.ensure_valid_token, "alice", provider)
    assert manager.get_valid_token("alice", provider) is None


@pytest.mark.parametrize(
    "tokens",
    [
        "CANARY",
        ["CANARY"],
        {"access_token": "CANARY\n"},
        {"access_token": b"CANARY"},
        {"access_token": ["CANARY"]},
        {"access_token": "CANARY\ud800"},
        {**OLD, "refresh_token": "CANARY\0"},
        {**OLD, "refresh_token": {"CANARY": 1}},
        {**OLD, "expires_at": "CANARY"},
        {**OLD, "expires_in": "CANARY"},
        {**OLD, "id_token": b"CANARY"},
        {**OLD, "id_token": {"CANARY": {1}}},
        {**OLD, "nested": [float("nan"), "CANARY"]},
        {**OLD, b"CANARY": 1},
        {**OLD, "nested": {("CANARY",): 1}},
    ],
    ids=lambda tokens: str(tokens)[-40:],
)
def test_no_refused_token_set_shows_a_secret(
    manager: TokenManager, watch: Watch, tokens: Any
) -> None:
    watch.catch(manager.save_tokens, "alice", tokens)
    watch.catch(manager.save_tokens, tokens if isinstance(tokens, dict) else OLD, "alice")
    if isinstance(tokens, dict):
        manager._is_token_expired(tokens)


def test_no_storage_error_shows_a_secret(world: World, manager: TokenManager, watch: Watch) -> None:
    world.refuse("INSERT ON refreshes")
    watch.catch(manager.refresh_token, "alice")
    watch.catch(manager.get_valid_token, "alice")
    world.accept()
    world.refuse("UPDATE ON accounts")
    watch.catch(manager.save_tokens, "alice", NEW)
    world.accept()
    world.sql("ALTER TABLE accounts RENAME TO elsewhere")
    for call in (manager.load_tokens, manager.get_valid_token, manager.delete_tokens):
        watch.catch(call, "alice")
    watch.catch(manager.save_tokens, "alice", NEW)
    watch.catch(list, manager.accounts())


def test_only_the_live_persist_error_holds_the_tokens(
    world: World, manager: TokenManager, watch: Watch
) -> None:
    manager = world.manager(timeout=0.1)
    world.refuse("UPDATE OF access_token ON accounts")
    world.server.script(Answer(200, NEW))
    with pytest.raises(TokenPersistError) as caught:
        manager.get_valid_token("alice")
    assert caught.value.tokens is not None
    assert caught.value.tokens["access_token"] == NEW["access_token"]
    watch.show_error(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy), copy.tokens) == (TokenPersistError, str(caught.value), None)
    watch.catch(manager.close)
    watch.show(manager, manager._refresher)
    world.accept()
    until(lambda: not manager._refresher.at_work())
    manager.close()


def test_no_late_answer_shows_a_secret(world: World, manager: TokenManager, watch: Watch) -> None:
    manager = world.manager(timeout=0.3)
    manager.save_tokens("alice", {**world.server.sign_in(), "expires_in": -1})
    hold = world.hold()
    watch.catch(manager.refresh_token, "alice", "test")
    world.refuse("UPDATE OF access_token ON accounts")
    with Told() as told:
        hold.release.set()
        told.wait_for("could not be stored")
    world.accept()
    assert manager.get_valid_token("alice") is not None


def test_no_waiting_caller_is_shown_a_secret(world: World, watch: Watch) -> None:
    world.manager().save_tokens("alice", OLD, provider="test")
    world.server.script(STEPS["invalid_grant"])
    with world.manager()._repository.refresh_lock("alice", timeout=SOON):
        calls = [Call(world.manager().ensure_valid_token, "alice").waits() for _ in range(3)]
    for call in calls:
        watch.show_error(call.error())


class Chatty(BaseAdapter):
    """Fails with all that it was to send."""

    def send(self, request: requests.PreparedRequest, *_: object, **__: object) -> Any:
        raise RuntimeError(request.body)

    def close(self) -> None:
        pass


def test_no_session_that_fails_shows_a_secret(world: World, watch: Watch) -> None:
    with requests.Session() as session:
        session.mount("http://", Chatty())
        manager = world.manager(session=session)
        manager.save_tokens("alice", OLD, provider="test")
        error = watch.catch(manager.refresh_token, "alice")
    assert "the session raised RuntimeError" in str(error)


def test_no_hook_that_fails_shows_a_secret(world: World, watch: Watch) -> None:
    def fail(*given: object) -> None:
        raise ValueError(*given)

    manager = world.manager(on_refreshed=fail, on_reauthorization_required=fail, on_recovered=fail)
    manager.save_tokens("alice", OLD, provider="test")
    world.server.script(STEPS["invalid_grant"], Answer(200, NEW))
    watch.catch(manager.refresh_token, "alice")
    assert manager.refresh_token("alice")["access_token"] == NEW["access_token"]


def test_no_refresh_of_many_shows_a_secret(world: World, watch: Watch) -> None:
    manager = world.manager()
    for name in ("alice", "bob", "carol"):
        manager.save_tokens(name, OLD, provider="test")
    world.server.script(STEPS["invalid_grant"], STEPS["server error"], Answer(200, NEW))
    for result in manager.refresh_all(jobs=1):
        watch.show(result)
        if result.error is not None:
            watch.show_error(result.error)
    world.refuse("INSERT ON refreshes")
    for result in manager.refresh_all(idle_for=0):
        assert result.error is not None
        watch.show_error(result.error)
    watch.show(*manager.history())


def test_no_error_of_the_repository_shows_a_secret(world: World, watch: Watch) -> None:
    def save_all(repository: TokenRepository) -> None:
        with repository.transaction():
            repository.save("bob", NEW)
            repository.save("alice", NEW)

    with TokenRepository(world.path) as repository:
        repository.save("alice", OLD)
        watch.catch(repository.save, "alice", {**OLD, "access_token": "CANARY\n"})
        watch.catch(repository.save, "\n", OLD)
        watch.catch(repository.save, OLD, OLD)
        world.refuse("UPDATE ON accounts")
        watch.catch(repository.save, "alice", NEW)
        watch.catch(repository.save, "alice", TokenSet.from_mapping(NEW, now=0))
        watch.catch(save_all, repository)
        world.accept()
        world.sql("ALTER TABLE accounts RENAME TO elsewhere")
        for call in (repository.load, repository.delete):
            watch.catch(call, "alice")


def test_no_error_of_an_async_manager_shows_a_secret(world: World, watch: Watch) -> None:
    manager = AsyncTokenManager(world.manager())

    async def fail() -> None:
        for call in (
            manager.save_tokens("alice", {**OLD, "expires_in": "CANARY"}),
            manager.refresh_token("alice", rejected=OLD["access_token"]),
            manager.refresh_token("alice"),
            manager.ensure_valid_token("alice", min_ttl=60),
            manager.save_tokens("\n", OLD),
        ):
            with pytest.raises(TokenStoreError) as caught:
                await call
            watch.show_error(caught.value)
        world.sql("ALTER TABLE accounts RENAME TO elsewhere")
        for items in (manager.accounts(), manager.refresh_all()):
            with pytest.raises(TokenStoreError) as caught:
                await anext(items)
            watch.show_error(caught.value)

    manager.manager.save_tokens("alice", OLD, provider="test")
    world.server.script(*[STEPS["invalid_grant"]] * 2)
    asyncio.run(fail())


def by_requests(manager: TokenManager, url: str) -> None:
    requests.get(url, auth=for_requests.TokenAuth(manager, "alice"), timeout=SOON)


def by_httpx(manager: TokenManager, url: str) -> None:
    settings: Any = {"timeout": SOON, "verify": ssl.create_default_context()}
    with httpx.Client(auth=for_httpx.TokenAuth(manager, "alice"), **settings) as client:
        client.get(url)


def by_httpx_async(manager: TokenManager, url: str) -> None:
    async def main() -> None:
        settings: Any = {"timeout": SOON, "verify": ssl.create_default_context()}
        async with httpx.AsyncClient(auth=for_httpx.TokenAuth(manager, "alice"), **settings) as c:
            await c.get(url)

    asyncio.run(main())


def by_google(manager: TokenManager, url: str) -> None:
    credentials = google.Credentials(manager, "alice")
    headers: dict[str, str] = {}
    for _ in range(2):  # the second time, the token was refused
        credentials.refresh(None)
        credentials.apply(headers)
    assert not url


@pytest.mark.parametrize("send", [by_requests, by_httpx, by_httpx_async, by_google])
@pytest.mark.parametrize("kind", ["bearer", "mac"])
def test_no_error_of_an_integration_shows_a_secret(
    world: World, watch: Watch, send: Callable[[TokenManager, str], None], kind: str
) -> None:
    manager = world.manager()
    alive = {**OLD, "expires_in": 3600, "token_type": kind}
    manager.save_tokens("alice", alive, provider="test")
    world.server.script(STEPS["invalid_grant"])
    with (
        Resource(lambda _: False) as resource,
        pytest.raises((TokenStoreError, RefreshError)) as caught,
    ):
        send(manager, resource.url)
    watch.show_error(caught.value)


@pytest.mark.parametrize("make", [TokenManager, AsyncTokenManager, TokenRepository])
@pytest.mark.parametrize(
    "database", ["postgresql://u:CANARY@h/db?schema=Bad", "mysql://u:CANARY@h/db"]
)
def test_no_error_of_a_constructor_shows_a_password(
    watch: Watch, make: Callable[[str], object], database: str
) -> None:
    with pytest.raises(ValueError, match=r"schema|database") as caught:
        make(database)
    watch.show_error(caught.value)


def test_no_error_of_files_shows_a_secret(world: World, watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "alice.json").write_text(json.dumps(OLD))
    with TokenRepository(world.path) as repository:
        assert [r.outcome for r in import_accounts(repository, tmp_path / "old")] == ["imported"]
        world.refuse("UPDATE ON accounts")
        watch.catch(list, import_accounts(repository, tmp_path / "old", replace=True))
        watch.catch(list, export_accounts(repository, tmp_path / "old" / "alice.json"))
        world.sql("ALTER TABLE accounts RENAME COLUMN extra TO elsewhere")
        watch.catch(list, export_accounts(repository, tmp_path / "new"))
        watch.catch(list, import_accounts(repository, tmp_path / "old"))


def test_what_sqlalchemy_knows_of_a_failed_migration_shows_no_secret(
    world: World, watch: Watch
) -> None:
    world.manager().save_tokens("alice", OLD)
    migrate.downgrade(world.path, "0001")
    world.sql("ALTER TABLE accounts ADD COLUMN refresh_token_expires_at TEXT")
    world.sql("UPDATE accounts SET refresh_token_expires_at = 'CANARY'")
    error = watch.catch(migrate.upgrade, world.path)
    assert any(isinstance(cause, DBAPIError) for cause in chain(error))
    with TokenRepository(world.path, upgrade=True) as repository:
        error = watch.catch(repository.load, "alice")
    assert any(isinstance(cause, DBAPIError) for cause in chain(error))
