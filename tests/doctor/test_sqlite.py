"""The doctor: everything that it finds is brought about for real."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import threading
import time
from email.utils import formatdate
from pathlib import Path
from socket import create_server
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.test_app import on_a_terminal
from tests.helpers.refreshes import SOON, Call, Raw, World, denied
from tests.helpers.stores import NOBODY, Process, mode, names, newer_checkout, python, raw
from tokenstore import Provider, TokenManager, TokenRepository, doctor, migrate
from tokenstore.cli.app import run
from tokenstore.doctor.mounts import file_system_of
from tokenstore.files import create_temporary, writer_lock
from tokenstore.storage.tables import REVISION, VERSION_TABLE
from tokenstore.testing import Drop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenstore.doctor import Finding

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
ORDER = [
    *("permissions", "leftovers", "file system", "schema", "integrity", "journal mode", "sqlite"),
    *("shared tokens", "logins", "interrupted"),
]


def tokens(number: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "access_token": f"CANARY-access-{number}",
        "refresh_token": f"CANARY-refresh-{number}",
        "expires_at": 4_000_000_000.0,
        **more,
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two accounts, which is made once and copied for each test."""
    directory = tmp_path_factory.mktemp("made") / "data"
    with TokenRepository(directory / "tokens.db") as repository:
        repository.save("alice", tokens(1))
        repository.save("bob", tokens(2))
    return directory


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A store with two accounts, in a directory of its own."""
    return Path(shutil.copytree(made, tmp_path / "data")) / "tokens.db"


def look(path: Path, **options: Any) -> list[Finding]:
    """Examine a store; no secret is ever in what is found."""
    findings = doctor.examine(path, **options)
    assert "CANARY" not in repr(findings)
    return findings


def bad(path: Path, **options: Any) -> list[Finding]:
    """Return what has to be done."""
    return [finding for finding in look(path, **options) if finding.is_open]


def only(path: Path, **options: Any) -> Finding:
    """Return the one thing that has to be done."""
    [finding] = bad(path, **options)
    return finding


def listing(directory: Path) -> dict[str, tuple[int, float, bytes | None]]:
    """Return all that is there: modes, times and contents."""
    return {
        str(path.relative_to(directory)): (
            (found := path.lstat()).st_mode,
            0 if path.is_dir() else found.st_mtime_ns,
            path.read_bytes() if path.is_file() else None,
        )
        for path in directory.rglob("*")
    }


# -- nothing to be done ---------------------------------------------------------------------------


def test_a_sound_store_is_told_to_be_sound(path: Path) -> None:
    found = look(path)

    assert [finding.check for finding in found if finding.severity == "ok"] == [
        check for check in ORDER if check != "sqlite"
    ]
    assert not bad(path)


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_looking_changes_nothing(tmp_path: Path, journal_mode: Any) -> None:
    path = tmp_path / "tokens.db"
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        repository.save("alice", tokens())
    (tmp_path / ".tokens.db.0123456789abcdef.tmp").write_text("left over")
    before = listing(tmp_path)

    found = look(path)

    assert listing(tmp_path) == before
    assert journal_mode in {finding.message for finding in found}


def test_looking_for_interrupted_refreshes_makes_no_locks(path: Path, tmp_path: Path) -> None:
    begin(path, "alice")
    with TokenRepository(path) as repository:
        copy = repository.backup(tmp_path / "copy" / "tokens.db")

    assert only(copy).check == "interrupted"
    assert names(copy.parent) == {"tokens.db"}


def test_a_database_that_is_not_there_is_told_and_not_made(tmp_path: Path) -> None:
    found = only(tmp_path / "elsewhere" / "tokens.db")

    assert (found.check, found.severity) == ("database", "warning")
    assert "no database" in found.message
    assert not names(tmp_path)


def test_the_log_of_a_database_that_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "tokens.db-wal").write_bytes(b"x" * 100)

    assert "left over" in only(tmp_path / "tokens.db").message


@pytest.mark.parametrize("kind", ["symlink", "directory", "foreign", "text"])
def test_what_is_no_store_is_told_and_left_alone(path: Path, tmp_path: Path, kind: str) -> None:
    other = tmp_path / "other.db"
    match kind:
        case "symlink":
            other.symlink_to(path)
        case "directory":
            other.mkdir()
        case "foreign":
            with raw(other) as connection:
                connection.execute("CREATE TABLE mail (body)")
        case "text":
            other.write_text("CANARY")
    before = listing(tmp_path)

    found = only(other, fix=True)

    assert (found.check, found.severity) == ("database", "error")
    assert str(other) in found.message
    assert listing(tmp_path) == before


# -- files ----------------------------------------------------------------------------------------


def test_a_database_that_was_open_to_others_is_made_private_and_told(path: Path) -> None:
    files = [path.with_name(f"tokens.db{suffix}") for suffix in ("", "-wal", "-shm")]
    with Process(
        """
