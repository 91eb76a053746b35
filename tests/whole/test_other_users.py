"""What other users of the machine can do to a store, tried by two of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.helpers.requirements import needs_root
from tests.helpers.users import ATTACKER, VICTIM, among_users, directory_of, shared_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, needs_root]


@pytest.fixture
def shared() -> Iterator[Path]:
    with shared_directory() as directory:
        yield directory


# -- S5: files next to the database ---------------------------------------------------------------


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_s5_a_planted_log_gets_no_tokens(shared: Path, suffix: str, journal_mode: str) -> None:
    code = """
path, planted, journal_mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def use():
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        attempt(lambda: repository.save("alice", tokens(1)), lambda: repository.load("alice"))

run_as(ATTACKER, plant, planted)
run_as(VICTIM, use)
tell(path.exists(), planted.stat().st_size)
planted.unlink()
run_as(VICTIM, use)
run_as(ATTACKER, plant, planted)
run_as(VICTIM, use)
tell(planted.stat().st_size)
"""
    path = shared / "tokens.db"
    planted = path.with_name(path.name + suffix)

    said = among_users(code, path, planted, journal_mode)

    why = f"belongs to uid {ATTACKER}, not to this process's uid {VICTIM}"
    for line in (said[0], said[1], said[5], said[6]):
        assert line.startswith(f"refused {planted} {why}")
    assert said[2:5] + said[7:] == ["False 0", "done", "done", "0"]


def test_s5_a_log_that_is_planted_between_two_transactions_gets_no_tokens(shared: Path) -> None:
    code = """
path = Path(sys.argv[1])
planted, answered = os.pipe(), os.pipe()

def use():
    repository = TokenRepository(path, journal_mode="delete")
    attempt(lambda: repository.save("alice", tokens(1)))
    os.write(answered[1], b".")
    os.read(planted[0], 1)
    attempt(lambda: repository.save("alice", tokens(2)))

def both():
    child = os.fork()
    if not child:
        run_as(VICTIM, use)
        os._exit(0)
    os.read(answered[0], 1)
    run_as(ATTACKER, plant, f"{path}-journal")
    os.write(planted[1], b".")
    os.waitpid(child, 0)

both()
tell(os.stat(f"{path}-journal").st_size)
"""
    first, second, size = among_users(code, shared / "tokens.db")

    assert (first, size) == ("done", "0")
    assert second.startswith(f"refused {shared}/tokens.db-journal belongs to uid {ATTACKER}")


def test_a_lock_directory_of_another_user_is_refused(shared: Path) -> None:
    path = shared / "tokens.db"
    directory_of(ATTACKER, shared, "tokens.db-locks", 0o777)
    code = """
run_as(VICTIM, attempt, lambda: TokenRepository(sys.argv[1]).save("alice", tokens(1)))
"""
    [said] = among_users(code, path)

    assert said.startswith(f"refused {path}-locks: not a directory of this user")
    assert not path.exists()


# -- S6: directories that receive secrets ---------------------------------------------------------

WRITE = """
store, place = Path(sys.argv[1]), Path(sys.argv[2])

def write():
    with TokenRepository(store) as repository:
        repository.save("alice", tokens(1))
        repository.backup(copy := store.with_name("copy.db"), replace=True)
        attempt(
            lambda: repository.backup(place / "backup.db"),
            lambda: list(export_accounts(repository, place)),
            lambda: list(export_accounts(repository, place / "a" / "b")),
            lambda: TokenRepository(place / "new.db").save("alice", tokens(1)),
            lambda: migrate.upgrade(place / "newer.db"),
            lambda: TokenRepository(place / "newest.db").restore(copy),
        )

def look():
    for path in place.rglob("*"):
        try:
            path.stat().st_mode & 0o040000 or tell("read", path.name, path.read_bytes()[:100])
        except PermissionError:
            pass

