"""``refresh --every``: round after round, until somebody says stop."""

from __future__ import annotations

import gc
import os
import random
import select
import signal
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_GARBAGE = 700  # new objects after which to look for garbage, as Python does by itself
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether SIGINT or SIGTERM has come, while this is in use. A second one ends the process."""

    def __init__(self) -> None:
        self.is_set = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        self._read, self._write = os.pipe()
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        os.close(self._read)
        os.close(self._write)

    def wait(self, seconds: float) -> None:
        """Return after so many seconds, or when a signal comes."""
        select.select([self._read], [], [], seconds)

    def _note(self, *_: object) -> None:
        self.is_set = True
        self._restore()
        os.write(self._write, b"!")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def rounds(every: float, stop: Stop) -> Iterator[None]:
    """Yield for each round: at once, then after *every* seconds or a bit less.

    How much less is random, so that workers that were started together do not stay together.
    """
    gc.set_threshold(_GARBAGE)  # a command looks for none, but this one goes on and on
    while not stop.is_set:
        next_one = time.monotonic() + every * random.uniform(0.8, 1.0)  # noqa: S311 - no secret
        yield
        stop.wait(max(0.0, next_one - time.monotonic()))
