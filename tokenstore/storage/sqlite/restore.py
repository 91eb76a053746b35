"""Replaces a database with a copy of it. What was there is moved aside and never lost.

For a moment, there is no database at the path. Who finds none then waits for the schema lock, and
puts the previous database back if the process that replaced it was killed. Otherwise the next save
would create an empty one.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tokenstore.errors import StorageError
from tokenstore.models.tokens import fingerprint
from tokenstore.storage import statements as sql
from tokenstore.storage.base import Restored
from tokenstore.storage.migrations import require_tables, too_new_error
from tokenstore.storage.processes import may_be_at_work
from tokenstore.storage.rows import is_text
from tokenstore.storage.sqlite.backup import copying
from tokenstore.storage.sqlite.connector import Connector
from tokenstore.storage.sqlite.engine import connect_to, decode_leniently, driver_of
from tokenstore.storage.sqlite.errors import DRIVER_ERRORS, error_name, sqlite_error, translated
from tokenstore.storage.sqlite.file import FileId, backup_suffix
from tokenstore.storage.sqlite.schema import revision_of
from tokenstore.storage.tables import REVISION, refreshes

if TYPE_CHECKING:
    import sqlite3

    from sqlalchemy import Connection

    from tokenstore.storage.sqlite.file import DatabaseFile

_PROCESSES = Path("/proc")
_REPLACED = "replaced"
_LONGEST_REFRESH = 150.0  # seconds, of a process on another host
_COLUMNS = ", ".join(column.name for column in refreshes.columns if column.name != "id")
_UNREADABLE = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR", "SQLITE_ERROR")


class _Current(NamedTuple):
    """What the database that is replaced knows.

    Attributes:
        tokens: The fingerprint of the refresh token of each account that has been refreshed.
        spent: The journal's entry for each fingerprint of a refresh token that was exchanged.
    """

    tokens: dict[str, str]
    spent: dict[str, tuple[object, ...]]


def restore_database(connector: Connector, source_path: Path) -> Restored:
    """Replace a database, which no process may have open, with a copy of it.

    Args:
        connector: Opens the database that is replaced; there may be none.
        source_path: The copy.

    Raises:
        InsecureStorageError: One of the files is not a tokenstore database of this user.
        StorageError: The copy is damaged or unknown, or a process has the database open.
    """
    file = connector.file
    source = Connector(source_path, journal_mode="wal", upgrade=False)
    found = source.file.inspect()
    if found is None:
        raise StorageError(f"{source_path}: there is no database; check the path", source_path)
    if file.is_current(found) or file.aside.is_current(found):
        raise StorageError(
            f"{source_path} is the database itself; choose a copy of it", source_path
        )
    with connector.schema.lock(), source.connection() as (connection, _):
        _require_known(source_path, connection)
        file.require_own_sidecars()
        file.require_short_name(extra=len(f"{backup_suffix(_REPLACED)}-journal"))
        try:
            with copying(driver_of(connection), source_path, file.path) as new:
                # After the copy was made, which takes time: what was refreshed meanwhile counts.
                current = None if file.inspect() is None else _examine(connector)
                rotated = _rotated(new, current)
                if file.inspect() is None:
                    file.reject_stale_wal()
                else:
                    _require_unopened(file)
                    _keep_aside(file)  # of a restore that was killed at its end
                    file.set_aside()
        finally:
            file.put_back()
        connector.note_restore()
        moved = _keep_aside(file)
    return Restored(file.path, moved, None if moved and current is None else rotated)


def _require_known(path: Path, connection: Connection) -> None:
    revision = revision_of(connection, path)
    if revision is not None and revision > REVISION:
        raise too_new_error(str(path), revision)
    connection.execution_options(sqlite_begin="DEFERRED")
    with translated(path), connection.begin():
        require_tables(str(path), connection)
    if revision is None:
        raise StorageError(f"{path}: there are no tables in it; choose another copy", path)


def _examine(connector: Connector) -> _Current | None:
    """Return what the current database knows, or None if it cannot be read.

    This completes what is in its log, so that it consists of one file.

    Raises:
        InsecureStorageError: It belongs to another application.
        StorageError: A process has it open.
    """
    path = connector.path
    try:
        # SQLite would remove the log of a file that it cannot read.
        with closing(connect_to(path, "mode=ro&immutable=1")) as driver:
            driver.execute("SELECT count(*) FROM sqlite_master").fetchone()
        with closing(connect_to(path, "mode=rw")) as driver:
            driver.text_factory = decode_leniently
            driver.execute("PRAGMA busy_timeout = 0")
            # Before the first read: then it excludes every other connection to a WAL database.
            driver.execute("PRAGMA locking_mode = EXCLUSIVE")
            driver.execute("BEGIN EXCLUSIVE")
            connector.require_mark(driver, adopt=True)
            _require_nothing_under_way(path, driver)
            current = _read(driver)
            driver.execute("ROLLBACK")
            driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return current
    except DRIVER_ERRORS as error:
        if error_name(error).startswith("SQLITE_BUSY"):
            raise _in_use_error(path, "a process") from None
        if not error_name(error).startswith(_UNREADABLE):
            raise sqlite_error(path, error) from None
        return None


def _require_nothing_under_way(path: Path, driver: sqlite3.Connection) -> None:
    """Raise a `StorageError` if a refresh has no outcome yet: it could no longer be stored."""
    query = "SELECT host, pid, started_at FROM refreshes WHERE outcome IS NULL"
    now = time.time()
    for host, pid, started_at in driver.execute(query):
        if may_be_at_work(host, pid, since=started_at, now=now, longest=_LONGEST_REFRESH):
            raise _in_use_error(path, f"process {pid} on {host} is refreshing an account and")


def _read(driver: sqlite3.Connection) -> _Current:
    tokens = {
        name: fingerprint(token)
        for name, token in driver.execute(
            "SELECT account_name, refresh_token FROM accounts WHERE refreshed_at IS NOT NULL"
        )
        if is_text(name) and is_text(token)
    }
    query, _, values_of = sql.SPENT_AT.sqlite
    entry = f"SELECT {_COLUMNS} FROM refreshes WHERE sent = ? ORDER BY id DESC"  # noqa: S608
    spent = {}
    for (sent,) in driver.execute("SELECT DISTINCT sent FROM refreshes").fetchall():
        if driver.execute(query, values_of({"sent": sent})).fetchone() is not None:
            spent[sent] = driver.execute(entry, [sent]).fetchone()
    return _Current(tokens, spent)


def _rotated(new: Path, current: _Current | None) -> tuple[str, ...]:
    """Return the accounts of the copy whose refresh tokens were exchanged since.

    The copy's journal is told, so that these tokens are not sent again: a provider that sees one
    may end the login that replaced it.
    """
    if current is None:
        return ()
    rotated = []
    places = ", ".join("?" * len(_COLUMNS.split(", ")))
    with translated(new), closing(connect_to(new, "mode=rw")) as driver:
        driver.execute("BEGIN IMMEDIATE")
        query = "SELECT account_name, refresh_token FROM accounts ORDER BY account_name"
        for name, token in driver.execute(query).fetchall():
            if not is_text(token):
                continue
            sent = fingerprint(token)
            if sent in current.spent:
                insert = f"INSERT INTO refreshes ({_COLUMNS}) VALUES ({places})"  # noqa: S608
                driver.execute(insert, current.spent[sent])
                rotated.append(name)
            elif current.tokens.get(name, sent) != sent:
                rotated.append(name)
        driver.execute("COMMIT")
    return tuple(rotated)


def _require_unopened(file: DatabaseFile) -> None:
    """Raise a `StorageError` if a process has the file open, as far as this system shows that."""
    for process in _PROCESSES.glob("[0-9]*"):
        if file.file_id() in _open_files(process):
            this = " (this one)" if int(process.name) == os.getpid() else ""
            raise _in_use_error(file.path, f"process {process.name}{this}")


def _open_files(process: Path) -> set[FileId]:
    found = set()
    with suppress(OSError):  # it has ended, or belongs to another user
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                opened = descriptor.stat()
                found.add(FileId(opened.st_dev, opened.st_ino))
    return found


def _keep_aside(file: DatabaseFile) -> Path | None:
    return file.keep_aside(backup_suffix(_REPLACED))


def _in_use_error(path: Path, process: str) -> StorageError:
    return StorageError(
        f"{path}: {process} has it open; stop every process that uses it, and try again",
        path,
        errno=errno.EBUSY,
    )
