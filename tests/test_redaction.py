from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from tokenstore.redaction import seal, sealed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Boom(Exception):  # noqa: N818
    pass


def deep(secret: str) -> None:
    kept = secret
    try:
        raise KeyError(len(kept))
    except KeyError:
        raise Boom from None


def shown(error: BaseException, after: str = "") -> str:
    """Return all that a reporter shows of an error, from the first frame of a function on."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(told.format()).partition(f"in {after}")[2] if after else "".join(told.format())


def frames(error: BaseException | None) -> dict[str, dict[str, Any]]:
    """Return the local variables of each frame that an error came through, by function."""
    found = {}
    trace = None if error is None else error.__traceback__
    while trace is not None:
        found[trace.tb_frame.f_code.co_name] = dict(trace.tb_frame.f_locals)
        trace = trace.tb_next
    return found


@sealed
def public(secret: str, *, again: str = "") -> str:
    copy = secret + again
    if not again:
        deep(copy)
    return copy


@sealed
def items(secret: str, count: int) -> Iterator[int]:
    yield from range(count)
    deep(secret)


def test_what_goes_well_is_as_it_was() -> None:
    assert public("a", again="b") == "ab"
    assert public.__name__ == "public"


def test_an_error_keeps_its_lines_and_loses_its_locals() -> None:
    with pytest.raises(Boom) as caught:
        public("canary")

    names = frames(caught.value)
    assert list(names)[-2:] == ["public", "deep"]
    assert names["deep"] == names["public"] == {}
    assert "canary" not in repr(names["call"])
    assert "raise Boom from None" in shown(caught.value)


def test_what_an_error_came_from_loses_its_locals_too() -> None:
    with pytest.raises(Boom) as caught:
        public("canary")

    assert isinstance(caught.value.__context__, KeyError)
    assert frames(caught.value.__context__) == {"deep": {}}


def test_an_error_that_the_caller_is_handling_is_left_alone() -> None:
    def fail() -> None:
        mine = "kept"
        raise ValueError(len(mine))

    def while_handling(call: Callable[[], object]) -> BaseException:
        try:
            fail()
        except ValueError:
            call()
        raise AssertionError

    for call in (lambda: public("canary"), lambda: list(items("canary", 0))):
        with pytest.raises(Boom) as caught:
            while_handling(call)
        assert caught.value.__context__ is not None
        outer = caught.value.__context__.__context__
        assert isinstance(outer, ValueError)
        assert frames(outer)["fail"] == {"mine": "kept"}


def test_a_generator_that_fails_half_way_loses_its_locals() -> None:
    seen: list[int] = []
    with pytest.raises(Boom) as caught:
        seen.extend(items("canary", 3))

    assert seen == [0, 1, 2]
    assert frames(caught.value)["items"] == {}
    assert "canary" not in repr(frames(caught.value)["generate"])


def test_a_generator_that_is_left_is_closed() -> None:
    closed = []

    @sealed
    def numbers() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    iterator = numbers()
    assert next(iterator) == 1
    iterator.close()  # type: ignore[attr-defined]

    assert closed == [True]


def test_a_generator_of_somebody_else_that_waits_goes_on() -> None:
    def waiting() -> Iterator[object]:
        try:
            deep("mine")
        except Boom as error:
            yield error
        yield 2

    theirs = waiting()
    saved = next(theirs)
    assert isinstance(saved, Boom)

    @sealed
    def fail() -> None:
        raise Boom from saved

    with pytest.raises(Boom):
        fail()
    assert list(theirs) == [2]


def test_an_interrupt_is_sealed_too() -> None:
    @sealed
    def interrupted(secret: str) -> None:
        assert secret
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted("canary")

    assert frames(caught.value)["interrupted"] == {}


def test_errors_that_refer_to_each_other_are_no_obstacle() -> None:
    first, second = Boom(), Boom()
    first.__cause__, second.__context__ = second, first

    seal(first)

    assert sys.exception() is None
