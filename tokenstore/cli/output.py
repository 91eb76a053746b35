"""Output for users and programs: tables, lines, JSON and progress bars.

No other module of the command writes to a terminal. Here all text is made printable: names, paths,
and the words of providers may contain characters that a terminal obeys.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tokenstore.cli import streams
from tokenstore.messages import one_line, printable
from tokenstore.models.timestamps import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rich.table import Table
    from rich.text import Text

    from tokenstore.doctor import Finding
    from tokenstore.models.accounts import HistoryEntry

_T = TypeVar("_T")
_Cell = str | tuple[str, str] | list[str | tuple[str, str]]  # text, with a style, or several parts

_SEVERITIES = {"ok": "green", "info": "cyan", "warning": "yellow", "error": "bold red"}
_NAMES_SHOWN = 5  # account names per finding
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))

_forced_terminal = False


def width() -> int:
    """Return the width of the terminal in characters."""
    from rich.console import Console

    return Console().width


def force_terminal() -> None:
    """From now on, print as to a terminal."""
    global _forced_terminal  # noqa: PLW0603
    _forced_terminal = True


def is_terminal() -> bool:
    """Return whether to print as to a terminal."""
    return _forced_terminal or sys.stdout.isatty()


def print_line(text: str, *, err: bool = False, **style: Any) -> None:
    """Print text, usually one line, on stdout or stderr.

    Args:
        text: The text. Its line breaks and tabs are the caller's; parts of it that came from
            others must be `printable` before.
        err: Whether to print on stderr.
        **style: As for `click.style`.
    """
    text = printable(text, keep="\n\t")
    click.echo(click.style(text, **style) if style else text, err=err)


def print_message(text: str) -> None:
    """Print a message of the command as one line on stderr."""
    print_line(f"tokenstore: {one_line(text)}", err=True)


def print_exactly(text: str) -> None:
    """Print a line for a program, unchanged; on a terminal, it is printable."""
    click.echo(printable(text) if sys.stdout.isatty() else text)


def choose(question: str, choices: Sequence[str], default: str | None) -> str:
    """Ask on the terminal for one of *choices*."""
    answer: str = click.prompt(question, default, type=click.Choice(choices), err=True)
    return answer


def until_lost(items: Iterable[_T]) -> Iterator[_T]:
    """Yield *items* until standard output cannot be written, for a command that only reads."""
    for item in items:
        if streams.output_is_lost():
            return
        yield item


def print_json(value: object) -> None:
    """Print *value* as JSON on stdout."""
    click.echo(_json(value, 2))


def _json(value: object, indent: int | None) -> str:
    """Return JSON in which a character that is not printable is an escape sequence of JSON."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    ascii_only = not encoding.lower().startswith("utf")
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only, default=str)
    return "\n".join(
        line
        if line.isprintable()
        else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)
        for line in text.split("\n")
    )


def print_history(entries: Iterable[HistoryEntry]) -> None:
    """Print refreshes: a table on a terminal, otherwise tab-separated lines."""
    if not is_terminal():
        for entry in entries:
            print_columns(asdict(entry).values())
        return
    rows = table("STARTED", "ACCOUNT", "REASON", "OUTCOME", "TOOK", "PROCESS", "TOKEN")
    for entry in entries:
        outcome = " ".join(filter(None, (entry.outcome or "running", entry.error)))
        took = "-" if entry.duration is None else f"{entry.duration:.1f} s"
        add_row(
            rows,
            datetime.fromtimestamp(entry.started_at, UTC).isoformat(" ", "seconds")[:-6] + "Z",
            entry.account_name,
            " ".join(filter(None, (entry.reason, entry.target and f"for {entry.target}"))),
            (outcome, "green" if entry.outcome == "refreshed" else "yellow"),
            took,
            f"{entry.host} {entry.pid}",
            f"{entry.sent[:6]} → {(entry.received or '?')[:6]}" if entry.sent else "-",
        )
    print_table(rows, "no refreshes yet")


