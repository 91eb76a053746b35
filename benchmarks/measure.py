"""Measure several ways of doing the same thing, in turns, so that noise hits them all alike."""

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
"""What was measured in each round, by the name of who was measured."""


@dataclass(frozen=True)
class Contender:
    """One way of doing it.

    Attributes:
        name: What it is called in the table.
        run: Does it once.
        arguments: Makes the arguments of so many calls; this is not timed.
        batch: Calls a round. The time of a round is divided by it.
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
    """How many times as much *of* may take as *against*; several of these mean the least."""

    of: str
    against: str
    most: float
    exactly: bool = False


@dataclass(frozen=True)
class Row:
    """What was measured of one kind of work.

    Attributes:
        work: What was done.
        samples: Of each round, seconds for one operation, or a count.
        targets: What the ratios ought to be.
        unit: ``s``, or what was counted.
        note: What has to be known to read it.
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
        return spread_of([mine / theirs for mine, theirs in pairs])

    def is_met(self, target: Target) -> bool:
        """Tell whether the median ratio is where it ought to be."""
        ratio = self.ratio(target.of, target.against)
        if target.exactly:
            return set(ratio) == {target.most}
        return ratio.median <= target.most


def spread_of(values: list[float]) -> Spread:
    """Return quartiles and median; of one value, that value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def interleaved(contenders: list[Contender], *, rounds: int) -> Samples:
    """Return seconds for one operation, of each contender in each round.

    Each round begins with another one, and one round before the first is thrown away.
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
