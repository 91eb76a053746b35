"""A copy takes the place of the database; what was there is moved aside."""

from __future__ import annotations

import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from tests.helpers.stores import (
    Process,
    becomes,
    begin,
    mode,
    names,
    raw,
    token_set,
    tokens,
)
from tokenstore import InsecureStorageError, SchemaTooNewError, StorageError, TokenRepository
from tokenstore.cli.app import run
from tokenstore.models.tokens import TokenSet
from tokenstore.storage.journal import SpentToken
from tokenstore.storage.tables import VERSION_TABLE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def copy(path: Path) -> Path:
    """A backup of a database whose account alice was refreshed since."""
    with TokenRepository(path) as repository:
        repository.save("alice", tokens(1))
        repository.save("bob", tokens(2))
        copy = repository.backup(path.with_name("copy.db"))
        rotate(repository, "alice")
    return copy


def rotate(repository: TokenRepository, name: str) -> None:
    record = repository.record(name)
    assert record is not None
    refresh = repository.journal.begin(record, provider="p", reason="due", longest=60)
    new = TokenSet(access_token="new", refresh_token="rotated", expires_at=4e9)
    repository.journal.finish(refresh, lambda _: new, provider="p")


def test_a_copy_takes_the_place_of_the_database(path: Path, copy: Path) -> None:
    with TokenRepository(path) as repository:
        assert repository.load("alice") != tokens(1)

        done = repository.restore(copy)

        assert repository.load("alice") == tokens(1)
        repository.save("carol", tokens(3))
    assert done.path == path
    assert done.rotated == ("alice",)
    assert done.moved_to is not None
    assert mode(path) == mode(done.moved_to) == 0o600
    with TokenRepository(done.moved_to) as before:
        assert before.load("alice") != tokens(1)


def test_a_rotated_token_is_not_sent_again(path: Path, copy: Path) -> None:
    with TokenRepository(path) as repository:
        repository.restore(copy)

        with pytest.raises(SpentToken):
            rotate(repository, "alice")
        rotate(repository, "bob")


def test_a_copy_can_be_restored_where_there_is_nothing(path: Path, copy: Path) -> None:
    with TokenRepository(path.with_name("new.db")) as repository:
        done = repository.restore(copy)

        assert repository.load("bob") == tokens(2)
    assert done == (path.with_name("new.db"), None, ())


def test_a_damaged_database_is_moved_aside_with_its_log(path: Path, copy: Path) -> None:
    path.write_bytes(b"damaged" * 1000)
    path.with_name("tokens.db-wal").write_bytes(b"its log")

    with TokenRepository(path) as repository:
        done = repository.restore(copy)

        assert repository.load("bob") == tokens(2)
    assert done.rotated is None
    assert done.moved_to is not None
    assert done.moved_to.read_bytes() == b"damaged" * 1000
    assert done.moved_to.with_name(f"{done.moved_to.name}-wal").read_bytes() == b"its log"


def test_every_repository_of_the_process_continues_with_the_copy(path: Path, copy: Path) -> None:
    (path.parent / "link").symlink_to(path.parent)
    with (
        TokenRepository(path) as repository,
        TokenRepository(path.parent / "link" / path.name) as other,
    ):
        assert other.load("alice") != tokens(1)

        repository.restore(copy)

        assert other.load("alice") == tokens(1)
        other.save("carol", tokens(3))
        assert repository.load("carol") == tokens(3)


# The renames of a restore, in their order; the process is killed before each.
SOUND = ["it is set aside", "the copy takes its place", "it gets its final name"]
DAMAGED = [SOUND[0], "its log is set aside", *SOUND[1:], "its log gets its final name"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stages", "number"),
    [(stages, number) for stages in (SOUND, DAMAGED) for number in range(len(stages))],
    ids=lambda each: each if isinstance(each, int) else ["damaged", "sound"][each is SOUND],
)
def test_a_killed_restore_leaves_one_of_the_two_databases(
    path: Path, copy: Path, stages: list[str], number: int
) -> None:
    if stages is DAMAGED:
        path.write_bytes(b"damaged" * 1000)
        path.with_name("tokens.db-wal").write_bytes(b"its log")
    code = """
def kill(event, _):
    global renames
    if event == "os.rename":
        renames -= 1
        if renames < 0:
            os.kill(os.getpid(), signal.SIGKILL)
renames = int(sys.argv[3])
sys.addaudithook(kill)
TokenRepository(sys.argv[1]).restore(sys.argv[2])
"""
    with Process(code, path, copy, number) as process:
        assert process.end() == -signal.SIGKILL
    is_replaced = number > stages.index("the copy takes its place")

    if stages is SOUND or is_replaced:
        with TokenRepository(path) as repository:
            assert (repository.load("alice") == tokens(1)) == is_replaced
    else:
        with TokenRepository(path) as repository, pytest.raises(InsecureStorageError):
            repository.load("alice")
        assert path.read_bytes() == b"damaged" * 1000
        assert path.with_name("tokens.db-wal").read_bytes() == b"its log"
    assert path.lstat().st_nlink == 1
    assert [p.name for p in path.parent.iterdir() if p.name == "tokens.db-replaced"] == (
        ["tokens.db-replaced"] if stages[number] == "it gets its final name" else []
    )
    with TokenRepository(path) as repository:
        done = repository.restore(copy)
        assert repository.load("alice") == tokens(1)
    assert done.moved_to is not None
    assert not path.with_name("tokens.db-replaced").exists()
    if stages is DAMAGED:
        kept = sorted(file.read_bytes() for file in path.parent.glob("tokens.db-backup-replaced-*"))
        assert {b"damaged" * 1000, b"its log"} <= {*kept}


