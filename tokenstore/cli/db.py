"""``tokenstore db``: the schema of the database."""

from __future__ import annotations

import click

from tokenstore.cli import output
from tokenstore.cli.context import DONE, FAILED, Store, pass_store


def _require_known(
    _context: click.Context, _parameter: click.Parameter, x: tuple[str, ...]
) -> tuple[str, ...]:
    from tokenstore.storage.migrations import parse_arguments

    try:
        parse_arguments(x, ["destroy"])
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return x


def _require_revision(context: click.Context, _parameter: click.Parameter, revision: str) -> str:
    """Accept ``-1``, which click takes for an unknown option, and no other option."""
    if revision.startswith("-") and not revision[1:].isdigit():
        raise click.NoSuchOption(revision, ctx=context)
    return revision


# A relative revision such as -1 looks like an option.
_RELATIVE = {"ignore_unknown_options": True}
_x_option = click.option(
    "-x",
    "x",
    multiple=True,
    callback=_require_known,
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
    PostgreSQL database, use pg_dump. A file that was restored from a dump is accepted again.

    Example: tokenstore --database tokens.db db upgrade
    """
    from tokenstore import migrate

    migrate.upgrade(store.locate(), revision)
    return DONE


@db.command("downgrade", context_settings=_RELATIVE)
@click.argument("revision", callback=_require_revision)
@_x_option
@pass_store
@click.pass_context
def downgrade(context: click.Context, store: Store, *, revision: str, x: tuple[str, ...]) -> int:
    """Downgrade the schema to REVISION and keep every account.

    Only base drops the tokens; if there are accounts, it requires -x destroy=yes.

    Example: tokenstore db downgrade -1
    """
    from tokenstore import migrate

    migrate.downgrade(store.locate(), revision, x=(*context.meta["x"], *x))
    return DONE


@db.command("stamp")
@pass_store
def stamp(store: Store) -> int:
    """Correct the recorded revision to that of the tables.

    Use this after alembic stamp has recorded another revision than the tables have. It changes no
    token.

    Example: tokenstore --database tokens.db db stamp
    """
    from tokenstore import migrate

    output.print_result("stamped", migrate.stamp(store.locate()))
    return DONE


@db.command("current")
@pass_store
def current(store: Store) -> int:
    """Print the revision of the database.

    Example: tokenstore --database tokens.db db current
    """
    from tokenstore import migrate

    migrate.current(store.locate())
    store.report_missing()
    return DONE


@db.command("history")
@pass_store
def history(store: Store) -> int:
    """Print all revisions, newest first.

    Example: tokenstore db history
    """
    from tokenstore import migrate

    migrate.history(store.locate())
    store.report_missing()
    return DONE


@db.command("check")
@pass_store
def check(store: Store) -> int:
    """Compare the database's tables with this version's schema.

    Example: tokenstore db check
    """
    from tokenstore import migrate

    if store.report_missing():
        return FAILED
    migrate.check(store.locate())
    return DONE