repository = TokenRepository(sys.argv[1])
repository.save("carol", tokens())
tell("saved")
wait()
        """,
        path,
    ) as other:
        other.line()
        for file in files:
            file.chmod(0o644)

        fixed = [finding.message for finding in look(path) if finding.fixed]

        assert [mode(file) for file in files] == [0o600] * 3
        told = "was open to others (mode 0644), who may have copied what is there"
        assert fixed == [f"{file} {told}" for file in files]
        assert not any(finding.fixed for finding in look(path))


def test_locks_and_backups_that_are_open_to_others_are_told_and_fixed_when_asked(
    path: Path,
) -> None:
    locks = path.with_name("tokens.db-locks")
    backup = path.with_name("tokens.db-backup-0001-20260102T030405.000006Z")
    with TokenRepository(path) as repository:
        for name in ("alice", "bob"):
            with repository.refresh_lock(name, timeout=SOON):
                pass
        repository.backup(backup)
    loose = [locks, backup, *locks.iterdir()]
    for file in loose:
        file.chmod(0o755)

    told = [finding for finding in bad(path) if finding.check == "permissions"]
    assert [mode(file) for file in loose] == [0o755] * len(loose)
    assert len(told) == 3  # the directory, all that is in it, and the backup
    assert all("--fix" in str(finding.cure) for finding in told)
    assert "3 files" in told[1].message

    fixed = look(path, fix=True)
    done = [finding.message.replace("was open", "is open") for finding in fixed if finding.fixed]
    assert [message.replace("were open", "are open") for message in done] == [
        finding.message for finding in told
    ]
    assert {mode(file) for file in loose} == {0o700}
    assert not bad(path)


@as_root
def test_what_belongs_to_somebody_else_is_told(path: Path) -> None:
    locks = path.with_name("tokens.db-locks")
    os.chown(locks, NOBODY, NOBODY)

    found = only(path, fix=True)

    assert (found.check, found.severity) == ("permissions", "error")
    assert f"{locks} belongs to uid {NOBODY}" in found.message
    assert str(found.cure).endswith(f"chown 0 {locks}")


@as_root
def test_the_store_of_somebody_else_is_left_alone(path: Path) -> None:
    path.chmod(0o644)
    os.chown(path, NOBODY, NOBODY)

    assert f"belongs to uid {NOBODY}" in only(path, fix=True).message
    assert mode(path) == 0o644


AS_NOBODY = """
import shutil, tempfile
from tokenstore.doctor import examine
directory = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own are private
path = directory / "tokens.db"
repository = TokenRepository(path)
repository.save("alice", tokens())

def give_away(*files):
    for file in files:
        os.chown(file, 65534, 65534)

def look():
    become_nobody()
    for finding in examine(path, fix=True):
        told = finding.message.replace(str(directory), "DIR")
        tell(finding.severity, finding.check, "|", told)
