from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.refreshes import (
    SOON,
    Call,
    Raw,
    Told,
    World,
    denied,
    of_sqlite,
    on_both_engines,
    until,
)
from tokenstore import (
    ClientRejectedError,
    Provider,
    ProviderConfigurationError,
    ReauthorizationRequired,
    StorageError,
    TokenManager,
    TokenPersistError,
    TokenRefreshError,
    TokenRepository,
    TransientRefreshError,
)
from tokenstore.jsonfiles import import_accounts
from tokenstore.storage.tables import refreshes
from tokenstore.testing import Answer, Drip, Drop, Hold, Transform

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOUR = 3600.0

pytestmark = on_both_engines


def refused_by(manager: TokenManager, account: str = "alice", **more: Any) -> TokenRefreshError:
    """Return the error with which `ensure_valid_token` says why not."""
    with pytest.raises(TokenRefreshError) as caught:
        manager.ensure_valid_token(account, **more)
    return caught.value


# -- the scope -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("granted", "sent"),
    [
        pytest.param(None, "mail read", id="unknown"),
        pytest.param("read mail", "mail read", id="the same"),
        pytest.param("mail read openid", None, id="more"),
        pytest.param("mail", None, id="less"),
    ],
)
def test_a_refresh_asks_for_no_other_scope_than_was_granted(
    world: World, granted: str | None, sent: str | None
) -> None:
    manager = world.manager(providers={"test": world.server.provider(scope="mail read")})
    tokens = world.server.sign_in("alice", scope=granted or "mail read")
    manager.save_tokens("alice", {**tokens, "scope": granted, "expires_in": -1}, provider="test")
    assert manager.get_valid_token("alice")
    assert world.server.requests[-1].params.get("scope") == sent


# -- the good case --------------------------------------------------------------------------------


def test_an_expired_token_is_refreshed_once(world: World, manager: TokenManager) -> None:
    old = world.sign_in(name="Alice")
    token = manager.get_valid_token("alice")
    assert token is not None
    assert world.server.is_live(token)
    stored = manager.load_tokens("alice")
    assert stored is not None
    assert stored["access_token"] == token
    assert stored["refresh_token"] != old["refresh_token"]
    assert stored["expires_at"] == world.clock.now + HOUR
    assert stored["name"] == "Alice"
    assert manager.get_valid_token("alice") == token
    assert world.manager().get_valid_token("alice") == token
    assert world.posts == 1


def test_a_server_that_does_not_rotate_keeps_its_refresh_token(tmp_path: Path) -> None:
    with World(tmp_path, rotate=False) as world:
        old = world.sign_in()
        manager = world.manager()
        for _ in range(2):
            token = manager.refresh_token("alice")["access_token"]
            assert world.server.is_live(token)
            assert world.tokens()[:2] == (token, old["refresh_token"])


def test_the_lifetime_counts_from_the_request_not_from_the_answer(
    world: World, manager: TokenManager
) -> None:
    world.sign_in()
    began = world.clock.now
    hold = world.hold()
    call = Call(manager.refresh_token, "alice")
    assert hold.arrived.wait(SOON)
    world.clock.now += 20
    hold.release.set()
    assert call.result()["expires_at"] == began + HOUR


def test_an_imported_account_without_an_access_token_is_refreshed(
    world: World, manager: TokenManager, tmp_path: Path
) -> None:
    file = tmp_path / "alice.json"
    file.write_text(json.dumps({"refresh_token": world.server.sign_in()["refresh_token"]}))
    with TokenRepository(world.database) as repository:
        (result,) = import_accounts(repository, file, provider="test")
    assert result.outcome == "imported"
    for rejected in ("anything", None):
        token = manager.refresh_token("alice", rejected=rejected)["access_token"]
        assert world.server.is_live(token)
    assert world.posts == 2


# -- whose account it is --------------------------------------------------------------------------


def test_the_first_successful_refresh_binds_an_account(world: World, manager: TokenManager) -> None:
    world.sign_in(provider=None)
    world.server.script(denied())
    assert manager.get_valid_token("alice", "test") is None
    assert world.row()["provider"] is None
    manager.refresh_token("alice", world.server.provider("another"))
    assert world.row()["provider"] == "another"


def test_saving_binds_and_rebinds_and_otherwise_leaves_the_binding(
    world: World, manager: TokenManager
) -> None:
    world.sign_in()
    assert world.row()["provider"] == "test"
    manager.save_tokens("alice", {"access_token": "a"})
    assert world.row()["provider"] == "test"
    manager.save_tokens("alice", {"access_token": "a"}, provider=world.server.provider("other"))
    assert world.row()["provider"] == "other"


def test_an_import_binds(world: World, manager: TokenManager, tmp_path: Path) -> None:
    file = tmp_path / "alice.json"
    file.write_text(json.dumps({**world.server.sign_in(), "expires_in": None}))
    with TokenRepository(world.database) as repository:
        list(import_accounts(repository, file, provider="test"))
    assert isinstance(
        refused_by(manager, provider=world.server.provider("other")), ProviderConfigurationError
    )
    assert world.posts == 0
    assert manager.get_valid_token("alice") is not None


