from __future__ import annotations

import os
import socket
from dataclasses import asdict

import pytest

from tests.helpers.refreshes import SOON, Call, World, denied, on_both_engines
from tests.helpers.stores import python
from tokenstore import TokenManager, TokenPersistError
from tokenstore.errors import InvalidTokenError
from tokenstore.models.tokens import fingerprint
from tokenstore.storage.statements import HISTORY
from tokenstore.testing import Answer, Drop

pytestmark = on_both_engines


def outcomes(manager: TokenManager, account: str | None = None) -> list[str | None]:
    return [entry.outcome for entry in manager.history(account)]


def test_the_newest_entry_comes_first(world: World, manager: TokenManager) -> None:
    world.sign_in("alice")
    world.sign_in("bob")
    for name in ("alice", "bob", "alice"):
        world.clock.now += 10
        manager.refresh_token(name)
    entries = list(manager.history())
    assert [entry.account_name for entry in entries] == ["alice", "bob", "alice"]
    assert [world.clock.now - entry.started_at for entry in entries] == [0, 10, 20]
    assert [entry.id for entry in entries] == sorted((e.id for e in entries), reverse=True)
    assert list(manager.history("alice")) == [e for e in entries if e.account_name == "alice"]
    assert list(manager.history("nobody")) == []


def test_an_account_name_is_normalized(world: World, manager: TokenManager) -> None:
    world.sign_in("caf\u00e9")
    manager.refresh_token("caf\u00e9")
    assert outcomes(manager, "cafe\u0301") == ["refreshed"]
    with pytest.raises(InvalidTokenError):
        list(manager.history(""))


def test_an_entry_has_host_time_reason_and_duration(world: World, manager: TokenManager) -> None:
    old = world.sign_in()
    began = world.clock.now
    hold = world.hold()
    call = Call(manager.refresh_token, "alice")
    assert hold.arrived.wait(SOON)
    (running,) = manager.history()
    assert (running.outcome, running.finished_at, running.duration) == (None, None, None)
    world.clock.now += 2.5
    hold.release.set()
    new = call.result()
    (entry,) = manager.history()
    assert (entry.provider, entry.host, entry.pid) == ("test", socket.gethostname(), os.getpid())
    assert (entry.reason, entry.outcome) == ("forced", "refreshed")
    assert (entry.started_at, entry.finished_at, entry.duration) == (began, began + 2.5, 2.5)
    assert entry.sent == fingerprint(old["refresh_token"])
    assert entry.received == fingerprint(new["refresh_token"])
    assert (entry.status_code, entry.error, entry.maybe_spent) == (None, None, False)


def test_the_reason_is_due_forced_or_rejected(world: World, manager: TokenManager) -> None:
    world.sign_in()
    manager.get_valid_token("alice")
    manager.refresh_token("alice")
    manager.refresh_token("alice", rejected=world.tokens()[0])
    world.clock.now += 3600
    list(manager.refresh_all())
    reasons = [entry.reason for entry in manager.history("alice")]
    assert reasons == ["due", "rejected", "forced", "due"]


def test_a_call_without_a_request_adds_no_entry(world: World, manager: TokenManager) -> None:
    world.sign_in(expires_in=3600)
    manager.get_valid_token("alice")
    manager.refresh_token("alice", rejected="another")
    assert list(manager.history()) == []


def test_a_failed_refresh_has_the_kind_of_its_failure(world: World, manager: TokenManager) -> None:
    world.sign_in()
    world.server.script(
        Answer(503, headers={"Retry-After": "0"}), Drop(spent=False), denied("invalid_scope")
    )
    for _ in range(3):
        assert manager.get_valid_token("alice") is None
    world.server.revoke("alice")
    assert manager.get_valid_token("alice") is None
    told = [(e.outcome, e.status_code, e.error, e.maybe_spent) for e in manager.history()]
    assert told == [
        ("reauthorization", 400, "invalid_grant", False),
        ("client_rejected", 400, "invalid_scope", False),
        ("transient", None, None, True),
        ("transient", 503, None, False),
    ]


