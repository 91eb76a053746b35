"""Files are replaced atomically, even if the writer is killed."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from tests.helpers.refreshes import Call
from tests.helpers.requirements import needs_root
from tests.helpers.stores import NOBODY, Process, mode, names, python
from tokenstore import InsecureStorageError
from tokenstore.files import (
    atomic_write,
    create_temporary,
    has_writers,
    leftovers,
    make_private_directory,
    private_build,
    publish,
    writer_lock,
)


def everything(_: str) -> bool:
    return True


# -- one file -------------------------------------------------------------------------------------


def test_a_file_is_replaced_at_the_end_and_completely(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as new:
        new.write(b"new")
        assert path.read_text() == "old"

    assert path.read_text() == "new"
    assert names(tmp_path) == {"file"}


def test_it_is_private_from_the_start(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with atomic_write(tmp_path / "file") as new:
            found = os.fstat(new.fileno())
            assert (stat.S_IMODE(found.st_mode), found.st_size) == (0o600, 0)
    finally:
        os.umask(before)

    assert mode(tmp_path / "file") == 0o600


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_after_an_error_the_file_is_unchanged(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "file").write_text("old")

    def fail() -> None:
        with atomic_write(tmp_path / "file") as new:
            new.write(b"half")
            raise error

    with pytest.raises(error):
        fail()

    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == {"file"}


def test_a_directory_is_not_replaced_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()

    with pytest.raises(OSError), atomic_write(tmp_path / "file"):  # noqa: PT011 - any
        pass

    assert names(tmp_path) == {"file"}


def test_an_open_reader_continues_with_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader:
        with atomic_write(path) as new:
            new.write(b"new")

        assert reader.read() == "old"


def test_a_symlink_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("ours")
    (tmp_path / "file").symlink_to("other")

    with atomic_write(tmp_path / "file") as new:
        new.write(b"new")

    assert (tmp_path / "other").read_text() == "ours"
    assert not (tmp_path / "file").is_symlink()


def swap(path: Path) -> Path:
    """Put another file in the place of the temporary file of *path*; return it."""
    [temporary] = path.parent.glob(".*.tmp")
    (other := path.parent / "other").touch(0o666)
    return other.replace(temporary)


def test_content_never_goes_to_a_file_that_took_the_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    found = []

    def write() -> None:
        with atomic_write(path) as new:
            other = swap(path)
            (keep := tmp_path / "keep").hardlink_to(other)
            found.append(keep)
            new.write(b"CANARY")

    with pytest.raises(InsecureStorageError, match="was replaced while it was written"):
        write()

    assert path.read_text() == "old"
    assert found[0].read_bytes() == b""
    assert names(tmp_path) == {"file", "keep"}


@needs_root
def test_a_build_that_another_user_replaced_is_an_error(tmp_path: Path) -> None:
    rename = Path.replace

    def replace(self: Path, target: Path) -> Path:
        done = rename(self, target)
        os.chown(target, NOBODY, NOBODY)  # as if it were another user's
        return done

    def build() -> None:
        with private_build(tmp_path / "file") as new, pytest.MonkeyPatch.context() as patch:
            assert (mode(new), mode(new.parent)) == (0o600, 0o700)
            patch.setattr(Path, "replace", replace)
            publish(new, tmp_path / "file")

    with pytest.raises(InsecureStorageError, match="was replaced while it was written"):
        build()
    assert names(tmp_path) == {"file"}


def test_another_writer_of_this_user_may_be_faster(tmp_path: Path) -> None:
    """Two exports to one directory: the last file stays, and both have succeeded."""
    path = tmp_path / "file"
    rename = Path.replace

    def replace(self: Path, target: Path) -> Path:
        done = rename(self, target)
        target.unlink()
        target.write_text("other")
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with atomic_write(path) as new:
            new.write(b"ours")

    assert path.read_text() == "other"


def test_a_build_that_is_not_published_leaves_nothing(tmp_path: Path) -> None:
    with private_build(tmp_path / "file") as new:
        new.with_name("x-wal").touch()

    assert names(tmp_path) == set()


def test_concurrent_writes_do_not_collide(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file") as first, atomic_write(tmp_path / "file") as second:
        first.write(b"first")
        second.write(b"second")

    assert (tmp_path / "file").read_text() == "first"
    assert names(tmp_path) == {"file"}


KILLED = """
import sys
from tokenstore.files import atomic_write, writer_lock
path, step = Path(sys.argv[1]), int(sys.argv[2])
calls = 0

def trace(frame, event, argument):
    # Kills the process at the given call into the operating system.
    global calls
    if event == "c_call" and argument.__module__ in {"posix", "_io", "fcntl"}:
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)

sys.setprofile(trace)
with writer_lock(path.parent, lambda name: True), atomic_write(path) as new:
    new.write(b"new" * 1000)
sys.setprofile(None)
tell(calls)
"""


def test_a_writer_may_be_killed_at_every_call(tmp_path: Path) -> None:
    path = tmp_path / "file"
    steps = int(python(KILLED, path, 0))
    assert steps > 10
    printed = python(
        """
