"""What is in a SQLite file: its schema, its integrity, its journal, its rows."""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING

from tokenstore.doctor.findings import Finding, ok
from tokenstore.doctor.integrity import Rows
from tokenstore.doctor.schema import compare_schema
from tokenstore.storage.query import CompiledStatement
from tokenstore.storage.sqlite.engine import decode_leniently, driver_of, pragma
from tokenstore.storage.sqlite.errors import error_name
from tokenstore.storage.sqlite.schema import revision_of
from tokenstore.storage.tables import REVISION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection
    from sqlalchemy.sql import ClauseElement

    from tokenstore.storage.query import Row

_LONG_LOG = 64 << 20  # bytes; SQLite begins anew at 4 MB unless somebody keeps on reading
_RESETS_SAFELY = (3, 51, 3)  # https://sqlite.org/wal.html#walresetbug
_RESTORE = "stop the application, keep this file, and put a backup in its place"


class Contents:
    """Looks at one database through a connection that changes nothing.

    Args:
        path: The database file.
        connection: A connection to it.
    """

    def __init__(self, path: Path, connection: Connection) -> None:
        self._path = path
        self._driver = driver_of(connection)
        self._driver.text_factory = decode_leniently  # one damaged row hides no other
        self.journal_mode = str(pragma(driver_of(connection), "journal_mode"))
        self.revision = revision_of(connection, path)
        self.is_whole = True  # as far as is known
        self.rows = Rows(self._rows)

    def examine(self) -> Iterator[Finding]:
        """Look at everything that the schema of the database lets us look at."""
        yield from compare_schema(self._path, self.revision)
        yield from self.integrity()
        yield from self.journal()
        if self.is_readable:
            yield from self.rows.shared_tokens()

    @property
    def is_readable(self) -> bool:
        """Whether its accounts can be looked at."""
        return self.is_whole and self.revision == REVISION

    def integrity(self) -> Iterator[Finding]:
        """Look at the structure of the file, and at the checksums of what is in it."""
        faults = self._faults()
        self.is_whole = faults == ["ok"]
        if not self.is_whole:
            what = f"{self._path} is damaged: {'; '.join(faults)}"
            yield Finding("integrity", "error", what, _RESTORE)
            return
        if self.revision == REVISION:
            whole = "the file is whole, and what is in it is what was stored"
            yield from self.rows.integrity(whole, _RESTORE)
        else:
            yield ok("integrity", "the file is whole")

    def journal(self) -> Iterator[Finding]:
        """Look at SQLite's journal: its mode, and how long the log has become."""
        if self.journal_mode == "delete" and not os.access(self._path.parent, os.W_OK):
            # SQLite then reads a database in wal mode as one that has no journal.
            what = "it cannot be told where the directory cannot be written"
            yield Finding("journal mode", "info", what)
        else:
            yield ok("journal mode", self.journal_mode)
        try:
            size = self._path.with_name(f"{self._path.name}-wal").lstat().st_size
        except FileNotFoundError:
            size = 0
        if size > _LONG_LOG:
            yield Finding(
                "journal mode",
                "warning",
                f"the write-ahead log has grown to {size >> 20} MiB: somebody keeps on reading one "
                "state of the database",
                "end the process that does (fuser lists those that have the file open)",
            )
        if self.journal_mode == "wal" and sqlite3.sqlite_version_info < _RESETS_SAFELY:
            yield Finding(
                "sqlite",
                "info",
                f"SQLite {sqlite3.sqlite_version} has a bug that very rarely damages a database in "
                "wal mode, when processes write and empty the log in the same instant",
                "use a Python with SQLite 3.51.3 or later, or journal_mode='delete'",
            )

    def _rows(self, statement: ClauseElement) -> Iterator[Row]:
        """Yield the rows, past SQLAlchemy, whose log would show them."""
        compiled = CompiledStatement(statement).sqlite
        yield from self._driver.execute(compiled.sql, compiled.values({}))

    def _faults(self) -> list[str]:
        faults = []
        try:
            for (fault,) in self._driver.execute("PRAGMA integrity_check(10)"):
                faults.append(" ".join(str(fault).split()))
        except sqlite3.DatabaseError as error:
            if not error_name(error).startswith("SQLITE_CORRUPT"):
                raise
            faults.append(str(error))
        return faults
