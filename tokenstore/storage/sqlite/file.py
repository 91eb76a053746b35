"""The database as a file: its path, owner and mode. Nothing here opens it.

A process loses its POSIX locks on a file when it closes *any* descriptor of that file (SQLite's
"howtocorrupt", 2.2). A second ``open()`` of a database in use would drop SQLite's own locks, and
acknowledged writes with them. So an existing file is inspected with ``lstat``, and only SQLite
opens it.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from tokenstore.errors import InsecureStorageError, StorageError
from tokenstore.files import file_error, make_private_directory, sync_directory
from tokenstore.trust import (
    first_mount_point,
    hard_link_error,
    require_own_file,
    restrict_permissions,
)

if TYPE_CHECKING:
    from pathlib import Path

_SIDECARS = ("-wal", "-shm", "-journal")
_NAME_MAX = 255  # bytes in the name of a file
_PATH_MAX = 511  # bytes in a path that SQLite can open


BACKUP = "-backup-"
"""What the names of the databases that were replaced have after the name of the database."""


def backup_suffix(what: str) -> str:
    """Return the suffix of a database that is replaced now, by an upgrade or a restore."""
    return datetime.now(UTC).strftime(f"{BACKUP}{what}-%Y%m%dT%H%M%S.%fZ")


class FileId(NamedTuple):
    """Identifies a file, so that its replacement is noticed."""

    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class DatabaseFile:
    """The file of a database, which need not exist.

    Attributes:
        path: Its absolute path.
    """

    path: Path

    def file_id(self) -> FileId | None:
        """Return the identity of the file at the path, or None if there is no file."""
        try:
            found = self.path.lstat()
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                return None
            raise file_error(error, self.path) from None
        return FileId(found.st_dev, found.st_ino)

    def is_current(self, file_id: FileId | None) -> bool:
        """Return whether *file_id* is still the file at the path. Every read calls this."""
        try:
            found = os.lstat(self.path)  # half the time of Path.lstat
        except OSError:
            return self.file_id() == file_id  # raises a StorageError unless the file is missing
        return file_id is not None and file_id == (found.st_dev, found.st_ino)

    def inspect(self) -> FileId | None:
        """Return the identity of the file at the path, or None if it is missing or empty.

        Raises:
            InsecureStorageError: It is a symlink, not a regular file, or another user's file.
            StorageError: It cannot be inspected.
        """
        self.require_short_name()
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise file_error(error, self.path) from None
        require_own_file(self.path, found, "run as its owner, or use another database")
        return FileId(found.st_dev, found.st_ino) if found.st_size else None

    def require_own_sidecars(self) -> None:
        """Refuse files next to the database that SQLite would use and another user could read.

        Raises:
            InsecureStorageError: One is a symlink, not a regular file, another user's file, or has
                several names.
            StorageError: One cannot be inspected.
        """
        for path in map(self.sidecar, _SIDECARS):
            try:
                found = os.lstat(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise file_error(error, path) from None
            require_own_file(
                path, found, "SQLite would write tokens to it, so its owner must remove it"
            )
            linked = hard_link_error(path, found)
            if linked is not None:
                raise linked

    def require_unmounted(self) -> None:
        """Raise an `InsecureStorageError` if one of the files is mounted without its directory."""
        path = first_mount_point(*self.files(), self.sidecar("-locks"))
        if path is not None:
            raise InsecureStorageError(
                f"{path} is mounted by itself, and programs outside the mount use other files "
                "next to it, so that saves would be lost; mount its directory instead",
                path,
            )

    def hard_link_error(self) -> InsecureStorageError | None:
        """Return the error for a database with several names, or None if it has only one.

        It can be read while no process writes to it, but not written to.
        """
        try:
            found = self.path.lstat()
        except OSError:
            return None
        danger = "SQLite keeps a log for each name, so that saves would be lost"
        return hard_link_error(self.path, found, danger)

    def require_short_name(self, *, extra: int = len("-journal")) -> None:
        """Raise a `StorageError` if there is no room in the name for those of other files.

        Args:
            extra: The bytes by which another file's name is longer. Defaults to a sidecar's.
        """
        name, path = len(os.fsencode(self.path.name)), len(os.fsencode(self.path))
        for what, length, most in (("name", name, _NAME_MAX), ("path", path, _PATH_MAX)):
            if length + extra > most:
                raise StorageError(
                    f"{self.path}: the {what} has {length} bytes, and at most {most - extra} leave "
                    f"room for the files next to the database; choose a shorter {what}",
                    self.path,
                    errno=errno.ENAMETOOLONG,
                )

    def files(self) -> list[Path]:
        """Return the database and its sidecars, as far as they exist."""
        return [path for path in self._all_files() if os.path.lexists(path)]

    def restrict_permissions(self) -> None:
        """Remove the permissions of other users from the database and its sidecars."""
        for path in self.files():
            with suppress(OSError):
                restrict_permissions(path, path.lstat())

    def sidecar(self, suffix: str) -> Path:
        """Return the path of a file next to the database, with a suffix such as ``-wal``."""
        return self.path.with_name(self.path.name + suffix)

    def has_wal(self) -> bool:
        """Return whether a write-ahead log exists. It may hold content that the file lacks."""
        return os.path.lexists(self.sidecar("-wal"))

    def has_log(self) -> bool:
        """Return whether a write-ahead log or a rollback journal exists."""
        return self.has_wal() or os.path.lexists(self.sidecar("-journal"))

    def is_writable(self) -> bool:
        """Return whether the mode and the file system let this process write to the file."""
        return os.access(self.path, os.W_OK)

    def has_writable_directory(self) -> bool:
        """Return whether this process can create files next to the database."""
        return os.access(self.path.parent, os.W_OK)

    def reject_stale_wal(self) -> None:
        """Raise a `StorageError` if SQLite would replay another database's log into a new one."""
        self.require_own_sidecars()
        for suffix in ("-wal", "-journal"):
            stale = self.sidecar(suffix)
            try:
                size = stale.lstat().st_size
            except FileNotFoundError:
                continue
            except OSError as error:
                raise file_error(error, stale) from None
            if size:
                raise StorageError(
                    f"{stale} belongs to a database that is no longer at {self.path}; restore "
                    "that database, or move this file away to start a new one",
                    stale,
                )

    def make_directories(self) -> None:
        """Create the missing directories, 0700; refuse one where others could replace files."""
        make_private_directory(self.path.parent)

    @property
    def aside(self) -> DatabaseFile:
        """The file that this one is for a moment while a restore replaces it."""
        return DatabaseFile(self.sidecar("-replaced"))

    def was_set_aside(self) -> bool:
        """Return whether there is no database because a restore was interrupted."""
        return self.inspect() is None and os.path.lexists(self.aside.path)

    def set_aside(self) -> None:
        """Give the database and its sidecars the names of `aside`, durably."""
        self._rename(self._all_files(), self.aside)

    def put_back(self) -> None:
        """Undo `set_aside`, even an incomplete one, unless another file has taken the place."""
        if self.was_set_aside():  # it is, until the last file is back
            aside = self.aside
            require_own_file(
                aside.path, aside.path.lstat(), "a restore did not create it, so remove it"
            )
            aside._rename([*aside._all_files()[1:], aside.path], self)  # noqa: SLF001

    def keep_aside(self, suffix: str) -> Path | None:
        """Give what was set aside its final name; return it, or None if there is nothing."""
        aside = self.aside
        if not os.path.lexists(aside.path):
            return None
        kept = DatabaseFile(self.sidecar(suffix))
        aside._rename(aside._all_files(), kept)  # noqa: SLF001 - of the same class
        return kept.path

    def _rename(self, paths: list[Path], target: DatabaseFile) -> None:
        """Rename those of its files that exist, in this order."""
        try:
            for path in paths:
                if os.path.lexists(path):
                    path.rename(target.sidecar(path.name.removeprefix(self.path.name)))
            sync_directory(target.path.parent)
        except OSError as error:
            raise file_error(error, target.path) from None

    def _all_files(self) -> list[Path]:
        return [self.path, *map(self.sidecar, _SIDECARS)]