path = Path(sys.argv[1])
for step in range(1, int(sys.argv[2]) + 1):
    path.write_text("old")
    child = os.fork()
    if not child:
        sys.argv[2] = step
        exec(sys.argv[3])
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    tell(killed, path.read_text() in {"old", "new" * 1000}, len(list(path.parent.iterdir())) <= 2)
        """,
        path,
        steps,
        KILLED,
    )

    assert (
        printed.splitlines() == ["True True True"] * steps
    )  # and each deletes the leftovers of the last
    with writer_lock(tmp_path, everything):
        assert names(tmp_path) == {"file"}


# -- a directory ----------------------------------------------------------------------------------


def test_missing_directories_are_made_private(tmp_path: Path) -> None:
    make_private_directory(tmp_path / "a" / "b")

    assert (mode(tmp_path / "a"), mode(tmp_path / "a" / "b")) == (0o700, 0o700)


def test_nothing_is_made_in_a_directory_that_others_can_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    with pytest.raises(InsecureStorageError, match="chmod go-w"):
        make_private_directory(tmp_path / "a" / "b")

    assert names(tmp_path) == set()


def test_leftovers_of_killed_writers_are_deleted(tmp_path: Path) -> None:
    leftover = create_temporary(tmp_path / "ours")
    with private_build(tmp_path / "ours") as build:
        shutil.copytree(build.parent, tmp_path / ".ours.0123456789abcdef.tmp")
    (tmp_path / ".ours.0123456789abcdef.tmp" / "x-wal").write_text("secret")
    leftover.write_text("secret")
    kept = {
        create_temporary(tmp_path / "other").name,
        ".ours.tmp",
        ".ours.0123456789ABCDEF.tmp",
        ".ours.0123456789abcdef.tmp.gpg",
        "ours.0123456789abcdef.tmp",
        ".0123456789abcdef.tmp",
    }
    for name in kept:
        (tmp_path / name).write_text("kept")

    with writer_lock(tmp_path, "ours".__eq__):
        assert names(tmp_path) == kept


def test_leftovers_of_names_with_dots_and_spaces_are_recognised(tmp_path: Path) -> None:
    name = "a b.c.0123456789abcdef.tmp.d"
    left = create_temporary(tmp_path / name)

    assert list(leftovers(tmp_path, name.__eq__)) == [left]


def test_a_symlink_named_like_a_leftover_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("ours")
    (tmp_path / ".ours.0123456789abcdef.tmp").symlink_to("other")

    with writer_lock(tmp_path, everything):
        assert names(tmp_path) == {"other"}


@needs_root
def test_the_leftover_of_another_user_is_kept(tmp_path: Path) -> None:
    theirs = create_temporary(tmp_path / "file")
    os.chown(theirs, NOBODY, NOBODY)

    with writer_lock(tmp_path, everything):
        assert theirs.exists()
    assert not list(leftovers(tmp_path, everything))


def test_a_directory_with_more_than_a_build_is_kept(tmp_path: Path) -> None:
    name = ".ours.0123456789abcdef.tmp"
    (tmp_path / name / "data").mkdir(parents=True)

    with writer_lock(tmp_path, everything):
        assert names(tmp_path) == {name, f"{name}/data"}


WRITING = """
from tokenstore.files import create_temporary, writer_lock
directory = Path(sys.argv[1])
with writer_lock(directory, lambda name: True):
    create_temporary(directory / "file")
    tell("writing")
    wait()
"""


def test_nothing_is_deleted_while_a_writer_is_active(tmp_path: Path) -> None:
    with Process(WRITING, tmp_path) as first:
        assert first.line() == "writing"
        with Process(WRITING, tmp_path) as second:
            assert second.line() == "writing"
            with writer_lock(tmp_path, everything):
                assert len(names(tmp_path)) == 2
            first.kill()
            with writer_lock(
                tmp_path, everything
            ):  # one writer is still active, and its file unknown
                assert len(names(tmp_path)) == 2
            second.kill()
    with writer_lock(tmp_path, everything):
        assert not names(tmp_path)


def test_threads_are_separate_writers(tmp_path: Path) -> None:
    with writer_lock(tmp_path, everything):
        create_temporary(tmp_path / "file")

        def write() -> int:
            with writer_lock(tmp_path, everything):
                return len(names(tmp_path))

        assert Call(write).result() == 1


def test_an_active_writer_is_noticed(tmp_path: Path) -> None:
    assert not has_writers(tmp_path)
    with Process(WRITING, tmp_path) as other:
        assert other.line() == "writing"
        assert has_writers(tmp_path)
        other.kill()
    assert not has_writers(tmp_path)
    with writer_lock(tmp_path, everything):
        assert has_writers(tmp_path)
    assert not has_writers(tmp_path)


def test_a_lock_of_another_program_is_waited_for(tmp_path: Path) -> None:
    """Another program locks the directory: writing waits, as flock does, and deletes nothing."""
    create_temporary(tmp_path / "file")
    with Process(
        """
import fcntl
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
tell("held")
wait()
        """,
        tmp_path,
    ) as other:
        assert other.line() == "held"

        def write() -> int:
            with writer_lock(tmp_path, everything):
                return len(names(tmp_path))

        call = Call(write)
        other.go()
        assert call.result() == 1


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    for use in (has_writers, lambda path: writer_lock(path, everything).__enter__()):
        with pytest.raises(FileNotFoundError):
            use(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        has_writers(tmp_path / "file")


def test_without_file_locks_files_are_written_and_nothing_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_: int, __: int) -> None:
        raise OSError(95, "Operation not supported")  # as some network file systems do

    monkeypatch.setattr("tokenstore.files.flock", no_locks)
    left = create_temporary(tmp_path / "file")

    with writer_lock(tmp_path, everything), atomic_write(tmp_path / "file") as new:
        new.write(b"new")

    assert (tmp_path / "file").read_text() == "new"
    assert left.exists()
    assert not has_writers(tmp_path)
