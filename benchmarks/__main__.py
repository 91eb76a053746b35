"""``python -m benchmarks``: measure everything, or some parts, and write what was found."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import growing, importing, plot, refreshing, report, starting, storing
from benchmarks.machine import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.measure import Row


def main() -> int:
    """Run the benchmarks; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="storing, growing, … (all)")
    parser.add_argument("--accounts", type=int, default=1_000_000, help="in the largest store")
    parser.add_argument("--into", type=Path, help="the directory for the results (none)")
    arguments = parser.parse_args()
    parts: dict[str, Callable[[Path], Iterator[Row]]] = {
        "storing": storing.rows,
        "importing": importing.rows,
        "starting": starting.rows,
        "refreshing": refreshing.rows,
        "growing": partial(growing.rows, most=arguments.accounts),
    }
    unknown = set(arguments.parts) - set(parts)
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(parts)}")
    began = time.perf_counter()
    rows: list[Row] = []
    for part in arguments.parts or parts:
        with tempfile.TemporaryDirectory(prefix="tokenstore-bench-") as directory:
            kind = machine(Path(directory))
            for row in parts[part](Path(directory)):
                rows.append(row)
                _tell(row, time.perf_counter() - began)
    seconds = time.perf_counter() - began
    told = report.tables(rows, kind, seconds)
    sys.stdout.write(f"\n{told}")
    if arguments.into is not None:
        arguments.into.mkdir(parents=True, exist_ok=True)
        found = json.dumps(report.raw(rows, kind, seconds), indent=1)
        for name, text in (
            ("results.json", f"{found}\n"),
            ("results.md", told),
            ("targets.svg", plot.svg(rows)),
        ):
            (arguments.into / name).write_text(text, "utf-8")
    return 0


def _tell(row: Row, seconds: float) -> None:
    """Say on stderr how far it is."""
    ratios = ", ".join(
        f"{report.ratio_of(row.ratio(t.of, t.against))} x {t.against}" for t in row.targets
    )
    sys.stderr.write(f"{seconds:5.0f} s  {row.work}: {ratios or 'measured'}\n")


if __name__ == "__main__":
    sys.exit(main())