@pytest.mark.parametrize("call", ["refresh_token", "ensure_valid_token"])
@pytest.mark.parametrize("as_object", [False, True], ids=["by name", "by object"])
def test_another_provider_never_sees_the_refresh_token(
    world: World, call: str, *, as_object: bool
) -> None:
    world.sign_in()
    with Raw() as raw:
        other = Provider("other", raw.url, "tokenstore")
        manager = world.manager(providers={"other": other})
        with pytest.raises(ProviderConfigurationError, match="bound to provider 'test'") as caught:
            getattr(manager, call)("alice", other if as_object else "other")
        assert manager.get_valid_token("alice", other if as_object else "other") is None
    assert (caught.value.account_name, caught.value.provider) == ("alice", "other")
    assert raw.received == []
    assert world.posts == 0


def test_a_provider_given_as_an_object_needs_no_registration(world: World) -> None:
    world.sign_in()
    manager = world.manager(providers=None)
    assert manager.get_valid_token("alice", world.server.provider()) is not None


@pytest.mark.parametrize("call", ["refresh_token", "ensure_valid_token"])
def test_another_client_than_the_imported_one_sends_nothing(
    world: World, manager: TokenManager, call: str
) -> None:
    world.sign_in(client_id="somebody-else")
    with pytest.raises(ProviderConfigurationError, match="another client_id") as caught:
        getattr(manager, call)("alice", "test")
    assert (caught.value.account_name, caught.value.provider) == ("alice", "test")
    assert world.posts == 0


@pytest.mark.parametrize("client_id", ["tokenstore", "", None, 5])
def test_the_same_client_or_none_is_refreshed(
    world: World, manager: TokenManager, client_id: object
) -> None:
    world.sign_in(client_id=client_id)
    assert manager.get_valid_token("alice") is not None


def test_an_imported_token_uri_is_kept_and_never_contacted(
    world: World, manager: TokenManager
) -> None:
    with Raw() as other:
        world.sign_in(token_uri=other.url)
        with pytest.raises(ProviderConfigurationError, match="its tokens are from"):
            manager.refresh_token("alice")
        ours = world.server.provider("test", token_origins=[other.url])
        tokens = manager.refresh_token("alice", ours)
    assert tokens["token_uri"] == other.url
    assert other.received == []
    assert world.posts == 1


def test_without_any_provider_nothing_can_be_asked(world: World, manager: TokenManager) -> None:
    world.sign_in(provider=None)
    error = refused_by(manager)
    assert isinstance(error, ProviderConfigurationError)
    assert "bound to no provider" in str(error)


def test_an_unknown_provider_is_a_configuration_error(world: World) -> None:
    world.sign_in(provider="tset")
    error = refused_by(world.manager())
    assert isinstance(error, ProviderConfigurationError)
    assert "did you mean 'test'?" in str(error)
    assert (error.account_name, error.provider) == ("alice", "tset")


@pytest.mark.parametrize("provider", [None, "test", "other", "nobody-knows-it"])
def test_a_missing_refresh_token_is_told_before_the_configuration(
    world: World, manager: TokenManager, provider: str | None
) -> None:
    world.sign_in(refresh_token=None, client_id="somebody-else")
    error = refused_by(manager, provider=provider)
    assert isinstance(error, ReauthorizationRequired)
    assert "no refresh token" in str(error)
    with pytest.raises(ReauthorizationRequired):
        manager.refresh_token("alice", provider)
    assert world.posts == 0


def test_an_account_that_is_not_there_needs_a_sign_in(manager: TokenManager, world: World) -> None:
    for call in (manager.refresh_token, manager.ensure_valid_token):
        with pytest.raises(ReauthorizationRequired, match="bob: no tokens are stored") as caught:
            call("bob", "test")
        assert caught.value.account_name == "bob"
    assert world.database != world.path or not world.path.exists()


# -- forced refreshes -----------------------------------------------------------------------------


def test_a_forced_refresh_ignores_the_expiry(world: World, manager: TokenManager) -> None:
    old = world.sign_in(expires_in=HOUR)
    assert manager.refresh_token("alice")["access_token"] != old["access_token"]
    assert world.posts == 1


@pytest.mark.parametrize(
    "step", [denied(), Answer(429, headers={"Retry-After": "600"})], ids=["dead", "to wait"]
)
def test_a_forced_refresh_ignores_a_remembered_failure(
    world: World, manager: TokenManager, step: Answer
) -> None:
    world.sign_in()
    world.server.script(step)
    refused_by(manager)
    refused_by(manager)
    assert world.posts == 1
    assert world.server.is_live(manager.refresh_token("alice")["access_token"])
    assert world.posts == 2


def test_a_rejected_token_is_replaced_though_it_has_not_expired(
    world: World, manager: TokenManager
) -> None:
    old = world.sign_in(expires_in=HOUR)
    new = manager.refresh_token("alice", rejected=old["access_token"])
    assert world.server.is_live(new["access_token"])
    assert world.posts == 1