"""


@as_root
def test_the_log_of_somebody_else_is_told_though_nothing_can_be_opened() -> None:
    """As root left it who ran a command on another user's database, say."""
    printed = python(
        AS_NOBODY
        + """
repository.close()
give_away(directory, *directory.rglob("*"))
import sqlite3
other = sqlite3.connect(path)
os.seteuid(65534)
other.execute("CREATE TABLE x (y)")
os.seteuid(0)
os.chown(directory / "tokens.db-wal", 0, 0)
def work(number):
    look()
forked(1, work)
shutil.rmtree(directory)
        """
    ).splitlines()

    told = [line for line in printed if line.startswith("error")]
    assert told[0].startswith("error permissions | DIR/tokens.db-wal belongs to uid 0, not to this")
    assert told[1].startswith("error database | DIR/tokens.db")
    assert len(told) == 2


@as_root
def test_what_cannot_be_listed_does_not_stop_the_doctor() -> None:
    printed = python(
        AS_NOBODY
        + """
repository.close()
give_away(path)
directory.chmod(0o711)
def work(number):
    look()
forked(1, work)
shutil.rmtree(directory)
        """
    ).splitlines()

    assert "error permissions | DIR/tokens.db-locks belongs to uid 0" in "\n".join(printed)
    assert printed[-1].startswith("error directory | DIR cannot be looked at")


@as_root
def test_a_store_that_can_only_be_read_is_looked_at_all_the_same() -> None:
    printed = python(
        AS_NOBODY
        + """
repository.close()
give_away(directory, *directory.rglob("*"))
directory.chmod(0o500)
def work(number):
    look()
forked(1, work)
shutil.rmtree(directory)
        """
    ).splitlines()

    [told] = [line for line in printed if line.startswith(("warning", "error"))]
    assert told.startswith("warning file system | DIR or the database in it cannot be written")
    assert "info journal mode | it cannot be told where the directory cannot be written" in printed
    assert any(line.startswith("ok integrity") for line in printed)


@pytest.mark.parametrize(
    ("bits", "told"), [(0o777, True), (0o770, True), (0o1777, False), (0o755, False)]
)
def test_a_directory_in_which_others_can_replace_the_database_is_told(
    path: Path, bits: int, told: bool
) -> None:
    path.parent.chmod(bits)

    found = [(finding.check, finding.cure) for finding in bad(path, fix=True)]

    where = path.parent
    advice = f"run: chmod go-w {where}, or keep the database in a directory of its own"
    assert found == ([("directory", advice)] if told else [])
    assert stat.S_IMODE(where.stat().st_mode) == bits


@as_root
def test_a_directory_of_somebody_else_is_told(path: Path) -> None:
    path.parent.chmod(0o1777)
    os.chown(path.parent, NOBODY, NOBODY)

    assert f"belongs to uid {NOBODY}, who can replace" in only(path).message


def test_what_a_killed_writer_has_left_is_told_and_swept_when_asked(path: Path) -> None:
    left = {
        create_temporary(path.with_name("tokens.db-backup-0001-x")).name,
        (built := create_temporary(path).name),
        f"{built}-journal",
    }
    for name in left:
        path.with_name(name).write_text("CANARY")
    foreign = path.with_name(".mail.db.0123456789abcdef.tmp")
    foreign.write_text("not ours")
    with TokenRepository(path.with_name("tokens.db-new")) as other:  # nor is this one
        other.save("bob", {"access_token": "b"})
    before = listing(path.parent)

    found = only(path)
    assert found.check == "leftovers"
    assert all(name in found.message for name in left)
    assert foreign.name not in found.message
    assert listing(path.parent) == before

    assert not bad(path, fix=True)
    after = listing(path.parent)
    assert after.keys() == before.keys() - left
    assert {name: before[name] for name in after} == after
    assert not any(finding.fixed for finding in look(path, fix=True))


