"""The files of a store: whose they are, who may read them, what is left over, what they lie on."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
from typing import TYPE_CHECKING

from tokenstore.doctor.findings import Finding, counted, ok
from tokenstore.doctor.mounts import NETWORK, file_system_of
from tokenstore.files import has_writers, leftovers, writer_lock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tokenstore.storage.sqlite.file import DatabaseFile

_OTHERS = 0o077
_LITTLE = 16 << 20  # bytes; less free space than this is soon used up
_FIX = "run the doctor again with --fix"


class Files:
    """The files of one store, looked at by name: none of them is opened.

    Args:
        file: The place of the database.
        fix: Whether to put right what is safe to.
    """

    def __init__(self, file: DatabaseFile, *, fix: bool) -> None:
        self._file = file
        self._fix = fix

    def permissions(self, *, opened: bool = True) -> Iterator[Finding]:
        """Look at the mode and the owner of every file, and at the directory.

        Args:
            opened: Whether the database could be opened. Whoever opens it makes it private, so
                that needs no --fix.
        """
        sound = True
        for paths in self._private():
            found = [(path, facts) for path in paths if (facts := _look(path)) is not None]
            loose = [(p, stat.S_IMODE(f.st_mode)) for p, f in found if f.st_mode & _OTHERS]
            theirs = [(p, f.st_uid) for p, f in found if f.st_uid != os.geteuid()]
            if loose:
                yield self._open_to_others(loose, opened=opened)
            if theirs:
                yield _of_another(theirs)
            sound = sound and not loose and not theirs
        if sound:
            yield ok("permissions", "everything belongs to this user and is closed to others")
        yield from self._directory()

    def leftovers(self) -> Iterator[Finding]:
        """Look for what processes that died while they wrote have left, and for old backups."""
        directory = self._file.path.parent
        left = self._left()
        names = ", ".join(path.name for path in left)
        if not left:
            yield ok("leftovers", "no process has left a file half written")
        elif has_writers(directory):
            yield Finding("leftovers", "info", f"{directory}: somebody is writing {names} just now")
        else:
            fixed = self._fix and self._sweep()
            yield Finding(
                "leftovers",
                "warning",
                f"{directory}: a process died while it wrote {names}; tokens may be in it",
                None if fixed else _FIX,
                fixed=fixed,
            )
        others = [] if has_writers(directory) else self._others()
        if others:
            yield Finding(
                "leftovers",
                "info",
                f"{directory}: {', '.join(path.name for path in others)}: named as a backup or an "
                "export leaves a file when it is killed; tokens may be in it",
                "remove what no program of yours is writing",
            )
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
            what = f"nothing here tells on which kind of file system {directory} is"
            yield Finding("file system", "info", what, "make sure that it is no network's")
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

    def _private(self) -> Iterator[Sequence[Path]]:
        """Yield what only this user should be able to read; what is alike comes together."""
        locks = self._file.beside("-locks")
        for path in (*self._file.files(), locks):
            yield [path]
        if locks.is_dir() and os.access(locks, os.R_OK | os.X_OK):  # else its owner is told
            yield sorted(locks.iterdir())
        for path in self._upgrade_backups():
            yield [path]

    def _open_to_others(self, loose: list[tuple[Path, int]], *, opened: bool) -> Finding:
        paths = [path for path, _ in loose]
        modes = " and ".join(f"{mode:04o}" for mode in sorted({mode for _, mode in loose}))
        opened = opened and set(paths) <= set(self._file.files())
        fixed = (self._fix or opened) and not [p for p, mode in loose if not _tighten(p, mode)]
        verbs = ("was", "were") if fixed else ("is", "are")
        return Finding(
            "permissions",
            "warning",
            f"{_named(paths, *verbs)} open to others (mode {modes}), who may have copied what is "
            "there",
            None if fixed else f"{_FIX}, or: chmod go-rwx {_quoted(paths)}",
            fixed=fixed,
        )

    def _left(self) -> list[Path]:
        return sorted(leftovers(self._file.path.parent, self._is_mine))

    def _others(self) -> list[Path]:
        """Return what is named as if `writer_lock` had left it, and may be somebody else's."""
        directory = self._file.path.parent
        return sorted(leftovers(directory, lambda name: not self._is_mine(name)))

    def _is_mine(self, name: str) -> bool:
        return name.startswith(self._file.path.name)

    def _upgrade_backups(self) -> list[Path]:
        path = self._file.path
        # As `SchemaManager.back_up` names them: a backup of somebody's own may be called like that.
        known = re.compile(re.escape(path.name) + r"-backup-\w+-\d{8}T\d{6}\.\d{6}Z")
        return sorted(found for found in path.parent.iterdir() if known.fullmatch(found.name))

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
                f"run: chmod go-w {_quoted([directory])}, or keep the database in a directory of "
                "its own",
            )
        elif found.st_uid not in {0, os.geteuid()}:
            yield Finding(
                "directory",
                "warning",
                f"{directory} belongs to uid {found.st_uid}, who can replace the database",
                "keep the database in a directory of the user that runs the application",
            )

    def _sweep(self) -> bool:
        """Remove what is left over; tell whether that was done."""
        try:
            with writer_lock(self._file.path.parent, self._is_mine):
                return not self._left()
        except OSError:
            return False


def _look(path: Path) -> os.stat_result | None:
    """Return what is at *path*, None if nothing is any more, or a symlink, which has no mode."""
    try:
        found = path.lstat()
    except OSError:  # SQLite removes its files with the last close
        return None
    return None if stat.S_ISLNK(found.st_mode) else found


def _of_another(theirs: list[tuple[Path, int]]) -> Finding:
    paths = [path for path, _ in theirs]
    owners = " and ".join(f"uid {uid}" for uid in sorted({uid for _, uid in theirs}))
    return Finding(
        "permissions",
        "error",
        f"{_named(paths, 'belongs', 'belong')} to {owners}, not to this process's uid "
        f"{os.geteuid()}",
        f"run the application as one user, and give it its files: chown {os.geteuid()} "
        f"{_quoted(paths)}",
    )


def _named(paths: list[Path], verb: str, verbs: str) -> str:
    if len(paths) == 1:
        return f"{paths[0]} {verb}"
    return f"{len(paths)} files in {paths[0].parent} {verbs}"


def _quoted(paths: list[Path]) -> str:
    """Return *paths* for a shell."""
    if len(paths) == 1:
        return shlex.quote(str(paths[0]))
    return f"{shlex.quote(str(paths[0].parent))}/*"


def _tighten(path: Path, mode: int) -> bool:
    try:
        path.chmod(mode & ~_OTHERS)
    except OSError:
        return False
    return True
