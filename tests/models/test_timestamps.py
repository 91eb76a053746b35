from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tests.helpers.strategies import examples
from tokenstore.models.timestamps import (
    NEVER,
    clamp_to_calendar,
    expiry_of,
    local_iso,
    parse_seconds,
    parse_timestamp,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
SECRET = "at-canary-77c0"

FORMATS = {
    "seconds": NOW,
    "whole seconds": int(NOW),
    "seconds as text": "1800000000",
    "fraction as text": "1800000000.0",
    "text in blanks": " 1800000000 ",
    "milliseconds": int(NOW) * 1000,
    "milliseconds as text": "1800000000000",
    "aware": datetime(2027, 1, 15, 8, tzinfo=UTC),
    "aware elsewhere": datetime(
        2027, 1, 15, 13, 45, tzinfo=timezone(timedelta(hours=5, minutes=45))
    ),
    "Z": "2027-01-15T08:00:00Z",
    "small z": "2027-01-15t08:00:00z",
    "offset": "2027-01-15T10:00:00+02:00",
    "offset without colon": "2027-01-15T00:00:00-0800",
    "blank for T": "2027-01-15 08:00:00+00:00",
    "milliseconds of a second": "2027-01-15T08:00:00.000Z",
    "seven digits": "2027-01-15T08:00:00.0000000Z",
}


@pytest.mark.parametrize("value", FORMATS.values(), ids=FORMATS)
@pytest.mark.usefixtures("zone")
def test_every_format_of_a_timestamp_is_parsed_in_every_zone(value: object) -> None:
    timestamp = parse_timestamp(value)

    assert timestamp == NOW
    assert type(timestamp) is float


LOCAL = {"UTC": "08:00:00", "Los_Angeles": "00:00:00", "Kolkata": "13:30:00"}


@pytest.mark.parametrize("kind", [str, datetime.fromisoformat], ids=["text", "datetime"])
def test_a_timestamp_without_a_zone_is_local_time(zone: str, kind: Callable[[str], object]) -> None:
    value = kind(f"2027-01-15T{LOCAL[zone]}")

    assert parse_timestamp(value) == NOW


def test_a_timestamp_without_a_zone_may_be_utc(zone: str) -> None:
    assert parse_timestamp("2027-01-15T08:00:00", naive=UTC) == NOW, zone
    assert parse_timestamp("2027-01-15T08:00:00+01:00", naive=UTC) == NOW - 3600, zone


DST = {  # Los Angeles: forward on 2027-03-14 at 10:00Z, back on 2027-11-07 at 09:00Z
    "before spring": ("2027-03-14T01:59:59", "2027-03-14T09:59:59+00:00"),
    "after spring": ("2027-03-14T03:00:00", "2027-03-14T10:00:00+00:00"),
    "before autumn": ("2027-11-07T00:59:59", "2027-11-07T07:59:59+00:00"),
    "after autumn": ("2027-11-07T02:00:00", "2027-11-07T10:00:00+00:00"),
}


@pytest.mark.parametrize(("local", "utc"), DST.values(), ids=DST)
def test_local_times_around_a_clock_change(
    local: str, utc: str, set_zone: Callable[[str], None]
) -> None:
    set_zone("Los_Angeles")
    instant = datetime.fromisoformat(utc).timestamp()

    assert parse_timestamp(local) == instant
    assert local_iso(instant) == local


def test_an_hour_that_comes_twice_is_the_first_unless_fold_says_the_second(
    set_zone: Callable[[str], None],
) -> None:
    set_zone("Los_Angeles")
    first = datetime.fromisoformat("2027-11-07T08:30:00+00:00").timestamp()
    naive = datetime(2027, 11, 7, 1, 30)  # noqa: DTZ001

    assert parse_timestamp(naive) == first
    assert parse_timestamp(naive.replace(fold=1)) == first + 3600


@examples(
    50,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the zone stays as it is
)
@given(value=st.integers(min_value=-2_000_000_000, max_value=99_000_000_000))
@pytest.mark.usefixtures("zone")
def test_local_time_is_parsed_as_the_same_timestamp(value: int) -> None:
    written = local_iso(value)

    assert written is not None
    read = parse_timestamp(written)
    assert read is not None
    # An hour that comes twice reads as the first one.
    assert value - read in {0, 3600}


FOREVER = {
    "infinity": math.inf,
    "the last second": NEVER,
    "the last second as text": "253402300799",
    "the last fraction": 253402300799.999999,
    "the last millisecond": 253402300799999,
    "last second in milliseconds": 253402300799000,
    "aware": datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    "naive": datetime(9999, 12, 31, 23, 59, 59),  # noqa: DTZ001
    "the largest datetime": datetime.max,  # noqa: DTZ901
    "text": "9999-12-31T23:59:59Z",
    "text east of Greenwich": "9999-12-31T23:59:59+14:00",
    "text west of Greenwich": "9999-12-31T23:59:59-12:00",
}


@pytest.mark.parametrize("value", FOREVER.values(), ids=FOREVER)
@pytest.mark.usefixtures("zone")
def test_the_end_of_the_year_9999_is_never(value: object) -> None:
    assert parse_timestamp(value) == NEVER


EARLIEST = {
    "UTC": "0001-01-01T00:00:00Z",
    "another zone": "0001-01-01T00:00:00+14:00",
    "local time": "0001-01-01T00:00:00",
    "datetime": datetime(1, 1, 1, tzinfo=UTC),
}


@pytest.mark.parametrize("value", EARLIEST.values(), ids=EARLIEST)
def test_a_date_before_every_calendar_is_in_the_past(value: object, zone: str) -> None:
    timestamp = parse_timestamp(value)

    assert timestamp is not None
    assert timestamp < 0, zone
    written = local_iso(timestamp)
    assert written is not None
    assert written.startswith("0001-01-0")
    assert parse_timestamp(written) == timestamp


def test_the_epoch_is_a_timestamp() -> None:
    assert parse_timestamp(0) == 0.0
    assert local_iso(0.0) is not None


def test_never_has_no_local_time(zone: str) -> None:
    assert local_iso(NEVER) is None, zone


@pytest.mark.parametrize("value", [-1e308, 0.0, NOW, NEVER, 1e308, math.inf])
def test_a_clamped_timestamp_has_a_date_in_every_zone(value: float, zone: str) -> None:
    clamped = clamp_to_calendar(value)

    assert datetime.fromtimestamp(clamped, UTC).year <= 9999
    assert local_iso(clamped) is not None or clamped == NEVER, zone


def test_a_timestamp_within_the_calendar_is_not_clamped() -> None:
    assert clamp_to_calendar(NOW) == NOW


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(1, 1.0), (1.5, 1.5), ("1.5", 1.5), ("1e3", 1000.0), (-2, -2.0)],
    ids=str,
)
def test_numbers_and_numeric_text_are_seconds(value: object, seconds: float) -> None:
    assert parse_seconds(value) == seconds


