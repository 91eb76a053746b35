"""Lengths of time as people write them."""

from __future__ import annotations

import re

import click

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> float:
    """Return the seconds that *text* stands for, such as ``90``, ``10m``, ``1h`` or ``30d``."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d*)?)\s*([smhd]?)", text.strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is no length of time; write 90, 10m, 1h or 30d")
    return float(found[1]) * _UNITS[found[2]]
