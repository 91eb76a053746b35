"""Arguments in, exit code out: what every command has in common."""

from __future__ import annotations

import errno
import logging
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import click

from tokenstore.errors import (
    InvalidTokenError,
    ProviderConfigurationError,
    ReauthorizationRequired,
    TokenStoreError,
    TransientRefreshError,
)
from tokenstore.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.engine import URL

    from tokenstore.manager import TokenManager
    from tokenstore.storage.repository import TokenRepository

_T = TypeVar("_T")

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
DONE, FAILED, USAGE, SIGN_IN, TRY_LATER, NO_ACCOUNT = range(6)

_CODES: tuple[tuple[type[TokenStoreError], int], ...] = (
    (InvalidTokenError, USAGE),
    (ProviderConfigurationError, USAGE),
    (ReauthorizationRequired, SIGN_IN),
    (TransientRefreshError, TRY_LATER),
    (TokenStoreError, FAILED),
)


class Store:
    """What a command works on: the database that the options name."""

    def __init__(self, database: str | None) -> None:
        self.database = database

    def locate(self) -> Path | URL:
        """Return the path or the URL of the database."""
        from tokenstore.storage.location import locate

        return _usage(locate, self.database)

    def manager(self) -> TokenManager:
        """Return a manager of the database."""
        from tokenstore.manager import TokenManager

        return _usage(TokenManager, self.database)

    def repository(self) -> TokenRepository:
        """Return the repository of the database."""
        from tokenstore.storage.repository import TokenRepository

        return _usage(TokenRepository, self.database)


def login_command(account: str, *options: str) -> str:
    """Return what signs *account* in on the store that this command works on, for a shell."""
    given = click.get_current_context().find_root().params
    store = [
        word
        for name in ("database", "providers")
        if given.get(name)
        for word in (f"--{name}", given[name])
    ]
    end = ["--"] if account.startswith("-") else []
    return shlex.join(["tokenstore", *store, "login", *options, *end, account])


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
pass_store = click.make_pass_decorator(Store)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--database",
    metavar="PATH-OR-URL",
    help="A SQLite file, or postgresql+psycopg://USER@HOST/DATABASE; without it "
    "$TOKENSTORE_DATABASE, else tokens.db in your data directory.",
)
@click.option(
    "--providers",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="The providers.toml; without it $TOKENSTORE_PROVIDERS, else the one beside the database "
    "file, or in your data directory.",
)
@click.version_option(__version__, message="tokenstore %(version)s")
@click.pass_context
def app(context: click.Context, database: str | None, providers: str | None) -> None:
    """Keep many OAuth accounts signed in: one database, one refresh per token.

    Exit codes: 0 done, 1 failed or partly failed, 2 usage, 3 a new sign-in is needed,
    4 try again later, 5 no such account.
    """
    if providers is not None:
        os.environ["TOKENSTORE_PROVIDERS"] = providers
    if database is not None and _names_a_password(database):
        raise click.UsageError(
            "--database: a password on the command line is seen by everybody on this machine; put "
            "it into ~/.pgpass or $PGPASSWORD, or the whole URL into $TOKENSTORE_DATABASE"
        )
    context.obj = Store(database)


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code. Whatever goes wrong is told in one line."""
    from tokenstore.cli import (  # noqa: F401 - they register themselves
        accounts,
        completion,
        db,
        demo,
        login,
        maintenance,
        refresh,
        status,
    )

    logging.getLogger("tokenstore").addHandler(_warnings)
    try:
        code = app.main(list(arguments), prog_name="tokenstore", standalone_mode=False)
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code, error)
    except click.Abort:
        return 130
    except TokenStoreError as error:
        return _complain(str(error), exit_code(error))
    except Exception as error:
        told = _known(error)
        if told is None and os.environ.get("TOKENSTORE_TRACEBACK"):
            raise
        what = f"{type(error).__name__} in {_place_of(error)}"
        bug = f"this is a bug: {what}; please report it, with what TOKENSTORE_TRACEBACK=1 shows"
        return _complain(told or bug, FAILED)
    return int(code or DONE)


def _known(error: Exception) -> str | None:
    """Return what to say of an error that is none of ours, None if nobody has thought of it."""
    if isinstance(error, ModuleNotFoundError) and error.name == "psycopg":
        return str(error)  # it says what to install
    if isinstance(error, OSError) and error.errno in _FULL:  # of a file, it is a StorageError
        return f"the output could not be written: {error.strerror}"
    return None


def exit_code(error: TokenStoreError) -> int:
    """Return the exit code that tells of *error*."""
    return next(code for cls, code in _CODES if isinstance(error, cls))


def _place_of(error: BaseException) -> str:
    """Return the file and line that raised *error*, whose text may be anything."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (
        "?"
        if trace is None
        else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
    )


def _complain(message: str, code: int, error: click.ClickException | None = None) -> int:
    context = getattr(error, "ctx", None)
    hint = f" (see: {context.command_path} --help)" if context is not None else ""
    click.echo(f"tokenstore: {' '.join(message.split())}{hint}", err=True)
    return code


def _usage(make: Callable[[str | None], _T], database: str | None) -> _T:
    try:
        return make(database)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _names_a_password(database: str) -> bool:
    if "://" not in database:
        return False
    address = urlsplit(database)
    return bool(address.password) or "password=" in address.query


class _Warnings(logging.Handler):
    """Shows what the library warns of; what became of an operation, the command tells itself."""

    def emit(self, record: logging.LogRecord) -> None:
        raised_too = (
            record.name == "tokenstore.storage.sqlite.file" and record.levelno >= logging.ERROR
        )
        if not hasattr(record, "operation") and not raised_too:
            click.echo(f"tokenstore: warning: {record.getMessage()}", err=True)


_warnings = _Warnings(logging.WARNING)