def test_a_token_that_was_replaced_meanwhile_is_returned_without_a_request(
    world: World, manager: TokenManager
) -> None:
    stored = world.sign_in(expires_in=HOUR)
    tokens = manager.refresh_token("alice", "test", rejected="an older one")
    assert tokens["access_token"] == stored["access_token"]
    assert world.posts == 0


def test_many_that_report_the_same_rejected_token_cause_one_request(world: World) -> None:
    old = world.sign_in(expires_in=HOUR)
    managers = [world.manager() for _ in range(4)]
    start = threading.Barrier(20)

    def report(number: int) -> str:
        start.wait(SOON)
        tokens = managers[number % 4].refresh_token("alice", rejected=old["access_token"])
        return str(tokens["access_token"])

    calls = [Call(report, number) for number in range(20)]
    (token,) = {call.result() for call in calls}
    assert world.server.is_live(token)
    assert world.posts == 1


def test_forced_callers_share_a_refresh_that_began_after_their_call(world: World) -> None:
    world.sign_in(expires_in=HOUR)
    with world.manager()._repository.refresh_lock("alice", timeout=SOON):
        calls = [Call(world.manager().refresh_token, "alice").waits() for _ in range(8)]
    assert len({call.result()["access_token"] for call in calls}) == 1
    assert world.posts == 1


def test_forced_callers_do_not_share_a_refresh_that_began_before_their_call(world: World) -> None:
    world.sign_in(expires_in=HOUR)
    hold = world.hold()
    first = Call(world.manager().refresh_token, "alice")
    assert hold.arrived.wait(SOON)
    later = [Call(world.manager().refresh_token, "alice").waits() for _ in range(4)]
    hold.release.set()
    theirs = {call.result()["access_token"] for call in later}
    assert len(theirs) == 1
    assert first.result()["access_token"] not in theirs
    assert world.posts == 2


def test_forced_callers_share_a_failure_as_well(world: World) -> None:
    world.sign_in(expires_in=HOUR)
    world.server.script(*[denied("invalid_scope")] * 4)
    with world.manager()._repository.refresh_lock("alice", timeout=SOON):
        calls = [Call(world.manager().refresh_token, "alice").waits() for _ in range(4)]
    assert {type(call.error()) for call in calls} == {ClientRejectedError}
    assert world.posts == 1


# -- one more request, and when -------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503])
def test_one_5xx_is_outlived(world: World, manager: TokenManager, status: int) -> None:
    world.sign_in()
    world.server.script(Answer(status))
    assert manager.get_valid_token("alice") is not None
    assert world.outcomes() == ["transient", "refreshed"]


def test_a_connection_that_was_never_made_is_tried_once_more(world: World) -> None:
    world.sign_in()
    down = replace(world.server.provider(), token_endpoint="http://127.0.0.1:1/token")
    error = refused_by(world.manager(), provider=down)
    assert isinstance(error, TransientRefreshError)
    assert not error.maybe_spent
    assert world.outcomes() == ["transient", "transient"]


@pytest.mark.parametrize("step", [Drop(spent=False), Drop(spent=True)], ids=["unspent", "spent"])
def test_a_request_that_was_sent_is_not_repeated(
    world: World, manager: TokenManager, step: Drop
) -> None:
    world.sign_in()
    world.server.script(step)
    error = refused_by(manager)
    assert isinstance(error, TransientRefreshError)
    assert error.maybe_spent
    assert world.posts == 1


@pytest.mark.parametrize(
    "step",
    [Drip(0.02, headers=True), Drip(0.02), Hold()],
    ids=["dripping headers", "dripping body", "black hole"],
)
def test_an_answer_that_does_not_end_is_given_up(world: World, step: Drip | Hold) -> None:
    world.sign_in()
    world.server.script(step)
    began = time.monotonic()
    error = refused_by(world.manager(timeout=0.3))
    assert time.monotonic() - began < SOON / 4
    assert isinstance(error, TransientRefreshError)
    assert error.maybe_spent
    assert "no complete response from provider 'test' within 0.3 s" in str(error)
    assert world.posts == 1


# -- waiting for others ---------------------------------------------------------------------------


