"""Check the files of a SQLite store: owners, modes, leftovers, and the file system."""

from __future__ import annotations

import os
import re
import shutil
import stat
from typing import TYPE_CHECKING

from tokenstore.doctor.findings import Finding, counted, ok
from tokenstore.doctor.mounts import NETWORK, file_system_of
from tokenstore.files import has_writers, leftovers, writer_lock
from tokenstore.messages import shell_word
from tokenstore.trust import OTHERS, is_shared, weakness_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tokenstore.storage.sqlite.file import DatabaseFile

_MIN_FREE = 16 << 20  # bytes of free space
_FIX = "run the doctor again with --fix"


class FileChecks:
    """Checks the files of one store by name; none of them is opened.

    Args:
        file: The place of the database.
        fix: Whether to fix what can be fixed safely.
    """

    def __init__(self, file: DatabaseFile, *, fix: bool) -> None:
        self._file = file
        self._fix = fix

    def permissions(self, *, opened: bool = True) -> Iterator[Finding]:
        """Check the mode and the owner of every file, and the directory.

        Args:
            opened: Whether the database could be opened. Opening makes its files private, so they
                are fixed even without *fix*.
        """
        linked = self._file.hard_link_error()
        if linked is not None:
            message, _, hint = str(linked).partition("; ")
            yield Finding("permissions", "error", message, hint)
        private = linked is None
        for paths in self._private():
            found = [(path, facts) for path in paths if (facts := _stat(path)) is not None]
            accessible = [(p, stat.S_IMODE(f.st_mode)) for p, f in found if f.st_mode & OTHERS]
            foreign = [(p, f.st_uid) for p, f in found if f.st_uid != os.geteuid()]
            if accessible:
                yield self._accessible_to_others(accessible, opened=opened)
            if foreign:
                yield _owned_by_another(foreign)
            private = private and not accessible and not foreign
        if private:
            message = "all files belong to this user and are not accessible to other users"
            yield ok("permissions", message)
        yield from self._directory()

    def leftovers(self) -> Iterator[Finding]:
        """Report files left by interrupted writes, and databases that were replaced."""
        directory = self._file.path.parent
        own = self._own_leftovers()
        names = ", ".join(path.name for path in own)
        if not own:
            yield ok("leftovers", "no files are left by interrupted writes")
        elif has_writers(directory):
            message = f"{directory}: a process is writing {names} just now"
            yield Finding("leftovers", "info", message)
        else:
            fixed = self._fix and self._remove_leftovers()
            yield Finding(
                "leftovers",
                "warning",
                f"{directory}: left by an interrupted write, may contain tokens: {names}",
                None if fixed else _FIX,
                fixed=fixed,
            )
        others = [] if has_writers(directory) else self._other_leftovers()
        if others:
            yield Finding(
                "leftovers",
                "info",
                f"{directory}: possibly left by an interrupted backup or export, may contain "
                f"tokens: {', '.join(path.name for path in others)}",
                "remove those that no program is writing",
            )
        backups = self._previous_databases()
        if backups:
            yield Finding(
                "backups",
                "info",
                f"{counted(len(backups), 'copy', 'copies')} of the database from before an "
                f"upgrade or a restore, with tokens; the oldest: {backups[0]}",
                "remove them when you no longer need them",
            )

    def file_system(self, journal_mode: str | None) -> Iterator[Finding]:
        """Check that the file system is local and writable, and has free space."""
        directory = self._file.path.parent
        kind = file_system_of(directory)
        if kind in NETWORK:
            yield Finding(
                "file system",
                "warning" if journal_mode == "delete" else "error",
                f"{directory} is on a network file system ({kind}), where SQLite's locks and "
                "write-ahead log are not reliable",
                "move the database to a local disk; if it must stay, use it from one host only and "
                "with journal_mode='delete'",
            )
        elif kind is None:
            message = f"cannot determine the file system of {directory}"
            hint = "make sure that it is not a network file system"
            yield Finding("file system", "info", message, hint)
        else:
            yield ok("file system", f"local ({kind})")
        if not os.access(directory, os.W_OK) or not self._file.is_writable():
            yield Finding(
                "file system",
                "warning",
                f"{directory} or the database in it cannot be written by uid {os.geteuid()}: "
                "tokens can be read but not refreshed",
                "make both writable if this user is to refresh tokens",
            )
        free = shutil.disk_usage(directory).free
        if free < _MIN_FREE:
            yield Finding(
                "space",
                "warning",
                f"{directory}: only {free >> 10} KiB are free; a full disk cannot store new tokens",
                "free some space",
            )

    def _private(self) -> Iterator[Sequence[Path]]:
        """Yield the files that must be private, in groups to report together."""
        locks = self._file.sidecar("-locks")
        for path in (*self._file.files(), locks):
            yield [path]
        if locks.is_dir() and os.access(locks, os.R_OK | os.X_OK):  # else its owner is reported
            yield sorted(locks.iterdir())
        for path in self._previous_databases():
            yield [path]

    def _accessible_to_others(self, files: list[tuple[Path, int]], *, opened: bool) -> Finding:
        paths = [path for path, _ in files]
        modes = " and ".join(f"{mode:04o}" for mode in sorted({mode for _, mode in files}))
        opened = opened and set(paths) <= set(self._file.files())
        fixed = (self._fix or opened) and not [p for p, mode in files if not _restrict(p, mode)]
        verbs = ("was", "were") if fixed else ("is", "are")
        return Finding(
            "permissions",
            "warning",
            f"{_named(paths, *verbs)} accessible to other users (mode {modes}), who may have "
            "copied tokens",
            None if fixed else f"{_FIX}, or: chmod go-rwx {_quoted(paths)}",
            fixed=fixed,
        )

    def _own_leftovers(self) -> list[Path]:
        return sorted(leftovers(self._file.path.parent, self._is_own))

    def _other_leftovers(self) -> list[Path]:
        """Return files that are named like leftovers, but may belong to another program."""
        directory = self._file.path.parent
        return sorted(leftovers(directory, lambda name: not self._is_own(name)))

    def _is_own(self, name: str) -> bool:
        return name.startswith(self._file.path.name)

    def _previous_databases(self) -> list[Path]:
        path = self._file.path
        # The names that an upgrade and a restore give; the user's own backups may begin in the same
        # way. A restore that was killed at its end leaves the short one.
        known = re.compile(re.escape(path.name) + r"-(backup-\w+-\d{8}T\d{6}\.\d{6}Z|replaced)")
        found = [each for each in path.parent.iterdir() if known.fullmatch(each.name)]
        return sorted(found, key=lambda each: each.name.rpartition("-")[2])

    def _directory(self) -> Iterator[Finding]:
        directory = self._file.path.parent
        weakness = weakness_of(directory)
        if weakness is not None:
            message = f"{weakness.path} {weakness.cause}"
            yield Finding("directory", "warning", message, weakness.remedy)
        elif is_shared(directory):
            yield Finding(
                "directory",
                "warning",
                f"{directory} is shared: other users can create files next to the database "
                f"(mode {stat.S_IMODE(directory.stat().st_mode):04o})",
                "move the database to a directory of its own",
            )

    def _remove_leftovers(self) -> bool:
        """Remove leftovers; return whether all are gone."""
        try:
            with writer_lock(self._file.path.parent, self._is_own):
                return not self._own_leftovers()
        except OSError:
            return False