def print_results(
    results: Iterable[dict[str, object]], key: str = "results", *, on_one_line: bool = False
) -> None:
    """Print results as JSON, each as soon as it is known.

    Args:
        results: One object for each account.
        key: The name of the list in the JSON document.
        on_one_line: Print the document on one line, and nothing if there are no results.
    """
    indent, line, two = (None, "", "") if on_one_line else (2, "\n", "\n  ")
    before = opening = f'{{{two}"{key}": ['
    try:
        for result in results:
            text = line + _json(result, indent)
            click.echo(before + text.replace("\n", "\n    "), nl=False)
            before = "," if line else ", "
    finally:  # after an error, the document is complete as well
        if before != opening:
            click.echo(f"{two}]{line}}}")
    if before == opening and not on_one_line:
        print_json({key: []})


def print_outcome(account: str, outcome: str, *, as_json: bool) -> None:
    """Print the outcome for the one account of a command."""
    if as_json:
        print_results([{"account_name": account, "outcome": outcome, "reason": None}])
    else:
        print_result(outcome, account)


def print_result(outcome: str, *facts: object) -> None:
    """Print the outcome for one account or file on a line."""
    separator = "  " if is_terminal() else "\t"
    print_line(_columns((outcome, *facts), separator).rstrip())


def print_columns(values: Iterable[object]) -> None:
    """Print values on a line for a program, with tabs between them."""
    print_line(_columns(values, "\t"))


def _columns(values: Iterable[object], separator: str) -> str:
    return separator.join("" if value is None else printable(str(value)) for value in values)


def print_findings(findings: Iterable[Finding]) -> None:
    """Print the doctor's findings: a table on a terminal, otherwise tab-separated lines."""
    if not is_terminal():
        for finding in findings:
            hint = "fixed" if finding.fixed else finding.hint
            print_result(finding.severity, finding.check, finding.message, hint, *finding.accounts)
        return
    rows = table("", "CHECK", "FINDING")
    for finding in findings:
        hint = "fixed" if finding.fixed else finding.hint
        parts: list[str | tuple[str, str]] = [printable(finding.message)]
        if finding.accounts:
            parts.append(f"\naccounts: {printable(_abbreviated(finding.accounts))}")
        if hint is not None:
            parts.append((f"\n→ {printable(hint)}", "bold"))
        add_row(rows, (finding.severity, _SEVERITIES[finding.severity]), finding.check, parts)
    print_table(rows, "no findings")


def _abbreviated(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def print_summary(counts: Mapping[str, int]) -> None:
    """Print the number of results by outcome, on stderr."""
    print_line(", ".join(f"{n} {outcome}" for outcome, n in counts.items()) or "nothing", err=True)


def progress(items: Iterable[_T], label: str, total: int | None = None) -> Iterator[_T]:
    """Yield *items*; show a progress bar if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress

    # stdout is not redirected: it may be a file.
    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        yield from bar.track(items, total=total, description=label)


def time_span(timestamp: float | None, now: float) -> str:
    """Return the time between *timestamp* and *now*, such as ``in 5 min``."""
    if timestamp is None or timestamp <= 0:
        return "unknown"
    if timestamp >= NEVER:
        return "never"
    distance = abs(timestamp - now)
    size, unit = next((u for u in _UNITS if distance >= u[0]), _UNITS[-1])
    words = f"{distance / size:.0f} {unit}"
    return f"in {words}" if timestamp > now else f"{words} ago"


def table(*headings: str) -> Table:
    """Return a table without rows (see `add_row`)."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def add_row(table: Table, *cells: _Cell) -> None:
    """Add a row of text; markup is not interpreted, and line breaks are the caller's."""
    table.add_row(*map(_text, cells))


def _text(cell: _Cell) -> Text:
    from rich.text import Text

    if isinstance(cell, list):
        return Text.assemble(*map(_text, cell))
    shown, style = (cell, "") if isinstance(cell, str) else cell
    return Text(printable(shown, keep="\n"), style)


def print_table(table: Table, if_empty: str) -> None:
    """Print a table; if it has no rows, print *if_empty* on stderr instead."""
    from rich.console import Console

    if table.row_count:
        Console().print(table)
    else:
        print_line(if_empty, err=True)
