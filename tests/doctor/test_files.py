"""Modes, owners, leftovers and the file system."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.doctor import bad, listing, look, only, tokens
from tests.helpers.refreshes import SOON
from tests.helpers.requirements import needs_root
from tests.helpers.stores import NOBODY, Process, mode, python
from tokenstore import TokenRepository
from tokenstore.doctor.mounts import file_system_of
from tokenstore.files import create_temporary, writer_lock

if TYPE_CHECKING:
    from pathlib import Path


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
        told = "was accessible to other users (mode 0644), who may have copied tokens"
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
    assert all("--fix" in str(finding.hint) for finding in told)
    assert "3 files" in told[1].message

    fixed = look(path, fix=True)
    done = [
        finding.message.replace("was accessible", "is accessible")
        for finding in fixed
        if finding.fixed
    ]
    assert [message.replace("were accessible", "are accessible") for message in done] == [
        finding.message for finding in told
    ]
    assert {mode(file) for file in loose} == {0o700}
    assert not bad(path)


@needs_root
def test_what_belongs_to_somebody_else_is_told(path: Path) -> None:
    locks = path.with_name("tokens.db-locks")
    os.chown(locks, NOBODY, NOBODY)

    found = only(path, fix=True)

    assert (found.check, found.severity) == ("permissions", "error")
    assert f"{locks} belongs to uid {NOBODY}" in found.message
    assert str(found.hint).endswith(f"chown 0 {locks}")


@needs_root
def test_the_store_of_somebody_else_is_left_alone(path: Path) -> None:
    path.chmod(0o644)
    os.chown(path, NOBODY, NOBODY)

    assert f"belongs to uid {NOBODY}" in only(path, fix=True).message
    assert mode(path) == 0o644


AS_NOBODY = """
import shutil, tempfile
from tokenstore.doctor import examine
directory = Path(tempfile.mkdtemp())
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


@needs_root
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

    [told] = [line for line in printed if line.startswith("error")]
    assert told.startswith("error database | DIR/tokens.db-wal belongs to uid 0, not to this")


@needs_root
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
    assert printed[-1].startswith("error directory | cannot read DIR")


@needs_root
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
    assert "info journal mode | unknown, because the directory is not writable" in printed
    assert any(line.startswith("ok integrity") for line in printed)


@pytest.mark.parametrize(("bits", "told"), [(0o777, True), (0o1777, True), (0o755, False)])
def test_a_directory_in_which_others_can_replace_the_database_is_told(
    path: Path, bits: int, told: bool
) -> None:
    path.parent.chmod(bits)

    found = [(finding.check, finding.hint) for finding in bad(path, fix=True)]

    where = path.parent
    advice = (
        "move the database to a directory of its own"
        if bits & stat.S_ISVTX
        else f"run: chmod go-w {where}, or use a directory of its own"
    )
    assert found == ([("directory", advice)] if told else [])
    assert stat.S_IMODE(where.stat().st_mode) == bits


@needs_root
def test_a_directory_of_somebody_else_is_told(path: Path) -> None:
    path.parent.chmod(0o1777)
    os.chown(path.parent, NOBODY, NOBODY)

    assert f"belongs to uid {NOBODY}, who can replace" in only(path).message


def test_what_a_killed_writer_has_left_is_told_and_swept_when_asked(path: Path) -> None:
    left = {
        create_temporary(path.with_name("tokens.db-backup-0001-x")).name,
        ".tokens.db.0123456789abcdef.tmp",
    }
    (build := path.with_name(".tokens.db.0123456789abcdef.tmp")).mkdir()
    for name in ("x", "x-journal"):
        (build / name).write_text("CANARY")
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
    assert after.keys() == {name for name in before if name.partition("/")[0] not in left}
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


def test_what_an_upgrade_or_a_restore_has_replaced_is_told_and_kept(path: Path) -> None:
    with TokenRepository(path) as repository:
        repository.save("alice", tokens())
        for name in ("0001-20260103", "replaced-20260101"):
            repository.backup(path.with_name(f"tokens.db-backup-{name}T000000.000000Z"))
        repository.backup(path.with_name("tokens.db-replaced"))  # of a restore that was killed
        repository.backup(path.with_name("tokens.db-backup-of-mine"))

    [found] = [finding for finding in look(path, fix=True) if finding.check == "backups"]

    assert (found.severity, found.message[:8]) == ("info", "3 copies")
    assert "20260101T" in found.message
    assert len(list(path.parent.glob("*-backup-*"))) == 3
    assert path.with_name("tokens.db-replaced").exists()


def test_a_database_that_a_killed_restore_has_set_aside_is_found(path: Path) -> None:
    with TokenRepository(path) as repository:
        repository.save("alice", tokens())
    path.rename(path.with_name("tokens.db-replaced"))

    assert not [finding for finding in look(path) if finding.severity == "error"]

    assert path.exists()


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
    assert "local disk" in str(found.hint)


def test_a_disk_that_is_nearly_full_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenstore.doctor.files._MIN_FREE", 1 << 62)

    assert "KiB are free" in only(path).message
