"""What all commands share: the database, the exit codes and the checks of an account."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import click

from tokenstore.cli import output
from tokenstore.errors import (
    InvalidTokenError,
    ProviderConfigurationError,
    ReauthorizationRequired,
    TokenStoreError,
    TransientRefreshError,
)
from tokenstore.messages import did_you_mean, shell_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy.engine import URL

    from tokenstore.manager import TokenManager
    from tokenstore.oauth.registry import ProviderRegistry
    from tokenstore.storage.repository import TokenRepository

_A = TypeVar("_A")
_T = TypeVar("_T")

DONE, FAILED, USAGE, SIGN_IN, TRY_LATER, NO_ACCOUNT = range(6)
_CANDIDATES = 200  # names to compare with one that does not exist
INTERRUPTED, TERMINATED = 130, 143  # as a shell reports a process that SIGINT or SIGTERM ended

_CODES: tuple[tuple[type[TokenStoreError], int], ...] = (
    (InvalidTokenError, USAGE),
    (ProviderConfigurationError, USAGE),
    (ReauthorizationRequired, SIGN_IN),
    (TransientRefreshError, TRY_LATER),
    (TokenStoreError, FAILED),
)


class Store:
    """The database that a command works on.

    Args:
        database: The value of ``--database``.
    """

    def __init__(self, database: str | None) -> None:
        self.database = database

    def locate(self) -> Path | URL:
        """Return the path or the URL of the database."""
        from tokenstore.storage.location import locate

        return _open(locate, self.database)

    @property
    def name(self) -> str:
        """The name of the database in messages: a path, or a URL without its password."""
        from tokenstore.storage.location import display_name

        return display_name(self.locate())

    @contextmanager
    def manager(self) -> Iterator[TokenManager]:
        """Yield a manager of the database.

        After an interrupt the command ends when the requests that it sent are answered and stored;
        a second one ends it at once.
        """
        from tokenstore.manager import TokenManager

        manager = _open(TokenManager, self.database)
        try:
            yield manager
        except (KeyboardInterrupt, Terminated) as interrupt:
            _finish(manager, Terminated if isinstance(interrupt, Terminated) else type(interrupt))
            raise
        except BaseException:
            manager.close()
            raise
        manager.close()

    def repository(self) -> TokenRepository:
        """Return the repository of the database."""
        from tokenstore.storage.repository import TokenRepository

        return _open(TokenRepository, self.database)

    def registry(self) -> ProviderRegistry:
        """Return the providers that are configured for the database, or built in."""
        from tokenstore.oauth.registry import ProviderRegistry
        from tokenstore.storage.location import providers_file

        file, required = _open(providers_file, self.locate())
        return ProviderRegistry(None, file, required=required)

    def report_missing(self) -> bool:
        """Return whether there is no database, after saying so on stderr.

        For a command that only reads and has found nothing.
        """
        with self.repository() as repository:
            return report_missing(repository)


def report_missing(repository: TokenRepository) -> bool:
    """Return whether there is no database, after saying so on stderr."""
    if repository.exists():
        return False
    output.print_message(_missing(repository))
    return True


def _missing(repository: TokenRepository) -> str:
    return (
        f"{repository.name}: there is no database; check --database and $TOKENSTORE_DATABASE, or "
        "create it: sign in or import accounts"
    )


class Terminated(BaseException):
    """SIGTERM has arrived."""


def _finish(manager: TokenManager, interrupt: type[BaseException]) -> None:
    """Wait for the requests that are under way, and say so; a second interrupt ends the process."""
    requests = manager._refreshes_at_work()  # noqa: SLF001 - it exists for this
    try:
        if requests:
            noun = "request" if requests == 1 else "requests"
            output.print_message(f"finishing {requests} {noun}; press Ctrl-C again to abandon them")
        with suppress(TokenStoreError):
            manager.close()
    except (KeyboardInterrupt, Terminated):
        if requests:
            output.print_message("abandoned; a login may be lost")
        sys.stderr.flush()
        os._exit(TERMINATED if interrupt is Terminated else INTERRUPTED)


pass_store = click.make_pass_decorator(Store)


class SignInNeededError(click.ClickException):
    """The account needs a new sign-in."""

    exit_code = SIGN_IN


class _NoAccountError(click.ClickException):
    exit_code = NO_ACCOUNT


def exit_code(error: TokenStoreError) -> int:
    """Return the exit code for *error*."""
    return next(code for cls, code in _CODES if isinstance(error, cls))


def login_command(account: str, *options: str) -> str:
    """Return the shell command that signs *account* in, on the same database."""
    given = click.get_current_context().find_root().params
    store = [
        word
        for name in ("database", "providers")
        if given.get(name)
        for word in (f"--{name}", given[name])
    ]
    end = ["--"] if account.startswith("-") else []
    return shell_command("tokenstore", *store, "login", *options, *end, account)


def require_account(manager: TokenManager, account: str) -> None:
    """Fail with a hint unless *account* exists."""
    if manager.load_tokens(account) is not None:
        return
    store = click.get_current_context().find_object(Store)
    assert store is not None  # noqa: S101 - every command has one
    with store.repository() as repository:
        if not repository.exists():
            raise _NoAccountError(f"there is no account {account!r}: {_missing(repository)}")
        hint = _meant(repository, account) or "see: tokenstore status"
    raise _NoAccountError(f"there is no account {account!r}; {hint}")


def _meant(repository: TokenRepository, account: str) -> str | None:
    """Return a question with the account that is probably meant, or None.

    Only the names that share the longest beginning with *account* are compared: with all names of
    a large store, that would take seconds.
    """
    names: dict[str, None] = {}
    for length in range(len(account), -1, -1):
        names |= dict.fromkeys(repository.listing.names(account[:length], limit=_CANDIDATES))
        if len(names) >= _CANDIDATES:
            break
    return did_you_mean(account, names)


def _open(function: Callable[[_A], _T], argument: _A) -> _T:
    try:
        return function(argument)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
