"""``tokenstore completion``: scripts for shell completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from tokenstore.cli import output
from tokenstore.cli.context import DONE


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, *, shell: str) -> int:
    """Print a completion script for SHELL.

    It completes commands, options, and the names of accounts and providers.

    \b
    Examples:
    bash: echo 'eval "$(tokenstore completion bash)"' >> ~/.bashrc
    zsh:  echo 'eval "$(tokenstore completion zsh)"' >> ~/.zshrc
    fish: tokenstore completion fish > ~/.config/fish/completions/tokenstore.fish
    """  # noqa: D301 - click requires the character
    script = get_completion_class(shell)
    assert script is not None  # noqa: S101 - click supports all three
    program = context.find_root().command
    output.print_line(script(program, {}, "tokenstore", "_TOKENSTORE_COMPLETE").source())
    return DONE
