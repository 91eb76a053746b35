"""Timestamps in UTC epoch seconds, and the formats they are read from."""

from __future__ import annotations

import logging
import math
from datetime import MAXYEAR, datetime, tzinfo
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

NEVER = 253402300799.0
"""The timestamp of a token that does not expire: the end of the year 9999."""

_MILLISECONDS = 1e11  # in seconds, this is the year 5138: a larger number counts milliseconds
_DAY = 86400.0
_EARLIEST = -62135596800.0 + 3 * _DAY  # in the year 1, and representable in every time zone

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


def clamp_to_calendar(timestamp: float) -> float:
    """Return the timestamp, limited to those that have a date in every time zone."""
    return max(_EARLIEST, min(timestamp, NEVER))


def parse_timestamp(value: object, *, naive: tzinfo | None = None) -> float | None:
    """Return a timestamp in UTC epoch seconds, or None if *value* cannot be parsed.

    Args:
        value: Epoch seconds or milliseconds, as a number or a numeric string; an ISO 8601 string;
            a ``datetime``; ``math.inf`` for never.
        naive: The time zone of a value without one. Defaults to local time.
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


def local_iso(timestamp: float) -> str | None:
    """Return the timestamp as a naive local ISO 8601 string, or None if it is `NEVER`."""
    if timestamp > NEVER - _DAY:  # some time zone may move it past the year 9999
        return None
    return datetime.fromtimestamp(timestamp).isoformat()  # noqa: DTZ006 - naive on purpose


def expiry_of(tokens: Mapping[str, Any], *, now: float) -> float | None:
    """Return when *tokens* expire, in UTC epoch seconds, or None if unknown.

    ``expires_at`` takes precedence over ``expires_in``, which counts from *now*. A malformed field
    is logged, without its value, and makes the expiry unknown.
    """
    if tokens.get("expires_at") is not None:
        timestamp = parse_timestamp(tokens["expires_at"])
        if timestamp is None:
            _log.warning("expires_at is malformed; the token counts as expired")
        return timestamp
    if tokens.get("expires_in") is None:
        return None
    lifetime = parse_seconds(tokens["expires_in"])
    if lifetime is None:
        _log.warning("expires_in is malformed; the token counts as expired")
        return None
    return clamp_to_calendar(now + lifetime)


def has_end(expires_at: float | None) -> bool:
    """Return whether a token is known to expire, now or later."""
    return expires_at is not None and expires_at < NEVER


def latest(*timestamps: float | None) -> float | None:
    """Return the latest of the timestamps that are not None."""
    return max((timestamp for timestamp in timestamps if timestamp is not None), default=None)


def earliest(*timestamps: float | None) -> float | None:
    """Return the earliest of the timestamps that are not None."""
    return min((timestamp for timestamp in timestamps if timestamp is not None), default=None)


def _parse_epoch(number: float) -> float | None:
    if number > _MILLISECONDS and not _is_never(number):
        number /= 1000
    if _is_never(number):
        return NEVER
    return number if _EARLIEST <= number < NEVER else None


def _is_never(number: float) -> bool:
    """Return whether this is the end of the year 9999 in any time zone."""
    return abs(number - NEVER) < _DAY


def _parse_datetime(value: datetime, naive: tzinfo | None) -> float | None:
    if value.year == MAXYEAR:
        return NEVER
    if value.tzinfo is None:
        value = value.replace(tzinfo=naive)
    try:
        return clamp_to_calendar(value.timestamp())
    except (ValueError, OverflowError, OSError):  # too early for the local time zone
        return _EARLIEST
