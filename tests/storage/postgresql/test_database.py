"""The PostgreSQL backend, and faults that only a server has."""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.engine import make_url

from tests.helpers.postgresql import ask, in_schema, schema_of
from tests.helpers.refreshes import SOON, Call, World, until
from tests.helpers.stores import Process, python, tokens
from tokenstore import (
    InsecureStorageError,
    SchemaOutdatedError,
    SchemaTooNewError,
    StorageError,
    TokenManager,
    TokenPersistError,
    TokenRepository,
    migrate,
)
from tokenstore.storage.postgresql.locks import AdvisoryLocks
from tokenstore.storage.statements import LOCK_LOST
from tokenstore.storage.tables import REVISION, VERSION_TABLE
from tokenstore.testing import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OURS = "application_name = 'tokenstore' AND pid <> pg_backend_pid()"


def cut(url: str, which: str = "true") -> int:
    """End the connections of ours for which a condition holds; return how many there were."""
    query = f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {OURS} AND {which}"
    return len(ask(url, query))


# -- the schema -----------------------------------------------------------------------------------


def test_reading_creates_nothing(schema: str) -> None:
    with TokenRepository(schema) as repository:
        assert repository.load("alice") is None
        assert list(repository.accounts()) == []
    assert ask(schema, "SELECT to_regnamespace('new')") == [(None,)]


@pytest.mark.slow
def test_two_processes_create_one_database(schema: str) -> None:
    code = """
with TokenRepository(sys.argv[1]) as repository:
    tell("ready")
    wait()
    repository.save(sys.argv[2], tokens())
"""
    with Process(code, schema, "alice") as one, Process(code, schema, "bob") as other:
        for process in (one, other):
            assert process.line() == "ready"
        for process in (one, other):
            process.go()
        assert (one.end(), other.end()) == (0, 0)
    with TokenRepository(schema) as repository:
        assert [account.name for account in repository.accounts()] == ["alice", "bob"]
    assert ask(schema, f"SELECT * FROM {VERSION_TABLE}") == [(REVISION,)]


def test_a_schema_of_another_application_is_refused_and_unchanged(schema: str) -> None:
    ask(schema.replace("new", "public"), "CREATE SCHEMA new CREATE TABLE accounts (x int)")
    with TokenRepository(schema) as repository:
        with pytest.raises(InsecureStorageError, match="tables of another application"):
            repository.save("alice", tokens())
        with pytest.raises(InsecureStorageError, match="tables of another application"):
            repository.load("alice")
    with pytest.raises(InsecureStorageError):
        migrate.upgrade(schema)
    tables = "SELECT relname FROM pg_class WHERE relnamespace = 'new'::regnamespace"
    assert ask(schema, tables) == [("accounts",)]


