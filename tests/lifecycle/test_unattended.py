"""Accounts that belong to no user: no sign-in, no refresh token, and everything else as usual."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.keys import key_file, public_pem
from tests.helpers.refreshes import SOON, Call, World, denied, of_sqlite, on_both_engines
from tokenstore import (
    ClientRejectedError,
    InsecureStorageError,
    ProviderConfigurationError,
    ReauthorizationRequired,
    TokenManager,
    TransientRefreshError,
)
from tokenstore.testing import Answer, Drop, Hold, Transform

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = on_both_engines

HOUR = 3600.0
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


def manager_of(world: World, **options: Any) -> TokenManager:
    """Return a manager that knows the provider ``svc``, whose accounts belong to no user."""
    changes = options.pop("changes", {})
    svc = world.server.provider("svc", grant_type="client_credentials", **changes)
    return world.manager(providers={"svc": svc, "test": world.server.provider()}, **options)


def state(manager: TokenManager, name: str = "robot") -> str:
    [account] = manager.accounts(names=[name])
    return account.state


def test_the_first_use_makes_the_account(world: World) -> None:
    manager = manager_of(world)

    token = manager.get_valid_token("robot", "svc")

    assert token is not None
    assert world.server.is_live(token)
    [account] = manager.accounts()
    assert (account.name, account.provider, account.state) == ("robot", "svc", "valid")
    assert account.refreshable
    assert world.tokens("robot") == (token, None, world.clock.now + HOUR)
    assert manager.get_valid_token("robot") == token  # by now it is bound
    assert manager_of(world).ensure_valid_token("robot") == token
    assert world.posts == 1


def test_a_token_that_is_due_is_obtained_anew(world: World) -> None:
    manager = manager_of(world)
    old = manager.get_valid_token("robot", "svc")
    world.clock.now += HOUR

    assert state(manager) == "due"
    new = manager.get_valid_token("robot")

    assert new not in {None, old}
    assert world.posts == 2
    assert world.outcomes("robot") == ["refreshed", "refreshed"]


def test_many_callers_share_one_request(world: World) -> None:
    managers = [manager_of(world) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(lambda n: managers[n % 4].get_valid_token("robot", "svc"), range(16)))

    assert len(tokens) == 1
    assert world.posts == 1


def test_a_forced_refresh_needs_no_account_either(world: World) -> None:
    manager = manager_of(world)

    first = manager.refresh_token("robot", "svc")
    second = manager.refresh_token("robot")

    assert first["access_token"] != second["access_token"]
    assert "refresh_token" not in second


def test_a_revoked_token_is_obtained_anew_when_it_is_reported(world: World) -> None:
    manager = manager_of(world)
    old = manager.ensure_valid_token("robot", "svc")
    world.server.revoke("tokenstore")

    new = manager.refresh_token("robot", rejected=old)["access_token"]

    assert world.server.is_live(new)


def test_a_token_of_unknown_end_is_obtained_anew_when_it_is_reported(world: World) -> None:
    """Other accounts need a sign-in then."""
    manager = manager_of(world)
    manager.save_tokens("robot", {"access_token": "saved"}, provider="svc")
    assert manager.ensure_valid_token("robot") == "saved"

    assert world.server.is_live(manager.refresh_token("robot", rejected="saved")["access_token"])


def test_nothing_counts_as_spent(world: World) -> None:
    """Also if the provider gives refresh tokens with it, and however often accounts are renewed."""
    manager = manager_of(world)
    for number in range(3):
        given = {"refresh_token": f"r{number}"}
        world.server.script(Transform(given.__ror__))
        assert manager.refresh_token(f"robot {number % 2}", "svc")["access_token"]

    sent = world.sql("SELECT DISTINCT sent, received FROM refreshes")
    assert sent == [("", "")]
    assert manager._repository.journal.spent_at("") is None
    assert world.row("robot 0")["refresh_token"] is None
    manager.save_tokens("alice", {"access_token": "a"})  # without a refresh token, like them
    manager.save_tokens("alice", {"access_token": "a", "refresh_token": "b"})


def test_a_refresh_token_of_earlier_days_is_not_spent(world: World) -> None:
    world.sign_in("alice", provider="svc")
    old = world.row("alice")["refresh_token"]
    manager = manager_of(world)

    manager.refresh_token("alice")

    assert world.server.requests[0].params["grant_type"] == "client_credentials"
    assert manager._repository.journal.spent_at(old) is None
    assert world.sql("SELECT sent FROM refreshes") == [("",)]


def test_a_deleted_account_is_made_again(world: World) -> None:
    manager = manager_of(world)
    old = manager.get_valid_token("robot", "svc")

    assert manager.delete_tokens("robot")

    assert manager.load_tokens("robot") is None
    assert manager.get_valid_token("robot", "svc") not in {None, old}


def test_an_account_that_is_deleted_meanwhile_is_no_matter_of_signing_in(world: World) -> None:
    manager = manager_of(world)
    manager.get_valid_token("robot", "svc")
    hold = world.hold()
    call = Call(manager.refresh_token, "robot", "svc")
    assert hold.arrived.wait(SOON)
    world.manager().delete_tokens("robot")
    hold.release.set()

    assert isinstance(call.error(), TransientRefreshError)
    assert world.sql("SELECT count(*) FROM accounts") == [(0,)]
    assert manager.get_valid_token("robot", "svc")


def test_refresh_all_renews_what_is_due(world: World) -> None:
    manager = manager_of(world)
    for name in ("one", "two"):
        manager.get_valid_token(name, "svc")
    world.clock.now += HOUR

    assert {r.account_name: r.outcome for r in manager.refresh_all()} == {
        "one": "refreshed",
        "two": "refreshed",
    }
    assert list(manager.refresh_all(idle_for=0.0)) == []  # there is nothing to keep alive


def test_the_history_shows_each_token(world: World) -> None:
    manager = manager_of(world)
    manager.get_valid_token("robot", "svc")
    manager.refresh_token("robot")

    assert [(e.reason, e.outcome, e.provider) for e in manager.history("robot")] == [
        ("forced", "refreshed", "svc"),
        ("due", "refreshed", "svc"),
    ]


def test_a_wrong_secret_is_a_rejected_client_with_back_off(world: World) -> None:
    wrong = manager_of(world, changes={"client_secret": "wrong"})
    for _ in range(2):
        with pytest.raises(ClientRejectedError, match="invalid_client"):
            wrong.ensure_valid_token("robot", "svc")
    assert world.posts == 1
    assert state(wrong) == "misconfigured"

    assert manager_of(world).get_valid_token("robot")  # what is corrected is tried at once


def test_an_outage_is_transient_and_the_account_never_needs_a_sign_in(world: World) -> None:
    told: list[str] = []
    manager = manager_of(world, on_reauthorization_required=lambda name, _: told.append(name))
    world.server.script(*[denied("invalid_grant")], Answer(503), Answer(503), Answer(503))
    for kind in (ClientRejectedError, TransientRefreshError):
        with pytest.raises(kind) as caught:
            manager.refresh_token("robot", "svc")
        assert "sign in" not in str(caught.value)
        assert not getattr(caught.value, "maybe_spent", False)
        assert state(manager) in {"misconfigured", "due"}
    assert not told


def test_a_lost_response_is_asked_for_once_more(world: World) -> None:
    manager = manager_of(world)
    world.server.script(Drop(spent=True))

    assert manager.get_valid_token("robot", "svc")
    assert world.posts == 2


def test_an_unknown_account_of_a_provider_with_users_is_as_before(world: World) -> None:
    manager = manager_of(world)

    with pytest.raises(ReauthorizationRequired, match="no tokens are stored"):
        manager.ensure_valid_token("alice", "test")
    with pytest.raises(ReauthorizationRequired, match="no tokens are stored"):
        manager.ensure_valid_token("alice")
    assert world.posts == 0


def test_an_account_is_bound_to_its_provider(world: World) -> None:
    manager = manager_of(world)
    manager.get_valid_token("robot", "svc")

    with pytest.raises(ProviderConfigurationError, match="bound to provider 'svc', not 'test'"):
        manager.ensure_valid_token("robot", "test")


def test_an_account_with_a_user_becomes_one_without(world: World) -> None:
    """Its provider's grant was changed: what was recorded before no longer applies."""
    world.sign_in("alice", provider="svc")
    world.server.revoke("alice")
    users = world.manager(providers={"svc": world.server.provider("svc")})
    with pytest.raises(ReauthorizationRequired):
        users.ensure_valid_token("alice")
    assert state(users, "alice") == "sign_in"

    recovered: list[str] = []
    manager = manager_of(world, on_recovered=recovered.append)
    assert state(manager, "alice") == "due"
    assert manager.get_valid_token("alice")
    assert recovered == ["alice"]


