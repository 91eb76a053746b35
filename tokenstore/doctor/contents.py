"""What is in a database: its schema, its integrity, its journal, what its accounts share."""

from __future__ import annotations

import io
import os
import sqlite3
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import func, select

from tokenstore import migrate
from tokenstore.building import revision_of
from tokenstore.doctor.finding import Finding, counted, ok
from tokenstore.errors import StorageError
from tokenstore.query import Query, Row
from tokenstore.rows import TOKEN_COLUMNS, Damaged, is_text, to_tokens
from tokenstore.schema import REVISION, accounts, refreshes
from tokenstore.sqlite import decode_what_can_be, driver_of, error_name, pragma
from tokenstore.tokens import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection
    from sqlalchemy.sql import ClauseElement

_LONG_LOG = 64 << 20  # bytes; SQLite begins anew at 4 MB unless somebody keeps on reading
_RESETS_SAFELY = (3, 51, 3)  # https://sqlite.org/wal.html#walresetbug
_RESTORE = "stop the application, keep this file, and put a backup in its place"


class Unanswered(NamedTuple):
    """A refresh that was begun, and of which nobody knows an end: its number, whose, and where."""

    id: int
    account_name: str
    host: str


class Contents:
    """Looks at one database through a connection that changes nothing.

    Args:
        path: The database file.
        connection: A connection to it.
    """

    def __init__(self, path: Path, connection: Connection) -> None:
        self._path = path
        self._driver = driver_of(connection)
        self._driver.text_factory = decode_what_can_be  # one damaged row hides no other
        self.journal_mode = str(pragma(driver_of(connection), "journal_mode"))
        self.revision = revision_of(connection, path)
        self.is_whole = True  # as far as is known

    def examine(self) -> Iterator[Finding]:
        """Look at everything that the schema of the database lets us look at."""
        yield from self.schema()
        yield from self.integrity()
        yield from self.journal()
        if self.is_readable:
            yield from self.shared_tokens()

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
        damaged = tuple(self._damaged()) if self.revision == REVISION else ()
        if damaged:
            yield Finding(
                "integrity",
                "error",
                f"what is stored of {counted(len(damaged), 'account')} is not what was saved",
                f"{_RESTORE}; or sign them in again",
                damaged,
            )
        else:
            yield ok("integrity", "the file is whole, and what is in it is what was stored")

    def schema(self) -> Iterator[Finding]:
        """Look at the schema: is it the one that this version works with?"""
        if self.revision is not None and self.revision > REVISION:
            what = f"schema {self.revision} is newer than {REVISION}, which this tokenstore knows"
            yield Finding("schema", "error", what, "upgrade tokenstore")
        elif self.revision != REVISION:
            what = f"schema {self.revision or 'base'} is older than {REVISION}"
            cure = f"run: tokenstore --database '{self._path}' db upgrade"
            yield Finding("schema", "error", what, cure)
        else:
            try:
                migrate.check(self._path, stdout=io.StringIO())
            except StorageError:
                what = f"the tables are not those of revision {REVISION}: somebody changed them"
                cure = "undo the changes, which tokenstore db check lists, or restore a backup"
                yield Finding("schema", "error", what, cure)
            else:
                yield ok("schema", f"revision {REVISION}, as this version wants it")

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

    def shared_tokens(self) -> Iterator[Finding]:
        """Look for accounts that share a refresh token: one that rotates kills the other."""
        token = accounts.c.refresh_token
        shared = select(token).group_by(token).having(func.count() > 1)
        names: dict[str, list[str]] = defaultdict(list)
        query = select(accounts.c.account_name, token).where(token.in_(shared))
        for name, value in self._rows(query.order_by(accounts.c.account_name)):
            names[value].append(name)
        for group in names.values():
            yield Finding(
                "shared tokens",
                "warning",
                f"{len(group)} accounts have the same refresh token; where a provider rotates it, "
                "the first refresh of one ends the others",
                "keep one of them, and delete the others or sign them in on their own",
                tuple(group),
            )
        if not names:
            yield ok("shared tokens", "no two accounts have the same refresh token")

    def unanswered(self) -> set[Unanswered]:
        """Return the refreshes that had no answer that anybody knows of, of tokens still stored."""
        last = select(func.max(refreshes.c.id)).group_by(refreshes.c.account_name)
        query = (
            select(
                refreshes.c.id,
                refreshes.c.account_name,
                refreshes.c.host,
                refreshes.c.sent,
                accounts.c.refresh_token,
            )
            .join_from(refreshes, accounts, refreshes.c.account_name == accounts.c.account_name)
            .where(
                refreshes.c.id.in_(last),
                refreshes.c.outcome.is_(None)
                | (refreshes.c.outcome == "interrupted")
                | refreshes.c.maybe_spent,
            )
        )
        return {
            Unanswered(number, name, host)
            for number, name, host, sent, token in self._rows(query)
            if is_text(token) and fingerprint(token) == sent
        }

    def _rows(self, statement: ClauseElement) -> Iterator[Row]:
        """Yield the rows, past SQLAlchemy, whose log would show them."""
        yield from self._driver.execute(*Query(statement).sqlite)

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

    def _damaged(self) -> Iterator[str]:
        columns = (accounts.c[name] for name in ("account_name", *TOKEN_COLUMNS, "checksum"))
        query = select(*columns).order_by(accounts.c.account_name)
        for name, *row in self._rows(query):
            try:
                to_tokens(name, tuple(row))
            except Damaged:
                yield ascii(name) if not is_text(name) else name
