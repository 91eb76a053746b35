"""Which kind of file system a directory is on."""

from __future__ import annotations

import re
from pathlib import Path

NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "davfs", "glusterfs", "gpfs", "lustre", "ncpfs"}
    | {"nfs", "nfs4", "orangefs", "smb3", "smbfs", "vboxsf", "virtiofs"}
    | {"fuse.ceph", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"}
)
"""File systems whose locks or shared memory do not hold between hosts, or not at all."""


def file_system_of(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """Return the kind of file system that *directory* is on, such as ``ext4``; None if unknown.

    Args:
        directory: A directory that exists.
        mounts: Linux's list of what is mounted where (proc(5)).
    """
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    here, found = directory.resolve(), None
    deepest = -1
    for line in lines:
        facts, _, source = line.partition(" - ")
        point = Path(_unescaped(facts.split(" ")[4]))
        # Of two at one place the later one hides the earlier.
        if here.is_relative_to(point) and len(point.parts) >= deepest:
            deepest, found = len(point.parts), source.split(" ")[0]
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)