@of_sqlite
def test_settings_that_cannot_work_leave_no_account_behind(world: World, tmp_path: Path) -> None:
    settings = {"private_key_file": tmp_path / "gone.pem", "grant_type": JWT_BEARER}
    manager = world.manager(providers={"svc": world.server.provider("svc", **settings)})

    with pytest.raises(ProviderConfigurationError, match="cannot read its private_key_file"):
        manager.ensure_valid_token("robot", "svc")
    assert manager.get_valid_token("robot", "svc") is None

    key_file(tmp_path).rename(tmp_path / "gone.pem")
    (tmp_path / "gone.pem").chmod(0o644)
    with pytest.raises(InsecureStorageError, match="accessible to other users"):
        manager.get_valid_token("robot", "svc")
    assert list(manager.accounts()) == []
    assert world.posts == 0


def test_signing_in_is_not_needed(world: World) -> None:
    with pytest.raises(ProviderConfigurationError, match="needs no sign-in"):
        manager_of(world).login("robot", "svc")


def test_signing_out_revokes_the_token(world: World) -> None:
    manager = manager_of(world)
    token = manager.ensure_valid_token("robot", "svc")

    assert manager.logout("robot")

    assert not world.server.is_live(token)
    assert list(manager.accounts()) == []


@of_sqlite
def test_an_assertion_is_about_the_account(tmp_path: Path) -> None:
    with World(tmp_path, public_key=public_pem()) as world:
        world.clock.now = time.time()  # assertions go by the real one
        svc = world.server.provider(
            "svc", grant_type=JWT_BEARER, private_key_file=key_file(tmp_path)
        )
        manager = world.manager(providers={"svc": svc})

        assert world.server.is_live(manager.ensure_valid_token("alice", "svc"))
        with pytest.raises(ClientRejectedError, match="invalid_grant") as caught:
            manager.ensure_valid_token("mallory", "svc")

        assert "check this machine's clock" in str(caught.value)
        assert state(manager, "mallory") == "misconfigured"
        world.server.revoke("alice")
        old = manager.ensure_valid_token("alice")
        new = manager.refresh_token("alice", rejected=old)["access_token"]
        assert world.server.is_live(new)


