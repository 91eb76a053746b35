"""For alembic's own command line: runs a command on the database of `-x database=`."""

from collections.abc import Callable, Iterable
from typing import Any

from alembic import context
from alembic.util import CommandError

from tokenstore.errors import StorageError
from tokenstore.migrate import alembic_run
from tokenstore.storage.migrations import target_metadata
from tokenstore.storage.tables import VERSION_TABLE


def run() -> None:
    with alembic_run(list(context.get_x_argument())) as opened:
        options: dict[str, Any] = {
            "connection": opened.connection,
            "target_metadata": target_metadata(),
            "version_table": VERSION_TABLE,
            "render_as_batch": True,
            "destroy": opened.destroy,
        }
        context.configure(**options)
        steps = context.get_context().opts["fn"]  # what the command wants to run
        context.configure(**options, fn=backed_up(steps, opened.back_up))
        with context.begin_transaction():
            context.run_migrations()


def backed_up(steps: Callable[..., Iterable[Any]], back_up: Callable[[], None]) -> Any:
    """Return *steps* with a backup before them if one of them upgrades the database."""

    def fn(*arguments: Any) -> list[Any]:
        planned = list(steps(*arguments))
        if any(getattr(step, "is_upgrade", False) for step in planned):
            back_up()
        return planned

    return fn


if context.is_offline_mode():
    raise SystemExit("--sql is not supported: SQLite's batch migrations need the database")
try:
    run()
except (StorageError, ValueError) as error:
    raise CommandError(str(error)) from error
