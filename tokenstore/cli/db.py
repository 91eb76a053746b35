"""``tokenstore db``: alembic's commands on the database."""

from __future__ import annotations

import click

from tokenstore.cli.app import DONE, Store, app, pass_store

_x = click.option(
    "-x",
    "x",
    multiple=True,
    metavar="NAME=VALUE",
    help="An argument for the migrations, such as destroy=yes.",
)


@app.group("db")
@_x
@click.pass_context
def db(context: click.Context, *, x: tuple[str, ...]) -> None:
    """Create, upgrade and inspect the schema of the database.

    Example: tokenstore db current
    """
    context.meta["x"] = x


@db.command("upgrade")
@click.argument("revision", default="head")
@pass_store
def upgrade(store: Store, *, revision: str) -> int:
    """Upgrade to REVISION (default: head); create the tables if need be.

    A SQLite file is copied before that. Of a PostgreSQL database, make a dump yourself.

    Example: tokenstore --database tokens.db db upgrade
    """
    from tokenstore import migrate

    migrate.upgrade(store.locate(), revision)
    return DONE


@db.command("downgrade")
@click.argument("revision")
@_x
@pass_store
@click.pass_context
def downgrade(context: click.Context, store: Store, *, revision: str, x: tuple[str, ...]) -> int:
    """Go back to REVISION, keeping every account.

    Only base drops the tokens; that needs -x destroy=yes where there are accounts.

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
    """Print all revisions, the newest first.

    Example: tokenstore db history
    """
    from tokenstore import migrate

    migrate.history(store.locate())
    return DONE


@db.command("check")
@pass_store
def check(store: Store) -> int:
    """Compare the tables of the database with those that this version expects.

    Example: tokenstore db check
    """
    from tokenstore import migrate

    migrate.check(store.locate())
    return DONE
