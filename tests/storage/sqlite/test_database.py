from __future__ import annotations

import errno
import os
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, get_args

import pytest

from tests.helpers.stores import (
    SOON,
    Process,
    driver_in_use,
    is_sound,
    journal_mode_of,
    mode,
    modes,
    names,
    newer_checkout,
    python,
    raw,
    tokens,
)
from tokenstore import (
    SchemaOutdatedError,
    SchemaTooNewError,
    StorageError,
    TokenRepository,
    migrate,
)
from tokenstore.storage import statements as sql
from tokenstore.storage.base import JournalMode
from tokenstore.storage.query import CompiledStatement
from tokenstore.storage.sqlite.database import SQLiteDatabase
from tokenstore.storage.sqlite.engine import driver_of
from tokenstore.storage.tables import REVISION, VERSION_TABLE, accounts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Connection

JOURNAL_MODES = get_args(JournalMode)


def make_store(path: Path, *names: str, journal_mode: JournalMode = "wal") -> None:
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        for name in names or ("alice",):
            repository.save(name, tokens())


# -- creation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
def test_a_new_database_is_one_private_file(path: Path, journal_mode: JournalMode) -> None:
    make_store(path, journal_mode=journal_mode)

    assert modes(path.parent) == {
        "tokens.db": 0o600,
        "tokens.db-locks": 0o700,
        "tokens.db-locks/schema": 0o600,
    }
    assert journal_mode_of(path) == journal_mode


@pytest.mark.slow
@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
def test_processes_can_create_a_database_concurrently(
    path: Path, journal_mode: JournalMode
) -> None:
    printed = python(
        """
def work(number):
    with TokenRepository(sys.argv[1], journal_mode=sys.argv[2]) as repository:
        assert repository.load("nobody") is None
        repository.save(f"account-{number}", tokens(number))
        assert repository.load(f"account-{number}") == tokens(number)

tell(forked(16, work))
with TokenRepository(sys.argv[1]) as repository:
    tell(len(list(repository.accounts())))
        """,
        path,
        journal_mode,
    )

    assert printed.splitlines() == [str([0] * 16), "16"]
    assert names(path.parent) == {"tokens.db", "tokens.db-locks", "tokens.db-locks/schema"}


def test_threads_can_create_a_database_concurrently(path: Path) -> None:
    with TokenRepository(path) as repository, ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda n: repository.save(f"account-{n}", tokens(n)), range(16)))

        assert len(list(repository.accounts())) == 16


@pytest.mark.slow
def test_a_reader_sees_a_new_database_completely_or_not_at_all(path: Path) -> None:
    printed = python(
        """
path = Path(sys.argv[1])

def work(number):
    with TokenRepository(path / str(number // 2)) as repository:
        if number % 2:
            repository.save("alice", tokens())
            return
        for _ in range(200):
            found = repository.load("alice")
            assert found in (None, tokens())

tell(forked(8, work))
        """,
        path,
    )

    assert printed == str([0] * 8) + "\n"


# In the order in which a creation comes by; the process is killed there.
STAGES = {
    "empty": "from tokenstore.storage.sqlite.file import DatabaseFile as C;"
    " name = 'reject_stale_wal'",
    "made": "import tokenstore.storage.sqlite.schema as C; name = 'make_engine'",
    "migrating": "import tokenstore.storage.sqlite.schema as C; name = 'driver_of'",
    "migrated": "from tokenstore.storage.sqlite.schema import SchemaManager as C;"
    " name = 'set_journal_mode'",
    "finished": "import tokenstore.storage.sqlite.schema as C; name = 'publish'",
    "in place": "import tokenstore.files as C; name = 'sync_directory'",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("journal_mode", "stage"),
    [*(("wal", stage) for stage in STAGES), ("delete", "migrated"), ("delete", "finished")],
)
def test_a_process_killed_while_creating_leaves_no_partial_database(
    path: Path, journal_mode: JournalMode, stage: str
) -> None:
    with Process(
        "repository = TokenRepository(sys.argv[1], journal_mode=sys.argv[2])\n"
        + STAGES[stage]
        + """
def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(C, name, die)
repository.save("alice", tokens())
tell("alive")
        """,
        path,
        journal_mode,
    ) as process:
        assert process.line() == ""
        assert process.end() == -signal.SIGKILL

    assert path.exists() == (stage == "in place")
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        assert repository.load("alice") is None
        repository.save("bob", tokens())
        assert repository.load("bob") == tokens()
    assert is_sound(path)
    assert names(path.parent) == {"tokens.db", "tokens.db-locks", "tokens.db-locks/schema"}