def test_what_may_be_of_a_killed_backup_or_export_is_told_and_left(path: Path) -> None:
    names = [create_temporary(path.with_name(name)).name for name in ("alice.json", "monday.db")]
    told = [
        (found.severity, all(name in found.message for name in names))
        for found in look(path, fix=True)
        if found.check == "leftovers"
    ]
    assert told == [("ok", False), ("info", True)]
    assert all(path.with_name(name).exists() for name in names)


def test_what_somebody_writes_just_now_is_no_leftover(path: Path) -> None:
    with writer_lock(path.parent, lambda _: False):
        writing = create_temporary(path.with_name("tokens.db.bak"))

        found = [finding for finding in look(path, fix=True) if finding.check == "leftovers"]

        assert [finding.severity for finding in found] == ["info"]
        assert "just now" in found[0].message
        assert writing.exists()


def test_copies_from_before_an_upgrade_are_told_and_kept(path: Path) -> None:
    with TokenRepository(path) as repository:
        for day in (3, 1):
            repository.backup(path.with_name(f"tokens.db-backup-0001-2026010{day}T000000.000000Z"))
        repository.backup(path.with_name("tokens.db-backup-of-mine"))

    [found] = [finding for finding in look(path, fix=True) if finding.check == "backups"]

    assert (found.severity, found.message[:8]) == ("info", "2 copies")
    assert "20260101T" in found.message
    assert len(list(path.parent.glob("*-backup-*"))) == 3


MOUNTS = """
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 21 0:24 / /srv rw,relatime - nfs4 server:/srv rw
31 30 8:2 / /srv/local rw shared:7 master:1 - xfs /dev/sdb rw
32 21 0:25 / /with\\040space rw - fuse.sshfs host:/ rw
33 21 0:26 / /over rw - cifs //host/share rw
34 33 8:3 / /over rw - btrfs /dev/sdc rw
35 21 0:27 / /hidden/below rw - nfs host:/ rw
36 21 8:4 / /hidden rw - ext3 /dev/sdd rw
37 21 0:28 / /line\u2028end rw - 9p host rw
"""


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/home/alice", "ext4"),
        ("/", "ext4"),
        ("/srv", "nfs4"),
        ("/srv/data", "nfs4"),
        ("/srvdata", "ext4"),
        ("/srv/local/data", "xfs"),
        ("/with space/data", "fuse.sshfs"),
        ("/with", "ext4"),
        ("/over/data", "btrfs"),
        ("/hidden/below/data", "ext3"),
        ("/line\u2028end", "9p"),
    ],
)
def test_the_file_system_of_a_directory_is_found(tmp_path: Path, directory: str, kind: str) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)

    assert file_system_of(Path(directory), tmp_path / "mounts") == kind


def test_without_a_list_of_mounts_the_file_system_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "rootfs").write_text("1 1 0:2 / / rw - rootfs rootfs rw\n")

    assert file_system_of(tmp_path, tmp_path / "missing") is None
    assert file_system_of(tmp_path, tmp_path / "empty") is None
    assert file_system_of(tmp_path, tmp_path / "rootfs") == "rootfs"
    assert file_system_of(tmp_path)


@pytest.mark.parametrize(("journal_mode", "severity"), [("wal", "error"), ("delete", "warning")])
def test_a_network_file_system_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal_mode: Any, severity: str
) -> None:
    path = tmp_path / "tokens.db"
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        repository.save("alice", tokens())
    # What this directory is on counts as a network's: a real one cannot be mounted everywhere.
    kind = file_system_of(tmp_path)
    monkeypatch.setattr("tokenstore.doctor.files.NETWORK", {kind})

    found = only(path)

    assert (found.check, found.severity) == ("file system", severity)
    assert f"({kind})" in found.message
    assert "local disk" in str(found.cure)


def test_a_disk_that_is_nearly_full_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenstore.doctor.files._LITTLE", 1 << 62)

    assert "KiB are free" in only(path).message


# -- what is in the database ----------------------------------------------------------------------


