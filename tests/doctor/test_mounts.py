"""The kind of file system that a directory is on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenstore.doctor.mounts import file_system_of

MOUNTS = """
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 21 0:24 / /srv rw,relatime - nfs4 server:/srv rw
31 30 8:2 / /srv/local rw shared:7 master:1 - xfs /dev/sdb rw
32 21 0:25 / /with\\040space rw - fuse.sshfs host:/ rw
33 21 0:26 / /over rw - cifs //host/share rw
34 33 8:3 / /over rw - btrfs /dev/sdc rw
35 21 0:27 / /hidden/below rw - nfs host:/ rw
36 21 8:4 / /hidden rw - ext3 /dev/sdd rw
37 21 0:28 / /line\u2028end rw - 9p host rw
"""


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/home/alice", "ext4"),
        ("/", "ext4"),
        ("/srv", "nfs4"),
        ("/srv/data", "nfs4"),
        ("/srvdata", "ext4"),
        ("/srv/local/data", "xfs"),
        ("/with space/data", "fuse.sshfs"),
        ("/with", "ext4"),
        ("/over/data", "btrfs"),
        ("/hidden/below/data", "ext3"),
        ("/line\u2028end", "9p"),
    ],
)
def test_the_file_system_of_a_directory_is_found(tmp_path: Path, directory: str, kind: str) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)

    assert file_system_of(Path(directory), tmp_path / "mounts") == kind


def test_without_a_list_of_mounts_the_file_system_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "rootfs").write_text("1 1 0:2 / / rw - rootfs rootfs rw\n")

    assert file_system_of(tmp_path, tmp_path / "missing") is None
    assert file_system_of(tmp_path, tmp_path / "empty") is None
    assert file_system_of(tmp_path, tmp_path / "rootfs") == "rootfs"
    assert file_system_of(tmp_path)