def test_a_creation_that_fails_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str, connection: Connection) -> None:
        driver_of(connection).execute("CREATE TABLE half (id INTEGER)")
        raise KeyError

    monkeypatch.setattr("tokenstore.storage.sqlite.schema.upgrade_to_head", fail)
    database = SQLiteDatabase(path)

    with pytest.raises(KeyError):
        database.run(lambda: None)

    assert names(path.parent) == {"tokens.db-locks", "tokens.db-locks/schema"}


@pytest.mark.slow
def test_a_process_killed_inside_a_transaction_loses_only_that(path: Path) -> None:
    with Process(
        """
repository = TokenRepository(sys.argv[1])
repository.save("before", tokens())
with repository.transaction():
    repository.save("inside", tokens())
    tell("inside")
    wait()
        """,
        path,
    ) as process:
        assert process.line() == "inside"
        process.kill()

    with TokenRepository(path) as repository:
        assert repository.load("before") == tokens()
        assert repository.load("inside") is None
        repository.save("after", tokens())
    assert is_sound(path)


# -- transactions ---------------------------------------------------------------------------------


def test_an_error_rolls_back_all_of_a_transaction(repository: TokenRepository) -> None:
    def save_and_fail() -> None:
        with repository.transaction():
            repository.save("bob", tokens())
            repository.delete("alice")
            raise KeyError

    with pytest.raises(KeyError):
        save_and_fail()

    assert [account.name for account in repository.accounts()] == ["alice"]


def test_a_nested_transaction_joins_the_outer_one(repository: TokenRepository) -> None:
    def save_and_fail() -> None:
        with repository.transaction():
            with repository.transaction():
                repository.save("bob", tokens())
            raise KeyError

    with pytest.raises(KeyError):
        save_and_fail()

    assert repository.load("bob") is None


def test_a_transaction_is_isolated(repository: TokenRepository, path: Path) -> None:
    with repository.transaction(), TokenRepository(path) as other:
        repository.save("bob", tokens())

        assert repository.load("bob") == tokens()
        assert other.load("bob") is None


def test_an_empty_transaction_creates_nothing(path: Path) -> None:
    with TokenRepository(path) as repository:
        with repository.transaction():
            pass

        assert repository.load("alice") is None
    assert not names(path.parent)


def test_a_write_outside_a_transaction_is_a_runtime_error(
    repository: TokenRepository,
) -> None:
    with pytest.raises(RuntimeError, match="transaction"):
        repository._database.execute(sql.DELETE, {"account_name": "alice"})

    assert repository.load("alice") == tokens()


def test_a_repository_can_be_used_after_close(repository: TokenRepository) -> None:
    repository.close()
    repository.close()

    assert repository.load("alice") == tokens()
    repository.save("bob", tokens())


def test_a_close_inside_a_transaction_ends_it_with_an_error(repository: TokenRepository) -> None:
    def close_inside() -> None:
        with repository.transaction():
            repository.save("bob", tokens())
            repository.close()

    with pytest.raises(StorageError, match="nothing of it was stored"):
        close_inside()

    assert [a.name for a in repository.accounts()] == ["alice"]


