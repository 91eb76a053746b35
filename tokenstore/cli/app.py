"""The command group: its options, and which module holds which command."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import click

from tokenstore.cli.context import Store
from tokenstore.cli.errors import run_command
from tokenstore.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMANDS = {  # name: module and attribute, imported when the command is used
    "backup": ("maintenance", "backup"),
    "completion": ("completion", "completion"),
    "db": ("db", "db"),
    "delete": ("accounts", "delete"),
    "demo": ("demo", "demo"),
    "doctor": ("maintenance", "doctor"),
    "export": ("transfer", "export"),
    "history": ("accounts", "history"),
    "import": ("transfer", "import_"),
    "login": ("login", "login"),
    "logout": ("login", "logout"),
    "providers": ("providers", "providers"),
    "refresh": ("refresh", "refresh"),
    "restore": ("maintenance", "restore"),
    "status": ("status", "status"),
    "token": ("accounts", "token"),
}


class _LazyGroup(click.Group):
    """A group that imports the module of a command when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS and cmd_name not in self.commands:
            module, attribute = _COMMANDS[cmd_name]
            self.add_command(getattr(import_module(f"tokenstore.cli.{module}"), attribute))
        return super().get_command(ctx, cmd_name)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--database",
    metavar="PATH-OR-URL",
    help="SQLite file or postgresql+psycopg://USER@HOST/DATABASE. Defaults to "
    "$TOKENSTORE_DATABASE, then to tokens.db in the user's data directory.",
)
@click.option(
    "--providers",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="The providers.toml. Defaults to $TOKENSTORE_PROVIDERS, then to the one next to the "
    "database file or in the user's data directory.",
)
@click.version_option(__version__, message="tokenstore %(version)s")
@click.pass_context
def app(context: click.Context, database: str | None, providers: str | None) -> None:
    """Keep many OAuth accounts signed in: one database, one refresh per token.

    Exit codes: 0 done, 1 failed or partly failed, 2 usage or configuration, 3 a new sign-in is
    needed, 4 try again later, 5 no such account.
    """
    if providers is not None:
        os.environ["TOKENSTORE_PROVIDERS"] = providers
    if database is not None and _has_password(database):
        raise click.UsageError(
            "--database: other users can see a password on the command line; put it in ~/.pgpass "
            "or $PGPASSWORD, or the whole URL in $TOKENSTORE_DATABASE"
        )
    context.obj = Store(database)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors are reported in one line on stderr."""
    return run_command(app, arguments)


def _has_password(database: str) -> bool:
    if "://" not in database:
        return False
    try:
        url = urlsplit(database)
    except ValueError:
        return False  # reported when it is opened
    names = {name.lower() for name, value in parse_qsl(url.query) if value}
    return bool(url.password) or any("password" in name or "secret" in name for name in names)