def test_those_who_wait_use_the_token_of_who_was_first(world: World) -> None:
    world.sign_in()
    hold = world.hold()
    first = Call(world.manager().get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    others = [Call(world.manager().get_valid_token, "alice").waits() for _ in range(6)]
    hold.release.set()
    assert {call.result() for call in others} == {first.result()}
    assert world.posts == 1


@pytest.mark.parametrize(
    ("step", "posts", "raised"),
    [
        (Answer(503), 2, TransientRefreshError),
        (Answer(429), 1, TransientRefreshError),
        (Drop(spent=False), 1, TransientRefreshError),
        (denied(), 1, ReauthorizationRequired),
        (denied("invalid_client", 401), 1, ClientRejectedError),
    ],
    ids=["503", "429", "no answer", "invalid_grant", "invalid_client"],
)
def test_those_who_wait_share_the_failure_of_who_was_first(
    world: World, step: Any, posts: int, raised: type[TokenRefreshError]
) -> None:
    world.sign_in()
    world.server.script(*[step] * 20)
    with world.manager()._repository.refresh_lock("alice", timeout=SOON):
        calls = [Call(world.manager().ensure_valid_token, "alice").waits() for _ in range(6)]
    errors = [call.error() for call in calls]
    assert {type(error) for error in errors} == {raised}
    assert len({str(error) for error in errors}) == 1
    assert world.posts == posts


def test_who_comes_after_a_failure_asks_anew(world: World, manager: TokenManager) -> None:
    world.sign_in()
    world.server.script(Answer(503), Answer(503))
    assert manager.get_valid_token("alice") is None
    assert manager.get_valid_token("alice") is not None
    assert world.posts == 3


def test_a_lock_that_is_held_for_too_long_is_a_transient_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenstore.lifecycle.request.BUSY", 0.1)
    world.sign_in()
    manager = world.manager(timeout=0.1)
    with world.manager()._repository.refresh_lock("alice", timeout=SOON):
        call = Call(manager.ensure_valid_token, "alice")
        error = call.error()
    assert isinstance(error, TransientRefreshError)
    assert (error.account_name, error.provider, error.maybe_spent) == ("alice", "test", False)
    assert world.posts == 0


@pytest.mark.slow
def test_after_waiting_in_vain_a_token_that_came_is_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenstore.lifecycle.request.BUSY", 1.0)
    world.sign_in()
    manager = world.manager(timeout=0.1)
    with world.manager()._repository.refresh_lock("alice", timeout=SOON):
        call = Call(manager.get_valid_token, "alice").waits()
        world.manager().save_tokens("alice", {"access_token": "fresh", "expires_in": HOUR})
        assert call.result() == "fresh"


def test_another_account_is_not_waited_for(world: World, manager: TokenManager) -> None:
    world.sign_in("alice")
    world.sign_in("bob")
    hold = world.hold("alice")
    alice = Call(world.manager().get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    assert manager.get_valid_token("bob") is not None
    manager.save_tokens("carol", {"access_token": "c"})
    assert [account.name for account in manager.accounts()] == ["alice", "bob", "carol"]
    assert not hold.release.is_set()
    hold.release.set()
    assert alice.result() is not None


# -- what is remembered ---------------------------------------------------------------------------


def test_a_dead_refresh_token_is_asked_about_once(world: World) -> None:
    world.sign_in()
    world.server.revoke("alice")
    first = refused_by(world.manager())
    manager = world.manager()
    for _ in range(100):
        again = refused_by(manager)
        assert manager.get_valid_token("alice") is None
    assert world.posts == 1
    assert (type(again), str(again)) == (ReauthorizationRequired, str(first))
    assert vars(again) == vars(first)


def test_a_verdict_keeps_the_tokens(world: World, manager: TokenManager) -> None:
    world.sign_in()
    before = world.tokens()
    world.server.revoke("alice")
    refused_by(manager)
    assert world.tokens() == before
    (account,) = manager.accounts()
    assert account.state == "sign_in"


def test_a_new_sign_in_clears_the_verdict(world: World, manager: TokenManager) -> None:
    world.sign_in()
    world.server.revoke("alice")
    refused_by(manager)
    world.sign_in()
    assert manager.get_valid_token("alice") is not None


@pytest.mark.parametrize("changed", ["client_id", "token_endpoint"])
def test_corrected_settings_are_tried_anew(world: World, changed: str) -> None:
    world.server.register("corrected", "secret")
    world.sign_in()
    # An error of the settings that the provider gives as one of the token.
    world.server.script(denied())
    refused_by(world.manager())
    settings: dict[str, Any] = {
        "client_id": {"client_id": "corrected", "client_secret": "secret"},
        "token_endpoint": {"token_endpoint": world.server.token_endpoint + "?"},
    }[changed]
    provider = world.server.provider(**settings)
    world.server.script(Answer(200, {"access_token": "new"}))
    assert world.manager(providers={"test": provider}).get_valid_token("alice") == "new"
    assert world.posts == 2


def test_a_rejected_client_is_tried_again_after_a_minute(
    world: World, manager: TokenManager
) -> None:
    world.sign_in()
    world.server.script(denied("invalid_client", 401))
    for _ in range(2):
        assert isinstance(refused_by(manager), ClientRejectedError)
        assert [account.state for account in manager.accounts()] == ["misconfigured"]
    assert world.posts == 1
    world.clock.now += 61
    assert manager.get_valid_token("alice") is not None
    assert world.posts == 2


def test_a_wait_that_was_asked_for_is_kept_by_everyone(world: World) -> None:
    world.sign_in()
    world.server.script(Answer(503, headers={"Retry-After": "60"}))
    waits = []
    for _ in range(3):
        error = refused_by(world.manager())
        assert isinstance(error, TransientRefreshError)
        waits.append(error.retry_after)
        world.clock.now += 20 - 1e-3
    assert waits == pytest.approx([60, 40, 20], abs=0.1)
    assert world.posts == 1
    world.clock.now += 3e-3
    assert world.manager().get_valid_token("alice") is not None
    assert world.posts == 2


# -- the journal ----------------------------------------------------------------------------------


def test_a_refresh_is_written_down_before_its_request(world: World, manager: TokenManager) -> None:
    old = world.sign_in()
    hold = world.hold()
    call = Call(manager.get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    names = [column.name for column in refreshes.c]
    [row] = world.sql(f"SELECT {', '.join(names)} FROM refreshes")
    begun = dict(zip(names, row, strict=True))
    world.manager().save_tokens("bob", {"access_token": "b"})  # no transaction is open meanwhile
    assert begun == {
        **dict.fromkeys(begun),
        "id": 1,
        "account_name": "alice",
        "provider": "test",
        "reason": "due",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started_at": world.clock.now,
        "sent": begun["sent"],
    }
    hold.release.set()
    assert call.result() is not None
    (ended,) = world.sql("SELECT outcome, finished_at, sent = received, error FROM refreshes")
    assert ended == ("refreshed", world.clock.now, 0, None)
    assert old["refresh_token"] not in str(world.sql("SELECT * FROM refreshes"))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda manager: manager.refresh_token("alice"), "forced"),
        (lambda manager: manager.refresh_token("alice", rejected="a"), "rejected"),
    ],
    ids=["forced", "rejected"],
)
def test_the_journal_tells_the_reason(
    world: World, manager: TokenManager, call: Callable[[TokenManager], object], reason: str
) -> None:
    world.sign_in(access_token="a")
    call(manager)
    assert world.sql("SELECT reason FROM refreshes") == [(reason,)]


