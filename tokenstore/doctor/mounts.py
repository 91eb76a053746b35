"""Find the kind of file system that a directory is on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "davfs", "glusterfs", "gpfs", "lustre", "ncpfs"}
    | {"nfs", "nfs4", "orangefs", "smb3", "smbfs", "vboxsf", "virtiofs"}
    | {"fuse.ceph", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"}
)
"""File systems whose locks or shared memory do not work between hosts, or not at all."""


def file_system_of(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """Return the kind of file system that *directory* is on, such as ``ext4``; None if unknown.

    Args:
        directory: A directory that exists.
        mounts: Linux's list of mounts, see proc(5).
    """
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").split("\n")
    except OSError:
        return None
    path = directory.resolve()
    above = [mount for mount in map(_Mount.parse, filter(None, lines)) if mount.contains(path)]
    found, number = None, ""
    # Follow the path from the root: each mount must be on the one found before.
    while inner := [mount for mount in above if mount.is_on(number, above)]:
        mount = min(inner, key=lambda mount: len(mount.point.parts))
        above.remove(mount)
        found, number = mount.kind, mount.number
    return found


@dataclass(frozen=True, slots=True)
class _Mount:
    number: str
    parent: str
    point: Path
    kind: str

    @classmethod
    def parse(cls, line: str) -> _Mount:
        facts, _, source = line.partition(" - ")
        number, parent, _, _, point, *_ = facts.split(" ")
        return cls(number, parent, Path(_unescaped(point)), source.split(" ")[0])

    def contains(self, path: Path) -> bool:
        return path.is_relative_to(self.point)

    def is_on(self, number: str, mounts: list[_Mount]) -> bool:
        """Return whether it is mounted on that mount; "" stands for one that is not listed."""
        if number:
            return self.parent == number
        return not any(self.parent == mount.number for mount in mounts if mount is not self)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)
