"""Run a command: report an error in one line on stderr and return the exit code."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import TYPE_CHECKING

import click

from tokenstore.cli import output
from tokenstore.cli.context import DONE, FAILED, INTERRUPTED, TERMINATED, Terminated, exit_code
from tokenstore.errors import TokenStoreError
from tokenstore.logs import place_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def run_command(command: click.Command, arguments: Sequence[str]) -> int:
    """Run *command*; report an error and return the exit code."""
    logging.getLogger("tokenstore").addHandler(_handler)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        code = command.main(list(arguments), prog_name="tokenstore", standalone_mode=False)
    except click.ClickException as error:
        return _report(error.format_message(), error.exit_code, error)
    except click.Abort:
        return INTERRUPTED
    except Terminated:
        return TERMINATED
    except TokenStoreError as error:
        return _report(str(error), exit_code(error))
    except Exception as error:
        if os.environ.get("TOKENSTORE_TRACEBACK"):
            raise
        return _report(_expected(error) or _bug(error), FAILED)
    return int(code or DONE)


def _terminate(*_: object) -> None:
    raise Terminated


def _report(message: str, code: int, error: click.ClickException | None = None) -> int:
    context = getattr(error, "ctx", None)
    hint = f" (see: {context.command_path} --help)" if context is not None else ""
    output.print_message(f"{message}{hint}")
    return code


def _expected(error: Exception) -> str | None:
    """Return the message for an error of Python that is not a bug; None if it is one."""
    if isinstance(error, ModuleNotFoundError) and error.name == "psycopg":
        return str(error)  # it names the extra to install
    if isinstance(error, OSError) and error.strerror:  # of the system, in whatever module
        return ": ".join(map(str, filter(None, (error.filename, error.strerror))))
    return None


def _bug(error: Exception) -> str:
    """Describe a bug without the text of *error*, which may contain a secret."""
    return (
        f"this is a bug: {type(error).__name__} in {place_of(error)}; "
        "please report it with the output of TOKENSTORE_TRACEBACK=1"
    )


class _WarningHandler(logging.Handler):
    """Print the library's warnings, except those that the command reports itself.

    These are the outcomes of operations, and errors that are raised as well.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if not hasattr(record, "operation") and not hasattr(record, "raised"):
            output.print_message(f"warning: {record.getMessage()}")


_handler = _WarningHandler(logging.WARNING)