def test_the_journal_keeps_the_error_of_a_refusal(world: World, manager: TokenManager) -> None:
    world.sign_in()
    world.server.revoke("alice")
    refused_by(manager)
    query = "SELECT outcome, status_code, error, maybe_spent FROM refreshes"
    assert world.sql(query) == [("reauthorization", 400, "invalid_grant", 0)]


@pytest.mark.parametrize("call", ["get_valid_token", "ensure_valid_token", "refresh_token"])
def test_a_store_that_cannot_be_written_spends_no_token(
    world: World, manager: TokenManager, call: str
) -> None:
    world.sign_in()
    world.refuse("INSERT ON refreshes")
    before = world.row()
    with pytest.raises(StorageError) as caught:
        getattr(manager, call)("alice")
    assert type(caught.value) is StorageError
    assert caught.value.path == manager._repository.name
    assert world.posts == 0
    assert world.row() == before
    world.accept()
    assert manager.get_valid_token("alice") is not None


@of_sqlite
def test_locks_that_cannot_be_taken_spend_no_token(world: World, manager: TokenManager) -> None:
    world.sign_in()
    locks = world.path.with_name("tokens.db-locks")
    for file in locks.iterdir():
        file.unlink()
    locks.rmdir()
    locks.write_text("not a directory")
    with pytest.raises(StorageError):
        manager.get_valid_token("alice")
    assert world.posts == 0


def interrupt(world: World) -> None:
    """Leave a refresh behind as a process does that dies during its request."""
    with TokenRepository(world.database, clock=world.clock) as repository:
        record = repository.record("alice")
        assert record is not None
        refresh = repository.journal.begin(record, provider="test", reason="due", longest=HOUR)
        repository.journal.abandon(refresh)


def test_the_token_of_an_interrupted_refresh_is_tried(world: World, manager: TokenManager) -> None:
    world.sign_in()
    interrupt(world)
    assert manager.get_valid_token("alice") is not None
    assert world.outcomes() == ["interrupted", "refreshed"]
    assert world.posts == 1


def test_if_it_is_refused_the_error_tells_of_the_interruption(
    world: World, manager: TokenManager
) -> None:
    world.sign_in()
    interrupt(world)
    world.server.revoke("alice")
    world.clock.now += 500
    error = refused_by(manager)
    assert str(error).endswith(
        f"sign in again; a refresh was interrupted on {socket.gethostname()} at "
        "2027-01-15T08:00:00+00:00; the provider had already rotated the token"
    )
    assert error.error == "invalid_grant"
    assert str(refused_by(manager)) == str(error)
    assert world.outcomes() == ["interrupted", "reauthorization"]


def test_an_interruption_is_not_told_of_another_token(world: World, manager: TokenManager) -> None:
    world.sign_in()
    interrupt(world)
    world.sign_in()
    world.server.revoke("alice")
    assert "interrupted" not in str(refused_by(manager))


def test_a_lost_answer_is_told_of_when_the_token_turns_out_to_be_dead(
    world: World, manager: TokenManager
) -> None:
    world.sign_in()
    world.server.script(Drop(spent=True))
    assert isinstance(refused_by(manager), TransientRefreshError)
    error = refused_by(manager)
    assert isinstance(error, ReauthorizationRequired)
    assert "got no usable answer; the provider had already rotated the token" in str(error)
    assert world.posts == 2