@pytest.mark.slow
def test_a_lock_of_another_process_ends_in_a_storage_error(
    path: Path, repository: TokenRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenstore.storage.sqlite.engine.BUSY_TIMEOUT", 0.05)
    repository.close()

    with (
        Process(
            """
with TokenRepository(sys.argv[1]) as repository, repository.transaction():
    tell("locked")
    wait()
            """,
            path,
        ) as other,
    ):
        assert other.line() == "locked"
        with pytest.raises(StorageError, match="locked by another process") as caught:
            repository.save("bob", tokens())
        assert caught.value.errno == errno.EBUSY
        assert repository.load("alice") == tokens()
        other.go()
        assert other.end() == 0

    repository.save("bob", tokens())
    assert repository.load("bob") == tokens()


def test_a_failed_statement_keeps_the_rest_of_its_transaction(
    repository: TokenRepository,
) -> None:
    database = repository._database
    wrong = CompiledStatement(accounts.insert())

    with database.transaction():
        repository.save("bob", tokens())
        with pytest.raises(StorageError, match="NOT NULL"):
            database.execute(wrong, dict.fromkeys(accounts.c.keys()))
        repository.save("carol", tokens())

    assert [a.name for a in repository.accounts()] == ["alice", "bob", "carol"]


# -- journal modes --------------------------------------------------------------------------------


def test_an_unknown_journal_mode_is_refused(path: Path) -> None:
    mode: Any = "off"

    with pytest.raises(ValueError, match="journal_mode"):
        TokenRepository(path, journal_mode=mode)


def test_delete_mode_changes_a_wal_database(path: Path) -> None:
    make_store(path)

    with TokenRepository(path, journal_mode="delete") as repository:
        assert repository.load("alice") == tokens()
        repository.save("bob", tokens())
        assert not path.with_name("tokens.db-wal").exists()

    assert journal_mode_of(path) == "delete"


def test_wal_mode_keeps_a_delete_mode_database(path: Path) -> None:
    make_store(path, journal_mode="delete")

    with TokenRepository(path) as repository:
        repository.save("bob", tokens())

    assert journal_mode_of(path) == "delete"


@pytest.mark.slow
def test_processes_can_change_the_journal_mode_concurrently(path: Path) -> None:
    make_store(path)

    printed = python(
        """
def work(number):
    with TokenRepository(sys.argv[1], journal_mode="delete") as repository:
        threads = [threading.Thread(target=repository.load, args=["alice"]) for _ in range(4)]
        for thread in threads:
            thread.start()
        repository.save(f"account-{number}", tokens())
        for thread in threads:
            thread.join()

tell(forked(8, work))
        """,
        path,
    )

    assert printed == str([0] * 8) + "\n"
    assert journal_mode_of(path) == "delete"


def test_a_journal_mode_that_cannot_be_set_is_a_storage_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenstore.storage.sqlite.connector._MODE_TIMEOUT", 0.05)
    make_store(path)

    with raw(path) as other:
        other.execute("SELECT * FROM accounts").fetchall()
        repository = TokenRepository(path, journal_mode="delete")
        with pytest.raises(StorageError, match="locked") as caught:
            repository.load("alice")

    assert caught.value.errno == errno.EBUSY
    assert repository.load("alice") == tokens()
    repository.close()


# -- schema ---------------------------------------------------------------------------------------


def set_revision(path: Path, revision: str | None) -> None:
    with raw(path) as connection:
        connection.execute(f"DELETE FROM {VERSION_TABLE}")
        if revision is not None:
            connection.execute(f"INSERT INTO {VERSION_TABLE} VALUES (?)", [revision])


@pytest.mark.parametrize("revision", [None, "0000"])
@pytest.mark.parametrize("use", ["load", "save", "delete", "accounts"])
def test_an_older_database_is_refused_with_the_command_to_run(
    path: Path, revision: str | None, use: str
) -> None:
    make_store(path)
    set_revision(path, revision)
    calls: dict[str, Callable[[TokenRepository], object]] = {
        "load": lambda repository: repository.load("alice"),
        "save": lambda repository: repository.save("alice", tokens(1)),
        "delete": lambda repository: repository.delete("alice"),
        "accounts": lambda repository: list(repository.accounts()),
    }

    with TokenRepository(path) as repository, pytest.raises(SchemaOutdatedError) as caught:
        calls[use](repository)

    assert "db upgrade" in str(caught.value)
    assert str(path) in str(caught.value)
    assert REVISION in str(caught.value)
    assert not list(path.parent.glob("*backup*"))


@pytest.mark.parametrize("upgrade", [False, True])
def test_a_newer_database_is_refused(path: Path, upgrade: bool) -> None:
    make_store(path)
    set_revision(path, "9999")

    with (
        TokenRepository(path, upgrade=upgrade) as repository,
        pytest.raises(SchemaTooNewError) as caught,
    ):
        repository.load("alice")

    assert "9999" in str(caught.value)
    assert REVISION in str(caught.value)
    assert caught.value.path == str(path)


UPGRADING = """
repository = TokenRepository(sys.argv[1], upgrade=True)
tell(repository.load("alice") == tokens(1))
tell(sorted(account.name for account in repository.accounts()))
repository.close()
"""


@pytest.mark.slow
def test_an_older_database_is_upgraded_after_a_private_backup(path: Path, tmp_path: Path) -> None:
    with TokenRepository(path) as repository:
        repository.save("alice", tokens(1))
        repository.save("bob", tokens())
    checkout = newer_checkout(tmp_path)

    printed = python(UPGRADING, path, env={**os.environ, "PYTHONPATH": str(checkout)}, umask=0)

    assert printed.splitlines() == ["True", "['alice', 'bob']"]
    [backup] = path.parent.glob(f"tokens.db-backup-{REVISION}-*")
    assert mode(backup) == 0o600
    with TokenRepository(backup) as copy:  # the backup has the old schema
        assert copy.load("bob") == tokens()
    with TokenRepository(path) as repository, pytest.raises(SchemaTooNewError):
        repository.load("alice")


def test_a_file_that_is_replaced_while_it_is_opened_is_not_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(path)
    make_store(path.with_name("other.db"))
    set_revision(path, "0000")

    def replace(_name: str, _connection: Connection) -> None:
        path.with_name("other.db").replace(path)

    monkeypatch.setattr("tokenstore.storage.sqlite.schema.upgrade_to_head", replace)
    database = SQLiteDatabase(path, upgrade=True)

    with pytest.raises(StorageError, match="removed or replaced"):
        database.fetch_one(sql.LOAD, {"account_name": "alice"})


@pytest.mark.slow
def test_processes_can_upgrade_a_database_concurrently(path: Path, tmp_path: Path) -> None:
    make_store(path)
    checkout = newer_checkout(tmp_path)

    printed = python(
        """
def work(number):
    with TokenRepository(sys.argv[1], upgrade=True) as repository:
        assert repository.load("alice")["access_token"] == "access-0"
        repository.save(f"account-{number}", tokens())

tell(forked(6, work))
        """,
        path,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )

    assert printed == str([0] * 6) + "\n"
    assert len(list(path.parent.glob("*-backup-*"))) == 1


@pytest.mark.slow
def test_without_upgrade_an_older_database_is_unchanged(path: Path, tmp_path: Path) -> None:
    make_store(path)
    checkout = newer_checkout(tmp_path)
    before = path.read_bytes()

    printed = python(
        """
try:
    TokenRepository(sys.argv[1]).load("alice")
except SchemaOutdatedError as error:
    tell("outdated")
        """,
        path,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )

    assert printed == "outdated\n"
    assert path.read_bytes() == before


# -- read-only ------------------------------------------------------------------------------------

READ_ONLY = """
path = Path(sys.argv[1])
become_nobody()
repository = TokenRepository(path, journal_mode=sys.argv[2], upgrade=True)
for _ in range(2):
    tell(repository.load("alice")["access_token"])
    tell([account.name for account in repository.accounts()])
for change in (
    lambda: repository.save("bob", tokens()),
    lambda: repository.delete("alice"),
):
    try:
        change()
        tell("changed")
    except StorageError as error:
        import errno
        tell(type(error).__name__, errno.errorcode[error.errno], str(os.getuid()) in str(error))
tell(repository.load("alice")["access_token"])
tell(repository.delete("nobody"))
repository.close()
migrate.current(path)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made_in", "opened_in", "file", "directory"),
    [
        ("wal", "wal", 0o400, 0o700),
        ("wal", "wal", 0o600, 0o500),
        ("wal", "wal", 0o400, 0o500),
        ("wal", "delete", 0o400, 0o700),
        ("wal", "delete", 0o400, 0o500),
        ("delete", "wal", 0o400, 0o500),
    ],
    ids=lambda given: f"{given:04o}" if isinstance(given, int) else given,
)
def test_a_read_only_database_can_be_read(
    open_directory: Path, made_in: JournalMode, opened_in: JournalMode, file: int, directory: int
) -> None:
    path = open_directory / "data" / "tokens.db"
    make_store(path, journal_mode=made_in)
    path.chmod(file)
    path.parent.chmod(directory)
    if os.geteuid() == 0:
        for changed in (path.parent, *path.parent.rglob("*")):
            os.chown(changed, 65534, 65534)

    printed = python(READ_ONLY, path, opened_in).splitlines()

    assert printed[:4] == ["access-0", "['alice']"] * 2
    assert printed[4:6] == ["StorageError EACCES True"] * 2
    assert printed[6:] == ["access-0", "False", f"{REVISION} (head)"]
    path.parent.chmod(0o700)


@pytest.mark.slow
def test_a_new_database_in_a_read_only_directory_is_a_storage_error(open_directory: Path) -> None:
    directory = open_directory / "data"
    directory.mkdir()
    directory.chmod(0o555)  # nor may its owner write
    printed = python(
        """
become_nobody()
repository = TokenRepository(sys.argv[1])
tell(repository.load("alice"))
try:
    repository.save("alice", tokens())
except StorageError as error:
    import errno
    tell(type(error).__name__, errno.errorcode[error.errno])
        """,
        directory / "tokens.db",
    )

    assert printed.splitlines() == ["None", "StorageError EACCES"]
    assert names(directory) == set()


# -- full disk ------------------------------------------------------------------------------------


def test_a_database_that_cannot_grow_keeps_its_content(path: Path) -> None:
    with TokenRepository(path) as repository:
        repository.save("alice", tokens())
        driver = driver_in_use(repository)
        pages = driver.execute("PRAGMA page_count").fetchone()[0]
        driver.execute(f"PRAGMA max_page_count = {pages}")

        with pytest.raises(StorageError, match="no space") as caught:
            repository.save("alice", tokens(1, padding="x" * 100_000))

        assert caught.value.errno == errno.ENOSPC
        assert repository.load("alice") == tokens()
        repository.save("alice", tokens(2))
        assert repository.load("alice") == tokens(2)


def test_an_error_of_sqlite_rolls_back_all_of_a_transaction(path: Path) -> None:
    def save_all(repository: TokenRepository) -> None:
        with repository.transaction():
            repository.save("bob", tokens())
            with pytest.raises(StorageError):
                repository.save("carol", tokens(padding="x" * 100_000))
            repository.save("dave", tokens())

    with TokenRepository(path) as repository:
        repository.save("alice", tokens())
        driver = driver_in_use(repository)
        driver.execute("PRAGMA max_page_count = 1")

        with pytest.raises(StorageError, match="ended this transaction"):
            save_all(repository)

        assert [account.name for account in repository.accounts()] == ["alice"]


@pytest.mark.slow
@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
def test_a_full_disk_is_an_error_and_keeps_the_old_row(
    path: Path, journal_mode: JournalMode
) -> None:
    printed = python(
        """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
repository = TokenRepository(sys.argv[1], journal_mode=sys.argv[2])
repository.save("alice", tokens())
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
try:
    repository.save("alice", tokens(1) | {"padding": "x" * 400_000})
    tell("saved")
except StorageError as error:
    tell(type(error).__name__, error.errno is not None)
tell(repository.load("alice") == tokens())
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
repository.save("alice", tokens(2))
tell(repository.load("alice") == tokens(2))
repository.close()
        """,
        path,
        journal_mode,
    )

    assert printed.splitlines() == ["StorageError True", "True", "True"]
    assert is_sound(path)


@pytest.mark.slow
def test_a_new_database_on_a_full_disk_is_an_error_and_leaves_nothing(path: Path) -> None:
    printed = python(
        """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
try:
    TokenRepository(sys.argv[1]).save("alice", tokens())
    tell("saved")
except StorageError as error:
    tell(type(error).__name__)
        """,
        path,
    )

    assert printed == "StorageError\n"
    assert names(path.parent) == {"tokens.db-locks", "tokens.db-locks/schema"}


NEARLY_FULL = """
from tests.helpers.broken_stores import fill, have_mounts_of_our_own, mount
from tests.helpers.refreshes import World
have_mounts_of_our_own()
directory, space, padding = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
mount(directory)
with World(directory) as world:
    old = world.sign_in(padding="x" * padding)
    manager = world.manager()
    fill(directory, space)
    for _ in range(2):
        try:
            manager.ensure_valid_token("alice")
            tell("refreshed", world.posts)
        except StorageError as error:
            tell(type(error).__name__, error.errno, world.posts)
    (directory / "filler").unlink()
    manager.ensure_valid_token("alice")
    tell(world.tokens()[1] != old["refresh_token"], world.posts, world.outcomes())
    manager.close()
"""


@pytest.mark.slow
@pytest.mark.needs("mount")
@pytest.mark.parametrize(
    ("space", "padding"), [(0, 0), (48 << 10, 5000), (64 << 10, 20_000), (250 << 10, 100_000)]
)
def test_nothing_is_sent_while_the_disk_has_no_room_for_the_outcome(
    tmp_path: Path, space: int, padding: int
) -> None:
    """R10: the begin would fit, and its token would be spent for nothing."""
    printed = python(NEARLY_FULL, tmp_path, space, padding)

    refused = f"StorageError {errno.ENOSPC} 0"
    assert printed.splitlines() == [refused, refused, "True 1 ['refreshed']"]


@pytest.mark.slow
@pytest.mark.needs("mount")
def test_a_little_more_than_the_room_for_the_outcome_is_enough(tmp_path: Path) -> None:
    """R10: what is proved is true: the row of 20 kB fits."""
    printed = python(NEARLY_FULL, tmp_path, (256 << 10) + 4 * 24_000, 20_000)

    assert printed.splitlines()[0] == "refreshed 1"


def test_a_failed_commit_is_an_error(path: Path) -> None:
    with TokenRepository(path, journal_mode="delete") as repository:
        repository.save("alice", tokens())
        with raw(path) as reader, pytest.MonkeyPatch.context() as patch:
            patch.setattr("tokenstore.storage.sqlite.engine.BUSY_TIMEOUT", 0.05)
            repository.close()
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM accounts").fetchall()  # keeps the file from changing
            with pytest.raises(StorageError, match="locked") as caught:
                repository.save("alice", tokens(1))
            reader.execute("ROLLBACK")

        assert caught.value.errno == errno.EBUSY
        assert repository.load("alice") == tokens()
        repository.save("alice", tokens(2))
        assert repository.load("alice") == tokens(2)


# -- the rest -------------------------------------------------------------------------------------


def test_migrate_upgrade_and_a_first_save_create_the_same_database(tmp_path: Path) -> None:
    migrate.upgrade(tmp_path / "migrated.db")
    make_store(tmp_path / "saved.db")

    def dump(path: Path) -> list[tuple[str, str]]:
        with raw(path) as connection:
            return connection.execute("SELECT name, sql FROM sqlite_master").fetchall()

    assert dump(tmp_path / "migrated.db") == dump(tmp_path / "saved.db")
    assert journal_mode_of(tmp_path / "migrated.db") == "wal"


def test_every_error_of_sqlite_is_a_storage_error(path: Path, repository: TokenRepository) -> None:
    with raw(path) as other:
        other.execute("DROP TABLE accounts")

    for call in (
        lambda: repository.load("alice"),
        lambda: repository.save("alice", tokens()),
        lambda: list(repository.accounts()),
    ):
        with pytest.raises(StorageError) as caught:
            call()
        assert not isinstance(caught.value, sqlite3.Error)


def test_a_reader_sees_complete_rows_while_other_threads_write(
    repository: TokenRepository,
) -> None:
    def write() -> None:
        for number in range(100):
            repository.save("alice", tokens(number))

    def read() -> bool:
        found = [repository.load("alice") or {} for _ in range(200)]
        return all(f["access_token"][7:] == f["refresh_token"][8:] for f in found)

    with ThreadPoolExecutor(3) as threads:
        writing = threads.submit(write)
        reading = [threads.submit(read) for _ in range(2)]
        writing.result(SOON)
        assert all(result.result(SOON) for result in reading)
