"""What the repository needs of a database, whichever it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from sqlalchemy import Connection

    from tokenstore.storage.locks import HeldLock
    from tokenstore.storage.query import Query, Row

T = TypeVar("T")

JournalMode = Literal["wal", "delete"]
"""How SQLite journals a transaction; no other database has a choice."""


class RefreshLocks(Protocol):
    """The refresh locks of the accounts, which die with their holder."""

    def account(self, account_name: str, *, timeout: float) -> AbstractContextManager[HeldLock]:
        """Hold the lock of an account; wait for it at most *timeout* seconds.

        Raises:
            TimeoutError: Somebody else holds it.
            StorageError: It cannot be taken at all.
        """

    def is_held(self, account_name: str) -> bool:
        """Tell whether somebody holds the lock of an account; that creates nothing."""


class Database(Protocol):
    """A database, shared by threads and processes. It does no I/O before its first use.

    Reading never creates it; the first transaction does. Every method may raise a `StorageError`.

    Attributes:
        name: What messages call it: a path, or a URL without its password.
    """

    name: str

    @property
    def locks(self) -> RefreshLocks:
        """The refresh locks of its accounts."""

    def fetch_one(self, query: Query, parameters: dict[str, Any]) -> Row | None:
        """Return the first row, None if there is none or no database."""

    def fetch_all(self, query: Query, parameters: dict[str, Any]) -> list[Row]:
        """Return all rows, none if there is no database."""

    def execute(self, query: Query, parameters: dict[str, Any]) -> int:
        """Run a statement that writes, inside a transaction; return how many rows it changed."""

    def run(self, work: Callable[[], T], *, where: object = None) -> T:
        """Do *work* in one durable transaction, or in the one that this thread is in.

        If the database ends it for a passing reason, with nothing stored, it is done again.

        Args:
            work: What to do; it reads and writes this database and nothing else.
            where: The `identity` that the database has to have still; None: any, and one that is
                missing is created.
        """

    def transaction(self) -> AbstractContextManager[None]:
        """Make what this thread does one durable transaction, while nobody else writes.

        Nested ones join it.
        """

    def scrub_after_commit(self) -> None:
        """Let the bytes that this transaction deletes leave the database's log as well."""

    def identity(self) -> object:
        """Return what tells this database, in a transaction, from another in its place."""

    def backup(self, target: Path, *, replace: bool) -> None:
        """Copy the database to *target* while others go on writing."""

    def migration(self) -> AbstractContextManager[Connection]:
        """Yield a connection inside one transaction, for migrations to run on."""

    def inspection(self) -> AbstractContextManager[Connection]:
        """Yield a connection for migration commands that only look; it creates nothing."""

    def back_up_before_upgrade(self, connection: Connection) -> None:
        """Keep a copy of a database that is about to be migrated, if that is a file."""

    def close(self) -> None:
        """Close all connections; whoever goes on using it opens new ones."""