# -- a response that cannot be stored -------------------------------------------------------------


def persist_error(call: Callable[..., object], *arguments: Any) -> TokenPersistError:
    with pytest.raises(TokenPersistError) as caught:
        call(*arguments)
    return caught.value


def test_storing_is_tried_again(world: World) -> None:
    world.sign_in()
    clock = type(world.clock)()
    manager = world.manager(clock=clock)
    hold = world.hold()
    call = Call(manager.get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    world.refuse("UPDATE ON accounts")
    clock.next = [lambda: None, world.accept]  # the clock is looked at before every attempt
    hold.release.set()
    assert call.result() == world.tokens()[0]
    assert clock.next == []
    assert world.outcomes() == ["refreshed"]


@pytest.mark.slow
@pytest.mark.parametrize("call", ["get_valid_token", "ensure_valid_token", "refresh_token"])
def test_what_cannot_be_stored_is_in_the_error(
    world: World, impatient: TokenManager, call: str
) -> None:
    old = world.sign_in(kept="yes")
    world.refuse_outcome()
    error = persist_error(getattr(impatient, call), "alice")
    assert error.tokens is not None
    assert world.server.is_live(error.tokens["access_token"])
    assert error.tokens["refresh_token"] != old["refresh_token"]
    assert error.tokens["expires_at"] == world.clock.now + HOUR
    assert error.tokens["kept"] == "yes"
    assert error.path == impatient._repository.name
    for text in (str(error), repr(error)):
        assert error.tokens["access_token"] not in text
        assert error.tokens["refresh_token"] not in text


@pytest.mark.slow
def test_it_is_stored_before_anything_is_sent_again(world: World, impatient: TokenManager) -> None:
    world.sign_in()
    world.refuse_outcome()
    tokens = persist_error(impatient.get_valid_token, "alice").tokens
    for call in (impatient.get_valid_token, impatient.ensure_valid_token, impatient.refresh_token):
        assert persist_error(call, "alice").tokens == tokens
    assert world.posts == 1
    world.accept()
    assert tokens is not None
    assert Call(world.manager().get_valid_token, "alice").result() == tokens["access_token"]
    assert world.tokens()[1] == tokens["refresh_token"]
    assert world.posts == 1
    assert world.server.reuses == 0


@pytest.mark.slow
def test_a_forced_refresh_waits_for_it_and_goes_on_from_there(
    world: World, impatient: TokenManager
) -> None:
    world.sign_in()
    world.refuse_outcome()
    persist_error(impatient.refresh_token, "alice")
    world.accept()
    new = Call(world.manager().refresh_token, "alice").result()
    assert world.server.is_live(new["access_token"])
    assert (world.posts, world.server.reuses) == (2, 0)


@pytest.mark.slow
def test_closing_waits_for_it(world: World, impatient: TokenManager) -> None:
    world.sign_in()
    world.refuse_outcome()
    tokens = persist_error(impatient.get_valid_token, "alice").tokens
    assert persist_error(impatient.close).tokens == tokens
    world.accept()
    impatient.close()
    assert tokens is not None
    assert world.tokens()[0] == tokens["access_token"]
    impatient.close()


@pytest.mark.slow
def test_closing_waits_for_every_account(world: World, impatient: TokenManager) -> None:
    world.sign_in("alice")
    world.sign_in("bob")
    before = world.tokens("bob")
    hold = world.hold("bob")
    world.refuse_outcome("alice")
    bob = Call(impatient.get_valid_token, "bob")
    assert hold.arrived.wait(SOON)
    alice = Call(impatient.get_valid_token, "alice")
    until(lambda: world.server.refreshes("alice") == 1)
    hold.release.set()
    assert "alice" in str(persist_error(impatient.close))
    assert world.tokens("bob") != before
    assert isinstance(alice.error(), TokenPersistError)
    assert bob.result() == world.tokens("bob")[0]


@pytest.mark.slow
def test_a_new_sign_in_meanwhile_wins_over_what_could_not_be_stored(
    world: World, impatient: TokenManager
) -> None:
    world.sign_in()
    world.refuse_outcome()
    persist_error(impatient.get_valid_token, "alice")
    saved = world.sign_in(expires_in=HOUR)
    world.accept()
    impatient.close()
    assert world.tokens()[:2] == (saved["access_token"], saved["refresh_token"])
    assert world.outcomes() == ["superseded"]


# -- the row changes during the request -----------------------------------------------------------


def test_a_sign_in_during_the_request_is_kept_and_returned(
    world: World, manager: TokenManager
) -> None:
    world.sign_in()
    hold = world.hold()
    call = Call(manager.refresh_token, "alice")
    assert hold.arrived.wait(SOON)
    saved = world.sign_in(expires_in=HOUR)
    row = world.row()
    hold.release.set()
    assert call.result()["access_token"] == saved["access_token"]
    assert world.row() == row
    assert world.outcomes() == ["superseded"]
    assert world.posts == 1


def test_get_valid_token_uses_a_sign_in_during_the_request(
    world: World, manager: TokenManager
) -> None:
    world.sign_in()
    hold = world.hold()
    call = Call(manager.get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    saved = world.sign_in(expires_in=HOUR)
    hold.release.set()
    assert call.result() == saved["access_token"]
    assert world.posts == 1


def test_if_it_has_expired_it_is_refreshed_in_turn(world: World, manager: TokenManager) -> None:
    world.sign_in()
    hold = world.hold()
    call = Call(manager.get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    world.sign_in()
    hold.release.set()
    token = call.result()
    assert token is not None
    assert world.tokens()[0] == token
    assert world.outcomes() == ["superseded", "refreshed"]


def test_it_is_tried_no_more_than_twice(world: World, manager: TokenManager) -> None:
    world.sign_in()
    first, second = world.hold(), world.hold()
    call = Call(manager.ensure_valid_token, "alice")
    for hold in (first, second):
        assert hold.arrived.wait(SOON)
        world.sign_in()
        hold.release.set()
    error = call.error()
    assert isinstance(error, TransientRefreshError)
    assert "was changed while it was being refreshed" in str(error)
    assert world.outcomes() == ["superseded", "superseded"]


def test_the_rejected_token_is_not_returned_though_it_was_saved_again(
    world: World, manager: TokenManager
) -> None:
    tokens = world.sign_in()
    hold = world.hold()
    call = Call(manager.refresh_token, "alice", rejected=tokens["access_token"])
    assert hold.arrived.wait(SOON)
    world.manager().save_tokens(
        "alice", {**world.server.sign_in(), "access_token": tokens["access_token"]}
    )
    hold.release.set()
    assert world.server.is_live(call.result()["access_token"])
    assert world.outcomes() == ["superseded", "refreshed"]


@pytest.mark.parametrize("call", ["refresh_token", "ensure_valid_token"])
def test_a_delete_during_the_request_is_final(
    world: World, manager: TokenManager, call: str
) -> None:
    world.sign_in()
    hold = world.hold()
    refreshing = Call(getattr(manager, call), "alice")
    assert hold.arrived.wait(SOON)
    assert world.manager().delete_tokens("alice")
    hold.release.set()
    error = refreshing.error()
    assert isinstance(error, ReauthorizationRequired)
    assert "was deleted while it was being refreshed" in str(error)
    assert manager.load_tokens("alice") is None


@pytest.mark.parametrize("call", ["refresh_token", "ensure_valid_token"])
def test_a_refused_token_that_somebody_has_replaced_gives_theirs(
    world: World, manager: TokenManager, call: str
) -> None:
    world.sign_in()
    hold = world.hold()
    refreshing = Call(getattr(manager, call), "alice")
    assert hold.arrived.wait(SOON)
    world.server.revoke("alice")
    theirs = world.sign_in(expires_in=HOUR)
    row = world.row()
    hold.release.set()
    result = refreshing.result()
    token = result if call == "ensure_valid_token" else result["access_token"]
    assert token == theirs["access_token"]
    assert world.row() == row
    assert world.posts == 1


# -- a response that nobody waits for any more -----------------------------------------------------

LATE = 1.5  # seconds after which a caller stops waiting; its request ends after twice that


@pytest.mark.slow
def test_a_late_response_is_stored(world: World) -> None:
    world.sign_in()
    hold = world.hold()
    manager = world.manager(timeout=LATE)
    error = refused_by(manager)
    assert isinstance(error, TransientRefreshError)
    assert error.maybe_spent
    hold.release.set()
    token = manager.get_valid_token("alice")
    assert token is not None
    assert world.server.is_live(token)
    assert (world.posts, world.server.reuses) == (1, 0)
    assert world.outcomes() == ["refreshed"]
    (account,) = manager.accounts()
    assert (account.state, account.last_error) == ("valid", None)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["save", "delete"])
def test_a_late_response_is_ignored_if_the_account_has_changed(world: World, change: str) -> None:
    world.sign_in()
    hold = world.hold()
    manager = world.manager(timeout=LATE)
    refused_by(manager)
    if change == "save":
        world.sign_in(expires_in=HOUR)
    else:
        manager.delete_tokens("alice")
    before = manager.load_tokens("alice")
    hold.release.set()
    manager.close()
    assert manager.load_tokens("alice") == before
    assert world.outcomes() == (["superseded"] if change == "save" else [])


@pytest.mark.slow
def test_a_token_is_not_sent_again_while_its_request_is_unanswered(world: World) -> None:
    world.sign_in()
    hold = world.hold()
    manager = world.manager(timeout=LATE)
    assert refused_by(manager).maybe_spent  # type: ignore[attr-defined]
    same = Call(manager.get_valid_token, "alice")
    other = Call(world.manager().get_valid_token, "alice").waits()  # as another process would
    hold.release.set()
    token = other.result()
    assert token is not None
    assert world.server.is_live(token)
    assert same.result() == manager.get_valid_token("alice") == token
    assert (world.posts, world.server.reuses) == (1, 0)


@of_sqlite
def test_an_interrupt_between_answer_and_commit_loses_nothing(world: World) -> None:
    world.sign_in()
    hold = world.hold()
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        assert hold.arrived.wait(SOON)
        with closing(sqlite3.connect(world.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            hold.release.set()
            until(lambda: world.server.refreshes() == 1)
            signal.pthread_kill(main, signal.SIGINT)
            other.execute("ROLLBACK")

    manager = world.manager()
    interrupting = Call(interrupt)
    with pytest.raises(KeyboardInterrupt):
        manager.refresh_token("alice")
    interrupting.result()
    manager.close()
    access_token = world.tokens()[0]
    assert access_token is not None
    assert world.server.is_live(access_token)
    assert manager.refresh_token("alice")
    assert (world.posts, world.server.reuses) == (2, 0)


@of_sqlite
@pytest.mark.parametrize("replaced", [False, True])
def test_an_answer_for_a_database_that_was_taken_away_is_kept(
    world: World, manager: TokenManager, replaced: bool
) -> None:
    world.sign_in()
    hold = world.hold()
    call = Call(manager.refresh_token, "alice")
    assert hold.arrived.wait(SOON)
    elsewhere = world.path.with_name("elsewhere")
    for path in list(world.path.parent.glob("tokens.db*")):
        if path.is_file():
            path.rename(elsewhere.with_name(path.name.replace("tokens.db", "elsewhere")))
    if replaced:
        world.manager().save_tokens("bob", {"access_token": "b"})
    hold.release.set()
    error = call.error()
    assert isinstance(error, TokenPersistError)
    assert error.tokens is not None
    assert world.server.is_live(error.tokens["access_token"])
    assert world.path.exists() == replaced


def test_a_token_that_another_process_replaced_is_not_served_from_memory(world: World) -> None:
    world.sign_in(expires_in=3600)
    manager, other = world.manager(), world.manager()
    first = manager.get_valid_token("alice")
    second = other.refresh_token("alice")["access_token"]
    assert manager.get_valid_token("alice") == first
    assert manager.refresh_token("alice", rejected=first)["access_token"] == second
    assert manager.get_valid_token("alice") == second
    assert world.posts == 1


def test_a_replacing_import_clears_the_verdict(
    world: World, manager: TokenManager, tmp_path: Path
) -> None:
    world.sign_in()
    world.server.revoke("alice")
    assert isinstance(refused_by(manager), ReauthorizationRequired)
    file = tmp_path / "alice.json"
    file.write_text(json.dumps({**world.server.sign_in("alice"), "expires_at": 0}))
    [skipped] = import_accounts(manager._repository, file)
    assert skipped.outcome == "skipped"
    assert isinstance(refused_by(manager), ReauthorizationRequired)
    assert world.posts == 1
    [imported] = import_accounts(manager._repository, file, replace=True)
    assert imported.outcome == "imported"
    assert manager.get_valid_token("alice") is not None
    assert world.posts == 2


@pytest.mark.slow
def test_a_late_refusal_is_recorded(world: World) -> None:
    world.sign_in()
    hold = world.hold()
    manager = world.manager(timeout=LATE)
    refused_by(manager)
    world.server.revoke("alice")
    hold.release.set()
    manager.close()
    assert isinstance(refused_by(manager), ReauthorizationRequired)
    assert world.posts == 1


@pytest.mark.slow
def test_a_late_response_that_cannot_be_stored_at_once_is_stored_later(world: World) -> None:
    world.sign_in()
    hold = world.hold()
    manager = world.manager(timeout=LATE)
    refused_by(manager)
    world.refuse_outcome()
    with Told() as told:
        hold.release.set()
        told.wait_for("trying again until it is done")
    world.accept()
    assert manager.get_valid_token("alice") == world.tokens()[0]
    assert (world.posts, world.server.reuses) == (1, 0)


def test_the_response_to_an_interrupted_call_is_stored(world: World, manager: TokenManager) -> None:
    world.sign_in()
    hold = world.hold()
    waiting = threading.main_thread().ident
    assert waiting is not None

    def interrupt_the_call() -> None:
        assert hold.arrived.wait(SOON)
        signal.pthread_kill(waiting, signal.SIGINT)

    interrupting = Call(interrupt_the_call)
    with pytest.raises(KeyboardInterrupt):
        manager.get_valid_token("alice")
    interrupting.result()
    hold.release.set()
    manager.close()
    assert world.outcomes() == ["refreshed"]
    assert manager.get_valid_token("alice") == world.tokens()[0]
    assert world.posts == 1


def test_a_change_of_the_answer_on_its_way_changes_nothing_else(
    world: World, manager: TokenManager
) -> None:
    old = world.sign_in()
    world.server.script(Transform(lambda body: {"access_token": body["access_token"]}))
    token = manager.get_valid_token("alice")
    assert token is not None
    assert world.tokens() == (token, old["refresh_token"], world.clock.now + HOUR)
