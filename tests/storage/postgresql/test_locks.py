"""The refresh lock on PostgreSQL: a transaction, on which the outcome is committed."""

from __future__ import annotations

import errno
import os
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.engine import make_url

from tests.helpers.postgresql import ask, connect, schema_of
from tests.helpers.refreshes import SOON, Call, Told, World
from tests.helpers.stores import Process, becomes, begin, python, token_set, tokens
from tokenstore import StorageError, TokenRepository
from tokenstore.storage.locks import LockTimeoutError
from tokenstore.storage.postgresql.locks import HeldAdvisoryLock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenstore.models.tokens import TokenSet

HOLDERS = "application_name = 'tokenstore' AND state = 'idle in transaction'"


def cut(url: str) -> int:
    """End the connections that hold a lock; return how many there were."""
    ended = f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {HOLDERS}"
    return len(ask(url, ended))


def take(repository: TokenRepository, timeout: float = 0.0) -> str:
    """Take the lock and release it, from whichever thread."""
    try:
        with repository.refresh_lock("alice", timeout=timeout):
            return "free"
    except LockTimeoutError:
        return "held"


def test_stored_and_released_are_one_step(repository: TokenRepository, url: str) -> None:
    """R3: whoever gets the lock next sees the outcome."""
    repository.save("alice", tokens(1))
    with repository.refresh_lock("alice", timeout=SOON) as lock:
        assert isinstance(lock, HeldAdvisoryLock)
        refresh = begin(repository)
        assert Call(take, repository).result() == "held"
        repository.journal.finish(refresh, becomes(token_set(2)), provider="p", lock=lock)
        assert lock.ended
        assert lock.is_lost()  # nothing more may be sent under it
        assert ask(url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
        with connect(url) as other:  # another process would get it now
            assert ask(url, "SELECT refresh_token FROM accounts") == [("refresh-2",)]
            other.close()
    assert take(repository) == "free"


def test_the_one_that_waits_reads_what_the_holder_has_stored(
    repository: TokenRepository, url: str
) -> None:
    """R3: not a moment before the commit, and not what was before it."""
    repository.save("alice", tokens(1))

    def read() -> str | None:
        with TokenRepository(url) as other, other.refresh_lock("alice", timeout=SOON):
            record = other.record("alice")
            assert record is not None
            return record.tokens.refresh_token

    with repository.refresh_lock("alice", timeout=SOON) as lock:
        refresh = begin(repository)
        waiting = Call(read).waits()
        repository.journal.finish(refresh, becomes(token_set(2)), provider="p", lock=lock)
    assert waiting.result() == "refresh-2"


def test_an_outcome_that_cannot_be_stored_leaves_the_lock_held(
    repository: TokenRepository, url: str
) -> None:
    """R3: only what the attempt did is undone, and it can be repeated."""
    repository.save("alice", tokens(1))

    def refused(_: TokenSet) -> TokenSet:
        raise StorageError("not now", url)

    with repository.refresh_lock("alice", timeout=SOON) as lock:
        refresh = begin(repository)
        for _ in range(3):
            with pytest.raises(StorageError, match="not now"):
                repository.journal.finish(refresh, refused, provider="p", lock=lock)
            assert not lock.is_lost()
            assert Call(take, repository).result() == "held"
        stored = repository.journal.finish(refresh, becomes(token_set(2)), provider="p", lock=lock)
    assert stored is not None
    assert stored.tokens == token_set(2)


def test_a_statement_that_the_server_refuses_leaves_the_lock_held(world: World) -> None:
    """R3: an error would end any other transaction, and the lock with it."""
    world.sign_in()
    repository = world.manager()._repository
    with repository.refresh_lock("alice", timeout=SOON) as lock:
        refresh = begin(repository)
        world.refuse("UPDATE OF access_token ON accounts")
        with pytest.raises(StorageError):
            repository.journal.finish(refresh, becomes(token_set(2)), provider="p", lock=lock)
        assert not lock.is_lost()
        assert Call(take, repository).result() == "held"
        world.accept()
        repository.journal.finish(refresh, becomes(token_set(2)), provider="p", lock=lock)
    assert world.tokens()[:2] == ("access-2", "refresh-2")
    assert world.outcomes() == ["refreshed"]


def test_an_outcome_is_stored_without_the_lock_that_was_lost(
    repository: TokenRepository, url: str
) -> None:
    """R6: the tokens are there, whoever holds the lock now."""
    repository.save("alice", tokens(1))
    with repository.refresh_lock("alice", timeout=SOON) as lock:
        refresh = begin(repository)
        assert cut(url) == 1
        assert lock.is_lost()
        repository.journal.finish(refresh, becomes(token_set(2)), provider="p", lock=lock)
    assert repository.load("alice") == tokens(2)
    assert take(repository) == "free"


def test_an_outcome_is_stored_if_the_lock_is_lost_unnoticed(
    repository: TokenRepository, url: str
) -> None:
    """R6: the connection is found dead when the outcome is to be stored on it."""
    repository.save("alice", tokens(1))
    with repository.refresh_lock("alice", timeout=SOON) as lock:
        refresh = begin(repository)
        assert cut(url) == 1
        with suppress(StorageError):
            repository.journal.finish(refresh, becomes(token_set(2)), provider="p", lock=lock)
        repository.journal.finish(refresh, becomes(token_set(2)), provider="p", lock=lock)
    assert repository.load("alice") == tokens(2)
    assert ask(url, "SELECT outcome FROM refreshes") == [("refreshed",)]


def test_an_outcome_whose_lock_is_lost_during_the_commit_is_stored_once(
    world: World,
) -> None:
    """R3: through the whole protocol; the connection dies with the answer on its way."""
    old = world.sign_in()
    hold = world.hold()
    call = Call(world.manager().get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    world.refuse("UPDATE OF access_token ON accounts", "pg_terminate_backend(pg_backend_pid())")
    with Told() as told:
        hold.release.set()
        told.wait_for("trying again until it is done")
    world.accept()
    assert call.result() == world.tokens()[0]
    assert world.tokens()[1] != old["refresh_token"]
    assert (world.posts, world.outcomes()) == (1, ["refreshed"])


def test_a_thread_that_asks_for_its_own_lock_is_told_at_once(repository: TokenRepository) -> None:
    """R14: it would wait for itself."""
    with repository.refresh_lock("alice", timeout=0.0):
        with (
            pytest.raises(StorageError) as caught,
            repository.refresh_lock("alice", timeout=SOON),
        ):
            pass
        assert caught.value.errno == errno.EDEADLK
        assert repository._database.locks.is_held("alice")
    assert not repository._database.locks.is_held("alice")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_process_that_died_is_free(
    repository: TokenRepository, url: str, how: signal.Signals
) -> None:
    """R6: the server notices, no clock does."""
    code = """
repository = TokenRepository(sys.argv[1])
with repository.refresh_lock("alice", timeout=1):
    tell("held")
    wait()
"""
    with Process(code, url) as other:
        assert other.line() == "held"
        assert take(repository) == "held"
        os.kill(other.pid, how)
        assert take(repository, SOON) == "free"


@pytest.mark.slow
def test_a_child_of_fork_commits_nothing_on_the_lock_of_its_parent(
    repository: TokenRepository, url: str
) -> None:
    """R8: the connection is the parent's."""
    repository.save("alice", tokens(1))
    printed = python(
        """
from tests.helpers.stores import becomes, begin, token_set
repository = TokenRepository(sys.argv[1])
with repository.refresh_lock("alice", timeout=1) as lock:
    refresh = begin(repository)
    child = os.fork()
    if not child:
        tell(lock.driver, lock.is_lost())
        os._exit(0)
    os.waitpid(child, 0)
    assert lock.driver is not None
    repository.journal.finish(refresh, becomes(token_set(2)), provider="p", lock=lock)
repository.close()
        """,
        url,
    )
    assert printed == "None True\n"
    assert repository.load("alice") == tokens(2)


def test_many_threads_hold_it_one_at_a_time(repository: TokenRepository) -> None:
    inside: list[int] = []
    most: list[int] = []
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait(SOON)
        for _ in range(5):
            with repository.refresh_lock("alice", timeout=SOON):
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    calls = [Call(work, number) for number in range(8)]
    for call in calls:
        call.result()
    assert set(most) == {1}


# -- rights ---------------------------------------------------------------------------------------

RIGHTS = {
    "accounts": "SELECT, INSERT, DELETE",
    "refreshes": "SELECT, INSERT, UPDATE, DELETE",
}


@pytest.fixture
def clerk(url: str) -> Iterator[str]:
    """The URL for a role that may write the journal, and not change an account."""
    schema = schema_of(url)
    with connect(url) as admin:
        admin.execute("CREATE ROLE clerk LOGIN")
        admin.execute(f"GRANT USAGE ON SCHEMA {schema} TO clerk".encode())
        admin.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO clerk".encode())
        admin.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO clerk".encode())
        for table, rights in RIGHTS.items():
            admin.execute(f"GRANT {rights} ON {schema}.{table} TO clerk".encode())
    yield make_url(url).set(username="clerk").render_as_string(hide_password=False)
    with connect(url) as admin:
        admin.execute("DROP OWNED BY clerk; DROP ROLE clerk")


def test_a_role_that_may_not_change_an_account_spends_no_token(world: World, clerk: str) -> None:
    """R10: it may write the journal, so that a begin alone would prove nothing."""
    for name in ("alice", "bob"):
        world.sign_in(name)
    with World(world.path.parent, clerk) as theirs:
        theirs.clock = world.clock
        manager = theirs.manager(providers={"test": world.server.provider()})
        with pytest.raises(StorageError):
            manager.ensure_valid_token("alice")
        results = list(manager.refresh_all())
    assert [type(result.error) for result in results] == [StorageError] * 2
    assert world.posts == 0
    assert ask(clerk, "SELECT * FROM refreshes") == []
    assert next(iter(world.manager().refresh_all())).error is None
