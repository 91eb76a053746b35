"""Options and arguments that several commands have, with their shell completion."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from tokenstore.errors import TokenStoreError
from tokenstore.files import decode_name

_F = TypeVar("_F", bound=Callable[..., Any])
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
# bash inserts a suggestion unquoted, so a name with other characters could run a command.
_PLAIN = re.compile(r"[\w@%+=:,./][\w@%+=:,./-]*")
_SUGGESTIONS = 200  # names at most


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def duration(text: str) -> float:
    """Return the seconds that *text* stands for, such as ``90``, ``10m``, ``1h`` or ``30d``."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d*)?)\s*([smhd]?)", text.strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is not a valid duration; use 90, 10m, 1h or 30d")
    return float(found[1]) * _UNITS[found[2]]


def positive_duration(text: str) -> float:
    """Return the seconds of a `duration` that is not 0."""
    seconds = duration(text)
    if not seconds:
        raise click.BadParameter(f"{text!r} is not a valid duration; use more than 0, such as 5m")
    return seconds


class _Name(click.ParamType):  # type: ignore[type-arg] # generic since click 8.3.1
    """The name of an account or a provider, in any locale."""

    name = "text"

    def convert(self, value: str, *_: object) -> str:
        return decode_name(value)


NAME = _Name()


def account_argument(name: str, **options: Any) -> Callable[[_F], _F]:
    """Declare an argument that is the name of an account."""
    return click.argument(name, type=NAME, shell_complete=_complete_account, **options)


def provider_option(help_text: str) -> Callable[[_F], _F]:
    """Declare the option that names a provider."""
    return click.option(
        "--provider", type=NAME, metavar="NAME", shell_complete=complete_provider, help=help_text
    )


def _complete_account(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    from tokenstore.storage.repository import TokenRepository

    # An error message would garble the command line.
    try:
        with TokenRepository(context.find_root().params.get("database")) as repository:
            names = repository.listing.names(incomplete, limit=_SUGGESTIONS)
            return list(filter(_PLAIN.fullmatch, names))
    except (TokenStoreError, ValueError):
        return []


def complete_provider(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of providers that begin with *incomplete*."""
    from tokenstore.oauth.registry import ProviderRegistry
    from tokenstore.storage.location import locate, providers_file

    options = context.find_root().params
    try:
        file, required = providers_file(locate(options.get("database")))
        names = ProviderRegistry(None, options.get("providers") or file, required=required).names()
    except (TokenStoreError, ValueError):
        return []
    return [name for name in names if name.startswith(incomplete) and _PLAIN.fullmatch(name)]