def test_an_older_schema_names_the_command_that_upgrades_it(path: Path) -> None:
    migrate.downgrade(path, "0001")

    found = only(path, fix=True)

    assert (found.check, found.severity) == ("schema", "error")
    assert f"0001 is older than {REVISION}" in found.message
    assert run(str(found.cure).removeprefix("run: tokenstore ").replace("'", "").split()) == 0
    assert not bad(path)


def test_a_newer_schema_needs_a_newer_tokenstore(path: Path, tmp_path: Path) -> None:
    newer = {**os.environ, "PYTHONPATH": str(newer_checkout(tmp_path))}
    python("migrate.upgrade(sys.argv[1])", path, env=newer)

    found = only(path)

    assert "is newer than" in found.message
    assert found.cure == "upgrade tokenstore"


@pytest.mark.parametrize(
    "change",
    ["ALTER TABLE accounts ADD COLUMN x TEXT", "DROP INDEX ix_refreshes_account_name_id"],
)
def test_tables_that_somebody_changed_are_told(path: Path, change: str) -> None:
    with raw(path) as connection:
        connection.execute(change)

    found = only(path)

    assert (found.check, found.severity) == ("schema", "error")
    assert "db check" in str(found.cure)
    assert len(found.message) < 100


@pytest.mark.parametrize("gone", ["accounts", "refreshes", VERSION_TABLE])
def test_a_table_that_is_gone_is_told(path: Path, gone: str) -> None:
    with raw(path) as connection:
        connection.execute(f"DROP TABLE {gone}")

    assert "schema" in {finding.check for finding in bad(path)}


def damage_page(path: Path, name: str) -> None:
    """Overwrite the first page of a table or an index."""
    with raw(path) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        page = connection.execute(query, (name,)).fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)


@pytest.mark.parametrize("name", ["accounts", "ix_refreshes_account_name_id"])
def test_a_damaged_page_is_told(path: Path, name: str) -> None:
    damage_page(path, name)

    found = [finding for finding in bad(path) if finding.check == "integrity"]

    assert [finding.severity for finding in found] == ["error"]
    assert "damaged" in found[0].message
    assert "backup" in str(found[0].cure)


