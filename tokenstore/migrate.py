"""Migrates a database to a schema revision: alembic's commands as functions.

Nothing of alembic's process-wide state is used: an application may migrate its own database in
another thread, or call these functions inside one of its own migrations.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TextIO, TypeVar

from tokenstore.messages import printable
from tokenstore.redaction import protect
from tokenstore.storage import migrations
from tokenstore.storage.factory import database_for

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.engine import URL

T = TypeVar("T")

__all__ = ["check", "current", "downgrade", "history", "stamp", "upgrade"]


def upgrade(database: str | os.PathLike[str] | URL | None = None, revision: str = "head") -> None:
    """Upgrade a database to *revision*. A missing database is created, 0600.

    All migrations are one transaction: if one fails, the database is unchanged. An older SQLite
    file is first copied to ``DATABASE-backup-REVISION-TIMESTAMP``; the copy stays if the upgrade
    succeeds. A SQLite file that was restored from a dump is marked as a tokenstore database.

    Args:
        database: As for `TokenManager`.
        revision: An alembic revision, such as ``head`` or ``+1``.

    Raises:
        StorageError: The database cannot be opened or changed, the revision is unknown, or the
            tables are not those of the recorded revision (see `stamp`).
    """
    found = database_for(database)
    with found.migration() as connection:
        found.back_up_before_upgrade(connection)
        migrations.upgrade(found.name, connection, revision)


def downgrade(
    database: str | os.PathLike[str] | URL | None = None,
    revision: str = "-1",
    *,
    x: Sequence[str] = (),
) -> None:
    """Downgrade a database to *revision*, keeping every account.

    Only ``base`` drops the tokens. It is refused for a database with accounts unless *x* contains
    ``destroy=yes``.

    Args:
        database: As for `TokenManager`.
        revision: An alembic revision, such as ``0003`` or ``-1``.
        x: Arguments for the migrations, each ``NAME=VALUE``. The only one is ``destroy=yes``.

    Raises:
        StorageError: As for `upgrade`, or the downgrade was refused.
        ValueError: An argument in *x* is unknown.
    """
    destroy = migrations.parse_arguments(x, ["destroy"]).get("destroy") == "yes"
    found = database_for(database)
    with found.migration() as connection:
        migrations.downgrade(found.name, connection, revision, destroy=destroy)


def stamp(database: str | os.PathLike[str] | URL | None = None) -> str:
    """Correct the recorded revision of a database to the one that its tables have.

    The record is wrong after ``alembic stamp`` with another revision, or when it was removed.

    Args:
        database: As for `TokenManager`.

    Returns:
        The revision.

    Raises:
        StorageError: The database cannot be opened, or its tables are not those of a revision.
    """
    found = database_for(database)
    with found.migration() as connection:
        return migrations.stamp(found.name, connection)


def current(
    database: str | os.PathLike[str] | URL | None = None, *, stdout: TextIO | None = None
) -> None:
    """Print the schema revision of a database.

    Args:
        database: As for `TokenManager`.
        stdout: Where to print. Defaults to ``sys.stdout``.

    Raises:
        StorageError: The database cannot be read.
    """
    _print(_inspect(database, migrations.current), stdout)


def history(
    database: str | os.PathLike[str] | URL | None = None, *, stdout: TextIO | None = None
) -> None:
    """Print all schema revisions, newest first, and mark that of the database.

    Args:
        database: As for `TokenManager`.
        stdout: Where to print. Defaults to ``sys.stdout``.

    Raises:
        StorageError: The database cannot be read.
    """
    _print(_inspect(database, migrations.history), stdout)


def check(
    database: str | os.PathLike[str] | URL | None = None, *, stdout: TextIO | None = None
) -> None:
    """Check that the tables of a database are those that this version expects.

    Args:
        database: As for `TokenManager`.
        stdout: Where to print. Defaults to ``sys.stdout``.

    Raises:
        StorageError: They differ, or the database is not at the newest revision.
    """
    _inspect(database, migrations.check)
    _print(["No new upgrade operations detected."], stdout)


def require_tables(database: str | os.PathLike[str] | URL | None = None) -> None:
    """Raise a `StorageError` if the tables are those of another revision than the recorded one."""
    _inspect(database, migrations.require_tables)


class AlembicRun(NamedTuple):
    """What ``env.py`` needs for a run of alembic's own command line.

    Attributes:
        connection: A connection in one transaction.
        destroy: Whether ``base`` may drop the tables of a database with accounts.
        back_up: Copies an older SQLite file; the copy stays if the run succeeds.
    """

    connection: Connection
    destroy: bool
    back_up: Callable[[], None]


@contextmanager
def alembic_run(x: Sequence[str]) -> Iterator[AlembicRun]:
    """Open the database for a run of alembic's own command line, in one transaction.

    Args:
        x: The values of ``-x``: ``database=PATH-OR-URL`` and ``destroy=yes``.

    Raises:
        StorageError: The database cannot be opened or changed.
        ValueError: An argument is unknown, or *database* is neither a path nor a URL.
    """
    arguments = migrations.parse_arguments(x, ["database", "destroy"])
    found = database_for(arguments.get("database"))
    with found.migration() as connection:
        yield AlembicRun(
            connection,
            arguments.get("destroy") == "yes",
            lambda: found.back_up_before_upgrade(connection),
        )


def _inspect(
    database: str | os.PathLike[str] | URL | None, inspect: Callable[[str, Connection], T]
) -> T:
    found = database_for(database)
    with found.inspection() as connection:
        return inspect(found.name, connection)


def _print(lines: Sequence[str], stdout: TextIO | None) -> None:
    for line in lines:
        print(printable(line, keep="\n"), file=stdout or sys.stdout)


protect(__name__)
