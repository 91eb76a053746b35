from __future__ import annotations

import os
import socket
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from tests.helpers.refreshes import SOON, Call, World, denied, on_both_engines, until
from tests.helpers.stores import Process, begin, python
from tokenstore import (
    ReauthorizationRequired,
    StorageError,
    TokenManager,
    TokenPersistError,
    TransientRefreshError,
)
from tokenstore.errors import InvalidTokenError
from tokenstore.models.tokens import fingerprint
from tokenstore.storage.journal import AccountChanged, SpentToken, UnderWay
from tokenstore.storage.statements import HISTORY
from tokenstore.testing import Answer, Drop

if TYPE_CHECKING:
    from tokenstore import TokenRepository
    from tokenstore.models.accounts import Record

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
    """R18: a 5xx may have spent the token."""
    world.sign_in()
    world.server.script(
        Answer(503, headers={"Retry-After": "0"}), Drop(spent=False), denied("invalid_scope")
    )
    for _ in range(3):
        assert manager.get_valid_token("alice") is None
    world.clock.now += 60
    world.server.revoke("alice")
    assert manager.get_valid_token("alice") is None
    told = [(e.outcome, e.status_code, e.error, e.maybe_spent) for e in manager.history()]
    assert told == [
        ("reauthorization", 400, "invalid_grant", False),
        ("client_rejected", 400, "invalid_scope", False),
        ("transient", None, "transient", True),
        ("transient", 503, "transient", True),
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
    # what the answer gave, not what is stored now: the token that was sent counts as spent
    assert entry.received not in {entry.sent, fingerprint(won["refresh_token"])}


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


def test_a_response_that_is_stored_later_is_refreshed(world: World) -> None:
    """R3: until then, the entry is open and the lock is held."""
    world.sign_in()
    manager = world.manager(timeout=0.1)
    world.refuse("UPDATE OF access_token ON accounts")
    with pytest.raises(TokenPersistError):
        manager.get_valid_token("alice")
    assert outcomes(manager) == [None]
    assert [other.outcome for other in world.manager().refresh_all()] == ["skipped"]
    world.accept()
    until(lambda: not manager._refresher.at_work())
    assert outcomes(manager) == ["refreshed"]
    assert world.posts == 1


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


def test_a_refresh_that_ends_after_its_account_was_deleted_leaves_no_entry(
    world: World, manager: TokenManager
) -> None:
    """R24: the name of a deleted account is forgotten."""
    world.sign_in()
    hold = world.hold()
    call = Call(manager.get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    world.manager().delete_tokens("alice")
    hold.release.set()
    assert call.result() is None
    assert list(manager.history()) == []
    assert world.sql("SELECT * FROM refreshes") == []


# -- the second line of defence: a lock was lost ---------------------------------------------------


def record_of(repository: TokenRepository, name: str = "alice") -> Record:
    record = repository.record(name)
    assert record is not None
    return record


def test_a_refresh_of_this_process_that_is_at_work_is_respected(world: World) -> None:
    """R6: its lock may be lost, its token is not sent again."""
    world.sign_in()
    repository = world.manager()._repository
    first = begin(repository)
    with pytest.raises(UnderWay) as caught:
        begin(repository)
    assert caught.value.entry.id == first.id
    assert world.outcomes() == [None]
    repository.journal.abandon(first)
    begin(repository)
    assert world.outcomes() == ["interrupted", None]


@pytest.mark.slow
def test_an_open_entry_counts_while_its_process_lives(world: World) -> None:
    """R6: with the lock gone, on this host the process decides, however long it takes."""
    world.sign_in()
    world.clock.now = time.time() + 1e7  # far longer than a request can last
    code = """
repository = TokenRepository(sys.argv[1], clock=lambda: float(sys.argv[2]))
record = repository.record("alice")
repository.journal.begin(record, provider="test", reason="due", longest=60)
tell("begun")
wait()
"""
    with Process(code, world.database, time.time()) as other:
        assert other.line() == "begun"
        with pytest.raises(TransientRefreshError) as caught:
            world.manager().ensure_valid_token("alice")
        assert f"process {other.pid} on {os.uname().nodename}, since " in str(caught.value)
        assert world.posts == 0
        assert world.outcomes() == [None]
        other.kill()
        assert world.manager().get_valid_token("alice") is not None
    assert world.outcomes() == ["interrupted", "refreshed"]


@pytest.mark.parametrize(
    ("age", "counts"), [(0, True), (59, True), (60, False), (-59, True), (-60, False)]
)
def test_an_open_entry_of_another_host_counts_as_long_as_a_refresh_can_last(
    world: World, age: float, *, counts: bool
) -> None:
    """R6: whether a process of another machine is alive, nobody knows."""
    world.sign_in()
    repository = world.manager()._repository
    repository.journal.abandon(begin(repository))
    world.sql("UPDATE refreshes SET host = 'elsewhere', started_at = ?", world.clock.now - age)
    if counts:
        with pytest.raises(UnderWay) as caught:
            begin(repository)
        assert caught.value.entry.host == "elsewhere"
        assert world.outcomes() == [None]
    else:
        begin(repository)
        assert world.outcomes() == ["interrupted", None]


@pytest.mark.slow
def test_the_number_of_a_dead_process_may_be_given_to_another_one(world: World) -> None:
    """R6: a process that began after the entry did not write it."""
    world.sign_in()
    repository = world.manager()._repository
    repository.journal.abandon(begin(repository))
    with Process("tell('there')\nwait()", world.database) as other:
        assert other.line() == "there"
        statement = "UPDATE refreshes SET pid = ?, started_at = ?"
        world.sql(statement, other.pid, time.time() - 3600)
        begin(repository)
    assert world.outcomes() == ["interrupted", None]


def test_a_token_that_was_exchanged_is_not_sent_again(world: World, manager: TokenManager) -> None:
    """R5: an old copy of the account was restored."""
    old = world.sign_in()
    manager.refresh_token("alice")
    world.sql("UPDATE accounts SET refresh_token = ?, checksum = NULL", old["refresh_token"])
    repository = manager._repository
    before = world.outcomes()
    with pytest.raises(SpentToken) as caught:
        begin(repository)
    assert caught.value.at == world.clock.now
    with pytest.raises(ReauthorizationRequired, match="was exchanged for another one at"):
        manager.refresh_token("alice")
    assert world.outcomes() == before == ["refreshed"]
    assert world.posts == 1


def test_a_token_that_does_not_rotate_is_sent_again(world: World, manager: TokenManager) -> None:
    """R5: it was answered, and not exchanged."""
    world.sign_in()
    world.server.script(*[Answer(200, {"access_token": "new", "expires_in": 1})] * 3)
    for _ in range(3):
        manager.refresh_token("alice")
    assert world.outcomes() == ["refreshed"] * 3


# -- begin proves that the outcome can be stored -------------------------------------------------


def test_a_refresh_does_not_begin_if_the_account_has_changed(world: World) -> None:
    """R10: what was read is what is sent."""
    world.sign_in()
    repository = world.manager()._repository
    record = record_of(repository)
    world.sign_in()
    with pytest.raises(AccountChanged):
        repository.journal.begin(record, provider="test", reason="due", longest=60)
    world.manager().delete_tokens("alice")
    with pytest.raises(AccountChanged):
        repository.journal.begin(record, provider="test", reason="due", longest=60)
    assert world.sql("SELECT * FROM refreshes") == []


@pytest.mark.parametrize("write", ["UPDATE ON accounts", "INSERT ON refreshes"])
def test_nothing_is_sent_if_the_outcome_could_not_be_stored(
    world: World, manager: TokenManager, write: str
) -> None:
    """R10: the account's own row is written before the token is spent."""
    world.sign_in()
    world.refuse(write)
    with pytest.raises(StorageError):
        manager.ensure_valid_token("alice")
    assert world.posts == 0
    world.accept()
    assert list(manager.history()) == []
    assert manager.get_valid_token("alice") is not None