def test_a_call_that_retries_adds_two_entries(world: World, manager: TokenManager) -> None:
    world.sign_in()
    world.server.script(Answer(503))
    assert manager.get_valid_token("alice") is not None
    assert outcomes(manager) == ["refreshed", "transient"]


def test_a_sign_in_during_a_refresh_supersedes_it(world: World, manager: TokenManager) -> None:
    world.sign_in()
    hold = world.hold()
    call = Call(manager.get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    won = world.sign_in(expires_in=3600)
    hold.release.set()
    assert call.result() == won["access_token"]
    (entry,) = manager.history()
    assert entry.outcome == "superseded"
    assert entry.received == fingerprint(won["refresh_token"])


@pytest.mark.slow
def test_the_refresh_of_a_killed_process_is_interrupted(
    world: World, manager: TokenManager
) -> None:
    world.sign_in()
    code = """
child = os.fork()
if not child:
    repository = TokenRepository(sys.argv[1])
    with repository.refresh_lock("alice", timeout=1):
        record = repository.record("alice")
        repository.journal.begin(record, provider="test", reason="forced", longest=60)
        os.kill(os.getpid(), signal.SIGKILL)
tell(child)
os.waitpid(child, 0)
"""
    pid = int(python(code, world.database))
    (running,) = manager.history()
    assert (running.outcome, running.pid) == (None, pid)
    assert manager.get_valid_token("alice") is not None
    last, interrupted = manager.history()
    assert (last.outcome, last.pid) == ("refreshed", os.getpid())
    assert (interrupted.outcome, interrupted.pid, interrupted.reason) == (
        "interrupted",
        pid,
        "forced",
    )
    assert interrupted.finished_at == world.clock.now


def test_a_response_that_was_stored_later_is_refreshed(world: World, manager: TokenManager) -> None:
    world.sign_in()
    world.refuse("UPDATE ON accounts")
    with pytest.raises(TokenPersistError):
        manager.get_valid_token("alice")
    assert outcomes(manager) == [None]
    world.accept()
    manager.close()
    assert outcomes(manager) == ["refreshed"]


def test_the_history_keeps_50_entries_per_account(world: World, manager: TokenManager) -> None:
    assert HISTORY == 50
    world.sign_in("alice")
    world.sign_in("bob")
    manager.refresh_token("bob")
    repository = manager._repository
    for _ in range(HISTORY + 3):
        record = repository.record("alice")
        assert record is not None
        refresh = repository.journal.begin(record, provider="test", reason="due", longest=60)
        repository.journal.finish(refresh, lambda tokens: tokens, provider="test")
    manager.refresh_token("alice")
    assert [len(list(manager.history(name))) for name in ("alice", "bob")] == [HISTORY, 1]
    assert next(manager.history("alice")).reason == "forced"
    assert len(list(manager.history())) == HISTORY + 1


def test_a_history_of_several_pages_is_complete_and_without_duplicates(
    world: World, manager: TokenManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenstore.storage.journal._PAGE", 3)
    world.sign_in()
    for _ in range(7):
        manager.refresh_token("alice")
    assert [entry.id for entry in manager.history()] == list(range(7, 0, -1))
    assert [entry.id for entry in manager.history("alice")] == list(range(7, 0, -1))


def test_the_history_has_no_secret(world: World, manager: TokenManager) -> None:
    secrets = [world.sign_in(), manager.refresh_token("alice")]
    refused = world.tokens()[1] or ""
    world.server.script(denied(f"no {refused}", 418))
    manager.save_tokens("alice", {**secrets[1], "expires_in": -1, "expires_at": None})
    assert manager.get_valid_token("alice") is None
    secrets.append({"id_token": str(world.server.provider().client_secret)})
    shown = "".join(str(asdict(entry)) + repr(entry) for entry in manager.history())
    for tokens in secrets:
        for name in ("access_token", "refresh_token", "id_token"):
            assert tokens.get(name, "\0") not in shown


def test_deleting_an_account_deletes_its_history(world: World, manager: TokenManager) -> None:
    world.sign_in()
    manager.refresh_token("alice")
    manager.delete_tokens("alice")
    assert list(manager.history()) == []
