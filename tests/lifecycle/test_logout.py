from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.refreshes import SOON, Call, Told, World, denied
from tests.helpers.sign_in import Visitor
from tokenstore import (
    ClientRejectedError,
    Provider,
    ProviderConfigurationError,
    ReauthorizationRequired,
    TokenPersistError,
    TransientRefreshError,
    WrongAccountError,
)
from tokenstore.testing import Answer, Drop, Hold

if TYPE_CHECKING:
    from pathlib import Path

    from tokenstore import TokenManager


def hints(world: World) -> list[str]:
    """Return which tokens were revoked, in order."""
    return [request.params["token_type_hint"] for request in world.server.requests_at("/revoke")]


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post", "none"])
def test_both_tokens_are_revoked_and_the_account_is_gone(tmp_path: Path, method: str) -> None:
    secret = None if method == "none" else "p+a/b=:%é€"
    with World(tmp_path, client_secret=secret, token_endpoint_auth_method=method) as world:
        tokens = world.sign_in("alice", expires_in=3600)
        world.sign_in("bob")
        assert world.manager().logout("alice") is True

        assert hints(world) == ["refresh_token", "access_token"]
        sent = [request.params["token"] for request in world.server.requests_at("/revoke")]
        assert sent == [tokens["refresh_token"], tokens["access_token"]]
        assert not world.server.is_live(tokens["access_token"])
        assert [account.name for account in world.manager().accounts()] == ["bob"]
        assert world.outcomes() == []
        assert tokens["refresh_token"].encode() not in world.path.read_bytes()


def test_what_was_cached_is_not_served_any_more(world: World) -> None:
    world.sign_in("alice", expires_in=3600)
    manager = world.manager()
    assert manager.get_valid_token("alice")
    manager.logout("alice")
    assert manager.get_valid_token("alice") is None


def test_keep_leaves_an_account_that_has_to_sign_in(world: World) -> None:
    manager = world.manager()
    first = manager.login("alice", "test", prompt=Visitor(world))
    assert manager.logout("alice", keep_account=True) is True

    assert not world.server.is_live(first["access_token"])
    [account] = manager.accounts()
    assert (account.name, account.provider, account.state) == ("alice", "test", "sign_in")
    assert world.tokens() == (None, None, None)
    with pytest.raises(ReauthorizationRequired, match="sign in"):
        manager.ensure_valid_token("alice")
    with pytest.raises(WrongAccountError):
        manager.login("alice", prompt=Visitor(world, "bob"))
    assert manager.login("alice", prompt=Visitor(world))
    assert manager.get_valid_token("alice")


def test_who_is_kept_can_sign_out_again(world: World) -> None:
    world.sign_in("alice")
    for _ in range(2):
        assert world.manager().logout("alice", keep_account=True) is True
    assert hints(world) == ["refresh_token", "access_token"]
    assert world.manager().logout("alice") is True
    assert list(world.manager().accounts()) == []


@pytest.mark.slow
def test_tokens_that_are_dead_already_are_as_good(world: World) -> None:
    world.sign_in("alice")
    world.server.revoke("alice")
    assert world.manager().logout("alice") is True
    assert hints(world) == ["refresh_token", "access_token"]


@pytest.mark.parametrize(
    "steps",
    [
        [denied("invalid_token"), denied("invalid_token")],  # Google, of a token that is revoked
        [Answer(200, {}), Answer(200, "OK")],
        [Answer(204), Answer(200)],
        [denied("token_revoked"), denied("invalid_grant")],
        [Answer(200), denied("unsupported_token_type")],
    ],
    ids=["invalid_token", "a body", "no body", "other words", "no access tokens"],
)
def test_answers_that_mean_that_a_token_is_dead(world: World, steps: list[Answer]) -> None:
    world.sign_in("alice")
    world.server.script(*steps, path="/revoke")
    assert world.manager().logout("alice") is True
    assert len(hints(world)) == 2
    assert world.manager().load_tokens("alice") is None


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (Answer(503), TransientRefreshError),
        (Answer(429), TransientRefreshError),
        (Drop(spent=False), TransientRefreshError),
        (Drop(spent=True), TransientRefreshError),
        (denied("invalid_client", 401), ClientRejectedError),
        (denied("unsupported_token_type"), ClientRejectedError),
        (Answer(404, "<html>"), TransientRefreshError),
        (Answer(200, {"error": "internal_failure"}), TransientRefreshError),
        (Answer.redirect("http://elsewhere.example/"), ClientRejectedError),
    ],
    ids=repr,
)
def test_a_revocation_that_fails_keeps_the_account(
    world: World, step: Any, expected: type[Exception], *, keep: bool
) -> None:
    tokens = world.sign_in("alice")
    row = world.row()
    world.server.script(step, path="/revoke")
    with pytest.raises(expected) as caught:
        world.manager().logout("alice", keep_account=keep)
    assert "still stored; try again, or delete it without telling the provider" in str(caught.value)
    assert tokens["refresh_token"] not in str(caught.value) + repr(vars(caught.value))
    assert world.row() == row
    assert world.manager().logout("alice") is True


def test_the_second_revocation_may_fail_and_be_made_up_for(world: World) -> None:
    world.sign_in("alice")
    world.server.script(Answer(200), Answer(503), path="/revoke")
    with pytest.raises(TransientRefreshError):
        world.manager().logout("alice")
    assert world.manager().logout("alice") is True
    assert hints(world) == ["refresh_token", "access_token"] * 2


def test_nobody_at_the_endpoint_keeps_the_account(world: World) -> None:
    world.sign_in("alice")
    provider = world.server.provider(revocation_endpoint="http://127.0.0.1:1/revoke")
    with pytest.raises(TransientRefreshError, match="no connection"):
        world.manager(providers={"test": provider}).logout("alice")
    assert world.row()


