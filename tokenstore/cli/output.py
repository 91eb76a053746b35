"""What people and programs get to see: tables, lines, JSON, progress."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tokenstore.models.timestamps import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tokenstore.doctor import Finding
    from tokenstore.models.accounts import HistoryEntry

_T = TypeVar("_T")

_SEVERITIES = {"ok": "green", "info": "cyan", "warning": "yellow", "error": "bold red"}
_SHOWN = 5  # names of accounts in one finding
_SPANS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


_demonstrating = False


def demonstrate() -> None:
    """From now on, show what a person would see, whoever is looking."""
    global _demonstrating  # noqa: PLW0603
    _demonstrating = True


def for_terminal() -> bool:
    """Tell whether a person is looking at stdout."""
    return _demonstrating or sys.stdout.isatty()


def print_json(value: object) -> None:
    """Print *value* as JSON on stdout."""
    click.echo(_json(value, 2))


def _json(value: object, indent: int | None) -> str:
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    # A file name may hold bytes that are no text.
    return text.encode("utf-8", "backslashreplace").decode()


def print_history(entries: Iterable[HistoryEntry]) -> None:
    """Print refreshes, as a table to a person, else one a line with tabs between."""
    if not for_terminal():
        for entry in entries:
            click.echo("\t".join("" if v is None else str(v) for v in asdict(entry).values()))
        return
    from rich.text import Text

    rows = table("WHEN", "ACCOUNT", "WHY", "OUTCOME", "TOOK", "BY", "TOKEN")
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
    show(rows, "no refreshes yet")


def print_results(
    results: Iterable[dict[str, object]], key: str = "results", *, on_one_line: bool = False
) -> None:
    """Print what becomes of accounts as JSON, each as soon as it is known.

    Args:
        results: One object for each.
        key: What they are called together.
        on_one_line: Print a line, for a reader of lines; nothing if there are no results.
    """
    indent, line, two = (None, "", "") if on_one_line else (2, "\n", "\n  ")
    before = opening = f'{{{two}"{key}": ['
    try:
        for result in results:
            text = line + _json(result, indent)
            click.echo(before + text.replace("\n", "\n    "), nl=False)
            before = "," if line else ", "
    finally:  # what was told is whole, also before an error
        if before != opening:
            click.echo(f"{two}]{line}}}")
    if before == opening and not on_one_line:
        print_json({key: []})


def print_result(outcome: str, *facts: object) -> None:
    """Print what became of one account or file."""
    separator = "  " if for_terminal() else "\t"
    told = separator.join("" if fact is None else printable(str(fact)) for fact in facts)
    click.echo(f"{outcome}{separator}{told}".rstrip())


def printable(text: str) -> str:
    """Return *text* with what a terminal cannot show, or would obey, spelled out."""
    known = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in known)


def print_findings(findings: Iterable[Finding]) -> None:
    """Print what the doctor found, as a table to a person, else one a line with tabs between."""
    if not for_terminal():
        for found in findings:
            cure = "done" if found.fixed else found.cure
            print_result(found.severity, found.check, found.message, cure, *found.accounts)
        return
    from rich.text import Text

    rows = table("", "CHECK", "FOUND, AND WHAT TO DO")
    for found in findings:
        cure = "done" if found.fixed else found.cure
        told = Text(printable(found.message))
        if found.accounts:
            told.append(f"\naccounts: {printable(_some(found.accounts))}")
        if cure is not None:
            told.append(f"\n→ {printable(cure)}", style="bold")
        rows.add_row(Text(found.severity, style=_SEVERITIES[found.severity]), found.check, told)
    show(rows, "nothing")


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def summarize(counts: Mapping[str, int]) -> None:
    """Print how often each outcome occurred, on stderr."""
    click.echo(", ".join(f"{n} {outcome}" for outcome, n in counts.items()) or "nothing", err=True)


def progress(items: Iterable[_T], label: str, total: int | None = None) -> Iterator[_T]:
    """Yield *items*, with a bar on stderr while that takes long and a person is looking."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress

    # stdout stays what it is: it may be a file.
    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        yield from bar.track(items, total=total, description=label)


def span(moment: float | None, now: float) -> str:
    """Return how far *moment* is from *now*, in words."""
    if moment is None or moment <= 0:
        return "unknown"
    if moment >= NEVER:
        return "never"
    distance = abs(moment - now)
    size, unit = next((s for s in _SPANS if distance >= s[0]), _SPANS[-1])
    words = f"{distance / size:.0f} {unit}"
    return f"in {words}" if moment > now else f"{words} ago"


def table(*headings: str) -> Any:
    """Return a table without rows."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def show(table: Any, empty: str) -> None:
    """Print a table, or on stderr that it has no rows."""
    from rich.console import Console

    if table.row_count:
        Console().print(table)
    else:
        click.echo(empty, err=True)
