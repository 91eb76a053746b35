"""Whether a process of this machine that an entry of the journal names is still the same one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_TOLERANCE = 2.0  # seconds by which the two clocks below may differ


def is_running(pid: int, *, since: float) -> bool:
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
