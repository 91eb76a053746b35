"""Output for users and programs: tables, lines, JSON and progress bars."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tokenstore.cli import streams
from tokenstore.models.timestamps import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tokenstore.doctor import Finding
    from tokenstore.models.accounts import HistoryEntry

_T = TypeVar("_T")

_SEVERITIES = {"ok": "green", "info": "cyan", "warning": "yellow", "error": "bold red"}
_NAMES_SHOWN = 5  # account names per finding
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))

_forced_terminal = False


def force_terminal() -> None:
    """From now on, print as to a terminal."""
    global _forced_terminal  # noqa: PLW0603
    _forced_terminal = True


def is_terminal() -> bool:
    """Return whether to print as to a terminal."""
    return _forced_terminal or sys.stdout.isatty()


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
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    ascii_only = not encoding.lower().startswith("utf")  # then the escapes are those of JSON
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only, default=str)
    # A file name may contain bytes that are not valid UTF-8.
    return text.encode("utf-8", "backslashreplace").decode()


def print_history(entries: Iterable[HistoryEntry]) -> None:
    """Print refreshes: a table on a terminal, otherwise tab-separated lines."""
    if not is_terminal():
        for entry in entries:
            click.echo("\t".join("" if v is None else str(v) for v in asdict(entry).values()))
        return
    from rich.text import Text

    rows = table("STARTED", "ACCOUNT", "REASON", "OUTCOME", "TOOK", "PROCESS", "TOKEN")
    for entry in entries:
        outcome = " ".join(filter(None, (entry.outcome or "running", entry.error)))
        took = "-" if entry.duration is None else f"{entry.duration:.1f} s"
        rows.add_row(
            datetime.fromtimestamp(entry.started_at, UTC).isoformat(" ", "seconds")[:-6] + "Z",
            Text(entry.account_name),
            entry.reason,
            Text(outcome, style="green" if entry.outcome == "refreshed" else "yellow"),
            took,
            Text(f"{entry.host} {entry.pid}"),
            f"{entry.sent[:6]} → {(entry.received or '?')[:6]}",
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
    columns = separator.join("" if fact is None else printable(str(fact)) for fact in facts)
    click.echo(f"{outcome}{separator}{columns}".rstrip())


def printable(text: str) -> str:
    """Return *text* with control and other unprintable characters escaped."""
    valid = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in valid)


def print_findings(findings: Iterable[Finding]) -> None:
    """Print the doctor's findings: a table on a terminal, otherwise tab-separated lines."""
    if not is_terminal():
        for finding in findings:
            hint = "fixed" if finding.fixed else finding.hint
            print_result(finding.severity, finding.check, finding.message, hint, *finding.accounts)
        return
    from rich.text import Text

    rows = table("", "CHECK", "FINDING")
    for finding in findings:
        hint = "fixed" if finding.fixed else finding.hint
        text = Text(printable(finding.message))
        if finding.accounts:
            text.append(f"\naccounts: {printable(_abbreviated(finding.accounts))}")
        if hint is not None:
            text.append(f"\n→ {printable(hint)}", style="bold")
        severity = Text(finding.severity, style=_SEVERITIES[finding.severity])
        rows.add_row(severity, finding.check, text)
    print_table(rows, "no findings")


def _abbreviated(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def print_summary(counts: Mapping[str, int]) -> None:
    """Print the number of results by outcome, on stderr."""
    click.echo(", ".join(f"{n} {outcome}" for outcome, n in counts.items()) or "nothing", err=True)


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


def table(*headings: str) -> Any:
    """Return a table without rows."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def print_table(table: Any, if_empty: str) -> None:
    """Print a table; if it has no rows, print *if_empty* on stderr instead."""
    from rich.console import Console

    if table.row_count:
        Console().print(table)
    else:
        click.echo(if_empty, err=True)