def _stat(path: Path) -> os.stat_result | None:
    """Return the status of *path*, None if it is gone or a symlink, which has no mode."""
    try:
        found = path.lstat()
    except OSError:  # SQLite removes its files at the last close
        return None
    return None if stat.S_ISLNK(found.st_mode) else found


def _owned_by_another(files: list[tuple[Path, int]]) -> Finding:
    paths = [path for path, _ in files]
    owners = " and ".join(f"uid {uid}" for uid in sorted({uid for _, uid in files}))
    return Finding(
        "permissions",
        "error",
        f"{_named(paths, 'belongs', 'belong')} to {owners}, not to this process's uid "
        f"{os.geteuid()}",
        f"run the application as one user, which owns its files: chown {os.geteuid()} "
        f"{_quoted(paths)}",
    )


def _named(paths: list[Path], verb: str, plural: str) -> str:
    if len(paths) == 1:
        return f"{paths[0]} {verb}"
    return f"{len(paths)} files in {paths[0].parent} {plural}"


def _quoted(paths: list[Path]) -> str:
    """Return *paths* as one argument for a shell."""
    if len(paths) == 1:
        return shell_word(str(paths[0]))
    return f"{shell_word(str(paths[0].parent))}/*"


def _restrict(path: Path, mode: int) -> bool:
    try:
        path.chmod(mode & ~OTHERS)
    except OSError:
        return False
    return True
