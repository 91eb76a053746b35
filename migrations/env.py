"""Runs migrations on the given connection, or else on the database of `-x database=`."""

from alembic import context
from sqlalchemy import Connection

from tokenstore.migrate import open_for_migration
from tokenstore.storage.migrations import target_metadata
from tokenstore.storage.tables import VERSION_TABLE


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=target_metadata(),
        version_table=VERSION_TABLE,
        render_as_batch=True,
        **context.config.attributes.get("options", {}),
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if context.is_offline_mode():
    raise SystemExit("--sql is not supported: SQLite's batch migrations need the database")
if given is not None:
    run(given)
else:
    database = context.get_x_argument(as_dictionary=True).get("database")
    with open_for_migration(database) as opened:
        run(opened)
