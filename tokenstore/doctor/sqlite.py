"""Check a store in a SQLite file."""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING

from tokenstore.doctor.files import FileChecks
from tokenstore.doctor.findings import Finding, ok
from tokenstore.doctor.integrity import RowChecks
from tokenstore.doctor.schema import compare_schema
from tokenstore.errors import InsecureStorageError, StorageError
from tokenstore.storage.query import CompiledStatement
from tokenstore.storage.sqlite.connector import Connector
from tokenstore.storage.sqlite.database import SQLiteDatabase
from tokenstore.storage.sqlite.engine import decode_leniently, driver_of, pragma
from tokenstore.storage.sqlite.errors import error_name
from tokenstore.storage.sqlite.schema import revision_of
from tokenstore.storage.tables import REVISION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection
    from sqlalchemy.sql import ClauseElement

    from tokenstore.doctor.integrity import UnansweredRefresh
    from tokenstore.storage.query import Row

_LARGE_LOG = 64 << 20  # bytes; SQLite resets the log at 4 MB unless a reader prevents it
_SAFE_RESET = (3, 51, 3)  # the first version without https://sqlite.org/wal.html#walresetbug
_RESTORE = "stop the application, keep this file, and replace it with a backup"


class SQLiteStore:
    """Checks the file, those next to it, and its content.

    Args:
        path: The database file.
        fix: Whether to fix what can be fixed safely.

    Attributes:
        is_readable: Whether the accounts can be read; False until `examine` has found out.
    """

    def __init__(self, path: Path, *, fix: bool) -> None:
        self._path = path
        self._fix = fix
        self._connector = Connector(path, journal_mode="wal", upgrade=False)
        self._database = SQLiteDatabase(path)
        self.is_readable = False

    def examine(self) -> Iterator[Finding]:
        """Check everything except the accounts."""
        file = self._connector.file
        if not self._connector.exists():
            file.reject_stale_wal()
            message = f"{self._path}: there is no database; the first save creates it"
            yield Finding("database", "warning", message, "check the path if there should be one")
            return
        try:
            with self._database.inspection():
                pass
        except InsecureStorageError:  # another user's: the files next to it are not checked
            raise
        except StorageError:
            yield from FileChecks(file, fix=False).permissions(opened=False)
            raise
        files = FileChecks(file, fix=self._fix)
        yield from files.permissions()
        yield from files.leftovers()
        with self._database.inspection() as connection:
            content = _ContentChecks(self._path, connection)
            yield from files.file_system(content.journal_mode)
            yield from content.examine()
            self.is_readable = content.is_readable

    def unanswered_refreshes(self) -> set[UnansweredRefresh]:
        """Return the refreshes without a recorded response."""
        with self._database.inspection() as connection:
            return _ContentChecks(self._path, connection).rows.unanswered_refreshes()

    def is_locked(self, account_name: str) -> bool:
        """Return whether the account is being refreshed now."""
        return self._connector.locks.is_held(account_name)

    def close(self) -> None:
        """Close the database."""
        self._database.close()


class _ContentChecks:
    """Checks the content of the file through a connection that changes nothing.

    Args:
        path: The database file.
        connection: A connection to it.
    """

    def __init__(self, path: Path, connection: Connection) -> None:
        self._path = path
        self._driver = driver_of(connection)
        self._driver.text_factory = decode_leniently  # so that a damaged row hides no other
        self._revision = revision_of(connection, path)
        self._is_intact = True  # until `_integrity` has found out
        self.journal_mode = str(pragma(self._driver, "journal_mode"))
        self.rows = RowChecks(self._read)

    def examine(self) -> Iterator[Finding]:
        """Check everything that the schema of the database allows."""
        yield from compare_schema(self._path, self._revision)
        yield from self._code()
        yield from self._integrity()
        yield from self._journal()
        if self.is_readable:
            yield from self.rows.shared_tokens()

    @property
    def is_readable(self) -> bool:
        """Whether the accounts can be read."""
        return self._is_intact and self._revision == REVISION

    def _code(self) -> Iterator[Finding]:
        """Report triggers and views: tokenstore has none, and they can copy tokens."""
        query = "SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'view')"
        found = [f"{kind} {str(name)!r}" for kind, name in self._driver.execute(query)]
        if found:
            yield Finding(
                "triggers",
                "error",
                f"{self._path} contains code that tokenstore has not created and that can copy "
                f"tokens: {', '.join(sorted(found))}",
                "if you do not know it, have every account sign in again; remove it with DROP "
                "TRIGGER or DROP VIEW",
            )

    def _integrity(self) -> Iterator[Finding]:
        """Check the structure of the file and the checksums of its rows."""
        problems = self._problems()
        self._is_intact = problems == ["ok"]
        if not self._is_intact:
            message = f"{self._path} is damaged: {'; '.join(problems)}"
            yield Finding("integrity", "error", message, _RESTORE)
        elif self._revision == REVISION:
            intact = "the file is intact, and every account is as it was saved"
            yield from self.rows.integrity(intact, _RESTORE)
        else:
            yield ok("integrity", "the file is intact")

    def _journal(self) -> Iterator[Finding]:
        """Check SQLite's journal mode and the size of its log."""
        if self.journal_mode == "delete" and not os.access(self._path.parent, os.W_OK):
            # SQLite then reports "delete" for a database in WAL mode, too.
            message = "unknown, because the directory is not writable"
            yield Finding("journal mode", "info", message)
        else:
            yield ok("journal mode", self.journal_mode)
        try:
            size = self._path.with_name(f"{self._path.name}-wal").lstat().st_size
        except FileNotFoundError:
            size = 0
        if size > _LARGE_LOG:
            yield Finding(
                "journal mode",
                "warning",
                f"the write-ahead log has grown to {size >> 20} MiB because a process keeps a read "
                "transaction open",
                "end that process (fuser lists those that have the file open)",
            )
        if self.journal_mode == "wal" and sqlite3.sqlite_version_info < _SAFE_RESET:
            yield Finding(
                "sqlite",
                "info",
                f"SQLite {sqlite3.sqlite_version} has a bug that very rarely damages a database in "
                "WAL mode when processes write and reset the log at the same instant",
                "use a Python with SQLite 3.51.3 or later, or journal_mode='delete'",
            )

    def _read(self, statement: ClauseElement) -> Iterator[Row]:
        """Yield the rows, bypassing SQLAlchemy, whose log would show them."""
        compiled = CompiledStatement(statement).sqlite
        yield from self._driver.execute(compiled.sql, compiled.values({}))

    def _problems(self) -> list[str]:
        """Return what SQLite's own check reports: ``ok``, or up to ten problems."""
        problems = []
        try:
            for (problem,) in self._driver.execute("PRAGMA integrity_check(10)"):
                problems.append(" ".join(str(problem).split()))
        except sqlite3.DatabaseError as error:
            if not error_name(error).startswith("SQLITE_CORRUPT"):
                raise
            problems.append(str(error))
        return problems
