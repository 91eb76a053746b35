from __future__ import annotations

import gc
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.helpers.stores import SOON, open_files, python, tokens
from tokenstore import StorageError, TokenRepository
from tokenstore.storage.sqlite.database import SQLiteDatabase

if TYPE_CHECKING:
    from pathlib import Path

JOURNAL_MODES = ["wal", "delete"]


# -- threads --------------------------------------------------------------------------------------


def test_a_thread_keeps_its_connection(repository: TokenRepository, path: Path) -> None:
    repository.load("alice")
    before = open_files(path)

    for _ in range(20):
        repository.load("alice")

    assert open_files(path) == before


def test_threads_are_not_limited_by_a_pool(repository: TokenRepository) -> None:
    barrier = threading.Barrier(100)

    def work(number: int) -> int:
        repository.load("alice")
        barrier.wait(SOON)  # all 100 have a connection now
        for step in range(3):
            repository.save(f"{number}-{step}", tokens(number))
        return sum(repository.load(f"{number}-{step}") == tokens(number) for step in range(3))

    with ThreadPoolExecutor(100) as threads:
        assert sum(threads.map(work, range(100))) == 300
    assert len(list(repository.accounts())) == 301


@pytest.mark.slow
def test_the_connection_of_a_thread_that_ended_is_closed(
    repository: TokenRepository, path: Path
) -> None:
    def after_threads(count: int) -> int:
        for _ in range(count):
            thread = threading.Thread(target=repository.load, args=["alice"])
            thread.start()
            thread.join(SOON)
        gc.collect()
        return open_files(path)

    repository.load("alice")

    assert after_threads(10) == after_threads(1)


def test_no_finaliser_closes_a_connection(repository: TokenRepository) -> None:
    """R7: at any moment another thread may fork, and shares what is being closed."""
    database = repository._database
    assert isinstance(database, SQLiteDatabase)
    repository.load("alice")
    thread = threading.Thread(target=repository.load, args=["alice"])
    thread.start()
    thread.join(SOON)
    del thread
    gc.collect()

    [other] = database._connections._open - {database._connections._local.own.connection}
    driver = other.driver
    assert driver is not None
    driver.execute("SELECT 1")  # the thread is gone, its connection is not
    repository.load("alice")
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        driver.execute("SELECT 1")  # a use of the repository has closed it
    assert other not in database._connections._open


def test_the_connections_of_a_forgotten_repository_are_closed_with_the_next_use(
    path: Path, tmp_path: Path
) -> None:
    """R7: a repository is collected at any moment, too."""
    forgotten = TokenRepository(path)
    forgotten.save("alice", tokens())
    there = open_files(path)
    del forgotten
    gc.collect()

    assert open_files(path) == there > 0
    with TokenRepository(tmp_path / "other.db") as other:
        other.load("alice")
    assert open_files(path) == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ended threads", "closed", "forgotten", "open at exit"])
def test_no_connection_causes_a_resource_warning(tmp_path: Path, how: str) -> None:
    printed = python(
        """
import gc
repository = TokenRepository(sys.argv[1])
repository.save("alice", tokens())
threads = [threading.Thread(target=repository.load, args=["alice"]) for _ in range(5)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if sys.argv[2] == "closed":
    repository.close()
if sys.argv[2] == "forgotten":
    del repository
gc.collect()
if sys.argv[2] == "ended threads":
    repository.close()
tell("done")
        """,
        tmp_path / "tokens.db",
        how,
    )  # with -W error, a ResourceWarning would be on stderr

    assert printed == "done\n"


def test_close_waits_for_a_transaction_of_another_thread(repository: TokenRepository) -> None:
    inside, finish = threading.Event(), threading.Event()

    def work() -> None:
        with repository.transaction():
            repository.save("bob", tokens())
            inside.set()
            finish.wait(SOON)
            repository.save("carol", tokens())

    with ThreadPoolExecutor(2) as threads:
        working = threads.submit(work)
        inside.wait(SOON)
        closing = threads.submit(repository.close)
        assert not closing.done()
        finish.set()
        working.result(SOON)
        closing.result(SOON)

    assert {account.name for account in repository.accounts()} == {"alice", "bob", "carol"}


def test_close_closes_the_descriptors_of_all_threads(
    repository: TokenRepository, path: Path
) -> None:
    with ThreadPoolExecutor(5) as threads:
        barrier = threading.Barrier(5)

        def work(_: int) -> None:
            repository.load("alice")
            barrier.wait(SOON)

        list(threads.map(work, range(5)))
        assert open_files(path) > 0
        repository.close()
        assert open_files(path) == 0
        assert threads.submit(repository.load, "alice").result() == tokens()


def test_threads_write_one_at_a_time(repository: TokenRepository) -> None:
    inside = 0
    most = 0

    def work(number: int) -> None:
        nonlocal inside, most
        with repository.transaction():
            inside += 1
            most = max(most, inside)
            repository.save("alice", tokens(number))
            inside -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(80)))

    assert most == 1


