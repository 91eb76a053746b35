"""Runs the migrations on a connection. This module alone imports alembic, and only to migrate.

alembic's commands keep their state in module globals (``alembic.op`` and ``alembic.context``).
These belong to the application, which may migrate its own database in another thread, or call this
package inside one of its migrations. So the migrations run here without these commands, with an
``op`` of their own. alembic's own command line takes the usual path, through ``env.py``.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenstore.errors import SchemaOutdatedError, SchemaTooNewError, StorageError
from tokenstore.messages import shell_command
from tokenstore.storage.tables import REVISION, VERSION_TABLE, accounts, metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from alembic.migration import MigrationContext
    from alembic.runtime.migration import RevisionStep
    from alembic.script import ScriptDirectory
    from sqlalchemy import Connection, MetaData

    Steps = Callable[[ScriptDirectory, Any], Iterable[RevisionStep]]
    Shape = dict[str, frozenset[str]]

_log = logging.getLogger(__name__)


def upgrade(name: str, connection: Connection, revision: str) -> None:
    """Run the migrations up to *revision*, in the transaction of *connection*.

    Args:
        name: The name of the database in messages.
        connection: The connection to run on, inside a transaction.
        revision: An alembic revision, such as ``head`` or ``+1``.

    Raises:
        SchemaTooNewError: The database has a revision that this code does not know.
        StorageError: The revision is unknown, or the tables are not those of the recorded one.
    """
    _migrate(name, connection, lambda script, current: script._upgrade_revs(revision, current))  # noqa: SLF001 - as alembic's own command


def upgrade_to_head(name: str, connection: Connection) -> None:
    """Run the migrations that a database lacks, in the transaction of *connection*."""
    upgrade(name, connection, "head")


def downgrade(name: str, connection: Connection, revision: str, *, destroy: bool) -> None:
    """Run the migrations down to *revision*; the other arguments and errors are as for `upgrade`.

    Args:
        name: The name of the database in messages.
        connection: The connection to run on, inside a transaction.
        revision: An alembic revision, such as ``0003`` or ``-1``.
        destroy: Whether ``base`` may drop the tables of a database with accounts.
    """
    _migrate(
        name,
        connection,
        lambda script, current: script._downgrade_revs(revision, current),  # noqa: SLF001 - likewise
        destroy=destroy,
    )


def stamp(name: str, connection: Connection) -> str:
    """Record the revision that the tables have; return it.

    Raises:
        StorageError: The tables are not those of any revision.
    """
    with _alembic(name) as script:
        context = _context(connection)
        found = _revision_of_tables(script, connection)
        if found is None:
            raise StorageError(
                f"{name}: the tables are not those of any schema that this version knows; "
                "restore a backup, or upgrade tokenstore",
                name,
            )
        if context.get_current_heads():
            connection.exec_driver_sql(f"DELETE FROM {VERSION_TABLE}")  # noqa: S608 - a constant
        context.stamp(script, found)
    return found


def current(name: str, connection: Connection) -> list[str]:
    """Return the revision of the database as lines of text, as alembic prints it."""
    with _alembic(name) as script, _known_revision(name, connection):
        found = script.get_all_current(_context(connection).get_current_heads())
        return [f"{each.revision} (head)" if each.is_head else each.revision for each in found]


def history(name: str, connection: Connection) -> list[str]:
    """Return all revisions as lines of text, newest first, with that of the database marked."""
    with _alembic(name) as script:
        heads = _context(connection).get_current_heads()
        return [
            f"{each.down_revision or '<base>'} -> {each.revision}"
            f"{' (head)' * each.is_head}{' (current)' * (each.revision in heads)}, {each.doc}"
            for each in script.walk_revisions()
        ]


def check(name: str, connection: Connection) -> None:
    """Check that the tables are those of this version.

    Raises:
        StorageError: They differ, or the recorded revision is another one.
    """
    with _alembic(name) as script, _known_revision(name, connection):
        from alembic.autogenerate import compare_metadata

        context = _context(connection)
        script.get_all_current(context.get_current_heads())
        if context.get_current_revision() != REVISION:
            _require_tables(name, script, connection)
            raise StorageError(
                f"{name} is not up to date; run: {command(name, 'db', 'upgrade')}", name
            )
        differences = compare_metadata(context, target_metadata())
        if differences:
            raise StorageError(f"{name}: New upgrade operations detected: {differences}", name)


def require_tables(name: str, connection: Connection) -> None:
    """Raise a `StorageError` if the tables are those of another revision than the recorded one."""
    with _alembic(name) as script:
        _require_tables(name, script, connection)


def fits_a_revision(name: str, connection: Connection) -> bool:
    """Return whether the tables are those of a revision, whichever is recorded."""
    with _alembic(name) as script:
        return _revision_of_tables(script, connection) is not None


def has_tables(connection: Connection) -> bool:
    """Return whether a database has the tables of a revision."""
    from sqlalchemy import inspect

    return inspect(connection).has_table(accounts.name)


def parse_arguments(x: Sequence[str], known: Iterable[str]) -> dict[str, str]:
    """Return the values of ``-x NAME=VALUE``.

    Raises:
        ValueError: One is unknown or has no value.
    """
    found = {}
    for each in x:
        key, has_value, value = each.partition("=")
        if key not in known or not has_value:
            names = " and ".join(f"{key}=VALUE" for key in known)
            raise ValueError(f"-x {each}: is not a known argument; use {names}")
        found[key] = value
    return found


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
        f"run: {command(name, 'db', 'upgrade')}",
        name,
    )


def stamp_error(name: str, recorded: str | None, found: str | None) -> StorageError:
    """Return the error for a database whose tables are not those of the recorded revision.

    Args:
        name: The name of the database in messages.
        recorded: The revision in the version table, or None if there is none.
        found: The revision that the tables have, or None if that is not known.
    """
    tables = "there are tables" if found is None else f"the tables are those of schema {found}"
    return StorageError(
        f"{name}: it is recorded as schema {recorded or 'base'}, but {tables}; nothing is lost. "
        f"To correct the record, run: {command(name, 'db', 'stamp')}",
        name,
    )


def command(name: str, *words: str) -> str:
    """Return a command on the database for a shell."""
    return shell_command("tokenstore", "--database", name, *words)


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


class _Quiet(logging.Filter):
    """Drops alembic's routine records of our migrations, and keeps those of the application's."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or not _at_work.get()


