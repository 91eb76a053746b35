"""Redaction: no secret in the traceback or in the message of an error that leaves tokenstore.

Error reporters, and ``traceback`` if told to, record the local variables of every frame. A public
module ends with ``protect(__name__)``: when an error leaves one of its functions or methods, the
frames keep their names and line numbers, and their variables are cleared.

Text from a provider may repeat what was sent to it. A `Redactor` removes the secrets from it.
"""

from __future__ import annotations

import html
import re
import sys
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from opcode import opmap
from traceback import walk_tb
from types import AsyncGeneratorType, CoroutineType, FunctionType, GeneratorType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import quote, quote_plus, unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType, TracebackType

_P = ParamSpec("_P")
_R = TypeVar("_R")
_F = TypeVar("_F")

MIN_SECRET = 8  # characters; anything shorter may be part of an ordinary word
_RUN = 12  # characters of a secret in a row that are not shown
_handled = sys.exception  # what the caller is handling
_YIELD = opmap["YIELD_VALUE"]


# -- public functions -----------------------------------------------------------------------------


def protect(module: str) -> None:
    """Protect every public function and class that a module defines; call it at the module's end.

    A class is protected with its public and special methods and its properties. Left out are
    exceptions and what is marked `unprotected`. A private function that is called from outside
    needs the decorator `protected`.

    Args:
        module: The module's ``__name__``.
    """
    namespace = vars(sys.modules[module])
    for name, value in list(namespace.items()):
        if name.startswith("_") or getattr(value, "__module__", None) != module:
            continue
        if isinstance(value, FunctionType):
            namespace[name] = protected(value)
        elif isinstance(value, type) and not issubclass(value, BaseException):
            for cls in value.__mro__:
                if cls.__module__ == module:
                    _protect_class(cls)