run_as(VICTIM, write)
run_as(ATTACKER, look)
"""


@pytest.mark.parametrize("way", ["owned", "writable", "above", "link"])
def test_s6_nothing_is_written_where_another_user_could_replace_it(shared: Path, way: str) -> None:
    store = directory_of(VICTIM, shared) / "tokens.db"
    place = shared / "place"
    if way == "owned":
        directory_of(ATTACKER, shared, "place", 0o777)
    elif way == "writable":
        directory_of(VICTIM, shared, "place", 0o777)
    elif way == "above":
        place = directory_of(VICTIM, directory_of(ATTACKER, shared, "theirs", 0o755), "place")
    else:
        directory_of(VICTIM, shared, "real")
        place.symlink_to("real")
        os.lchown(place, ATTACKER, ATTACKER)

    said = among_users(WRITE, store, place)

    assert [line.split()[0] for line in said] == ["refused"] * 6, said
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("way", ["own", "sticky", "link"])
def test_a_directory_of_ones_own_and_a_sticky_one_are_used(shared: Path, way: str) -> None:
    store = directory_of(VICTIM, shared) / "tokens.db"
    place = shared
    if way == "own":
        place = directory_of(VICTIM, shared, "place", 0o755)
    elif way == "link":
        (place := shared / "link").symlink_to(directory_of(VICTIM, shared, "real", 0o755))
        os.lchown(place, VICTIM, VICTIM)

    assert among_users(WRITE, store, place) == ["done"] * 6


def test_root_leaves_another_users_store_alone(shared: Path) -> None:
    code = """
path = Path(sys.argv[1])
run_as(VICTIM, lambda: TokenRepository(path).save("alice", tokens(1)))
before = sorted(path.parent.rglob("*"))
attempt(
    lambda: TokenRepository(path).load("alice"),
    lambda: TokenRepository(path).save("alice", tokens(2)),
    lambda: TokenRepository(path).backup("/tmp/never"),
    lambda: migrate.upgrade(path),
    lambda: TokenRepository(path.with_name("new.db")).save("alice", tokens(2)),
)
tell(sorted(path.parent.rglob("*")) == before)
"""
    *said, unchanged = among_users(code, directory_of(VICTIM, shared) / "tokens.db")

    assert all(line.startswith("refused") and f"belongs to uid {VICTIM}" in line for line in said)
    assert len(said) == 5
    assert unchanged == "True"


# -- S1, S18: providers.toml, and what the doctor says --------------------------------------------

TABLE = '[p]\ntoken_endpoint = "https://evil.example/token"\nclient_id = "c"\n'


def test_s1_the_providers_of_another_user_are_not_believed(shared: Path) -> None:
    file = shared / "providers.toml"
    file.write_text(TABLE)
    code = """
file = Path(sys.argv[1])
registry = ProviderRegistry(None, file)  # one that has read it must look again
for owner, mode in (
    (VICTIM, 0o644), (ATTACKER, 0o644), (VICTIM, 0o664), (VICTIM, 0o646), (0, 0o644), (0, 0o666)
):
    os.chown(file, owner, owner)
    file.chmod(mode)
    run_as(VICTIM, attempt, lambda: registry.get("p"))
    try:
        registry.get("p")
    except InsecureStorageError:
        pass
"""
    said = among_users(code, file)

    assert [line.split()[0] for line in said] == [
        *("done", "refused", "refused", "refused", "done", "refused")
    ]
    assert said[1].startswith(f"refused {file} belongs to uid {ATTACKER}")


def test_s18_the_doctor_names_what_another_user_has_done(shared: Path) -> None:
    (shared / "providers.toml").write_text(TABLE)
    os.chown(shared / "providers.toml", ATTACKER, ATTACKER)
    code = """
def look():
    with TokenManager(sys.argv[1]) as manager:
        manager.save_tokens("alice", tokens(1), provider="p")
    for finding in doctor.examine(sys.argv[1]):
        if finding.is_open:
            tell(finding.check, "|", finding.message)

run_as(VICTIM, look)
"""
    directory, providers = among_users(code, shared / "tokens.db")

    assert directory.startswith(f"directory | {shared} is shared: other users can create files")
    assert providers.startswith(f"providers | {shared}/providers.toml belongs to uid {ATTACKER}")
