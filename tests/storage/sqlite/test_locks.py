from __future__ import annotations

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.helpers.refreshes import Call
from tests.helpers.requirements import needs_root
from tests.helpers.stores import NOBODY, SOON, Process, mode, modes, names, python
from tokenstore import InsecureStorageError, StorageError, TokenRepository
from tokenstore.storage.sqlite.locks import FileLocks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOLDER = """
from tokenstore.storage.sqlite.locks import FileLocks
with FileLocks(Path(sys.argv[1])).account("alice", timeout=30):
    tell("held")
    wait()
"""


@pytest.fixture
def locks(tmp_path: Path) -> FileLocks:
    return FileLocks(tmp_path / "locks")


def is_free(locks: FileLocks, account_name: str = "alice") -> bool:
    """Return whether the lock is held, as another thread sees it."""

    def ask() -> bool:
        try:
            with locks.account(account_name, timeout=0):
                return True
        except TimeoutError:
            return False

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(ask).result(SOON)


# -- holding --------------------------------------------------------------------------------------


def test_a_lock_is_held_inside_its_block_only(locks: FileLocks) -> None:
    with locks.account("alice", timeout=1):
        assert not is_free(locks)

    assert is_free(locks)


def test_an_error_inside_the_block_releases_the_lock(locks: FileLocks) -> None:
    with pytest.raises(KeyError), locks.account("alice", timeout=1):
        raise KeyError

    assert is_free(locks)


def test_accounts_do_not_wait_for_each_other(locks: FileLocks) -> None:
    with locks.account("alice", timeout=1):
        assert is_free(locks, "bob")


def test_two_objects_for_one_directory_share_their_locks(locks: FileLocks) -> None:
    with locks.account("alice", timeout=1):
        assert not is_free(FileLocks(locks.directory))


def test_threads_hold_a_lock_one_at_a_time(locks: FileLocks) -> None:
    inside, most, turns = 0, 0, 0

    def work(_: int) -> None:
        nonlocal inside, most, turns
        with locks.account("alice", timeout=SOON):
            inside += 1
            most = max(most, inside)
            turns += 1
            inside -= 1

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, range(160)))

    assert (most, turns) == (1, 160)


def test_processes_hold_a_lock_one_at_a_time(tmp_path: Path) -> None:
    printed = python(
        """
from tokenstore.storage.sqlite.locks import FileLocks
directory = Path(sys.argv[1])
counter = directory / "counter"
counter.write_text("0")
locks = FileLocks(directory / "locks")

def work(number):
    for _ in range(25):
        with locks.account("alice", timeout=30):
            found = int(counter.read_text())
            counter.write_text(str(found + 1))

assert forked(4, work) == [0] * 4
tell(counter.read_text())
        """,
        tmp_path,
    )

    assert printed == "100\n"


# -- waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0.0, 0.1])
def test_waiting_for_another_thread_times_out(locks: FileLocks, timeout: float) -> None:
    def ask() -> float:
        began = time.monotonic()
        with pytest.raises(TimeoutError), locks.account("alice", timeout=timeout):
            pass
        return time.monotonic() - began

    with ThreadPoolExecutor(1) as thread, locks.account("alice", timeout=1):
        assert timeout <= thread.submit(ask).result(SOON) < timeout + 2


@pytest.mark.parametrize("timeout", [0.0, 0.1])
def test_waiting_for_another_process_times_out(locks: FileLocks, timeout: float) -> None:
    with Process(HOLDER, locks.directory) as holder:
        assert holder.line() == "held"

        began = time.monotonic()
        with pytest.raises(TimeoutError), locks.account("alice", timeout=timeout):
            pass

        assert timeout <= time.monotonic() - began < timeout + 2


def test_a_waiter_gets_the_lock_when_the_holder_releases_it(locks: FileLocks) -> None:
    with Process(HOLDER, locks.directory) as holder, ThreadPoolExecutor(1) as thread:
        assert holder.line() == "held"
        began = threading.Event()

        def wait() -> None:
            began.set()
            with locks.account("alice", timeout=SOON):
                pass

        waiting = thread.submit(wait)
        began.wait(SOON)
        assert not waiting.done()
        holder.go()
        waiting.result(SOON)


# -- dying ----------------------------------------------------------------------------------------


def test_a_lock_is_released_when_its_holder_is_killed(locks: FileLocks) -> None:
    with Process(HOLDER, locks.directory) as holder:
        assert holder.line() == "held"
        assert not is_free(locks)

        holder.kill()

        assert is_free(locks)


