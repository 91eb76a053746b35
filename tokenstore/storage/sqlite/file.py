"""The database as a file: where it is, whose it is, its mode. Nothing here opens it.

POSIX locks go when a process closes *any* descriptor of a file (SQLite's "howtocorrupt", 2.2). A
second ``open()`` of a live database, if only to look at it, would drop SQLite's own locks and with
them acknowledged writes. So an existing file is looked at with ``lstat`` and opened by SQLite only.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tokenstore.errors import InsecureStorageError, StorageError
from tokenstore.files import file_error, make_private_directory, sync_directory

if TYPE_CHECKING:
    from pathlib import Path

_SIDECARS = ("-wal", "-shm", "-journal")
_OTHERS = 0o077  # every permission of group and others

_log = logging.getLogger(__name__)


class FileId(NamedTuple):
    """Which file stood at a path, so that another one in its place is noticed."""

    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class DatabaseFile:
    """The place of a database; the file need not be there.

    Attributes:
        path: Its absolute path.
    """

    path: Path

    def identity(self) -> FileId | None:
        """Return which file is at the path, None if none is."""
        try:
            found = self.path.lstat()
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                return None
            raise file_error(error, self.path) from None
        return FileId(found.st_dev, found.st_ino)

    def is_still(self, identity: FileId | None) -> bool:
        """Tell whether that file is at the path. This is asked at every read."""
        try:
            found = os.lstat(self.path)  # half the time of Path.lstat
        except OSError:
            return self.identity() == identity  # which tells what is wrong
        return identity is not None and identity == (found.st_dev, found.st_ino)

    def inspect(self) -> FileId | None:
        """Return which file is at the path, None if there is none or an empty one.

        Raises:
            InsecureStorageError: What is there is a symlink, no file, or somebody else's.
            StorageError: It cannot be looked at.
        """
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise file_error(error, self.path) from None
        if stat.S_ISLNK(found.st_mode):
            raise self._refused("is a symlink; name the file that it points to")
        if not stat.S_ISREG(found.st_mode):
            raise self._refused("is not a file; name a file for the database")
        if found.st_uid != os.geteuid():
            raise self._refused(
                f"belongs to uid {found.st_uid}, not to this process's uid {os.geteuid()}; "
                "run as its owner, or use a database of your own"
            )
        return FileId(found.st_dev, found.st_ino) if found.st_size else None

    def files(self) -> list[Path]:
        """Return the database and its companions, those that are there."""
        return [p for p in (self.path, *map(self.beside, _SIDECARS)) if os.path.lexists(p)]

    def tighten(self) -> None:
        """Take a looser mode from the database and its companions; they are known to be ours."""
        for path in self.files():
            try:
                found = path.lstat()
            except OSError:
                continue
            mode = stat.S_IMODE(found.st_mode)
            if not mode & _OTHERS or not stat.S_ISREG(found.st_mode):
                continue
            try:
                path.chmod(mode & ~_OTHERS)
                _log.warning("%s was open to others (mode %04o); made it private", path, mode)
            except OSError as error:  # a read-only file system: it can be read all the same
                _log.warning("%s is open to others (mode %04o): %s", path, mode, error.strerror)

    def beside(self, suffix: str) -> Path:
        """Return the path of a companion, such as ``-wal``."""
        return self.path.with_name(self.path.name + suffix)

    def has_wal(self) -> bool:
        """Tell whether there is a write-ahead log, which may hold what the file does not."""
        return os.path.lexists(self.beside("-wal"))

    def has_log(self) -> bool:
        """Tell whether there is a log of a transaction, which whoever has it open works on."""
        return self.has_wal() or os.path.lexists(self.beside("-journal"))

    def is_writable(self) -> bool:
        """Tell whether the mode and the file system let this process write to the file."""
        return os.access(self.path, os.W_OK)

    def reject_stale_wal(self) -> None:
        """Raise a `StorageError` if a log of a lost database would be replayed into a new one."""
        for suffix in ("-wal", "-journal"):
            leftover = self.beside(suffix)
            if leftover.exists() and leftover.stat().st_size:
                raise StorageError(
                    f"{leftover}: left over from a database that is no longer at {self.path}; "
                    "put that database back, or move this file away to start a new one",
                    leftover,
                )

    def make_directories(self) -> None:
        """Make the directories that are missing, 0700; one that is there stays as it is."""
        make_private_directory(self.path.parent)

    def remove(self) -> None:
        """Remove the file and its companions, whichever are there."""
        for path in (self.path, *map(self.beside, _SIDECARS)):
            path.unlink(missing_ok=True)

    def move_to(self, target: DatabaseFile) -> None:
        """Give the finished file its final place, durably."""
        try:
            self.path.replace(target.path)
            sync_directory(target.path.parent)
        except OSError as error:
            raise file_error(error, target.path) from None

    def _refused(self, what: str) -> InsecureStorageError:
        return InsecureStorageError(f"{self.path} {what}", self.path)
