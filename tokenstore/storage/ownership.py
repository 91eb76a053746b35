"""Tells whether code belongs to the part of the program that has opened a transaction.

A coroutine or a generator may be suspended inside a transaction. What its thread does meanwhile
must not join that transaction, which may still fail.
"""

from __future__ import annotations

import contextlib
import sys
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, CO_ITERABLE_COROUTINE
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_COROUTINE = CO_COROUTINE | CO_ITERABLE_COROUTINE
_GENERATOR = CO_GENERATOR | CO_ASYNC_GENERATOR


class Owner:
    """The coroutine and the generators, if any, in which an instance is created.

    A context variable would not do: generators share theirs with their callers, and a task starts
    with a copy of its creator's.
    """

    def __init__(self) -> None:
        self._frames = frozenset(_suspendable())

    def is_current(self) -> bool:
        """Return whether the calling code runs inside all of them. Every statement asks this."""
        missing = len(self._frames)
        frame = sys._getframe(1) if missing else None  # noqa: SLF001 - documented, of CPython
        while frame is not None:
            if frame in self._frames:
                missing -= 1
                if not missing:
                    break
            frame = frame.f_back
        return not missing


def _suspendable() -> Iterator[FrameType]:
    """Yield the frames of the generators that are running, up to the outermost coroutine's.

    A generator that contextlib runs is the first half of a ``with`` statement: it is suspended
    while the block runs, which belongs to it.
    """
    coroutine = None
    for frame in _callers():
        if frame.f_code.co_flags & _COROUTINE:
            coroutine = frame
        elif coroutine is not None and not frame.f_code.co_flags & CO_ASYNC_GENERATOR:
            break
        elif frame.f_code.co_flags & _GENERATOR and not _is_entered(frame):
            yield frame
    if coroutine is not None:
        yield coroutine


def _is_entered(frame: FrameType) -> bool:
    """Return whether contextlib runs a generator, also through generators that delegate to it."""
    caller = frame.f_back
    while caller is not None and caller.f_code.co_flags & _GENERATOR:
        caller = caller.f_back
    return caller is not None and caller.f_code.co_filename == contextlib.__file__


def _callers() -> Iterator[FrameType]:
    """Yield the frames of the calling thread outside this module, innermost first."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - documented, of CPython
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            yield frame
        frame = frame.f_back
