"""The machine that a benchmark ran on, without a host name or a path."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
from pathlib import Path


def machine(directory: Path) -> dict[str, str]:
    """Describe this machine and the file system of *directory*."""
    return {
        "CPU": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "file system": _file_system(directory),
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
    }


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _file_system(directory: Path) -> str:
    """Return the type of the file system that contains *directory*."""
    kinds = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount_point, kind, *_ = line.split()
        kinds[Path(mount_point)] = kind
    resolved = directory.resolve()
    return next(kinds[p] for p in (resolved, *resolved.parents) if p in kinds)