def test_an_account_of_a_user_is_not_taken_by_a_service(world: World) -> None:
    manager = manager_of(world)
    tokens = world.server.sign_in("alice") | {"expires_in": 0}
    manager.save_tokens("alice", tokens)

    with pytest.raises(ProviderConfigurationError, match="account of a user"):
        manager.ensure_valid_token("alice", "svc")

    assert world.posts == 0
    assert manager.ensure_valid_token("alice", "test")


def test_an_outage_does_not_end_a_token_without_end(world: World) -> None:
    manager = manager_of(world, changes={"default_expires_in": math.inf})
    world.server.script(Transform(lambda body: _without(body, "expires_in")))
    token = manager.get_valid_token("robot", "svc")
    world.server.script(Answer(429, {"error": "slow_down"}, {"Retry-After": "600"}))
    with pytest.raises(TransientRefreshError):
        manager.refresh_token("robot")

    assert manager_of(world).get_valid_token("robot") == token


def test_tokens_saved_for_another_provider_meanwhile_are_kept(world: World) -> None:
    manager = manager_of(world)
    held = Hold()
    world.server.script(held)
    call = Call(manager.get_valid_token, "robot", "svc")
    assert held.arrived.wait(SOON)
    manager.save_tokens("robot", {"access_token": "x", "expires_in": HOUR}, provider="test")
    held.release.set()
    with suppress(ProviderConfigurationError):
        call.result()

    [account] = manager.accounts()
    assert (account.provider, world.tokens("robot")[0]) == ("test", "x")


def _without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: body[key] for key in body if key != name}
