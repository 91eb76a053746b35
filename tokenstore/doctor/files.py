"""The files of a store: whose they are, who may read them, what is left over, what they lie on."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from tokenstore.doctor.finding import Finding, counted, ok
from tokenstore.doctor.mounts import NETWORK, file_system_of
from tokenstore.errors import StorageError
from tokenstore.wholefile import leftovers, writing_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tokenstore.building import Builder
    from tokenstore.storefile import StoreFile

_OTHERS = 0o077
_LITTLE = 16 << 20  # bytes; less free space than this is soon used up


class Files:
    """The files of one store, looked at by name: none of them is opened.

    Args:
        file: The place of the database.
        builder: Creates the database, and knows whether somebody does just now.
        fix: Whether to put right what is safe to.
    """

    def __init__(self, file: StoreFile, builder: Builder, *, fix: bool) -> None:
        self._file = file
        self._builder = builder
        self._fix = fix

    def permissions(self) -> Iterator[Finding]:
        """Look at the mode and the owner of every file, and at the directory."""
        sound = True
        for path, found in self._private():
            mode = stat.S_IMODE(found.st_mode)
            if mode & _OTHERS:
                sound = False
                yield self._open_to_others(path, mode)
            if found.st_uid != os.geteuid():
                sound = False
                yield Finding(
                    "permissions",
                    "error",
                    f"{path} belongs to uid {found.st_uid}, not to uid {os.geteuid()}",
                    "give it back to the user that runs the application (chown)",
                )
        if sound:
            yield ok("permissions", "everything belongs to this user and is closed to others")
        yield from self._directory()

    def leftovers(self) -> Iterator[Finding]:
        """Look for what processes that died while they wrote have left, and for old backups."""
        directory, name = self._file.path.parent, self._file.path.name
        left = [*leftovers(directory, lambda found: found.startswith(name))]
        left += [path for path in [self._file.beside("-new")] if os.path.lexists(path)]
        if left:
            fixed = self._fix and self._sweep()
            names = ", ".join(path.name for path in left)
            yield Finding(
                "leftovers",
                "warning",
                f"{directory}: a process died while it wrote {names}; tokens may be in it",
                None if fixed else "run: tokenstore doctor --fix",
                fixed=fixed,
            )
        else:
            yield ok("leftovers", "no process has left a file half written")
        backups = self._upgrade_backups()
        if backups:
            yield Finding(
                "backups",
                "info",
                f"{counted(len(backups), 'copy', 'copies')} from before an upgrade, with tokens; "
                f"the oldest: {backups[0]}",
                "remove them once the upgrade has proven itself",
            )

    def file_system(self, journal_mode: str | None) -> Iterator[Finding]:
        """Look at what the database lies on: a network? is there room?"""
        directory = self._file.path.parent
        kind = file_system_of(directory)
        if kind in NETWORK:
            yield Finding(
                "file system",
                "warning" if journal_mode == "delete" else "error",
                f"{directory} is on a network file system ({kind}), where SQLite's locks and its "
                "write-ahead log cannot be relied on",
                "move the database to a local disk; if it must stay, use it from one host only and "
                "with journal_mode='delete'",
            )
        elif kind is None:
            yield Finding("file system", "info", f"nobody can tell here what {directory} is on")
        else:
            yield ok("file system", f"local ({kind})")
        if not os.access(directory, os.W_OK) or not self._file.is_writable():
            yield Finding(
                "file system",
                "warning",
                f"{directory} or the database in it cannot be written by uid {os.geteuid()}: what "
                "is stored can be read, but nothing can be refreshed",
                "make both writable, if this user is to refresh tokens",
            )
        free = shutil.disk_usage(directory).free
        if free < _LITTLE:
            yield Finding(
                "space",
                "warning",
                f"{directory}: only {free >> 10} KiB are free; a full disk cannot take new tokens",
                "free some space",
            )

    def _private(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield what only this user should be able to read."""
        locks = self._file.beside("-locks")
        paths = [*self._file.files(), *self._upgrade_backups()]
        if locks.is_dir():
            paths += [locks, *sorted(locks.iterdir())]
        for path in paths:
            with suppress(FileNotFoundError):  # SQLite removes its files with the last close
                found = path.lstat()
                if not stat.S_ISLNK(found.st_mode):
                    yield path, found

    def _open_to_others(self, path: Path, mode: int) -> Finding:
        # Whoever opens the database makes it private, so that needs no --fix.
        fixed = (self._fix or path in self._file.files()) and _tighten(path, mode)
        return Finding(
            "permissions",
            "warning",
            f"{path} was open to others (mode {mode:04o}), who may have copied what is in it",
            None if fixed else f"run: tokenstore doctor --fix, or chmod go-rwx '{path}'",
            fixed=fixed,
        )

    def _upgrade_backups(self) -> list[Path]:
        path = self._file.path
        return sorted(p for p in path.parent.glob("*-backup-*") if p.name.startswith(path.name))

    def _directory(self) -> Iterator[Finding]:
        directory = self._file.path.parent
        found = directory.stat()
        sticky = found.st_mode & stat.S_ISVTX
        if found.st_mode & 0o022 and not sticky:
            yield Finding(
                "directory",
                "warning",
                f"{directory} lets others remove or replace the database "
                f"(mode {stat.S_IMODE(found.st_mode):04o})",
                f"run: chmod go-w '{directory}', or keep the database in a directory of its own",
            )
        elif found.st_uid not in {0, os.geteuid()}:
            yield Finding(
                "directory",
                "warning",
                f"{directory} belongs to uid {found.st_uid}, who can replace the database",
                "keep the database in a directory of the user that runs the application",
            )

    def _sweep(self) -> bool:
        """Remove what is left over, unless somebody is writing it just now."""
        path = self._file.path
        try:
            with self._builder.alone():
                self._builder.clear()
            with writing_in(path.parent, lambda found: found.startswith(path.name)):
                left = [*leftovers(path.parent, lambda found: found.startswith(path.name))]
        except (StorageError, OSError):
            return False
        return not left


def _tighten(path: Path, mode: int) -> bool:
    try:
        path.chmod(mode & ~_OTHERS)
    except OSError:
        return False
    return True
