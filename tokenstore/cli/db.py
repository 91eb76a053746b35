"""``tokenstore db``: the schema of the database."""

from __future__ import annotations

import click

from tokenstore.cli.context import DONE, Store, pass_store

_x_option = click.option(
    "-x",
    "x",
    multiple=True,
    metavar="NAME=VALUE",
    help="Argument for the migrations, such as destroy=yes; repeatable.",
)


@click.group("db")
@_x_option
@click.pass_context
def db(context: click.Context, *, x: tuple[str, ...]) -> None:
    """Create, upgrade and inspect the database schema.

    Example: tokenstore db current
    """
    context.meta["x"] = x


@db.command("upgrade")
@click.argument("revision", default="head")
@pass_store
def upgrade(store: Store, *, revision: str) -> int:
    """Upgrade the schema to REVISION, by default the newest.

    Creates the tables if there are none. A SQLite file is backed up first; to back up a
    PostgreSQL database, use pg_dump.

    Example: tokenstore --database tokens.db db upgrade
    """
    from tokenstore import migrate

    migrate.upgrade(store.locate(), revision)
    return DONE


@db.command("downgrade")
@click.argument("revision")
@_x_option
@pass_store
@click.pass_context
def downgrade(context: click.Context, store: Store, *, revision: str, x: tuple[str, ...]) -> int:
    """Downgrade the schema to REVISION and keep every account.

    Only base drops the tokens; if there are accounts, it requires -x destroy=yes.

    Example: tokenstore db downgrade 0003
    """
    from tokenstore import migrate

    migrate.downgrade(store.locate(), revision, x=(*context.meta["x"], *x))
    return DONE


@db.command("current")
@pass_store
def current(store: Store) -> int:
    """Print the revision of the database.

    Example: tokenstore --database tokens.db db current
    """
    from tokenstore import migrate

    migrate.current(store.locate())
    return DONE


@db.command("history")
@pass_store
def history(store: Store) -> int:
    """Print all revisions, newest first.

    Example: tokenstore db history
    """
    from tokenstore import migrate

    migrate.history(store.locate())
    return DONE


@db.command("check")
@pass_store
def check(store: Store) -> int:
    """Compare the database's tables with this version's schema.

    Example: tokenstore db check
    """
    from tokenstore import migrate

    migrate.check(store.locate())
    return DONE
