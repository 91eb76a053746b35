"""Timestamps in UTC epoch seconds, and the many forms in which they are read."""

from __future__ import annotations

import logging
import math
from datetime import MAXYEAR, UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

NEVER = 253402300799.0
"""The timestamp of a token that does not expire: the end of the year 9999."""

_MILLISECONDS = 1e11  # as seconds this is the year 5138: a larger number counts milliseconds
_DAY = 86400.0
_EARLIEST = -62135596800.0 + 3 * _DAY  # of the year 1: every zone can write and read it back

_log = logging.getLogger(__name__)


def parse_seconds(value: object) -> float | None:
    """Return a number, or a numeric string, as a finite float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def clamp(moment: float) -> float:
    """Return *moment*, or the nearest one for which every zone has a date."""
    return max(_EARLIEST, min(moment, NEVER))


def parse_timestamp(value: object, *, naive: tzinfo | None = None) -> float | None:
    """Return a moment in UTC epoch seconds, or None if *value* is none.

    Args:
        value: Epoch seconds or milliseconds, a number or a numeric string; an ISO 8601 string; a
            ``datetime``; ``math.inf`` for never.
        naive: The zone of a moment that names none; None means local time.
    """
    if value is None:
        return None
    if isinstance(value, (int, float)) and value == math.inf:
        return NEVER
    number = parse_seconds(value)
    if number is not None:
        return _parse_epoch(number)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip().upper())
        except ValueError:
            return None
    return _parse_datetime(value, naive) if isinstance(value, datetime) else None


def local_iso(moment: float) -> str | None:
    """Return *moment* as a naive local ISO 8601 string, None if it is `NEVER`."""
    if moment > NEVER - _DAY:  # no zone may push it past the last year
        return None
    return datetime.fromtimestamp(moment, UTC).astimezone().replace(tzinfo=None).isoformat()


def expiry_of(tokens: Mapping[str, Any], *, now: float) -> float | None:
    """Return when *tokens* expire: ``expires_at``, else ``expires_in`` from *now*, else None.

    A malformed field counts as none and is logged, without its value.
    """
    if tokens.get("expires_at") is not None:
        moment = parse_timestamp(tokens["expires_at"])
        if moment is None:
            _log.warning("expires_at is malformed; the token counts as expired")
        return moment
    if tokens.get("expires_in") is None:
        return None
    lifetime = parse_seconds(tokens["expires_in"])
    if lifetime is None:
        _log.warning("expires_in is malformed; the token counts as expired")
        return None
    return clamp(now + lifetime)


def latest(*moments: float | None) -> float | None:
    """Return the latest moment that is known."""
    return max((moment for moment in moments if moment is not None), default=None)


def earliest(*moments: float | None) -> float | None:
    """Return the earliest moment that is known."""
    return min((moment for moment in moments if moment is not None), default=None)


def _parse_epoch(number: float) -> float | None:
    if number > _MILLISECONDS and not _is_never(number):
        number /= 1000
    if _is_never(number):
        return NEVER
    return number if _EARLIEST <= number < NEVER else None


def _is_never(number: float) -> bool:
    """Tell whether this is the last moment of the calendar, in whichever zone it was taken."""
    return abs(number - NEVER) < _DAY


def _parse_datetime(value: datetime, naive: tzinfo | None) -> float | None:
    if value.year == MAXYEAR:
        return NEVER
    if value.tzinfo is None:
        value = value.replace(tzinfo=naive)
    try:
        return clamp(value.timestamp())
    except (ValueError, OverflowError, OSError):  # too early for a local calendar
        return _EARLIEST