def test_a_reader_does_not_wait_for_a_writer(repository: TokenRepository) -> None:
    with ThreadPoolExecutor(1) as threads, repository.transaction():
        repository.save("alice", tokens(2))

        assert threads.submit(repository.load, "alice").result(SOON) == tokens()
    assert repository.load("alice") == tokens(2)


def test_writing_through_a_second_repository_inside_a_transaction_fails_at_once(
    repository: TokenRepository, path: Path
) -> None:
    with TokenRepository(path) as other, repository.transaction():
        repository.save("bob", tokens())
        assert other.load("alice") == tokens()
        began = time.monotonic()
        with pytest.raises(StorageError, match="inside a transaction"):
            other.save("carol", tokens())
        assert time.monotonic() - began < 5

    assert repository.load("bob") == tokens()
    assert repository.load("carol") is None


def test_waiting_for_another_thread_ends_in_a_storage_error(
    repository: TokenRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenstore.storage.sqlite.connections.BUSY_TIMEOUT", 0.05)

    with (
        ThreadPoolExecutor(1) as threads,
        repository.transaction(),
        pytest.raises(StorageError, match="another thread's transaction"),
    ):
        threads.submit(repository.save, "bob", tokens()).result(SOON)

    repository.save("bob", tokens())
    assert repository.load("bob") == tokens()


# -- fork -----------------------------------------------------------------------------------------

BOTH_WRITE = """
path, journal_mode = sys.argv[1:]
repository = TokenRepository(path, journal_mode=journal_mode)
repository.save("before", tokens())

def write(who):
    for number in range(200):
        repository.save(f"{who}-{number}", tokens(number))

def check(child):
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    found = {account.name for account in repository.accounts()}
    expected = {f"{who}-{number}" for who in ("parent", "child") for number in range(200)}
    assert expected <= found, sorted(expected - found)
    import sqlite3
    connection = sqlite3.connect(path)
    tell(connection.execute("PRAGMA integrity_check").fetchone()[0])
    connection.close()
    repository.close()

def fork():
    '''Fork; the child writes and ends.'''
    child = os.fork()
    if not child:
        try:
            write("child")
        except BaseException as error:
            tell("child", type(error).__name__, error)
            os._exit(1)
        os._exit(0)
    return child
"""


@pytest.mark.slow
@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
def test_parent_and_child_write_after_a_fork_with_idle_threads(
    path: Path, journal_mode: str
) -> None:
    printed = python(
        BOTH_WRITE
        + """
loaded, end = threading.Barrier(4), threading.Event()
def idle():
    repository.load("before")
    loaded.wait()
    end.wait()
threads = [threading.Thread(target=idle) for _ in range(3)]
for thread in threads:
    thread.start()
loaded.wait()
import warnings
warnings.simplefilter("ignore")  # that there are threads is the point
child = fork()
write("parent")
end.set()
for thread in threads:
    thread.join()
check(child)
        """,
        path,
        journal_mode,
    )

    assert printed == "ok\n"


@pytest.mark.slow
@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
def test_parent_and_child_write_after_a_fork_with_busy_threads(
    path: Path, journal_mode: str
) -> None:
    printed = python(
        BOTH_WRITE
        + """
end = threading.Event()
written = [[], [], []]
began = threading.Barrier(4)
def busy(number):
    began.wait()
    while not end.is_set():
        name = f"busy-{number}-{len(written[number])}"
        with repository.transaction():
            repository.save(name, tokens())
            repository.load("before")
        written[number].append(name)
threads = [threading.Thread(target=busy, args=[number]) for number in range(3)]
for thread in threads:
    thread.start()
began.wait()
import warnings
warnings.simplefilter("ignore")
child = fork()
write("parent")
end.set()
for thread in threads:
    thread.join()
names = {account.name for account in repository.accounts()}
assert {name for names in written for name in names} <= names
check(child)
        """,
        path,
        journal_mode,
    )

    assert printed == "ok\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("journal_mode", "then"),
    [("wal", 'repository.save("inside-2", tokens(2))'), ("delete", "pass")],
    ids=["wal-then-save", "delete-then-commit"],
)
def test_a_fork_inside_a_transaction_ends_it_with_an_error(
    path: Path, journal_mode: str, then: str
) -> None:
    printed = python(
        BOTH_WRITE
        + f"""
try:
    with repository.transaction():
        repository.save("inside-1", tokens(1))
        child = fork()
        {then}
except StorageError as error:
    assert "nothing of it was stored" in str(error)
else:
    raise AssertionError
write("parent")
assert repository.load("inside-1") is None
assert repository.load("inside-2") is None
check(child)
        """,
        path,
        journal_mode,
    )

    assert printed == "ok\n"