def protected(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return the function with its errors' frames cleared; one of the same kind and signature.

    Generators, coroutines and asynchronous generators are protected while they run, also those
    that a plain function returns.
    """
    original: Any = function
    if hasattr(original, "__protected__") or hasattr(original, "__unprotected__"):
        return function
    inner = getattr(original, "__wrapped__", None)
    if isgeneratorfunction(inner) and not isgeneratorfunction(original):
        return contextmanager(protected(inner))  # type: ignore[return-value]
    if isasyncgenfunction(inner) and not isasyncgenfunction(original):
        return asynccontextmanager(protected(inner))  # type: ignore[return-value]
    wrapper: Any = _protected_function(original)
    if isgeneratorfunction(original):
        wrapper = _protected_generator(original)
    elif iscoroutinefunction(original):
        wrapper = _protected_coroutine(original)
    elif isasyncgenfunction(original):
        wrapper = _protected_async_generator(original)
    wrapper.__protected__ = True
    return wrapper  # type: ignore[no-any-return]


def unprotected(reason: str) -> Callable[[_F], _F]:
    """Exempt a public function, on a hot path, that keeps no secret in a variable.

    Args:
        reason: Why no error can have a secret in this function's own frame.
    """

    def mark(function: _F) -> _F:
        function.__unprotected__ = reason  # type: ignore[attr-defined]
        return function

    return mark


def _protect_class(cls: type) -> None:
    for name, value in list(vars(cls).items()):
        if name.startswith("_") and not (name.startswith("__") and name.endswith("__")):
            continue
        if isinstance(value, FunctionType):
            setattr(cls, name, protected(value))
        elif isinstance(value, (classmethod, staticmethod)):
            setattr(cls, name, type(value)(protected(value.__func__)))
        elif isinstance(value, property):
            get, put, delete = (f and protected(f) for f in (value.fget, value.fset, value.fdel))
            setattr(cls, name, property(get, put, delete, value.__doc__))


def _protected_function(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        outer = _handled()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            del args, kwargs  # this frame is still executing and cannot be cleared
            clear_frames(error, outer)
            raise
        if type(result) in _PROTECTED_LATER:
            return _PROTECTED_LATER[type(result)](_returning(result))()
        return result

    return call


def _protected_coroutine(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        outer = _handled()
        try:
            return await function(*args, **kwargs)
        except BaseException as error:
            del args, kwargs
            clear_frames(error, outer)
            raise

    return call


def _protected_generator(function: Callable[..., Any]) -> Callable[..., Any]:
    """Delegate as ``yield from`` does, and look at each step what the caller is handling."""

    @wraps(function)
    def generate(*args: Any, **kwargs: Any) -> Any:
        try:
            items = function(*args, **kwargs)
        finally:
            del args, kwargs
        resume, value, trace = items.send, None, None
        while True:
            outer = _handled()
            try:
                item = resume(value)
            except StopIteration as end:
                return end.value
            except BaseException as error:
                clear_frames(error, outer, thrown=value, until=trace)
                item = value = None
                raise
            try:
                resume, value = items.send, (yield item)
            except BaseException as error:  # noqa: BLE001 - thrown in: the generator decides
                resume, value, trace = items.throw, error, error.__traceback__

    return generate


def _protected_async_generator(function: Callable[..., Any]) -> Callable[..., Any]:
    """Delegate as `_protected_generator` does."""

    @wraps(function)
    async def generate(*args: Any, **kwargs: Any) -> Any:
        try:
            items = function(*args, **kwargs)
        finally:
            del args, kwargs
        resume, value, trace = items.asend, None, None
        while True:
            outer = _handled()
            try:
                item = await resume(value)
            except StopAsyncIteration:
                return
            except BaseException as error:
                clear_frames(error, outer, thrown=value, until=trace)
                item = value = None
                raise
            try:
                resume, value = items.asend, (yield item)
            except BaseException as error:  # noqa: BLE001 - thrown in: the generator decides
                resume, value, trace = items.athrow, error, error.__traceback__

    return generate


_PROTECTED_LATER: dict[type, Callable[..., Any]] = {
    GeneratorType: _protected_generator,
    CoroutineType: _protected_coroutine,
    AsyncGeneratorType: _protected_async_generator,
}


def _returning(value: _R) -> Callable[[], _R]:
    return lambda: value


# -- tracebacks -----------------------------------------------------------------------------------


def clear_frames(
    error: BaseException,
    outer: BaseException | None = None,
    *,
    thrown: object = None,
    until: TracebackType | None = None,
) -> None:
    """Clear the frames of *error*, of its causes and of its contexts.

    Frames that are executing, or suspended in the middle of a generator or coroutine, are left
    alone.

    Args:
        error: The error that was raised.
        outer: What the caller was already handling; it and its causes are left alone.
        thrown: What the caller threw into a generator, likewise.
        until: The traceback that *thrown* had then; if it is what comes out of the generator
            again, only the frames that it passed since are cleared.
    """
    trace = error.__traceback__
    while error is thrown and trace is not until and trace is not None:
        _clear(trace.tb_frame)
        trace = trace.tb_next
    pending: list[BaseException | None] = [error]
    known: list[object] = [outer, thrown, None]
    while pending:
        cause = pending.pop()
        if cause is None or any(cause is one for one in known):
            continue
        known.append(cause)
        pending += [cause.__cause__, cause.__context__]
        for frame, _ in walk_tb(cause.__traceback__):
            # Before Python 3.13, clearing a frame that is suspended ends its generator.
            if frame.f_code.co_code[frame.f_lasti] != _YIELD:
                _clear(frame)


def _clear(frame: FrameType) -> None:
    with suppress(RuntimeError):  # it is executing
        frame.clear()


# -- messages -------------------------------------------------------------------------------------


class Redactor:
    """Removes secrets from text that another program wrote.

    Args:
        secrets: What must not be shown, in whatever encoding the text repeats it.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        spellings = {spell(secret) for secret in secrets for spell in (str, quote, quote_plus)}
        self._secrets = sorted(spellings - {""}, key=len, reverse=True)
        self._runs = {run for secret in self._secrets for run in _runs(secret.casefold())}
        bare = [_bare(secret) for secret in self._secrets]
        self._bare_secrets = {secret for secret in bare if MIN_SECRET <= len(secret) < _RUN}
        self._bare_secrets |= {run for secret in bare for run in _runs(secret)}

    def redact(self, text: object, limit: int) -> str | None:
        """Return one printable line of *text* without secrets, or None if there is no text.

        Args:
            text: What was received; anything but a string counts as none.
            limit: The length of the line, in characters.
        """
        if not isinstance(text, str) or not text:
            return None
        for secret in self._secrets:
            text = re.sub(re.escape(secret), "[redacted]", text, flags=re.IGNORECASE)
        text = self._without_runs(text)
        bare = _bare(text.replace("[redacted]", " "))
        if any(secret in bare for secret in self._bare_secrets):
            return "[redacted]"
        text = "".join(c if c.isprintable() else " " for c in text)
        return " ".join(text.split())[:limit] or None

    def _without_runs(self, text: str) -> str:
        """Replace every part that repeats twelve or more characters of a secret."""
        shown, folded, position = [], text.casefold(), 0
        if len(folded) != len(text):  # rare letters change their length
            return "[redacted]" if any(run in folded for run in self._runs) else text
        while position < len(text):
            end = position
            while folded[end : end + _RUN] in self._runs:
                end += 1
            if end == position:
                shown.append(text[position])
                position += 1
            else:
                shown.append("[redacted]")
                position = end + _RUN - 1
        return "".join(shown)


def _runs(secret: str) -> Iterator[str]:
    """Yield every run of characters of a secret that must not be shown."""
    return (secret[i : i + _RUN] for i in range(len(secret) - _RUN + 1))


def _bare(text: str) -> str:
    """Return the letters and digits of *text*, decoded from whatever it was encoded in."""
    for _ in range(3):  # it may have been encoded several times
        text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), text)
        text = re.sub(r"\\x([0-9a-fA-F]{2})", lambda code: chr(int(code[1], 16)), text)
        text = html.unescape(unquote(text))
    return re.sub(r"[\W_]", "", text).casefold()
