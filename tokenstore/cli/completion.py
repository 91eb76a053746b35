"""Shell completion: of commands and options, and of the names of accounts and providers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import get_completion_class

from tokenstore.cli.app import DONE, app
from tokenstore.errors import TokenStoreError

_F = TypeVar("_F", bound=Callable[..., Any])
# bash puts what is suggested on the line as it is, and would obey what is in another name.
_PLAIN = re.compile(r"[\w@%+=:,./][\w@%+=:,./-]*")
_MOST = 200  # names that are suggested; nobody reads more


def account_argument(name: str, **options: Any) -> Callable[[_F], _F]:
    """Declare an argument that is the name of an account."""
    return click.argument(name, shell_complete=_accounts, **options)


def provider_option(help_text: str) -> Callable[[_F], _F]:
    """Declare the option that names a provider."""
    return click.option("--provider", shell_complete=_providers, help=help_text)


@app.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(*, shell: str) -> int:
    """Print what makes SHELL complete commands, options and the names of accounts.

    \b
    Examples, one a shell:
    bash: echo 'eval "$(tokenstore completion bash)"' >> ~/.bashrc
    zsh:  echo 'eval "$(tokenstore completion zsh)"' >> ~/.zshrc
    fish: tokenstore completion fish > ~/.config/fish/completions/tokenstore.fish
    """  # noqa: D301 - click wants the character
    source = get_completion_class(shell)
    assert source is not None  # noqa: S101 - click knows all three
    click.echo(source(app, {}, "tokenstore", "_TOKENSTORE_COMPLETE").source())
    return DONE


def _accounts(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    from tokenstore.storage.repository import TokenRepository

    # Whoever completes wants no error in the middle of the line.
    try:
        with TokenRepository(context.find_root().params.get("database")) as repository:
            return list(filter(_PLAIN.fullmatch, repository.listing.names(incomplete, limit=_MOST)))
    except (TokenStoreError, ValueError):
        return []


def _providers(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    from tokenstore.oauth.registry import ProviderRegistry
    from tokenstore.storage.location import locate, providers_file

    parameters = context.find_root().params
    try:
        file, required = providers_file(locate(parameters.get("database")))
        names = ProviderRegistry(
            None, parameters.get("providers") or file, required=required
        ).names()
    except (TokenStoreError, ValueError):
        return []
    return [name for name in names if name.startswith(incomplete) and _PLAIN.fullmatch(name)]
