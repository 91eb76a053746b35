"""The interface of a database backend: what the repository requires of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from sqlalchemy import Connection

    from tokenstore.storage.locks import HeldLock
    from tokenstore.storage.query import CompiledStatement, Row

T = TypeVar("T")

JournalMode = Literal["wal", "delete"]
"""How SQLite journals a transaction. Other databases have no such choice."""


class Restored(NamedTuple):
    """A database that was replaced with a copy.

    Attributes:
        path: The database.
        moved_to: The path of what was there before, or None if there was nothing.
        rotated: The accounts whose refresh tokens in the copy were exchanged since, or None if the
            previous database could not be read.
    """

    path: Path
    moved_to: Path | None
    rotated: tuple[str, ...] | None


class RefreshLocks(Protocol):
    """The refresh locks of the accounts. A lock is released when its holder dies."""

    def account(self, account_name: str, *, timeout: float) -> AbstractContextManager[HeldLock]:
        """Hold the lock of an account; wait for it at most *timeout* seconds.

        Raises:
            LockTimeoutError: Another thread or process held it for that long.
            StorageError: The lock cannot be acquired, or the calling thread holds it already.
        """

    def is_held(self, account_name: str) -> bool:
        """Return whether the lock of an account is held. This creates nothing."""


class Database(Protocol):
    """A database that threads and processes share. It does no I/O before its first use.

    Reading never creates it; the first transaction does. Every method may raise a `StorageError`.

    Attributes:
        name: The name in messages: a path, or a URL without its password.
        excludes_writers: Whether `run` keeps all others from writing, and not only those of a row
            that it has changed.
    """

    name: str
    excludes_writers: bool

    @property
    def locks(self) -> RefreshLocks:
        """The refresh locks of its accounts."""

    def exists(self) -> bool:
        """Return whether the database exists, with its tables. This creates nothing."""

    def fetch_one(self, statement: CompiledStatement, parameters: dict[str, Any]) -> Row | None:
        """Return the first row, or None if there is no row or no database."""

    def fetch_all(self, statement: CompiledStatement, parameters: dict[str, Any]) -> list[Row]:
        """Return all rows, or none if there is no database."""

    def execute(self, statement: CompiledStatement, parameters: dict[str, Any]) -> int:
        """Run a statement that writes, inside a transaction; return the number of changed rows."""

    def run(
        self,
        work: Callable[[], T],
        *,
        expected_identity: object = None,
        lock: HeldLock | None = None,
    ) -> T:
        """Call *work* in one durable transaction, or in the current one of this thread.

        If the database ends the transaction for a transient reason, and nothing was stored,
        *work* is called again.

        Args:
            work: The work. It reads and writes this database and nothing else.
            expected_identity: The `identity` that the database must still have. Defaults to any;
                a missing database is then created.
            lock: A refresh lock that the caller holds. A backend whose locks are held by a
                transaction commits on that one, so that stored and released are one step.
        """

    def in_transaction(self) -> bool:
        """Return whether the calling thread is inside a transaction on this database."""

    def require_room(self, size: int) -> None:
        """Raise a `StorageError` unless a row of *size* bytes can be stored, as far as is known."""

    def transaction(self) -> AbstractContextManager[None]:
        """Make the caller's work one durable transaction, while no other thread writes.

        It belongs to the thread, and to the coroutine or generator, that opens it; other code of
        the thread reads what is committed, and a write of it fails. Nested transactions join the
        outer one; if one of them fails, nothing of the whole is stored. Without a database, it
        begins with the first write, so that reading creates nothing.
        """

    def scrub_after_commit(self) -> None:
        """Remove the bytes that this transaction deletes from the database's log too."""

    def identity(self) -> object:
        """Return, inside a transaction, a value that changes if the database is replaced."""

    def backup(self, target: Path, *, replace: bool) -> None:
        """Copy the database to *target* while other threads and processes keep writing.

        Args:
            target: The file to write.
            replace: Whether to replace an existing file.
        """

    def restore(self, source: Path) -> Restored:
        """Replace the database with a copy of it; what was there is moved aside.

        Args:
            source: The copy.
        """

    def migration(self) -> AbstractContextManager[Connection]:
        """Yield a connection for migrations, in a transaction that excludes other migrations.

        A missing database is created, unless the migrations create nothing.
        """

    def inspection(self) -> AbstractContextManager[Connection]:
        """Yield a connection for migration commands that only read. This creates nothing."""

    def back_up_before_upgrade(self, connection: Connection) -> None:
        """Copy a database that is about to be migrated, if it is a file.

        Args:
            connection: The connection of the `migration`.
        """

    def close(self) -> None:
        """Close all connections. The next use opens new ones."""
