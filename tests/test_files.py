"""Files that appear whole or not at all, whenever their writer dies."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.helpers.refreshes import Call
from tests.helpers.stores import NOBODY, Process, mode, names, python
from tokenstore.files import atomic_write, create_temporary, has_writers, leftovers, writer_lock

if TYPE_CHECKING:
    from pathlib import Path


def everything(_: str) -> bool:
    return True


# -- one file -------------------------------------------------------------------------------------


def test_a_new_version_appears_at_the_end_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as new:
        new.write_text("new")
        assert path.read_text() == "old"

    assert path.read_text() == "new"
    assert names(tmp_path) == {"file"}


def test_it_is_private_from_its_first_moment(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with atomic_write(tmp_path / "file") as new:
            assert (mode(new), new.read_bytes()) == (0o600, b"")
    finally:
        os.umask(before)

    assert mode(tmp_path / "file") == 0o600


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_after_an_error_the_old_version_is_there(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "file").write_text("old")

    def fail() -> None:
        with atomic_write(tmp_path / "file") as new:
            new.write_text("half")
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


def test_whoever_reads_the_old_version_reads_on(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader:
        with atomic_write(path) as new:
            new.write_text("new")

        assert reader.read() == "old"


def test_a_symlink_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    (tmp_path / "file").symlink_to("other")

    with atomic_write(tmp_path / "file") as new:
        new.write_text("new")

    assert (tmp_path / "other").read_text() == "mine"
    assert not (tmp_path / "file").is_symlink()


def test_two_new_versions_do_not_meet(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file") as first, atomic_write(tmp_path / "file") as second:
        first.write_text("first")
        second.write_text("second")

    assert (tmp_path / "file").read_text() == "first"
    assert names(tmp_path) == {"file"}


KILLED = """
import sys
from tokenstore.files import atomic_write, writer_lock
path, step = Path(sys.argv[1]), int(sys.argv[2])
calls = 0

def trace(frame, event, argument):
    # Dies at the given one of all calls into the operating system on the way.
    global calls
    if event == "c_call" and argument.__module__ in {"posix", "_io", "fcntl"}:
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)

sys.setprofile(trace)
with writer_lock(path.parent, lambda name: True), atomic_write(path) as new:
    new.write_text("new" * 1000)
sys.setprofile(None)
tell(calls)
"""


def test_a_writer_may_be_killed_at_every_step(tmp_path: Path) -> None:
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

    assert printed.splitlines() == ["True True True"] * steps  # and each sweeps up after the last
    with writer_lock(tmp_path, everything):
        assert names(tmp_path) == {"file"}


# -- a directory ----------------------------------------------------------------------------------


def test_what_the_killed_have_left_is_swept_away(tmp_path: Path) -> None:
    mine = create_temporary(tmp_path / "mine")
    for suffix in ("-journal", "-wal", "-shm"):
        mine.with_name(mine.name + suffix).write_text("secret")
    kept = {
        create_temporary(tmp_path / "other").name,
        ".mine.tmp",
        ".mine.0123456789ABCDEF.tmp",
        ".mine.0123456789abcdef.tmp.gpg",
        "mine.0123456789abcdef.tmp",
        ".0123456789abcdef.tmp",
    }
    for name in kept:
        (tmp_path / name).write_text("kept")

    with writer_lock(tmp_path, "mine".__eq__):
        assert names(tmp_path) == kept


def test_names_with_dots_and_spaces_are_known_again(tmp_path: Path) -> None:
    name = "a b.c.0123456789abcdef.tmp.d"
    left = create_temporary(tmp_path / name)

    assert list(leftovers(tmp_path, name.__eq__)) == [left]


def test_a_symlink_that_looks_like_a_leftover_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    (tmp_path / ".mine.0123456789abcdef.tmp").symlink_to("other")

    with writer_lock(tmp_path, everything):
        assert names(tmp_path) == {"other"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_leftover_of_another_user_is_left_alone(tmp_path: Path) -> None:
    theirs = create_temporary(tmp_path / "file")
    os.chown(theirs, NOBODY, NOBODY)

    with writer_lock(tmp_path, everything):
        assert theirs.exists()
    assert not list(leftovers(tmp_path, everything))


def test_a_directory_among_them_stays(tmp_path: Path) -> None:
    (tmp_path / ".mine.0123456789abcdef.tmp").mkdir()

    with writer_lock(tmp_path, everything):
        assert names(tmp_path) == {".mine.0123456789abcdef.tmp"}


WRITING = """
from tokenstore.files import create_temporary, writer_lock
directory = Path(sys.argv[1])
with writer_lock(directory, lambda name: True):
    create_temporary(directory / "file")
    tell("writing")
    wait()
"""


def test_nothing_is_swept_away_from_somebody_at_work(tmp_path: Path) -> None:
    with Process(WRITING, tmp_path) as first:
        assert first.line() == "writing"
        with Process(WRITING, tmp_path) as second:
            assert second.line() == "writing"
            with writer_lock(tmp_path, everything):
                assert len(names(tmp_path)) == 2
            first.kill()
            with writer_lock(tmp_path, everything):  # one is still at work: whose is which?
                assert len(names(tmp_path)) == 2
            second.kill()
    with writer_lock(tmp_path, everything):
        assert not names(tmp_path)


def test_threads_are_told_apart_too(tmp_path: Path) -> None:
    with writer_lock(tmp_path, everything):
        create_temporary(tmp_path / "file")

        def write() -> int:
            with writer_lock(tmp_path, everything):
                return len(names(tmp_path))

        assert Call(write).result() == 1


def test_somebody_who_writes_is_noticed(tmp_path: Path) -> None:
    assert not has_writers(tmp_path)
    with Process(WRITING, tmp_path) as other:
        assert other.line() == "writing"
        assert has_writers(tmp_path)
        other.kill()
    assert not has_writers(tmp_path)
    with writer_lock(tmp_path, everything):
        assert has_writers(tmp_path)
    assert not has_writers(tmp_path)


def test_a_lock_of_a_stranger_is_waited_for_and_nothing_swept(tmp_path: Path) -> None:
    """Somebody else's program holds the directory: writing waits for it, as flock does."""
    create_temporary(tmp_path / "file")
    with Process(
        """
import fcntl
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
tell("held")
wait()
        """,
        tmp_path,
    ) as stranger:
        assert stranger.line() == "held"

        def write() -> int:
            with writer_lock(tmp_path, everything):
                return len(names(tmp_path))

        call = Call(write)
        stranger.go()
        assert call.result() == 1


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    for use in (has_writers, lambda path: writer_lock(path, everything).__enter__()):
        with pytest.raises(FileNotFoundError):
            use(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        has_writers(tmp_path / "file")


def test_where_there_are_no_such_locks_nothing_is_swept_and_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_: int, __: int) -> None:
        raise OSError(95, "Operation not supported")  # as some network file systems do

    monkeypatch.setattr("tokenstore.files.flock", no_locks)
    left = create_temporary(tmp_path / "file")

    with writer_lock(tmp_path, everything), atomic_write(tmp_path / "file") as new:
        new.write_text("new")

    assert (tmp_path / "file").read_text() == "new"
    assert left.exists()
    assert not has_writers(tmp_path)