@pytest.mark.slow
def test_a_child_forked_inside_a_transaction_stores_nothing(path: Path) -> None:
    printed = python(
        BOTH_WRITE
        + """
read, release = os.pipe()
try:
    with repository.transaction():
        repository.delete("before")
        child = os.fork()
        if not child:
            repository.close()
except StorageError:
    assert child
if not child:
    assert repository.load("child") is None
    os.close(release)
    os.read(read, 1)
    write("child")
    sys.exit()
os.close(release)
assert repository.load("before") == tokens()
write("parent")
check(child)
        """,
        path,
        "delete",
    )

    assert printed == "ok\n"


@pytest.mark.slow
def test_a_parent_that_fails_after_a_fork_inside_a_transaction_stores_nothing(path: Path) -> None:
    printed = python(
        BOTH_WRITE
        + """
try:
    with repository.transaction():
        repository.save("inside", tokens())
        child = fork()
        raise KeyError
except KeyError:
    pass
write("parent")
assert repository.load("inside") is None
check(child)
        """,
        path,
        "wal",
    )

    assert printed == "ok\n"


@pytest.mark.slow
def test_a_fork_does_not_wait_for_a_thread_that_waits_for_another_database(path: Path) -> None:
    printed = python(
        BOTH_WRITE
        + """
other = TokenRepository(path + "-other")
other.save("x", tokens())
inside = threading.Event()

def copy():
    with repository.transaction():
        inside.set()
        for number in range(200):
            repository.save(f"copied-{number}", other.load("x"))
            other.save(f"y-{number}", tokens())

thread = threading.Thread(target=copy)
thread.start()
inside.wait()
import warnings
warnings.simplefilter("ignore")
child = fork()
write("parent")
thread.join()
other.close()
check(child)
        """,
        path,
        "wal",
    )

    assert printed == "ok\n"


@pytest.mark.slow
@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
def test_a_fork_while_another_thread_ends_loses_no_write(path: Path, journal_mode: str) -> None:
    """R7: each round forks while threads end, repositories are dropped and rows are written."""
    printed = python(
        """
import gc, warnings
warnings.simplefilter("ignore")  # that there are threads is the point
path, journal_mode = sys.argv[1:]
repository = TokenRepository(path, journal_mode=journal_mode)
repository.save("before", tokens())
sys.setswitchinterval(1e-5)

def visit(barrier, number):
    name = f"thread-{number}"
    barrier.wait()
    if number % 2:
        TokenRepository(path, journal_mode=journal_mode).save(name, tokens())
    else:
        repository.save(name, tokens())
    written.append(name)

written = []
for round in range(40):
    barrier = threading.Barrier(5)
    threads = [
        threading.Thread(target=visit, args=[barrier, 4 * round + number]) for number in range(4)
    ]
    for thread in threads:
        thread.start()
    barrier.wait()
    child = os.fork()
    if not child:
        try:
            gc.collect()
            repository.save(f"child-{round}", tokens())
        except BaseException as error:
            tell("child", type(error).__name__, error)
            os._exit(1)
        os._exit(0)
    repository.save(f"parent-{round}", tokens())
    del threads, thread
    gc.collect()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    written += [f"child-{round}", f"parent-{round}"]
    while threading.active_count() > 1:
        for thread in threading.enumerate():
            if thread is not threading.main_thread():
                thread.join()
found = {account.name for account in repository.accounts()}
tell(sorted(set(written) - found), len(written))
import sqlite3
connection = sqlite3.connect(path)
tell(connection.execute("PRAGMA integrity_check").fetchone()[0])
connection.close()
repository.close()
        """,
        path,
        journal_mode,
    )

    assert printed.splitlines() == ["[] 240", "ok"]


@pytest.mark.slow
def test_a_grandchild_can_write(path: Path) -> None:
    printed = python(
        BOTH_WRITE
        + """
child = os.fork()
if not child:
    repository.load("before")
    grandchild = fork()
    os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
write("parent")
check(child)
        """,
        path,
        "wal",
    )

    assert printed == "ok\n"


@pytest.mark.slow
def test_a_child_inherits_no_descriptor_of_the_database(path: Path) -> None:
    printed = python(
        BOTH_WRITE
        + """
child = os.fork()
if not child:
    targets = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
               if os.path.exists(f"/proc/self/fd/{fd}")]
    tell([target for target in targets if target.startswith(path)])
    os._exit(0)
os.waitpid(child, 0)
repository.close()
        """,
        path,
        "wal",
    )

    assert printed == "[]\n"


@pytest.mark.slow
def test_a_fork_waits_for_a_migration_of_another_thread(path: Path) -> None:
    printed = python(
        BOTH_WRITE
        + """
from tokenstore.storage.sqlite.database import SQLiteDatabase
inside, forked = threading.Event(), threading.Event()

def change():
    with SQLiteDatabase(Path(path)).migration() as connection:
        inside.set()
        forked.wait(0.3)  # in vain, as the fork waits for the end of this


thread = threading.Thread(target=change)
thread.start()
inside.wait()
import warnings
warnings.simplefilter("ignore")
child = fork()
forked.set()
write("parent")
thread.join()
check(child)
        """,
        path,
        "delete",
    )

    assert printed == "ok\n"
