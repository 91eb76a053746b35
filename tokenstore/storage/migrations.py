"""Runs alembic on a connection of a database. alembic is imported here, and only to migrate."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tokenstore import fork
from tokenstore.errors import SchemaTooNewError, StorageError
from tokenstore.storage.tables import REVISION, VERSION_TABLE, accounts, metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alembic.config import Config
    from sqlalchemy import Connection, MetaData


class _AlembicLock(fork.ForkParticipant):
    """alembic keeps its state in the globals of a module, so only one thread may run it."""

    def __init__(self) -> None:
        self.after_fork_in_child()
        fork.register(fork.Stage.LOCKS, self)

    def after_fork_in_child(self) -> None:
        """Reset to unlocked: the thread that held the lock is not in the child."""
        self.lock = threading.Lock()


_alembic = _AlembicLock()


def run(
    name: str,
    command: Callable[[Any, Config], object],
    connection: Connection,
    *,
    x: Sequence[str] = (),
    stdout: TextIO | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Run one of alembic's commands.

    Args:
        name: What messages call the database.
        command: Calls the command, given ``alembic.command`` and the configuration.
        connection: The connection to run on, inside a transaction.
        x: The values of ``-x``.
        stdout: Where the command prints.
        options: Further options of alembic's environment context.

    Raises:
        SchemaTooNewError: The database has a revision that this code does not know.
        StorageError: The command failed.
    """
    from argparse import Namespace

    import alembic.command
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.util import CommandError

    config = Config(stdout=stdout or sys.stdout, cmd_opts=Namespace(x=list(x)))
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    config.attributes["options"] = options or {}
    with _alembic.lock:
        try:
            command(alembic.command, config)
        except CommandError as error:
            context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
            unknown = getattr(error.__cause__, "argument", None)
            if unknown in context.get_current_heads():
                raise too_new(name, unknown) from error
            raise StorageError(f"{name}: {error}", name) from error


def upgrade_to_head(name: str, connection: Connection) -> None:
    """Run every migration that a database lacks, in the transaction of *connection*."""
    run(name, lambda command, config: command.upgrade(config, "head"), connection)


def too_new(name: str, revision: str) -> SchemaTooNewError:
    """Return the error for a database whose schema is newer than this code."""
    return SchemaTooNewError(
        f"{name} has schema {revision}, this tokenstore knows up to {REVISION}; upgrade tokenstore",
        name,
    )


def target_metadata() -> MetaData:
    """Return the tables and all indexes: what the migrations add up to.

    The condition of a partial index loads the dialects that it is for, which only a migration
    should wait for.
    """
    from sqlalchemy import Index

    name = "ix_accounts_tokenless"
    if name not in {index.name for index in accounts.indexes}:
        tokenless = accounts.c.access_token.is_(None)
        Index(name, accounts.c.account_name, sqlite_where=tokenless, postgresql_where=tokenless)
    return metadata


def scripts() -> Path:
    """Return the directory of the migrations: inside an installed package, else in the checkout.

    Raises:
        StorageError: The installation lacks them.
    """
    package = Path(__file__).resolve().parents[1]
    if (package / "migrations").is_dir():
        return package / "migrations"
    # Without alembic.ini beside it, a directory of that name may belong to any project.
    if (package.parent / "alembic.ini").is_file():
        return package.parent / "migrations"
    raise StorageError(f"{package}: the migrations are missing; reinstall tokenstore", package)