@pytest.mark.parametrize("hours", [-4, 4])
def test_a_lock_does_not_depend_on_the_clock(locks: FileLocks, hours: int) -> None:
    with Process(HOLDER, locks.directory) as holder:
        assert holder.line() == "held"
        [file] = locks.directory.iterdir()
        moved = time.time() + hours * 3600
        os.utime(file, (moved, moved))

        assert not is_free(locks)
        holder.go()
        assert holder.end() == 0

        os.utime(file, (moved, moved))
        assert is_free(locks)


def test_the_content_of_a_lock_file_is_ignored(locks: FileLocks) -> None:
    with locks.account("alice", timeout=1):
        pass
    [file] = locks.directory.iterdir()
    file.write_text("pid 1, forever")

    assert is_free(locks)


# -- forking --------------------------------------------------------------------------------------

FORK = """
from tokenstore.storage.sqlite.locks import FileLocks
locks = FileLocks(Path(sys.argv[1]))

def is_free():
    result = []
    def ask():
        try:
            with locks.account("alice", timeout=0):
                result.append(True)
        except TimeoutError:
            result.append(False)
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return result[0]
"""


def test_a_child_forked_by_the_holder_finds_the_lock_held(tmp_path: Path) -> None:
    printed = python(
        FORK
        + """
with locks.account("alice", timeout=1):
    with locks.account("bob", timeout=1):
        child = os.fork()
        if not child:
            tell(is_free())
            with locks.account("carol", timeout=5):
                tell("other locks work")
            os._exit(0)
        os.waitpid(child, 0)
        """,
        tmp_path / "locks",
    )

    assert printed.splitlines() == ["False", "other locks work"]


def test_a_lock_held_by_another_thread_does_not_hang_the_child(tmp_path: Path) -> None:
    printed = python(
        FORK
        + """
held, end = threading.Event(), threading.Event()
def hold():
    with locks.account("alice", timeout=1):
        held.set()
        end.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
import warnings
warnings.simplefilter("ignore")
read, write = os.pipe()
asked, tell_asked = os.pipe()
child = os.fork()
if not child:
    os.close(write)
    tell(is_free())  # answers, though the thread that holds it is not in this process
    os.write(tell_asked, b".")
    os.read(read, 1)
    tell(is_free())
    os._exit(0)
os.read(asked, 1)
end.set()
thread.join()
os.close(write)
os.waitpid(child, 0)
        """,
        tmp_path / "locks",
    )

    assert printed.splitlines() == ["False", "True"]


def test_a_child_that_leaves_the_block_does_not_release_the_parents_lock(
    tmp_path: Path,
) -> None:
    printed = python(
        FORK
        + """
with locks.account("alice", timeout=1):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        tell(is_free())
if child:
    tell(is_free())
        """,
        tmp_path / "locks",
    )

    assert printed.splitlines() == ["False", "True"]


def test_a_running_child_does_not_keep_the_lock_of_a_killed_parent(locks: FileLocks) -> None:
    code = (
        FORK
        + """
with locks.account("alice", timeout=1):
    child = os.fork()
    if not child:
        wait()  # until the test ends
        os._exit(0)
    tell("held")
    os.waitpid(child, 0)
"""
    )

    with Process(code, locks.directory) as parent:
        assert parent.line() == "held"
        assert not is_free(locks)

        parent.kill()

        assert is_free(locks)


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=lambda umask: f"umask-{umask:03o}")
def test_lock_files_are_private_and_not_removed(tmp_path: Path, umask: int) -> None:
    python(
        """
from tokenstore.storage.sqlite.locks import FileLocks
locks = FileLocks(Path(sys.argv[1]))
for name in ("alice", "bob"):
    with locks.account(name, timeout=1):
        pass
with locks.schema(timeout=1):
    pass
        """,
        tmp_path / "locks",
        umask=umask,
    )

    found = modes(tmp_path)
    assert found.pop("locks") == 0o700
    assert len(found) == 3
    assert set(found.values()) == {0o600}


def test_a_lock_file_is_never_another_file(locks: FileLocks) -> None:
    def inodes() -> list[int]:
        return [file.stat().st_ino for file in locks.directory.iterdir()]

    with locks.account("alice", timeout=1):
        first = inodes()
    with locks.account("alice", timeout=1):
        assert inodes() == first
    assert inodes() == first


@pytest.mark.parametrize(
    "name",
    ["../../escape", "/etc/passwd", "a/b", "..", ".", "ä€😀", "x" * 512, " ", "schema"],
    ids=ascii,
)
def test_an_account_name_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    locks = FileLocks(tmp_path / "a" / "b" / "locks")
    locks.directory.parent.mkdir(parents=True)

    with locks.account(name, timeout=1), locks.schema(timeout=1):
        assert not is_free(locks, name)

    created = names(tmp_path) - {"a", "a/b", "a/b/locks", "a/b/locks/schema"}
    assert len(created) == 1
    assert {file.rpartition("/")[0] for file in created} == {"a/b/locks"}