def test_another_revision_is_refused_and_an_older_one_upgraded_on_request(schema: str) -> None:
    with TokenRepository(schema) as repository:
        repository.save("alice", tokens())
    migrate.downgrade(schema, "0002")
    with (
        TokenRepository(schema) as older,
        pytest.raises(SchemaOutdatedError, match=r"db upgrade"),
    ):
        older.load("alice")
    with TokenRepository(schema, upgrade=True) as repository:
        assert repository.load("alice") == tokens()
    ask(schema, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with TokenRepository(schema) as newer, pytest.raises(SchemaTooNewError):
        newer.load("alice")
    ask(schema, f"UPDATE {VERSION_TABLE} SET version_num = '{REVISION}'")


def test_every_revision_keeps_every_row_down_and_up(schema: str) -> None:
    with TokenRepository(schema) as repository:
        for number in range(3):
            repository.save(f"account {number}", tokens(number, kept={"a": [1, None]}))
        before = {a.name: repository.load(a.name) for a in repository.accounts()}
    for number in range(int(REVISION) - 1, 0, -1):
        migrate.downgrade(schema, f"{number:04}")
    with pytest.raises(StorageError, match="destroy=yes"):
        migrate.downgrade(schema, "base")
    migrate.upgrade(schema)
    migrate.check(schema)
    with TokenRepository(schema) as repository:
        assert {a.name: repository.load(a.name) for a in repository.accounts()} == before


def test_nothing_is_created_in_a_database_that_cannot_hold_every_name(schema: str) -> None:
    ask(schema, "CREATE DATABASE narrow ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    narrow = make_url(schema).set(database="narrow")
    try:
        with (
            TokenRepository(narrow) as repository,
            pytest.raises(StorageError, match="encoding LATIN1 cannot"),
        ):
            repository.save("alice", tokens())
        url = narrow.render_as_string(hide_password=False)
        assert ask(url, "SELECT 1 FROM pg_namespace WHERE nspname = current_schema()") == []
    finally:
        ask(schema, "DROP DATABASE narrow WITH (FORCE)")


def test_an_error_names_the_missing_privilege(schema: str) -> None:
    ask(schema, "DROP ROLE IF EXISTS poor")
    ask(schema, "CREATE ROLE poor LOGIN")
    poor = schema.replace("postgres:@", "poor:@", 1)
    try:
        with TokenRepository(poor) as repository:
            with pytest.raises(StorageError, match="lacks a privilege") as caught:
                repository.save("alice", tokens())
            assert caught.value.errno == errno.EACCES
    finally:
        ask(schema, "DROP ROLE poor")


def test_names_are_in_the_order_of_code_points(repository: TokenRepository) -> None:
    names = ["B", "a", "Z", "é", "z", "_", "\U0001f600", "\uffee", "x" * 512, " "]
    with repository.transaction():
        for name in names:
            repository.save(name, tokens())
    assert [account.name for account in repository.accounts()] == sorted(names)
    assert repository.listing.names("", limit=3) == sorted(names)[:3]


# -- transactions ---------------------------------------------------------------------------------


def test_a_transaction_blocks_writers_but_not_readers(
    url: str, repository: TokenRepository
) -> None:
    repository.save("alice", tokens(1))
    with TokenRepository(url) as other, repository.transaction():
        found = repository.load("alice")
        waiting = Call(other.save, "alice", tokens(3))
        query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'"
        until(lambda: ask(url, query) == [(1,)])
        assert other.load("alice") == found
        repository.save("alice", tokens(2))
    waiting.result()
    assert repository.load("alice") == tokens(3)


def test_an_error_inside_a_transaction_rolls_back_all_of_it(world: World) -> None:
    repository = world.manager()._repository
    repository.save("bob", tokens())
    world.refuse("UPDATE ON accounts")

    def save_both() -> None:
        with repository.transaction():
            repository.save("alice", tokens())
            with suppress(StorageError):
                repository.save("bob", tokens(1))

    with pytest.raises(StorageError, match="nothing of it was stored"):
        save_both()
    assert repository.load("alice") is None
    repository.save("alice", tokens())


def test_a_commit_is_synchronous_whatever_the_servers_default(url: str) -> None:
    """A rotated token must not be lost. The setting is read during a save."""
    seen = """
        CREATE TABLE seen (setting text);
        CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql SET search_path = tests AS $$BEGIN
            INSERT INTO seen SELECT current_setting('synchronous_commit'); RETURN new; END$$;
        CREATE TRIGGER see BEFORE INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION see()
    """
    ask(url, seen)
    try:
        ask(url, "ALTER ROLE postgres SET synchronous_commit = off")
        with TokenRepository(url) as repository:
            repository.save("alice", tokens())
        ask(url, "ALTER ROLE postgres SET synchronous_commit = remote_apply")
        with TokenRepository(url) as repository:
            repository.save("bob", tokens())
        assert ask(url, "SELECT * FROM seen") == [("on",), ("remote_apply",)]
    finally:
        ask(url, "ALTER ROLE postgres RESET synchronous_commit")
        ask(url, "DROP FUNCTION see CASCADE; DROP TABLE seen")


# -- lost connections -----------------------------------------------------------------------------


def test_a_connection_lost_while_idle_is_replaced(url: str, repository: TokenRepository) -> None:
    def lock() -> None:
        with repository.refresh_lock("alice", timeout=SOON):
            pass

    lock()
    repository.save("alice", tokens(1))
    for call in (
        lambda: repository.load("alice"),
        lambda: repository.save("alice", tokens(2)),
        lambda: repository.delete("bob"),
        lock,
    ):
        assert cut(url) >= 1
        call()
    assert repository.load("alice") == tokens(2)


def test_an_operation_is_repeated_if_the_connection_is_lost_before_the_commit(
    world: World, url: str
) -> None:
    """The server ends the connection that inserts, the first time."""
    ask(url, "CREATE SEQUENCE tries")
    body = "IF nextval('tries') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;"
    ask(
        url,
        "CREATE FUNCTION refusal() RETURNS trigger LANGUAGE plpgsql SET search_path = tests AS "
        f"$$BEGIN {body} RETURN new; END$$",
    )
    on = "BEFORE INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION refusal()"
    ask(url, f"CREATE TRIGGER refusal {on}")
    try:
        with TokenRepository(url) as repository:
            repository.save("alice", tokens())
            assert repository.load("alice") == tokens()
            assert ask(url, "SELECT last_value FROM tries") == [(2,)]
            ask(url, "ALTER SEQUENCE tries RESTART")
            with (
                pytest.raises(StorageError, match="nothing was stored") as caught,
                repository.transaction(),
            ):
                repository.save("bob", tokens())
            assert caught.value.errno == errno.ECONNRESET
            assert repository.load("bob") is None
    finally:
        world.accept()
        ask(url, "DROP SEQUENCE tries")


class Proxy:
    """Stands between us and the server; at a COMMIT of a transaction that writes it hangs up.

    Args:
        url: Where the server is.
        passes: Whether the server gets that COMMIT.
    """

    def __init__(self, url: str, *, passes: bool) -> None:
        (port,) = ask(url, "SHOW port")[0]
        (directory,) = ask(url, "SHOW unix_socket_directories")[0]
        self._server = f"{directory}/.s.PGSQL.{port}"
        self._passes = passes
        self.is_armed = False
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = in_schema(
            f"postgresql+psycopg://postgres@127.0.0.1:{self._socket.getsockname()[1]}/postgres"
            "?sslmode=disable&gssencmode=disable",
            schema_of(url),
        )
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        writes = False
        with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            server.connect(self._server)
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    writes = writes or b"INSERT INTO" in data or b"UPDATE" in data
                    if ready is client and self.is_armed and writes and b"COMMIT\0" in data:
                        self.is_armed = False
                        if self._passes:
                            server.sendall(data)
                            server.recv(1)
                        return
                    (server if ready is client else client).sendall(data)


@pytest.fixture
def proxied(url: str) -> Iterator[Callable[..., Proxy]]:
    made: list[Proxy] = []

    def make(*, passes: bool) -> Proxy:
        made.append(Proxy(url, passes=passes))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@pytest.mark.parametrize("passes", [False, True], ids=["before the server", "behind it"])
def test_a_save_without_a_response_to_its_commit_raises(
    proxied: Callable[..., Proxy], passes: bool
) -> None:
    proxy = proxied(passes=passes)
    with TokenRepository(proxy.url) as repository:
        repository.save("alice", tokens(1))
        proxy.is_armed = True
        with pytest.raises(StorageError, match="may or may not be stored") as caught:
            repository.save("alice", tokens(2))
        assert caught.value.errno == errno.ECONNABORTED
        until(lambda: repository.load("alice") == tokens(2 if passes else 1))


@pytest.mark.parametrize("passes", [False, True], ids=["before the server", "behind it"])
def test_a_refresh_without_a_response_to_its_commit_is_stored_once(
    world: World, proxied: Callable[..., Proxy], passes: bool
) -> None:
    proxy = proxied(passes=passes)
    world.sign_in()
    hold = world.hold()
    told: list[str] = []
    manager = world.manager()
    through = TokenManager(
        proxy.url,
        providers={"test": world.server.provider()},
        clock=world.clock,
        on_refreshed=lambda name, _: told.append(name),
    )
    with through:
        call = Call(through.get_valid_token, "alice")
        assert hold.arrived.wait(SOON)
        proxy.is_armed = True
        hold.release.set()
        token = call.result()
    assert token == world.tokens()[0] == manager.get_valid_token("alice")
    assert (world.outcomes(), world.posts, told) == (["refreshed"], 1, ["alice"])


# -- the lock -------------------------------------------------------------------------------------


def take(repository: TokenRepository, *, timeout: float) -> None:
    with repository.refresh_lock("alice", timeout=timeout):
        pass


def test_a_lock_is_held_whatever_timeouts_the_server_has(url: str) -> None:
    settings = ("idle_in_transaction_session_timeout", "statement_timeout", "lock_timeout")
    for setting in settings:
        ask(url, f"ALTER ROLE postgres SET {setting} = '50ms'")
    try:
        with TokenRepository(url) as repository, TokenRepository(url) as other:
            with repository.refresh_lock("alice", timeout=SOON) as hold:
                with pytest.raises(StorageError) as caught, other.refresh_lock("alice", timeout=9):
                    pass
                assert caught.value.errno == errno.EDEADLK
                assert isinstance(Call(take, other, timeout=0.3).error(), TimeoutError)
                assert not hold.is_lost()
            with other.refresh_lock("alice", timeout=0.0):
                pass
    finally:
        for setting in settings:
            ask(url, f"ALTER ROLE postgres RESET {setting}")


def test_the_journal_records_a_lock_lost_during_the_request(world: World, url: str) -> None:
    world.sign_in()
    hold = world.hold()
    call = Call(world.manager().get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    assert cut(url, "state = 'idle in transaction'") == 1
    hold.release.set()
    assert call.result() == world.tokens()[0]
    (entry,) = world.manager().history("alice")
    assert (entry.outcome, entry.error) == ("refreshed", LOCK_LOST)


@pytest.mark.slow
def test_the_next_holder_of_a_lost_lock_waits_for_the_earlier_refresh(
    world: World, url: str
) -> None:
    """R6: the process that began it is alive, so its token is not sent again."""
    old = world.sign_in()
    hold = world.hold()
    call = Call(world.manager().get_valid_token, "alice")
    assert hold.arrived.wait(SOON)
    assert cut(url, "state = 'idle in transaction'") == 1
    code = """
from tokenstore import Provider, TokenManager
path, endpoint, now = sys.argv[1:]
test = Provider("test", endpoint, "tokenstore", client_secret="p+a/b=:%\\u00e9\\u20ac")
with TokenManager(path, providers={"test": test}, clock=lambda: float(now)) as manager:
    try:
        manager.ensure_valid_token("alice")
    except TransientRefreshError as error:
        tell(error)
"""
    second = python(code, url, world.server.token_endpoint, world.clock.now)
    assert f"process {os.getpid()} on {os.uname().nodename}, since " in second
    assert world.tokens()[1] == old["refresh_token"]
    hold.release.set()
    assert call.result() == world.tokens()[0]
    assert world.posts == 1
    assert [(e.outcome, e.error) for e in world.manager().history("alice")] == [
        ("refreshed", LOCK_LOST)
    ]


def test_a_lock_interrupted_during_its_acquisition_is_released(url: str) -> None:
    with TokenRepository(url) as repository:
        locks = repository._database.locks
        assert isinstance(locks, AdvisoryLocks)
        for _ in range(2):
            locks._take(7, timeout=0.0)  # drops the returned connection

        assert ask(url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]


@pytest.mark.parametrize("looked", ["before", "after"])
def test_a_response_is_not_stored_in_a_replaced_database(
    tmp_path: Path, schema: str, looked: str
) -> None:
    with World(tmp_path, schema) as world:
        world.sign_in()
        hold = world.hold()
        manager = world.manager()
        call = Call(manager.get_valid_token, "alice")
        assert hold.arrived.wait(SOON)
        ask(schema, f"DROP SCHEMA {schema_of(schema)} CASCADE")
        with TokenRepository(schema) as other:
            other.save("alice", tokens())
            if looked == "before":  # the manager has seen the new database
                assert manager.load_tokens("alice") == tokens()
            hold.release.set()

            with pytest.raises(TokenPersistError, match="replaced"):
                call.result()

            assert other.load("alice") == tokens()
            assert list(other.journal.history()) == []


# -- a fork ---------------------------------------------------------------------------------------


FORKED = """
import gc
from concurrent.futures import ThreadPoolExecutor
from tokenstore.storage.postgresql.locks import AdvisoryLocks

url, inside = sys.argv[1:]

def look(other):
    try:
        with other.refresh_lock("alice", timeout=0.0):
            tell("free")
    except TimeoutError:
        tell("held")

def leave_in_child(context):
    '''Fork inside; the child leaves the block and lets go of everything.'''
    global repository
    with context:
        if inside == "transaction":
            repository.save("before", tokens())
        child = os.fork()
        if child:
            tell(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            if inside == "transaction":
                repository.save("after", tokens())
            else:
                with TokenRepository(url) as other, ThreadPoolExecutor(1) as thread:
                    thread.submit(look, other).result()
            return
    del context, repository
    gc.collect()
    os._exit(0)

repository = TokenRepository(url)
repository.load("alice")
leave_in_child(
    repository.transaction()
    if inside == "transaction"
    else repository.refresh_lock("alice", timeout=9)
)
with TokenRepository(url) as found:
    tell(*(account.name for account in found.accounts()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inside", "said"), [("transaction", ["0", "after", "before"]), ("lock", ["0", "held"])]
)
def test_a_child_of_fork_does_not_end_its_parents_transaction(
    url: str, inside: str, said: list[str]
) -> None:
    assert python(FORKED, url, inside).split() == said


@pytest.mark.slow
def test_a_child_of_fork_opens_connections_of_its_own(url: str) -> None:
    code = """
repository = TokenRepository(sys.argv[1])
repository.save("alice", tokens())
with repository.refresh_lock("alice", timeout=5) as hold:
    before = repository._database._connections.engine.pool.checkedin()
    child = os.fork()
    if not child:
        repository.save("bob", tokens())
        try:
            with repository.refresh_lock("alice", timeout=0):
                os._exit(2)
        except TimeoutError:
            pass
        import gc
        del repository
        gc.collect()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not hold.is_lost()
assert repository._database._connections.engine.pool.checkedin() == before
assert repository.load("bob") == tokens()
with repository.transaction():
    repository.save("carol", tokens())
    child = os.fork()
    if not child:
        try:
            repository.save("dave", tokens())
        except StorageError as error:
            os._exit(0 if "do not fork inside" in str(error) else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
parent = os.getpid()
with repository.transaction():
    repository.save("erin", tokens())
    child = os.fork()
    if child:
        os.waitpid(child, 0)  # until it has left the block
if os.getpid() != parent:
    os._exit(0)
tell(*sorted(account.name for account in repository.accounts()))
repository.close()
"""
    with Process(code, url) as process:
        assert process.line() == "alice bob carol erin"
        assert process.end() == 0


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(("/postgres?", "/nowhere?"), "does not exist", id="no database"),
        pytest.param(("postgres:@", "nobody:pw-canary@"), "does not exist", id="no user"),
        pytest.param(("host=", "host=/nowhere&x="), "", id="no server"),
    ],
)
def test_a_refused_connection_is_an_error_without_the_password(
    url: str, change: tuple[str, str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = url.replace(*change, 1)
    with TokenManager(wrong) as manager, pytest.raises(StorageError) as caught:
        manager.load_tokens("alice")
    assert said in str(caught.value)
    for text in (str(caught.value), repr(caught.value), caplog.text):
        assert "pw-canary" not in text


def test_a_nul_in_a_response_does_not_lose_the_tokens(world: World) -> None:
    """PostgreSQL cannot store that character."""
    world.sign_in()
    manager = world.manager()
    world.server.script(Answer(400, {"error": "in\0valid", "error_description": "a\0b"}))
    assert manager.get_valid_token("alice") is None
    answer = {"access_token": "new", "scope": "a\0b", "x\0y": "\0", "expires_in": 3600}
    world.server.script(Answer(200, answer))
    assert manager.refresh_token("alice")["x\0y"] == "\0"
    assert manager.load_tokens("alice") == manager.load_tokens("alice")


def test_a_nul_in_a_provider_name_is_refused(repository: TokenRepository) -> None:
    with pytest.raises(StorageError, match="NUL") as caught:
        repository.save("alice", tokens(), provider="a\0b")
    assert caught.value.errno == errno.EINVAL
    assert repository.load("alice") is None


def test_d13_an_empty_version_table_is_not_an_empty_store(
    url: str, repository: TokenRepository
) -> None:
    repository.save("alice", tokens())
    ask(url, f"DELETE FROM {VERSION_TABLE}")
    try:
        with TokenRepository(url) as other:
            with pytest.raises(StorageError, match="db stamp"):
                other.load("alice")
            with pytest.raises(StorageError, match="db stamp"):
                other.save("bob", tokens())
    finally:
        assert migrate.stamp(url) == REVISION

    with TokenRepository(url) as other:
        assert other.load("alice") == tokens()


def test_d3_a_wrong_record_is_named(url: str, repository: TokenRepository) -> None:
    repository.save("alice", tokens())
    ask(url, f"UPDATE {VERSION_TABLE} SET version_num = '0002'")
    try:
        with pytest.raises(StorageError, match=f"recorded as schema 0002.*{REVISION}.*db stamp"):
            migrate.upgrade(url)
    finally:
        assert migrate.stamp(url) == REVISION