def test_an_account_without_a_refresh_token_has_one_token_to_revoke(world: World) -> None:
    tokens = world.sign_in("alice", refresh_token=None, expires_in=3600)
    assert world.manager().logout("alice") is True
    assert hints(world) == ["access_token"]
    assert not world.server.is_live(tokens["access_token"])


def test_a_provider_that_cannot_revoke_is_told_of(world: World) -> None:
    world.sign_in("alice")
    provider = world.server.provider(revocation_endpoint=None, issuer=None)
    with Told() as told:
        assert world.manager(providers={"test": provider}).logout("alice") is False
    [warning] = [r.getMessage() for r in told.records if r.name != "tokenstore"]
    assert "cannot revoke" in warning
    assert world.manager().load_tokens("alice") is None


def test_an_issuer_names_the_endpoint(world: World) -> None:
    secret = world.server.provider().client_secret
    ours = Provider("test", None, "tokenstore", client_secret=secret, issuer=world.server.issuer)
    world.sign_in("alice")
    assert world.manager(providers={"test": ours}).logout("alice") is True
    assert hints(world) == ["refresh_token", "access_token"]


@pytest.mark.parametrize("endpoint", ["http://login.example/revoke", "https://u@login.example/"])
def test_an_endpoint_that_must_not_be_used_gets_nothing(world: World, endpoint: str) -> None:
    world.sign_in("alice")
    manager = world.manager(providers={"test": world.server.provider(revocation_endpoint=endpoint)})
    with pytest.raises(ProviderConfigurationError, match="still stored"):
        manager.logout("alice")
    assert world.row()


def test_an_account_that_is_not_there_is_no_error(world: World) -> None:
    world.sign_in("bob")
    assert world.manager().logout("alice") is False


@pytest.mark.parametrize(
    ("tokens", "provider", "told"),
    [
        ({}, None, "bound to no provider"),
        ({}, "gone", "unknown provider"),
        ({"client_id": "another"}, "test", "another client_id"),
    ],
    ids=["unbound", "unknown", "of another client"],
)
def test_nobody_is_sent_the_tokens_of_another(
    world: World, tokens: dict[str, str], provider: str | None, told: str
) -> None:
    world.sign_in("alice", provider=provider, **tokens)
    with pytest.raises(ProviderConfigurationError, match=told) as caught:
        world.manager().logout("alice")
    assert "or delete it" in str(caught.value)
    assert caught.value.account_name == "alice"
    assert hints(world) == []
    assert world.row()


# -- meanwhile ------------------------------------------------------------------------------------


def test_a_refresh_under_way_is_waited_for_and_its_tokens_are_revoked(world: World) -> None:
    world.sign_in("alice")
    hold = world.hold()
    refresh = Call(world.manager().refresh_token, "alice")
    assert hold.arrived.wait(SOON)
    logout = Call(world.manager().logout, "alice").waits()
    assert hints(world) == []
    hold.release.set()
    tokens = refresh.result()
    assert logout.result() is True
    sent = [request.params["token"] for request in world.server.requests_at("/revoke")]
    assert sent == [tokens["refresh_token"], tokens["access_token"]]
    assert world.manager().load_tokens("alice") is None


def test_a_refresh_that_takes_too_long_is_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sign_in("alice")
    hold = world.hold()
    refresh = Call(world.manager().refresh_token, "alice")
    assert hold.arrived.wait(SOON)
    monkeypatch.setattr("tokenstore.lifecycle.request.BUSY", 0.1)
    with pytest.raises(TransientRefreshError, match=f"process {os.getpid()} on .* is refreshing"):
        world.manager(timeout=0.01).logout("alice")
    hold.release.set()
    assert refresh.result()
    assert hints(world) == []


def test_nobody_refreshes_while_an_account_is_signed_out(world: World) -> None:
    world.sign_in("alice")
    hold = Hold()
    world.server.script(hold, path="/revoke")
    logout = Call(world.manager().logout, "alice")
    assert hold.arrived.wait(SOON)
    refresh = Call(world.manager().refresh_token, "alice").waits()
    hold.release.set()
    assert logout.result() is True
    assert isinstance(refresh.error(), ReauthorizationRequired)
    assert world.posts == 0


@pytest.mark.parametrize("keep", [False, True])
def test_a_sign_in_meanwhile_stays(world: World, *, keep: bool) -> None:
    world.sign_in("alice")
    hold = Hold()
    world.server.script(hold, path="/revoke")
    logout = Call(world.manager().logout, "alice", keep_account=keep)
    assert hold.arrived.wait(SOON)
    tokens = world.sign_in("alice", expires_in=3600)
    hold.release.set()
    assert "signed in again" in str(logout.error())
    assert world.tokens()[0] == tokens["access_token"]
    assert world.server.is_live(tokens["access_token"])


def test_a_delete_meanwhile_is_no_error(world: World) -> None:
    world.sign_in("alice")
    hold = Hold()
    world.server.script(hold, path="/revoke")
    logout = Call(world.manager().logout, "alice", keep_account=True)
    assert hold.arrived.wait(SOON)
    world.manager().delete_tokens("alice")
    hold.release.set()
    assert logout.result() is True
    assert world.manager().load_tokens("alice") is None


def test_tokens_that_the_store_would_not_take_are_stored_and_revoked(
    world: World, impatient: TokenManager
) -> None:
    world.sign_in("alice")
    world.refuse_outcome()
    with pytest.raises(TokenPersistError) as caught:
        impatient.refresh_token("alice")
    logout = Call(impatient.logout, "alice").waits()
    assert hints(world) == []
    world.accept()
    assert logout.result() is True
    assert caught.value.tokens
    assert not world.server.is_live(caught.value.tokens["access_token"])