@pytest.mark.parametrize(
    "value",
    [None, "", "x", "nan", "inf", math.nan, math.inf, 10**400, True, [], {}, b"1", object],
    ids=lambda value: type(value).__name__ + str(value)[:5],
)
def test_anything_else_is_not_a_number_of_seconds(value: object) -> None:
    assert parse_seconds(value) is None


def test_a_process_started_in_another_zone_parses_the_same_timestamp() -> None:
    """TZ as it is set for a service: before the interpreter starts."""
    code = (
        "from tokenstore.models.timestamps import local_iso, parse_timestamp\n"
        f"print(local_iso({NOW}), parse_timestamp('2027-01-15T13:30:00'))"
    )

    printed = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TZ": "IST-5:30"},
        capture_output=True,
        check=True,
        text=True,
    ).stdout

    assert printed.split() == ["2027-01-15T13:30:00", str(NOW)]


# -- the expiry of a mapping ----------------------------------------------------------------------


def test_expiry_is_expires_at_else_expires_in_else_unknown() -> None:
    assert expiry_of({"expires_at": NOW, "expires_in": 5}, now=1.0) == NOW
    assert expiry_of({"expires_at": None, "expires_in": 5}, now=NOW) == NOW + 5
    assert expiry_of({"access_token": "a"}, now=NOW) is None


@pytest.mark.parametrize("field", ["expires_at", "expires_in"])
def test_a_malformed_expiry_is_unknown_and_logged_without_its_value(
    field: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "tokenstore"):
        assert expiry_of({field: SECRET}, now=NOW) is None

    assert [record.name for record in caplog.records] == ["tokenstore.models.timestamps"]
    assert field in caplog.text
    assert SECRET not in caplog.text


def test_expires_in_does_not_replace_a_malformed_expires_at() -> None:
    assert expiry_of({"expires_at": "x", "expires_in": 3600}, now=NOW) is None
