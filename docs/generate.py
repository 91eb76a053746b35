"""What the pages do not say by hand: taken from the program while the site is built.

MkDocs calls the functions whose names begin with ``on_`` (``hooks`` in mkdocs.yml).
"""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import pkgutil
import re
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import click

_WIDTH = 78  # characters of a help text, on a terminal that has two more
_LOADED = re.compile(
    r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//"
)

_log = logging.getLogger("mkdocs.hooks.generate")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what is generated in the place of its mark, such as ``<!-- generate: commands -->``."""
    return re.sub(r"<!-- generate: (\w+) -->", lambda mark: _GENERATORS[mark[1]](), markdown)


def on_post_page(output: str, *, page: Any, **_: Any) -> None:
    """Warn of a page that loads something from elsewhere when it is looked at."""
    for found in _LOADED.findall(output):
        _log.warning("%s loads something from elsewhere: %s", page.file.src_uri, found)


def commands() -> str:
    """Return the help text of every command, each under a heading of its own."""
    parts = []
    for path, command in every_command():
        level = "#" * min(path.count(" ") + 2, 3)
        parts.append(f"{level} {path}\n\n```text\n{_help_of(path, command)}\n```\n")
    return "\n".join(parts)


def _help_of(path: str, command: click.Command) -> str:
    """Return what the command prints on a terminal of 80 columns."""
    import click

    from tokenstore.cli.app import app

    names = app.context_settings["help_option_names"]  # the commands have them from the program
    context = click.Context(command, info_name=path, help_option_names=names, terminal_width=_WIDTH)
    return context.get_help()


def every_command() -> Iterator[tuple[str, click.Command]]:
    """Yield the program and all of its commands, with what is typed for each."""
    import tokenstore.cli
    from tokenstore.cli.app import app

    for module in pkgutil.iter_modules(tokenstore.cli.__path__):
        importlib.import_module(f"tokenstore.cli.{module.name}")  # commands register themselves
    yield from _below("tokenstore", app)


def _below(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _below(f"{path} {name}", inner)


def provider_keys() -> str:
    """Return the keys of a table of ``providers.toml``, with what `Provider` says of them."""
    from tokenstore.oauth.provider import Provider
    from tokenstore.oauth.providers_toml import _KEYS

    meanings = attributes_of(Provider) | {
        "client_secret_env": "The environment variable that holds the secret.",
    }
    defaults = {f.name: f.default for f in fields(Provider)}
    rows = ["| key | value | without it | meaning |", "| --- | --- | --- | --- |"]
    for key, (kind, _) in sorted(_KEYS.items()):
        default = _shown(defaults.get(key))
        rows.append(f"| `{key}` | {kind} | {default} | {meanings[key]} |")
    return "\n".join(rows)


def attributes_of(cls: type) -> dict[str, str]:
    """Return what the ``Attributes`` of a docstring say, each on one line."""
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.replace("``", "`").split()) for name, text in found}


def _shown(default: object) -> str:
    if default is None or default is MISSING or default == math.inf:
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


_GENERATORS = {"commands": commands, "provider_keys": provider_keys}
