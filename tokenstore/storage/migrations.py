"""Runs alembic on a connection. This module alone imports alembic, and only to migrate."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tokenstore import fork
from tokenstore.errors import SchemaOutdatedError, SchemaTooNewError, StorageError
from tokenstore.storage.tables import REVISION, VERSION_TABLE, accounts, metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alembic.config import Config
    from sqlalchemy import Connection, MetaData


class _AlembicLock(fork.ForkParticipant):
    """The lock of the thread that runs alembic, which keeps its state in module globals."""

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
        name: The name of the database in messages.
        command: Calls the command, given ``alembic.command`` and the configuration.
        connection: The connection to run on, inside a transaction.
        x: The values of ``-x``.
        stdout: Where the command prints. Defaults to ``sys.stdout``.
        options: More options for alembic's environment context.

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
                raise too_new_error(name, unknown) from error
            raise StorageError(f"{name}: {error}", name) from error


def upgrade_to_head(name: str, connection: Connection) -> None:
    """Run the migrations that a database lacks, in the transaction of *connection*."""
    run(name, lambda command, config: command.upgrade(config, "head"), connection)


def too_new_error(name: str, revision: str) -> SchemaTooNewError:
    """Return the error for a database whose schema is newer than this code."""
    return SchemaTooNewError(
        f"{name} has schema {revision}, but this tokenstore knows only up to {REVISION}; "
        "upgrade tokenstore",
        name,
    )


def outdated_error(name: str, revision: str) -> SchemaOutdatedError:
    """Return the error for a database whose schema is older than this code."""
    return SchemaOutdatedError(
        f"{name} has schema {revision}, but this tokenstore requires {REVISION}; "
        f"run: tokenstore --database '{name}' db upgrade",
        name,
    )


def target_metadata() -> MetaData:
    """Return the tables with all indexes, as the migrations create them.

    A partial index is added only here: its condition loads the dialects, which takes time.
    """
    from sqlalchemy import Index

    name = "ix_accounts_tokenless"
    if name not in {index.name for index in accounts.indexes}:
        tokenless = accounts.c.access_token.is_(None)
        Index(name, accounts.c.account_name, sqlite_where=tokenless, postgresql_where=tokenless)
    return metadata


def scripts() -> Path:
    """Return the directory of the migrations: in the installed package, or else in the checkout.

    Raises:
        StorageError: The directory is missing.
    """
    package = Path(__file__).resolve().parents[1]
    if (package / "migrations").is_dir():
        return package / "migrations"
    # Without alembic.ini next to it, the directory may belong to any project.
    if (package.parent / "alembic.ini").is_file():
        return package.parent / "migrations"
    raise StorageError(f"{package}: the migrations are missing; reinstall tokenstore", package)