def test_a_damaged_header_is_told(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\0" * 100)

    assert only(path).severity == "error"


@pytest.mark.parametrize("byte", [b"X", b"\xff"], ids=["text", "no text"])
@pytest.mark.parametrize("field", ["access", "refresh"])
def test_a_damaged_token_is_told_with_its_account(path: Path, field: str, byte: bytes) -> None:
    content = path.read_bytes()
    assert content.count(f"CANARY-{field}-2".encode()) == 1
    path.write_bytes(
        content.replace(f"CANARY-{field}-2".encode(), f"CANARY-{field}-".encode() + byte)
    )

    [found] = [finding for finding in bad(path) if finding.check == "integrity"]

    assert (found.severity, found.accounts) == ("error", ("bob",))
    assert "1 account" in found.message


def test_a_damaged_name_is_told(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with raw(path) as connection:
        connection.execute(
            "UPDATE accounts SET account_name = CAST(x'62ff62' AS TEXT) WHERE account_name = 'bob'"
        )

    [found] = [finding for finding in bad(path) if finding.check == "integrity"]

    assert found.accounts == (ascii("b\udcffb"),)
    assert run(["--database", str(path), "doctor"]) == 1
    assert run(["--database", str(path), "doctor", "--json"]) == 1
    assert "Traceback" not in "".join(capsys.readouterr())


def test_a_log_that_has_grown_long_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenstore.doctor.contents._LONG_LOG", 1 << 20)
    with raw(path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM accounts").fetchall()
        with TokenRepository(path) as repository:
            for number in range(3):
                repository.save("carol", tokens(3, padding=f"{number}" * 500_000))
        found = only(path)
        reader.execute("ROLLBACK")

    assert (found.check, found.severity) == ("journal mode", "warning")
    with TokenRepository(path) as repository:  # what is advised helps: the reader is gone
        repository.save("carol", tokens(4))
    assert not bad(path)


def test_accounts_with_one_refresh_token_are_told_without_it(path: Path) -> None:
    with TokenRepository(path) as repository:
        for name in ("carol", "dave"):
            repository.save(name, tokens(1))
        for name in ("erin", "frank"):
            repository.save(name, {"access_token": "CANARY"})

    [found] = [finding for finding in bad(path) if finding.check == "shared tokens"]

    assert found.accounts == ("alice", "carol", "dave")
    assert found.message.startswith("3 accounts")


# -- accounts -------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        yield world


def examined(world: World, **options: Any) -> list[Finding]:
    providers = {"test": world.server.provider()}
    return look(world.path, **{"providers": providers, "clock": world.clock, **options})


def test_logins_that_are_dead_or_dying_or_waiting_are_told(world: World) -> None:
    for name in ("alive", "dead", "waiting"):
        world.sign_in(name)
    world.sign_in("dying", refresh_token_expires_in=6 * 86400)
    world.sign_in("lasting", refresh_token_expires_in=8 * 86400)
    world.sign_in("unbound", provider=None)
    world.server.script(denied(), subject="dead")
    world.server.script(denied("slow_down", 429, Retry_After="600"), subject="waiting")
    manager = world.manager()
    assert manager.get_valid_token("dead") is None
    assert manager.get_valid_token("waiting") is None

    found = [finding for finding in examined(world) if finding.check == "logins"]

    assert [(finding.severity, finding.accounts) for finding in found] == [
        ("warning", ("dead",)),
        ("warning", ("dying",)),
        ("info", ("waiting",)),
        ("info", ("unbound",)),
    ]
    assert found[0].message.startswith("1 of 6 accounts ")
    world.clock.now += 7 * 86400
    assert [f.accounts for f in examined(world) if f.check == "logins" and f.is_open] == [
        ("dead", "dying"),
        ("lasting",),
    ]


BEGIN = """
repository = TokenRepository(sys.argv[1])
with repository.refresh_lock(sys.argv[2], timeout=1):
    repository.journal.begin(repository.record(sys.argv[2]), provider="test", reason="due")
    tell("begun")
    wait()
"""


def begin(path: Path, account: str) -> None:
    """Begin a refresh in a process that dies."""
    with Process(BEGIN, path, account) as process:
        assert process.line() == "begun"
        process.kill()


def test_a_refresh_whose_process_died_is_told_until_the_token_is_another(path: Path) -> None:
    with Process(BEGIN, path, "alice") as process:
        assert process.line() == "begun"
        assert not bad(path)  # it still runs
        process.kill()

        found = only(path)

    assert (found.check, found.accounts) == ("interrupted", ("alice",))
    with TokenRepository(path) as repository:
        repository.save("alice", tokens(3))
    assert not bad(path)


def test_a_refresh_that_nobody_answered_is_told_until_one_is(world: World) -> None:
    world.sign_in()
    world.server.script(Drop(spent=False))
    world.manager().get_valid_token("alice")

    [found] = [finding for finding in examined(world) if finding.is_open]
    assert (found.check, found.accounts) == ("interrupted", ("alice",))

    world.manager().refresh_token("alice")  # as the doctor says
    assert not [finding for finding in examined(world) if finding.is_open]


def test_a_refresh_that_ends_while_the_doctor_looks_is_not_interrupted(tmp_path: Path) -> None:
    with World(tmp_path, rotate=False) as world:
        world.sign_in()
        hold = world.hold()
        call = Call(world.manager().refresh_token, "alice")
        assert hold.arrived.wait(SOON)
        ended: list[object] = []

        def clock() -> float:
            if not ended:
                hold.release.set()
                ended.append(call.result())
            return world.clock.now

        assert not [finding for finding in examined(world, clock=clock) if finding.is_open]
        assert ended


def test_providers_that_cannot_be_used_are_told_with_their_accounts(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_CLIENT_ID", raising=False)
    with TokenManager(path) as manager:
        manager.save_tokens("carol", tokens(3), provider="google")
        manager.save_tokens("dave", tokens(4), provider="gogle")
        manager.save_tokens("erin", tokens(5), provider="sound")
    sound = {"sound": Provider("sound", "https://provider.example/token", "id")}

    found = [finding for finding in bad(path, providers=sound) if finding.check == "providers"]

    assert [finding.accounts for finding in found] == [("dave",), ("carol",)]
    assert "did you mean 'google'?" in found[0].message
    assert "GOOGLE_CLIENT_ID" in found[1].message


def test_a_broken_providers_file_is_told_once(path: Path) -> None:
    with TokenManager(path) as manager:
        manager.save_tokens("carol", tokens(3), provider="one")
        manager.save_tokens("dave", tokens(4), provider="two")
    file = path.with_name("providers.toml")
    file.write_text('[one]\nclient_secret = "CANARY\n')

    found = only(path)

    assert found.check == "providers"
    assert str(file) in found.message


def test_a_clock_that_was_set_back_is_told(world: World) -> None:
    world.sign_in()
    world.manager().refresh_token("alice")
    assert not [finding for finding in examined(world) if finding.is_open]
    world.clock.now -= 3600

    [found] = [finding for finding in examined(world) if finding.is_open]

    assert (found.check, found.accounts) == ("clock", ("alice",))


# -- the clocks of providers ----------------------------------------------------------------------


def clocks(world: World, url: str, off: float) -> tuple[str, str]:
    """Compare a clock that is off by so many seconds with the one at *url*."""
    given = {"test": Provider("test", url, "id", client_secret="CANARY")}
    found = look(world.path, providers=given, online=True, clock=lambda: time.time() + off)
    [about] = [finding for finding in found if finding.check == "clock"]
    return about.severity, about.message


@pytest.mark.parametrize(
    ("off", "severity", "words"),
    [
        (0, "ok", "agree"),
        (3600, "warning", "ahead of that of test"),
        (-3600, "warning", "behind that of test"),
    ],
)
def test_a_clock_is_compared_with_the_providers(
    world: World, off: float, severity: str, words: str
) -> None:
    world.sign_in()

    told = clocks(world, world.server.token_endpoint, off)

    assert told[0] == severity
    assert words in told[1]
    assert world.posts == 0


def test_nothing_is_asked_unless_told_to(world: World) -> None:
    world.sign_in()
    with Raw() as server:
        look(world.path, providers={"test": Provider("test", server.url, "id")})
        assert not server.received


def test_what_is_asked_has_nothing_of_an_account_in_it(world: World) -> None:
    world.sign_in()
    date = formatdate(usegmt=True)
    answer = f"HTTP/1.1 405 No\r\nDate: {date}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with Raw(answer.encode()) as server:
        assert clocks(world, server.url, 0)[0] == "ok"
        [received] = server.received

    assert received.startswith(b"HEAD /token HTTP/1.1\r\n")
    assert received.endswith(b"\r\n\r\n")
    access_token, refresh_token, _ = world.tokens()
    for secret in ("CANARY", "alice", "uthorization", "id=", access_token, refresh_token):
        assert str(secret).encode() not in received


@pytest.mark.parametrize(
    ("answer", "severity", "words"),
    [
        (b"", "warning", "gave no answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "info", "does not say"),
        (b"HTTP/1.1 200 OK\r\nDate: yesterday\r\nContent-Length: 0\r\n\r\n", "info", "does not"),
    ],
    ids=["none", "no Date", "no date"],
)
def test_a_provider_that_does_not_tell_the_time_is_told(
    world: World, answer: bytes, severity: str, words: str
) -> None:
    world.sign_in()
    with Raw(answer) as server:
        told = clocks(world, server.url, 0)

    assert told[0] == severity
    assert words in told[1]


def test_a_provider_that_nobody_reaches_is_told(world: World) -> None:
    world.sign_in()
    with create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    assert clocks(world, f"http://127.0.0.1:{port}/", 0) == (
        "warning",
        f"test at 127.0.0.1:{port} gave no answer: no connection could be made",
    )


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def command(path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def command(*arguments: str) -> tuple[int, str]:
        code = run(["--database", str(path), "doctor", *arguments])
        out, err = capsys.readouterr()
        assert "CANARY" not in out + err
        return code, out

    return command


def test_exit_codes_are_for_cron(command: Callable[..., tuple[int, str]], path: Path) -> None:
    assert command()[0] == 0
    with TokenRepository(path) as repository:
        repository.save("carol", {"access_token": "CANARY", "expires_in": -1})
    assert command()[0] == 3
    create_temporary(path)
    assert command()[0] == 1
    assert command("--fix")[0] == 3
    with TokenRepository(path) as repository:
        repository.delete("carol")
    assert command()[0] == 0


def test_json_has_the_same_keys_for_every_finding(
    command: Callable[..., tuple[int, str]], path: Path
) -> None:
    create_temporary(path)

    code, out = command("--json")

    assert code == 1
    [(key, findings)] = json.loads(out).items()
    assert key == "findings"
    assert len(findings) >= 10
    for finding in findings:
        assert list(finding) == ["check", "severity", "message", "cure", "accounts", "fixed"]
        assert finding["severity"] in {"ok", "info", "warning", "error"}
        assert isinstance(finding["accounts"], list)
    assert [f["check"] for f in findings if f["severity"] == "warning"] == ["leftovers"]


def test_a_pipe_gets_one_line_for_each(command: Callable[..., tuple[int, str]], path: Path) -> None:
    create_temporary(path)
    with TokenRepository(path) as repository:
        repository.save("carol", tokens(1))

    lines = [line.split("\t") for line in command("--fix")[1].splitlines()]

    assert all(line[0] in {"ok", "info", "warning", "error"} for line in lines)
    by_check = {line[1]: line for line in lines}
    assert by_check["leftovers"][3:] == ["done"]
    assert by_check["shared tokens"][4:] == ["alice", "carol"]


def test_many_names_are_cut_for_people_and_whole_for_programs(
    command: Callable[..., tuple[int, str]], path: Path
) -> None:
    accounts = [f"account-{number:03}" for number in range(200)]
    with TokenRepository(path) as repository, repository.transaction():
        for name in accounts:
            repository.save(name, tokens(7))

    found = {f["check"]: f for f in json.loads(command("--json")[1])["findings"]}
    assert found["shared tokens"]["accounts"] == accounts
    code, shown = on_a_terminal("--database", path, "doctor", NO_COLOR="1")
    assert code == 1
    assert "and 195 more" in shown
    assert "account-005" not in shown


def test_a_terminal_gets_a_table_with_what_to_do_below_what_was_found(path: Path) -> None:
    create_temporary(path)
    with TokenRepository(path) as repository:
        repository.save("evil\u202ename [bold]", tokens(1))

    code, shown = on_a_terminal("--database", path, "doctor", NO_COLOR="1", COLUMNS="80")

    assert code == 1
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert lines[0].split()[:2] == ["CHECK", "FOUND,"]
    assert max(map(len, lines)) <= 80
    assert any(line.strip().startswith("→ run the doctor again with --fix") for line in lines)
    assert "\u202e" not in shown
    assert "[bold]" in shown


def test_the_doctor_takes_no_lock_from_those_who_write(path: Path) -> None:
    """While a thread is inside a transaction, the doctor looks and does not wait for it."""
    inside, done = threading.Event(), threading.Event()

    def write() -> None:
        with TokenRepository(path) as repository, repository.transaction():
            repository.save("carol", tokens(3))
            inside.set()
            assert done.wait(SOON)

    writing = Call(write)
    assert inside.wait(SOON)
    assert not bad(path)
    done.set()
    writing.result()
    with TokenRepository(path) as repository:
        assert repository.load("carol") == tokens(3)
