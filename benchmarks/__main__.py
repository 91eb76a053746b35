"""``python -m benchmarks``: run all benchmarks, or some of them, and report the results."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import importing, plot, refreshing, report, scaling, startup, storing
from benchmarks.machine import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.measure import Row

_PARTS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "storing": storing.rows,
    "importing": importing.rows,
    "startup": startup.rows,
    "refreshing": refreshing.rows,
    "scaling": scaling.rows,
}


def main() -> int:
    """Run the benchmarks; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(_PARTS)} [default: all]"
    )
    parser.add_argument(
        "--accounts",
        type=int,
        default=scaling.LARGEST,
        help="in the largest store [default: %(default)s]",
    )
    parser.add_argument("--into", type=Path, help="directory to write the results to")
    arguments = parser.parse_args()
    parts: dict[str, Callable[[Path], Iterator[Row]]] = {
        **_PARTS,
        "scaling": partial(scaling.rows, largest=arguments.accounts),
    }
    unknown = set(arguments.parts) - set(parts)
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; the parts are {', '.join(parts)}")
    began = time.perf_counter()
    rows: list[Row] = []
    for part in arguments.parts or parts:
        with tempfile.TemporaryDirectory(prefix="tokenstore-bench-") as directory:
            kind = machine(Path(directory))
            for row in parts[part](Path(directory)):
                rows.append(row)
                _log(row, time.perf_counter() - began)
    seconds = time.perf_counter() - began
    text = report.tables(rows, kind, seconds)
    sys.stdout.write(f"\n{text}")
    if arguments.into is not None:
        arguments.into.mkdir(parents=True, exist_ok=True)
        data = json.dumps(report.raw(rows, kind, seconds), indent=1)
        for name, content in (
            ("results.json", f"{data}\n"),
            ("results.md", text),
            ("targets.svg", plot.svg(rows)),
        ):
            (arguments.into / name).write_text(content, "utf-8")
    return 0


def _log(row: Row, seconds: float) -> None:
    """Report progress on stderr."""
    ratios = ", ".join(
        f"{report.ratio_of(row.ratio(t.of, t.against))} x {t.against}" for t in row.targets
    )
    sys.stderr.write(f"{seconds:5.0f} s  {row.work}: {ratios or 'measured'}\n")


if __name__ == "__main__":
    sys.exit(main())
