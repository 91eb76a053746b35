"""No secret is shown: every one here has CANARY in it, and nothing that can be read has."""

from __future__ import annotations

import base64
import logging
import pickle
import traceback
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import pytest
from refreshing import SOON, Call, Told, World

from tokenstore import (
    Provider,
    TokenManager,
    TokenPersistError,
    TokenRepository,
    TokenStoreError,
)
from tokenstore.exchange import exchange
from tokenstore.testing import Answer, Drip, Drop, Step, Truncate
from tokenstore.tokens import TokenSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECRET = "CANARY secret/é"
OLD: dict[Any, Any] = {
    "access_token": "CANARY-access-1",
    "refresh_token": "1//CANARY+refresh-1",
    "id_token": "CANARY-id-1",
    "expires_in": -1,
}
NEW = {
    "access_token": "CANARY-access-2",
    "refresh_token": "1//CANARY+refresh-2",
    "id_token": "CANARY-id-2",
    "expires_in": 3600,
}
BASIC = base64.b64encode(f"tokenstore:{quote_plus(SECRET)}".encode()).decode()
ECHO = f"{OLD['refresh_token']} {SECRET} {quote_plus(SECRET)}"


class Watch:
    """Collects whatever a person or a log may get to see, and how much of that there was."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self.seen: list[str] = []

    def show(self, *things: object) -> None:
        for thing in things:
            self.seen += [str(thing), repr(thing)]

    def show_error(self, error: BaseException) -> None:
        """Show an error, those that it came from, and what a pickle of it takes along."""
        pending: list[BaseException | None] = [error]
        known: list[BaseException] = []
        while pending:
            cause = pending.pop()
            if cause is None or cause in known:
                continue
            known.append(cause)
            attributes = {k: v for k, v in vars(cause).items() if k != "tokens"}
            self.show(cause, cause.args, attributes)
            pending += [cause.__cause__, cause.__context__]
        self.seen += traceback.format_exception(error)
        if isinstance(error, TokenStoreError):
            self.seen.append(pickle.dumps(error).decode("latin-1"))

    def catch(self, function: Callable[..., object], *arguments: Any, **more: Any) -> None:
        """Call something that fails, and show how."""
        with pytest.raises(TokenStoreError) as caught:
            function(*arguments, **more)
        self.show_error(caught.value)

    def finish(self, told: Told) -> None:
        """Look for secrets in all that was seen, logged or printed."""
        for record in told.records:
            self.seen += [record.getMessage(), repr(vars(record))]
            if record.exc_info:
                self.seen += traceback.format_exception(*record.exc_info)
        self.seen += self._capfd.readouterr()
        assert len(self.seen) > 10
        for text in self.seen:
            assert "CANARY" not in text
            assert BASIC not in text


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, client_secret=SECRET) as world:
        yield world


@pytest.fixture
def watch(world: World, capfd: pytest.CaptureFixture[str]) -> Iterator[Watch]:
    """Watch the test: every logger at DEBUG, the root and the libraries' own."""
    names = ("sqlalchemy", "sqlalchemy.engine", "sqlalchemy.pool", "urllib3", "filelock")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    watch = Watch(capfd)
    with Told("") as told, Told("tokenstore"):
        yield watch
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    watch.show(*(world.sql("SELECT * FROM refreshes") if world.path.is_file() else ()))
    watch.finish(told)


@pytest.fixture
def manager(world: World) -> TokenManager:
    manager = world.manager()
    manager.save_tokens("alice", OLD, provider="test")
    return manager


def basic(world: World) -> Provider:
    world.server.register("tokenstore", SECRET, "client_secret_basic")
    return world.server.provider(token_endpoint_auth_method="client_secret_basic")


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
    begun = repository.journal.begin(record, provider="test", reason="due")
    tokens = TokenSet.from_mapping(OLD, now=0)
    watch.show(manager, provider, repository, record, begun, tokens, *manager.accounts())
    watch.show(manager._refresher, manager._cache, Answer(200, NEW), world.server)
    answer = exchange("POST", world.server.token_endpoint, timeout=SOON, data={"a": "CANARY"})
    watch.show(answer, *world.server.requests)


# -- something goes wrong -------------------------------------------------------------------------


STEPS: dict[str, Step] = {
    "invalid_grant": Answer(400, {"error": "invalid_grant", "error_description": ECHO}),
    "unknown error": Answer(400, {"error": ECHO}),
    "nested error": Answer(400, {"error": {"code": ECHO, "message": ECHO}}),
    "HTML": Answer(400, f"<html>{ECHO}</html>"),
    "server error": Answer(500, {"error": "server_error", "error_description": ECHO}),
    "to wait": Answer(429, {"error": ECHO}, {"Retry-After": "60"}),
    "no token": Answer(200, {"access_token": "", "refresh_token": NEW["refresh_token"]}),
    "token that is none": Answer(200, {**NEW, "access_token": "CANARY\n"}),
    "redirect": Answer.redirect("https://CANARY:CANARY@other.example/?refresh_token=CANARY"),
    "no answer": Drop(spent=False),
    "cut short": Truncate(),
    "dripping": Drip(0.01),
}


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
    world.refuse("UPDATE ON accounts")
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
    manager.close()


def test_no_late_answer_shows_a_secret(world: World, manager: TokenManager, watch: Watch) -> None:
    manager = world.manager(timeout=0.3)
    manager.save_tokens("alice", {**world.server.sign_in(), "expires_in": -1})
    hold = world.hold()
    watch.catch(manager.refresh_token, "alice", "test")
    world.refuse("UPDATE ON accounts")
    with Told() as told:
        hold.release.set()
        told.wait_for("could not be stored")
    world.accept()
    token = manager.get_valid_token("alice")
    assert token is not None
    stored = manager.load_tokens("alice")
    assert stored is not None
    for text in watch.seen + [str(vars(record)) for record in told.records]:
        assert token not in text
        assert stored["refresh_token"] not in text


def test_no_waiting_caller_is_shown_a_secret(world: World, watch: Watch) -> None:
    world.manager().save_tokens("alice", OLD, provider="test")
    world.server.script(STEPS["invalid_grant"])
    with world.manager()._repository.refresh_lock("alice", timeout=SOON):
        calls = [Call(world.manager().ensure_valid_token, "alice").waits() for _ in range(3)]
    for call in calls:
        watch.show_error(call.error())
