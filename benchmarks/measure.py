"""Measure several implementations of the same work in turn, so that noise affects all equally."""

from __future__ import annotations

import gc
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import starmap
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Samples = dict[str, list[float]]
"""The measurement of each round, by the contender's name."""


@dataclass(frozen=True)
class Contender:
    """One implementation of the work.

    Attributes:
        name: Its name in the report.
        run: Performs the operation once.
        arguments: Returns the arguments of the given number of calls; not timed.
        batch: Calls per round; the time of a round is divided by it.
    """

    name: str
    run: Callable[..., object]
    arguments: Callable[[int], Iterable[tuple[Any, ...]]]
    batch: int = 1


class Spread(NamedTuple):
    """A median and the quartiles around it."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Target:
    """The highest acceptable ratio of *of* to *against*."""

    of: str
    against: str
    most: float
    exactly: bool = False


@dataclass(frozen=True)
class Row:
    """The measurements of one kind of work.

    Attributes:
        work: The operation.
        samples: Seconds per operation, or a count, for each round.
        targets: The ratios to reach.
        unit: ``s``, or the name of the things counted.
        note: A remark for the report.
    """

    work: str
    samples: Samples
    targets: list[Target] = field(default_factory=list)
    unit: str = "s"
    note: str = ""

    def spread(self, name: str) -> Spread:
        """Return the median of one contender, and its quartiles."""
        return spread_of(self.samples[name])

    def ratio(self, of: str, against: str) -> Spread:
        """Return the median of the ratios of each round, and their quartiles."""
        pairs = zip(self.samples[of], self.samples[against], strict=True)
        return spread_of([value / reference for value, reference in pairs])

    def is_met(self, target: Target) -> bool:
        """Return whether the median ratio meets the target."""
        ratio = self.ratio(target.of, target.against)
        if target.exactly:
            return set(ratio) == {target.most}
        return ratio.median <= target.most


def spread_of(values: list[float]) -> Spread:
    """Return the quartiles and the median; a single value is all three."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def interleaved(contenders: list[Contender], *, rounds: int) -> Samples:
    """Return the seconds per operation of each contender in each round.

    Each round starts with a different contender; an additional first round is discarded.
    """
    samples: Samples = {contender.name: [] for contender in contenders}
    for number in range(rounds + 1):
        first = number % len(contenders)
        for contender in contenders[first:] + contenders[:first]:
            seconds = _time(contender)
            if number:
                samples[contender.name].append(seconds)
    return samples


def _time(contender: Contender) -> float:
    arguments = list(contender.arguments(contender.batch))
    gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        deque(starmap(contender.run, arguments), maxlen=0)
        return (time.perf_counter() - began) / len(arguments)
    finally:
        gc.enable()
