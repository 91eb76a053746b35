"""One directory for all that a test run writes, which is removed at its end."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

ANYONE_MAY_ENTER = 0o755


def make_run_directory() -> Path:
    """Make the directory, and let this process and its children use it as TMPDIR.

    Other users can enter it: some tests run as one, and PostgreSQL does not run as root. Its name
    is short, since the path of a Unix socket has to fit into some 100 characters.
    """
    directory = Path(tempfile.mkdtemp(prefix="ts-"))
    directory.chmod(ANYONE_MAY_ENTER)
    os.environ["TMPDIR"] = str(directory)
    tempfile.tempdir = None
    return directory


def open_directory() -> Path:
    """Return a new directory that other users can enter, unlike those of pytest."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(ANYONE_MAY_ENTER)
    return directory


def remove(directory: Path) -> None:
    """Remove a directory, although directories in it may be closed to their owner."""
    for parent, names, _ in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(directory)
