from __future__ import annotations

import click
import pytest

from tests.helpers.stores import python
from tokenstore.cli.options import duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("1.5", 1.5),
        ("90s", 90),
        ("10m", 600),
        ("1h", 3600),
        ("1.5h", 5400),
        ("30d", 30 * 86400),
        (" 30 d ", 30 * 86400),
        ("999999999d", 999999999 * 86400),
    ],
)
def test_a_number_with_or_without_a_unit_is_a_duration(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "+1", "d", "1w", "1M", "1H", "1hh", "1h30m", ".5", "1e3", "inf", "nan", "1_0",
     "1,5h", "0x10", "1000000000d", "1h\n1"],
)  # fmt: skip
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(click.BadParameter, match="use 90, 10m, 1h or 30d"):
        duration(text)


def test_the_command_starts_with_a_click_whose_types_are_not_generic() -> None:
    code = """
import click
def not_generic(*_):
    raise TypeError("type 'ParamType' is not subscriptable")
click.ParamType.__class_getitem__ = not_generic
import tokenstore.cli.options
"""
    assert python(code) == ""