def test_a_restore_that_fails_at_its_end_changes_nothing(path: Path, copy: Path) -> None:
    code = """
def fail(event, arguments):
    if event == "os.rename" and ".tmp" in str(arguments[0]):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
import errno
sys.addaudithook(fail)
try:
    TokenRepository(sys.argv[1]).restore(sys.argv[2])
except OSError as error:
    tell(type(error).__name__, error.errno == errno.EIO)
"""
    before = names(path.parent)

    with Process(code, path, copy) as process:
        assert process.line() == "StorageError True"

    assert names(path.parent) == before | {"tokens.db-locks/schema"}
    with TokenRepository(path) as repository:
        assert repository.load("alice") != tokens(1)


def test_what_is_not_a_database_of_this_user_is_not_put_back(path: Path) -> None:
    (aside := path.with_name("tokens.db-replaced")).symlink_to("elsewhere")

    with TokenRepository(path) as repository, pytest.raises(InsecureStorageError) as caught:
        repository.save("alice", tokens(1))

    assert caught.value.path == str(aside)
    assert aside.is_symlink()


@pytest.mark.slow
@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_a_database_in_use_is_left_alone(path: Path, copy: Path, journal_mode: str) -> None:
    code = f"""
repository = TokenRepository(sys.argv[1], journal_mode={journal_mode!r})
tell(repository.load("bob") is not None)
wait()
"""
    with Process(code, path) as process, TokenRepository(path) as repository:
        assert process.line() == "True"
        before = names(path.parent)

        with pytest.raises(StorageError, match="has it open"):
            repository.restore(copy)

        assert names(path.parent) == before
        assert repository.load("alice") != tokens(1)


def unmarked(copy: Path) -> None:
    with raw(copy) as connection:
        connection.execute("PRAGMA application_id = 1")


def newer(copy: Path) -> None:
    with raw(copy) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")


def wrongly_stamped(copy: Path) -> None:
    with raw(copy) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '0002'")


def damaged(copy: Path) -> None:
    content = bytearray(copy.read_bytes())
    content[4096 * 3 : 4096 * 4] = b"\xff" * 4096
    copy.write_bytes(content)


def missing(copy: Path) -> None:
    copy.unlink()


def linked(copy: Path) -> None:
    copy.rename(copy.with_name("real.db"))
    copy.symlink_to("real.db")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (unmarked, InsecureStorageError, "is not a tokenstore database"),
        (newer, SchemaTooNewError, "9999"),
        (wrongly_stamped, StorageError, "db stamp"),
        (damaged, StorageError, "damaged"),
        (missing, StorageError, "there is no database"),
        (linked, InsecureStorageError, "symlink"),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_a_copy_that_is_not_sound_changes_nothing(
    path: Path, copy: Path, change: object, error: type[StorageError], said: str
) -> None:
    assert callable(change)
    change(copy)
    before = names(path.parent)

    with TokenRepository(path) as repository:
        with pytest.raises(error, match=said):
            repository.restore(copy)

        assert repository.load("bob") == tokens(2)
    assert names(path.parent) == before | {"tokens.db-locks/schema"}


def test_the_database_is_not_restored_from_itself(path: Path, copy: Path) -> None:
    with TokenRepository(path) as repository, pytest.raises(StorageError, match="is the database"):
        repository.restore(path)
    assert copy.exists()


def test_another_applications_database_is_not_replaced(path: Path, copy: Path) -> None:
    other = path.with_name("other.db")
    with raw(other) as connection:
        connection.execute("CREATE TABLE users (id INTEGER)")
    shutil.copy(other, path.with_name("before.db"))

    with TokenRepository(other) as repository, pytest.raises(InsecureStorageError):
        repository.restore(copy)

    assert other.read_bytes() == path.with_name("before.db").read_bytes()


def test_the_command_names_what_needs_a_new_sign_in(
    path: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--database", str(path), "restore", str(copy)]) == 0

    restored, moved, rotated = capsys.readouterr().out.splitlines()
    assert restored == f"restored\t{path}"
    assert moved.startswith(f"moved\t{path}-backup-replaced-")
    assert rotated == "rotated\talice\tneeds a new sign-in"


def test_a_refresh_that_is_under_way_is_not_cut_off(path: Path, copy: Path) -> None:
    with TokenRepository(path) as repository:
        refresh = begin(repository)
    with TokenRepository(path) as other, pytest.raises(StorageError, match="is refreshing an"):
        other.restore(copy)
    with TokenRepository(path) as repository:
        repository.journal.finish(refresh, becomes(token_set(9)), provider="p")
        assert (repository.load("alice") or {})["refresh_token"] == "refresh-9"


def test_a_token_that_is_no_text_is_left_as_it_is(path: Path, copy: Path) -> None:
    with raw(copy) as connection:
        connection.execute("UPDATE accounts SET refresh_token = x'00ff' WHERE account_name = 'bob'")
    with TokenRepository(path) as repository:
        repository.restore(copy)


def test_a_name_without_room_is_refused_before_anything_is_moved(tmp_path: Path) -> None:
    path, copy = tmp_path / f"{'n' * 217}.db", tmp_path / "copy.db"
    with TokenRepository(path) as repository:
        repository.save("alice", tokens())
        repository.backup(copy)
        repository.save("alice", tokens(1))
    with TokenRepository(path) as repository:
        with pytest.raises(StorageError, match="choose a shorter name"):
            repository.restore(copy)
        assert repository.load("alice") == tokens(1)
