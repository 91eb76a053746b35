"""Which files and directories are refused, and what the error says."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.helpers.refreshes import Call
from tests.helpers.requirements import let_write, needs_acl, needs_mount, needs_root
from tests.helpers.stores import NOBODY, command, mode, python
from tokenstore import InsecureStorageError
from tokenstore.trust import first_mount_point, read_trusted, require_safe_directory, weakness_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = b"CANARY"
LIMIT = 1 << 10


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    return path


def refused(path: Path, *, private: bool = False) -> str:
    """Return why a file is not read; it is not waited for."""
    call = Call(read_trusted, path, limit=LIMIT, private=private)
    error = call.error()
    assert isinstance(error, InsecureStorageError)
    assert error.path == str(path)
    assert "CANARY" not in str(error)
    return str(error)


# -- files ----------------------------------------------------------------------------------------


def test_a_file_of_this_user_is_read(file: Path) -> None:
    content, found = read_trusted(file, limit=LIMIT, private=True)

    assert (content, found.st_ino) == (SECRET, file.stat().st_ino)


def symlink(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def linked(path: Path) -> None:
    path.with_name("other").hardlink_to(path)


def large(path: Path) -> None:
    path.write_bytes(SECRET * LIMIT)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (symlink, "is a symlink; use the path"),
        (dangling, "is a symlink; use the path"),
        (pipe, "is not a regular file"),
        (directory, "is not a regular file"),
        (linked, "has 2 names (hard links)"),
        (large, "has more than 1 KiB"),
        (lambda path: path.chmod(0o620), "can be changed by other users (mode 0620)"),
        (lambda path: path.chmod(0o602), "can be changed by other users (mode 0602)"),
    ],
    ids=["symlink", "dangling", "pipe", "directory", "linked", "large", "group", "others"],
)
def test_what_another_user_could_have_written_is_not_read(
    file: Path, change: Callable[[Path], None], said: str
) -> None:
    change(file)

    assert said in refused(file)


def test_the_error_names_the_command_that_helps(file: Path) -> None:
    file.chmod(0o666)
    subprocess.run(refused(file).rpartition("run: ")[2], shell=True, check=True)
    assert mode(file) == 0o644
    assert read_trusted(file, limit=LIMIT)[0] == SECRET

    subprocess.run(refused(file, private=True).rpartition("run: ")[2], shell=True, check=True)
    assert mode(file) == 0o600
    assert read_trusted(file, limit=LIMIT, private=True)[0] == SECRET

    linked(file)
    search = refused(file).rpartition(": ")[2]
    found = subprocess.run(search, shell=True, check=True, capture_output=True, text=True).stdout
    assert set(found.split()) == {str(file), str(file.with_name("other"))}


@needs_root
def test_the_file_of_another_user_is_not_read(file: Path) -> None:
    os.chown(file, NOBODY, NOBODY)

    assert f"belongs to uid {NOBODY}, not to this process's uid 0" in refused(file)


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_trusted(tmp_path / "missing", limit=LIMIT)


@needs_mount
def test_a_file_that_is_mounted_by_itself_is_told_from_others(tmp_path: Path) -> None:
    code = """
import subprocess
from tokenstore.trust import first_mount_point
directory = Path(sys.argv[1])
(directory / "real").mkdir()
(directory / "link").symlink_to("real")
for name in ("a", "b c\\n\\\\d"):
    (directory / "real" / name).touch()
    subprocess.run(["mount", "--bind", directory / "real" / "a", directory / "real" / name])
    tell(first_mount_point(directory / "link" / name) is not None)
(directory / "real" / "e").touch()
others = directory / "real" / "e", directory / "real" / "missing"
tell(*(first_mount_point(other) is not None for other in others))
"""
    unshare = shutil.which("unshare")
    done = subprocess.run(
        [str(unshare), "--mount", *command(code, tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    )

    assert done.stdout.split() == ["True", "True", "False", "False"]
    assert not first_mount_point(tmp_path / "real" / "a")  # that mount was only the process's


# -- directories ----------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "above" / "place"
    directory.mkdir(parents=True)
    return directory


def test_a_directory_of_this_user_is_safe(place: Path) -> None:
    require_safe_directory(place)


@pytest.mark.parametrize("bits", [0o777, 0o757])
@pytest.mark.parametrize("which", ["place", "above"])
def test_a_directory_that_others_can_write_to_is_not_safe(
    place: Path, which: str, bits: int
) -> None:
    directory = place if which == "place" else place.parent
    directory.chmod(bits)

    with pytest.raises(InsecureStorageError, match=f"chmod go-w {directory}") as caught:
        require_safe_directory(place)

    assert str(place) in str(caught.value)
    directory.chmod(bits | 0o1000)  # as /tmp
    require_safe_directory(place)


def test_a_symlink_is_followed_to_what_it_leads_to(place: Path, tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to(place.parent)
    through = tmp_path / "one" / "place"
    require_safe_directory(through)

    place.parent.chmod(0o777)

    weakness = weakness_of(through)
    assert weakness is not None
    assert weakness.path == place.parent


def test_symlinks_in_a_circle_are_the_systems_error(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")

    with pytest.raises(OSError, match="Too many levels"):
        require_safe_directory(tmp_path / "one")


@needs_root
@pytest.mark.parametrize("which", ["place", "above", "link"])
def test_what_belongs_to_another_user_is_not_safe(place: Path, tmp_path: Path, which: str) -> None:
    (tmp_path / "link").symlink_to("above")
    foreign = {"place": place, "above": place.parent, "link": tmp_path / "link"}[which]
    os.lchown(foreign, NOBODY, NOBODY)

    weakness = weakness_of(tmp_path / "link" / "place")

    assert weakness is not None
    assert weakness.path in {foreign, tmp_path / "link" / "place"}
    assert f"belongs to uid {NOBODY}" in weakness.cause
    assert f"uid {NOBODY}" in str(weakness.error())


@needs_root
def test_a_group_is_as_good_as_its_members(place: Path) -> None:
    """Many systems give each user a group of that name, and let it write by default."""
    place.chmod(0o775)
    for gid, safe in ((0, True), (3_999_999, False), (NOBODY, False)):
        os.chown(place, 0, gid)
        assert (weakness_of(place) is None) == safe


@needs_root
def test_the_group_of_a_containers_volume_is_safe(place: Path) -> None:
    """As Kubernetes sets it up: the process is in a group that has no name."""
    place.chmod(0o2775)
    os.chown(place, 0, 3_999_999)
    code = """
from tokenstore.trust import weakness_of
tell(weakness_of(Path(sys.argv[1])) is None)
"""
    assert python(code, place, extra_groups=[3_999_999]) == "True\n"


@needs_acl
def test_an_access_control_list_is_as_good_as_a_member(place: Path) -> None:
    let_write(place, 1)

    assert mode(place) == 0o775
    assert weakness_of(place) is not None
