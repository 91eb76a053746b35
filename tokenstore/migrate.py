"""Bring a database to a schema revision; alembic is imported here and only to migrate."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tokenstore.errors import StorageError
from tokenstore.redaction import protect
from tokenstore.storage.factory import storage
from tokenstore.storage.location import shown
from tokenstore.storage.sqlite.schema import too_new
from tokenstore.storage.tables import VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from alembic.config import Config
    from sqlalchemy import Connection
    from sqlalchemy.engine import URL

__all__ = ["VERSION_TABLE", "check", "current", "downgrade", "history", "upgrade"]

# alembic keeps what it runs on in its module's globals, so two threads must not run it at once.
_alembic = threading.Lock()


def _renew_lock() -> None:
    global _alembic  # noqa: PLW0603
    _alembic = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def upgrade(database: str | os.PathLike[str] | URL | None = None, revision: str = "head") -> None:
    """Bring a database to *revision*; one that is missing is created, 0600.

    All migrations are one transaction: a failing one leaves the database as it was. Before an
    older database is changed, it is copied to ``DATABASE-backup-REVISION-TIME``.

    Args:
        database: As for `TokenManager`.
        revision: An alembic revision, such as ``head`` or ``+1``.

    Raises:
        StorageError: The database cannot be opened or changed, or the revision is unknown.
    """
    store = storage(database, to_head)
    with store.migration() as connection:
        store.back_up_before_upgrade(connection)
        _run(store.name, lambda command, config: command.upgrade(config, revision), connection)


def downgrade(
    database: str | os.PathLike[str] | URL | None = None,
    revision: str = "-1",
    *,
    x: Sequence[str] = (),
) -> None:
    """Take a database back to *revision*, keeping every account.

    Only ``base`` drops the tokens, and is refused on a database with accounts unless *x* has
    ``destroy=yes``.

    Raises:
        StorageError: As for `upgrade`, or the downgrade was refused.
    """
    store = storage(database, to_head)
    with store.migration() as connection:
        _run(store.name, lambda command, config: command.downgrade(config, revision), connection, x)


def current(
    database: str | os.PathLike[str] | URL | None = None, *, stdout: TextIO | None = None
) -> None:
    """Print the revision of a database to *stdout*."""
    _look(database, lambda command, config: command.current(config), stdout)


def history(
    database: str | os.PathLike[str] | URL | None = None, *, stdout: TextIO | None = None
) -> None:
    """Print all revisions, the newest first, with a mark at the one of the database."""
    _look(database, lambda command, config: command.history(config, indicate_current=True), stdout)


def check(
    database: str | os.PathLike[str] | URL | None = None, *, stdout: TextIO | None = None
) -> None:
    """Compare the tables of a database with those of the code.

    Raises:
        StorageError: They differ, or the database is not at head.
    """
    _look(database, lambda command, config: command.check(config), stdout)


def to_head(connection: Connection) -> None:
    """Run every migration that the database of *connection* lacks, in its transaction."""
    _run(
        shown(connection.engine.url),
        lambda command, config: command.upgrade(config, "head"),
        connection,
    )


@contextmanager
def open_database(database: str | None) -> Iterator[Connection]:
    """Open *database* for alembic's own command line, in one transaction (see env.py)."""
    with storage(database, to_head).migration() as connection:
        yield connection


def scripts() -> Path:
    """Return the directory of the migrations: inside an installed package, else in the checkout.

    Raises:
        StorageError: The installation lacks them.
    """
    package = Path(__file__).resolve().parent
    if (package / "migrations").is_dir():
        return package / "migrations"
    # Without alembic.ini beside it, a directory of that name may be any other project's.
    if (package.parent / "alembic.ini").is_file():
        return package.parent / "migrations"
    raise StorageError(f"{package}: the migrations are missing; reinstall tokenstore", package)


def _look(
    database: str | os.PathLike[str] | URL | None,
    act: Callable[[Any, Config], object],
    stdout: TextIO | None,
) -> None:
    store = storage(database, to_head)
    with store.inspection() as connection:
        _run(store.name, act, connection, stdout=stdout, options={"dont_mutate": True})


def _run(
    name: str,
    act: Callable[[Any, Config], object],
    connection: Connection,
    x: Sequence[str] = (),
    *,
    stdout: TextIO | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    from argparse import Namespace

    from alembic import command
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.util import CommandError

    config = Config(stdout=stdout or sys.stdout, cmd_opts=Namespace(x=list(x)))
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    config.attributes["options"] = options or {}  # alembic's, for its environment
    with _alembic:
        try:
            act(command, config)
        except CommandError as error:
            context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
            unknown = getattr(error.__cause__, "argument", None)
            if unknown in context.get_current_heads():
                raise too_new(name, unknown) from error
            raise StorageError(f"{name}: {error}", name) from error


protect(__name__)
