"""A public module with a function of every kind; each takes a secret and fails."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from tokenstore.redaction import protect, protected, unprotected

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator


class Failure(Exception):  # noqa: N818
    """The error of all of them."""


def _deep(secret: str) -> None:
    kept = secret
    try:
        raise KeyError(len(kept))
    except KeyError:
        raise Failure from None


def function(secret: str, *, good: str = "") -> str:
    """Fail unless *good* is given."""
    copy = secret + good
    if not good:
        _deep(copy)
    return copy


def generator(secret: str, count: int = 0) -> Generator[int]:
    yield from range(count)
    _deep(secret)


def iterator(secret: str, count: int = 0) -> Iterator[int]:
    return _items(secret, count)


def _items(secret: str, count: int) -> Iterator[int]:
    yield from range(count)
    _deep(secret)


async def coroutine(secret: str) -> None:
    await asyncio.sleep(0)
    _deep(secret)


async def async_generator(secret: str, count: int = 0) -> AsyncGenerator[int, None]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number
    _deep(secret)


def async_iterator(secret: str) -> AsyncIterator[int]:
    return _async_items(secret)


async def _async_items(secret: str) -> AsyncIterator[int]:
    yield 1
    _deep(secret)


@contextmanager
def context(secret: str) -> Iterator[str]:
    yield "entered"
    _deep(secret)


@asynccontextmanager
async def async_context(secret: str) -> AsyncIterator[str]:
    yield "entered"
    _deep(secret)


def interrupted(secret: str) -> None:
    assert secret
    raise KeyboardInterrupt


def echo(secret: str) -> Generator[object, object, str]:
    """Yield what is sent or thrown in; return at ``"end"``."""
    received: object = len(secret)
    while received != "end":
        try:
            received = yield received
        except LookupError as error:
            received = error
    return "ended"


async def async_echo(secret: str) -> AsyncGenerator[object, object]:
    """Yield what is sent or thrown in; return at ``"end"``."""
    received: object = len(secret)
    while received != "end":
        try:
            received = yield received
        except LookupError as error:
            received = error


def closing(closed: list[bool]) -> Iterator[int]:
    try:
        yield 1
        yield 2
    finally:
        closed.append(True)


def chained(cause: BaseException) -> None:
    raise Failure from cause


@unprotected("it shows what the mark does")
def exempt(secret: str) -> None:
    _deep(secret)


class _Base:
    def inherited(self, secret: str) -> None:
        _deep(secret)


class Things(_Base):
    def __init__(self, secret: str) -> None:
        self._secret = secret
        if secret.startswith("bad"):
            _deep(secret)

    def __call__(self, secret: str) -> None:
        _deep(secret)

    def __enter__(self) -> Things:
        return self

    def __exit__(self, *error: object) -> None:
        kept = self._secret
        _deep(kept)

    async def __aenter__(self) -> Things:
        return self

    async def __aexit__(self, *error: object) -> None:
        kept = self._secret
        _deep(kept)

    def method(self, secret: str) -> None:
        _deep(secret)

    @property
    def value(self) -> str:
        """What fails."""
        kept = self._secret
        _deep(kept)
        return kept

    @value.setter
    def value(self, secret: str) -> None:
        _deep(secret)

    @classmethod
    def of(cls, secret: str) -> None:
        _deep(secret)

    @staticmethod
    def static(secret: str) -> None:
        _deep(secret)

    @protected
    def _callback(self, secret: str) -> None:
        _deep(secret)

    def callback(self) -> Callable[[str], Any]:
        return self._callback


protect(__name__)
protect(__name__)  # a second time changes nothing
