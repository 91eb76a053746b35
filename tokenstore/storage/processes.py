"""Whether the process that an entry of the journal names may still be at work."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_TOLERANCE = 2.0  # seconds by which the two clocks below may differ


def may_be_at_work(host: str, pid: int, *, since: float, now: float, longest: float) -> bool:
    """Return whether a process may still be at a refresh that it has begun.

    Args:
        host: Its machine.
        pid: The process.
        since: When the refresh began, in UTC epoch seconds.
        now: The time, in UTC epoch seconds.
        longest: Seconds that a refresh may last at most, for a process of another machine.
    """
    if host == os.uname().nodename:
        return _is_running(pid, since=since)
    return abs(now - since) < longest  # the clock of that machine may be ahead of this one


def _is_running(pid: int, *, since: float) -> bool:
    """Return whether a process has been running since a timestamp, as far as is known.

    A process id is given to another process later; that one started after the timestamp.

    Args:
        pid: The process.
        since: The timestamp, in UTC epoch seconds.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        pass
    started_at = _started_at(pid)
    return started_at is None or started_at <= since + _TOLERANCE


def _started_at(pid: int) -> float | None:
    """Return when a process started, in UTC epoch seconds; None where /proc does not say."""
    with suppress(OSError, ValueError, IndexError):
        # The name of the program, in parentheses, may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        if fields[0] == "Z":
            return float("inf")  # it has ended, and its parent has not noticed yet
        ticks = int(fields[19])
        for line in Path("/proc/stat").read_text("ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "btime":
                return int(value) + ticks / os.sysconf("SC_CLK_TCK")
    return None
