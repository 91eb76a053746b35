"""The results as JSON and as Markdown tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from benchmarks.measure import Row, Spread, Target

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def raw(rows: list[Row], machine: dict[str, str], seconds: float) -> dict[str, Any]:
    """Return all measurements as JSON values."""
    return {"machine": machine, "seconds": round(seconds), "rows": [asdict(row) for row in rows]}


def tables(rows: list[Row], machine: dict[str, str], seconds: float) -> str:
    """Return the report in Markdown."""
    met = [row.is_met(target) for row in rows for target in row.targets]
    return "\n".join(
        [
            ", ".join(f"{name}: {value}" for name, value in machine.items())
            + f". The run took {seconds:.0f} s and met {sum(met)} of {len(met)} targets.",
            "",
            "| operation | tokenstore | compared with | ratio (quartiles) | target | met |",
            "| --- | --- | --- | --- | --- | --- |",
            *(_line(row, target) for row in rows for target in row.targets),
            "",
            "All measurements, as medians and quartiles:",
            "",
            "| operation | implementation or store size | median | quartiles | relative to first |",
            "| --- | --- | --- | --- | --- |",
            *(line for row in rows for line in _lines(row)),
            "",
        ]
    )


def _line(row: Row, target: Target) -> str:
    most = f"exactly {target.most:g}" if target.exactly else f"≤ {target.most:g}"
    against = row.spread(target.against).median
    return _cells(
        row.work,
        _format(row.spread(target.of).median, row.unit),
        f"{target.against}: {_format(against, row.unit)}",
        ratio_of(row.ratio(target.of, target.against)),
        most,
        "yes" if row.is_met(target) else "**no**",
    )


def _lines(row: Row) -> Iterator[str]:
    first = next(iter(row.samples))
    note = f" ({row.note})" if row.note else ""
    for name in row.samples:
        low, median, high = row.spread(name)
        yield _cells(
            row.work + note if name == first else "",
            name,
            _format(median, row.unit),
            f"{_format(low, row.unit)} to {_format(high, row.unit)}",
            f"{row.ratio(name, first).median:.2f}",
        )


def ratio_of(ratio: Spread) -> str:
    """Return the text of a ratio."""
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _format(value: float, unit: str) -> str:
    if unit != "s":
        return f"{value:g}"
    size, name = next((u for u in _UNITS if value >= u[0]), _UNITS[-1])
    return f"{value / size:.3g} {name}"


def lines_of(rows: Iterable[Row]) -> Iterator[tuple[str, Spread, Target]]:
    """Yield the label, the measured ratio and the target of every target."""
    for row in rows:
        for target in row.targets:
            text = f"{row.work} / {target.against}".replace("`", "")
            yield text, row.ratio(target.of, target.against), target