def file_in_place(directory: Path) -> None:
    directory.write_text("")


def symlink_in_place(directory: Path) -> None:
    directory.with_name("elsewhere").mkdir()
    directory.symlink_to(directory.with_name("elsewhere"))


@pytest.mark.parametrize("make", [file_in_place, symlink_in_place], ids=lambda make: make.__name__)
def test_a_lock_directory_that_is_not_a_directory_is_refused(
    locks: FileLocks, make: Callable[[Path], None]
) -> None:
    make(locks.directory)

    with (
        pytest.raises(InsecureStorageError, match="not a directory of this user") as caught,
        locks.account("alice", timeout=1),
    ):
        pass

    assert caught.value.path == str(locks.directory)


def test_a_lock_directory_that_others_can_write_to_is_made_private(
    locks: FileLocks, caplog: pytest.LogCaptureFixture
) -> None:
    locks.directory.mkdir()
    locks.directory.chmod(0o777)

    with locks.account("alice", timeout=1):
        assert mode(locks.directory) == 0o700

    assert "was accessible to other users (mode 0777); fixed" in caplog.text


@needs_root
def test_a_lock_file_of_another_user_is_refused(locks: FileLocks) -> None:
    with locks.account("alice", timeout=1):
        pass
    [file] = locks.directory.iterdir()
    os.chown(file, NOBODY, NOBODY)

    with (
        pytest.raises(InsecureStorageError, match=f"belongs to uid {NOBODY}"),
        locks.account("alice", timeout=1),
    ):
        pass


@needs_root
def test_a_lock_directory_of_another_user_is_refused(locks: FileLocks) -> None:
    locks.directory.mkdir()
    os.chown(locks.directory, NOBODY, NOBODY)

    with pytest.raises(InsecureStorageError), locks.account("alice", timeout=1):
        pass


def test_a_missing_parent_is_a_storage_error(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path / "missing" / "locks")

    with pytest.raises(StorageError) as caught, locks.account("alice", timeout=1):
        pass

    assert caught.value.errno == errno.ENOENT


def test_a_directory_at_the_path_of_a_lock_file_is_a_storage_error(locks: FileLocks) -> None:
    with locks.account("alice", timeout=1):
        pass
    [file] = locks.directory.iterdir()
    file.unlink()
    file.mkdir()

    with (
        pytest.raises(InsecureStorageError, match="is not a regular file"),
        locks.account("alice", timeout=1),
    ):
        pass


def test_a_symlink_at_the_path_of_a_lock_file_is_not_followed(
    locks: FileLocks, tmp_path: Path
) -> None:
    with locks.account("alice", timeout=1):
        pass
    [file] = locks.directory.iterdir()
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")

    with (
        pytest.raises(InsecureStorageError, match="is a symlink"),
        locks.account("alice", timeout=1),
    ):
        pass

    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
def test_a_lock_in_an_unwritable_directory_is_a_storage_error() -> None:
    printed = python(
        """
import tempfile
from tokenstore.storage.sqlite.locks import FileLocks
directory = Path(tempfile.mkdtemp())
directory.chmod(0o555)
become_nobody()
try:
    with FileLocks(directory / "locks").account("alice", timeout=1):
        tell("held")
except StorageError as error:
    import errno
    tell(type(error).__name__, errno.errorcode[error.errno])
        """
    )

    assert printed == "StorageError EACCES\n"


def test_is_held_creates_nothing(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path / "locks")
    assert not locks.is_held("alice")
    assert not names(tmp_path)

    with locks.account("alice", timeout=1):
        before = names(tmp_path)
        assert locks.is_held("alice")
        assert Call(locks.is_held, "alice").result()
        assert not locks.is_held("bob")
        assert names(tmp_path) == before
    assert not locks.is_held("alice")
    with Process(
        """
with TokenRepository(sys.argv[1]).refresh_lock("alice", timeout=1):
    tell("held")
    wait()
        """,
        tmp_path / "tokens.db",
    ) as other:
        assert other.line() == "held"
        there = FileLocks(tmp_path / "tokens.db-locks")
        assert there.is_held("alice")
        other.kill()
        assert not there.is_held("alice")


def test_the_lock_directory_is_next_to_the_database(tmp_path: Path) -> None:
    repository = TokenRepository(tmp_path / "tokens.db")

    with repository.refresh_lock("alice", timeout=1):
        assert mode(tmp_path / "tokens.db-locks") == 0o700
    assert not (tmp_path / "tokens.db").exists()