_at_work: ContextVar[bool] = ContextVar("tokenstore_migrations", default=False)
_quiet = _Quiet()
_TALKATIVE = ("alembic.runtime.migration", "alembic.runtime.plugins")


@contextmanager
def _alembic(name: str) -> Iterator[ScriptDirectory]:
    """Yield the migrations, loaded anew, so that their modules belong to this use of them.

    Raises:
        StorageError: They cannot be loaded, or alembic refuses what is asked of it.
    """
    for logger in _TALKATIVE:
        logging.getLogger(logger).addFilter(_quiet)
    token = _at_work.set(True)
    try:
        script = _load()
        from alembic.util import CommandError

        try:
            yield script
        except CommandError as error:
            raise StorageError(f"{name}: {error}", name) from error
    finally:
        _at_work.reset(token)


def _load() -> ScriptDirectory:
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    directory: Path | None = None
    try:
        directory = scripts()
        list((directory / "versions").iterdir())  # alembic ignores an error of this
        script = ScriptDirectory(str(directory))
        list(script.walk_revisions())  # this reads the files
    except (OSError, ImportError, CommandError) as error:
        if isinstance(error, StorageError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"{directory}: cannot read the migrations: {reason}; repeat the call, or reinstall "
            "tokenstore",
            directory,
            errno=getattr(error, "errno", None),
        ) from error
    return script


def _context(connection: Connection, **options: Any) -> MigrationContext:
    from alembic.migration import MigrationContext

    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, **options})


@contextmanager
def _known_revision(name: str, connection: Connection) -> Iterator[None]:
    """Raise a `SchemaTooNewError` if alembic does not know the recorded revision."""
    from alembic.util import CommandError

    try:
        yield
    except CommandError as error:
        unknown = getattr(error.__cause__, "argument", None)
        if unknown in _context(connection).get_current_heads():
            raise too_new_error(name, unknown) from error
        raise


def _migrate(name: str, connection: Connection, steps: Steps, **options: Any) -> None:
    with _alembic(name) as script, _known_revision(name, connection):
        before = _context(connection).get_current_revision()
        planned = list(steps(script, before or ()))
        if not planned:
            return
        if before is not None or has_tables(connection):
            _require_tables(name, script, connection)
        _run(script, connection, planned, **options)
        after = _context(connection).get_current_revision()
        if before is not None:
            _log.info("%s: schema changed from %s to %s", name, before, after or "base")


def _run(
    script: ScriptDirectory, connection: Connection, steps: Iterable[RevisionStep], **options: Any
) -> None:
    """Run migrations, whose ``op`` is one of their own instead of alembic's."""
    from alembic.operations import Operations

    context = _context(connection, fn=lambda *_: steps, **options)
    operations = Operations(context)
    for each in script.walk_revisions():
        vars(each.module)["op"] = operations
    context.run_migrations()


def _require_tables(name: str, script: ScriptDirectory, connection: Connection) -> None:
    recorded = _context(connection).get_current_revision()
    found = _revision_of_tables(script, connection)
    if found is not None and found != recorded:
        raise stamp_error(name, recorded, found)


def _revision_of_tables(script: ScriptDirectory, connection: Connection) -> str | None:
    """Return the revision that the tables have, or None if there are none or they fit no revision.

    They are compared with what each migration makes of an empty database in memory.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    wanted = _shape(connection)
    with create_engine("sqlite://", poolclass=NullPool).connect() as memory:
        for step in script._upgrade_revs("head", ()):  # type: ignore[arg-type]  # noqa: SLF001
            _run(script, memory, [step])
            if _shape(memory) == wanted:
                return str(step.revision.revision)
    return None


def _shape(connection: Connection) -> Shape:
    """Return the names of the columns and indexes of our tables."""
    from sqlalchemy import inspect

    inspector = inspect(connection)
    return {
        table: frozenset(
            str(each["name"])
            for each in [*inspector.get_columns(table), *inspector.get_indexes(table)]
        )
        for table in metadata.tables
        if inspector.has_table(table)
    }
