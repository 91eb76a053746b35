"""Generates parts of the pages from the program when the site is built.

MkDocs calls the functions whose names begin with ``on_`` (``hooks`` in mkdocs.yml).
"""

from __future__ import annotations

import inspect
import logging
import math
import re
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import click

_WIDTH = 78  # characters of a help text on a terminal of 80 columns
_LOADED = re.compile(
    r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//"
)

_log = logging.getLogger("mkdocs.hooks.generate")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each marker, such as ``<!-- generate: commands -->``, with the generated text."""
    return re.sub(r"<!-- generate: (\w+) -->", lambda marker: _GENERATORS[marker[1]](), markdown)


def on_post_page(output: str, *, page: Any, **_: Any) -> None:
    """Warn of a page that loads something from another site."""
    for found in _LOADED.findall(output):
        _log.warning("%s loads something from another site: %s", page.file.src_uri, found)


def commands() -> str:
    """Return the help text of every command, each under its own heading."""
    parts = []
    for path, command in every_command():
        level = "#" * min(path.count(" ") + 2, 3)
        parts.append(f"{level} {path}\n\n```text\n{_help_of(path, command)}\n```\n")
    return "\n".join(parts)


def _help_of(path: str, command: click.Command) -> str:
    """Return the help text of a command for a terminal of 80 columns."""
    import click

    from tokenstore.cli.app import app

    names = app.context_settings["help_option_names"]  # inherited by commands
    context = click.Context(command, info_name=path, help_option_names=names, terminal_width=_WIDTH)
    return context.get_help()


def every_command() -> Iterator[tuple[str, click.Command]]:
    """Yield the program and all its commands, with their full names."""
    from tokenstore.cli.app import app

    yield from _walk("tokenstore", app)


def _walk(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    import click

    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            subcommand = command.get_command(context, name)
            assert subcommand is not None  # noqa: S101 - listed above
            yield from _walk(f"{path} {name}", subcommand)


def provider_keys() -> str:
    """Return the keys of ``providers.toml`` as a table, from the docstring of `Provider`."""
    from tokenstore.oauth.provider import Provider
    from tokenstore.oauth.providers_toml import _KEYS

    meanings = attributes_of(Provider) | {
        "preset": "The built-in provider or template whose settings this table overrides. Defaults "
        "to the one of the table's name.",
        "client_secret_env": "The environment variable that holds the secret.",
    }
    defaults = {f.name: f.default for f in fields(Provider)}
    rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for key, (kind, _) in sorted(_KEYS.items()):
        default = _format_default(defaults.get(key))
        rows.append(f"| `{key}` | {kind} | {default} | {meanings[key]} |")
    return "\n".join(rows)


def catalogue() -> str:
    """Return the built-in providers and templates as a table."""
    from tokenstore.oauth.builtin import built_in

    rows = ["| name | environment variables | what to register | vendor's page |"]
    rows.append("| --- | --- | --- | --- |")
    for name, entry in built_in().items():
        keys = ["client_id", *entry.variables]
        variables = [f"`{entry.variable(name, key)}`" for key in keys]
        secret = f"`{entry.variable(name, 'client_secret')}`"
        variables.insert(1, secret if entry.secret_required else f"{secret} (if there is one)")
        told = (entry.registration or "").replace("|", "\\|")
        where = f" [Console]({entry.registration_url})" if entry.registration_url else ""
        page = f"[documentation]({entry.documentation})"
        rows.append(f"| `{name}` | {', '.join(variables)} | {told}{where} | {page} |")
    return "\n".join(rows)


def attributes_of(cls: type) -> dict[str, str]:
    """Return the ``Attributes`` of a docstring by name, each on one line."""
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.replace("``", "`").split()) for name, text in found}


def _format_default(default: object) -> str:
    if default is None or default is MISSING or default == math.inf:
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def error_tree() -> str:
    """Return the tree of the error classes as a text block."""
    from tokenstore.errors import TokenStoreError

    return "\n".join(["```text", TokenStoreError.__name__, *_subclasses(TokenStoreError), "```"])


def _subclasses(cls: type[Exception], indent: str = "") -> Iterator[str]:
    """Yield a line for each subclass, depth first; a second base class is in parentheses."""
    subclasses = [sub for sub in cls.__subclasses__() if sub.__module__ == cls.__module__]
    for subclass in subclasses:
        is_last = subclass is subclasses[-1]
        others = "".join(f" ({base.__name__})" for base in subclass.__bases__ if base is not cls)
        yield f"{indent}{'└── ' if is_last else '├── '}{subclass.__name__}{others}"
        yield from _subclasses(subclass, indent + ("    " if is_last else "│   "))


_GENERATORS = {
    "catalogue": catalogue,
    "commands": commands,
    "error_tree": error_tree,
    "provider_keys": provider_keys,
}
