"""An error that leaves tokenstore takes no secrets along in the frames that it came through.

Error reporters, and ``traceback`` if asked to, show the local variables of every frame. Frames keep
their names and lines, which tell where it happened; what was in them is cleared.
"""

from __future__ import annotations

import sys
from contextlib import closing, suppress
from functools import wraps
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, isgeneratorfunction
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import TracebackType


_P = ParamSpec("_P")
_R = TypeVar("_R")

_WAITING = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR  # what may wait in the middle


def sealed(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a public function, or a generator, that handles secrets."""
    if isgeneratorfunction(function):
        return cast("Callable[_P, _R]", _sealed_generator(function))
    return _sealed(function)


def seal(error: BaseException, outer: BaseException | None = None) -> None:
    """Clear the frames of *error* and of what it came from; those at work stay as they are.

    Args:
        error: What was raised.
        outer: What was being handled when that began: it is none of ours, nor what it came from.
    """
    pending: list[BaseException | None] = [error]
    known: list[BaseException | None] = [outer, None]
    while pending:
        cause = pending.pop()
        if cause is not None and not any(cause is one for one in known):
            known.append(cause)
            _clear(cause.__traceback__)
            pending += [cause.__cause__, cause.__context__]


def _clear(trace: TracebackType | None) -> None:
    ours = False
    while trace is not None:
        frame = trace.tb_frame
        ours = ours or frame.f_globals.get("__name__", "").startswith("tokenstore")
        # To clear a generator that is waiting would end it; below a frame of ours none is.
        if ours or not frame.f_code.co_flags & _WAITING:
            with suppress(RuntimeError):  # it is at work
                frame.clear()
        trace = trace.tb_next


def _sealed(function: Callable[_P, _R]) -> Callable[_P, _R]:
    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        outer = sys.exception()
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            del args, kwargs  # this frame is still at work
            seal(error, outer)
            raise

    return call


def _sealed_generator(function: Callable[_P, Any]) -> Callable[_P, Iterator[Any]]:
    @wraps(function)
    def generate(*args: _P.args, **kwargs: _P.kwargs) -> Iterator[Any]:
        items: Generator[Any] = function(*args, **kwargs)
        del args, kwargs
        with closing(items):
            while True:
                outer = sys.exception()
                try:
                    item = next(items)
                except StopIteration:
                    return
                except BaseException as error:
                    seal(error, outer)
                    raise
                yield item

    return generate
