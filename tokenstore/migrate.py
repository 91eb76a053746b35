"""Migrates a database to a schema revision: alembic's commands as functions."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from tokenstore.redaction import protect
from tokenstore.storage import migrations
from tokenstore.storage.factory import database_for

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from alembic.config import Config
    from sqlalchemy import Connection
    from sqlalchemy.engine import URL

__all__ = ["check", "current", "downgrade", "history", "upgrade"]


def upgrade(database: str | os.PathLike[str] | URL | None = None, revision: str = "head") -> None:
    """Upgrade a database to *revision*. A missing database is created, 0600.

    All migrations are one transaction: if one fails, the database is unchanged. An older SQLite
    file is first copied to ``DATABASE-backup-REVISION-TIMESTAMP``.

    Args:
        database: As for `TokenManager`.
        revision: An alembic revision, such as ``head`` or ``+1``.

    Raises:
        StorageError: The database cannot be opened or changed, or the revision is unknown.
    """
    found = database_for(database)
    with found.migration() as connection:
        found.back_up_before_upgrade(connection)
        migrations.run(
            found.name, lambda command, config: command.upgrade(config, revision), connection
        )


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
        x: Arguments for the migrations, each ``NAME=VALUE``.

    Raises:
        StorageError: As for `upgrade`, or the downgrade was refused.
    """
    found = database_for(database)
    with found.migration() as connection:
        migrations.run(
            found.name, lambda command, config: command.downgrade(config, revision), connection, x=x
        )


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
    _inspect(database, lambda command, config: command.current(config), stdout)


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
    _inspect(
        database, lambda command, config: command.history(config, indicate_current=True), stdout
    )


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
    _inspect(database, lambda command, config: command.check(config), stdout)


@contextmanager
def open_for_migration(database: str | None) -> Iterator[Connection]:
    """Open *database* for alembic's own command line, in one transaction (see ``env.py``)."""
    with database_for(database).migration() as connection:
        yield connection


def _inspect(
    database: str | os.PathLike[str] | URL | None,
    command: Callable[[Any, Config], object],
    stdout: TextIO | None,
) -> None:
    found = database_for(database)
    with found.inspection() as connection:
        migrations.run(
            found.name, command, connection, stdout=stdout, options={"dont_mutate": True}
        )


protect(__name__)
