"""Which files and directories may hold secrets, or decide where secrets are sent.

Every check of an owner, a kind, a mode, a link count or a mount point is here. Other users are all
except this process's user and root. No database is opened: see `tokenstore.storage.sqlite.file`.
"""

from __future__ import annotations

import grp
import logging
import os
import pwd
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tokenstore.errors import InsecureStorageError
from tokenstore.messages import shell_command

if TYPE_CHECKING:
    from collections.abc import Iterator

OTHERS = 0o077
"""All permissions of the group and of others."""

_WRITABLE = 0o022  # by the group or by others
_MOUNTS = Path("/proc/self/mountinfo")
_ACL = "system.posix_acl_access"
_MAX_LINKS = 40  # symlinks in one path, as in the kernel

_log = logging.getLogger(__name__)


class Weakness(NamedTuple):
    """Why another user could read or replace what is in a directory.

    Attributes:
        path: The directory or symlink that is the cause.
        cause: What is wrong with it.
        remedy: What to do about it.
    """

    path: Path
    cause: str
    remedy: str

    def error(self) -> InsecureStorageError:
        """Return the error that refuses the directory."""
        return InsecureStorageError(f"{self.path} {self.cause}; {self.remedy}", self.path)


# -- files ----------------------------------------------------------------------------------------


def require_own_file(
    path: Path, found: os.stat_result, remedy: str, *, or_root: bool = False
) -> None:
    """Refuse a file that is not a regular file of this user.

    Args:
        path: The file, for the error.
        found: Its status, by ``lstat`` or of its descriptor.
        remedy: What to do about a file of another user.
        or_root: Whether root may own it, too.

    Raises:
        InsecureStorageError: It is a symlink, not a regular file, or another user's file.
    """
    user = os.geteuid()
    if stat.S_ISLNK(found.st_mode):
        raise InsecureStorageError(
            f"{path} is a symlink; use the path of the file that it points to", path
        )
    if not stat.S_ISREG(found.st_mode):
        raise InsecureStorageError(f"{path} is not a regular file; use the path of a file", path)
    if found.st_uid != user and not (or_root and found.st_uid == 0):
        raise InsecureStorageError(
            f"{path} belongs to uid {found.st_uid}, not to this process's uid {user}; {remedy}",
            path,
        )


def require_own_directory(path: Path, found: os.stat_result, remedy: str) -> None:
    """Refuse a directory for this program's own files that is not one, or is another user's."""
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise InsecureStorageError(f"{path}: not a directory of this user; {remedy}", path)


def hard_link_error(
    path: Path, found: os.stat_result, danger: str = "it may change under another name"
) -> InsecureStorageError | None:
    """Return the error for a file with several names, or None if it has only one."""
    if found.st_nlink <= 1:
        return None
    search = shell_command("find", str(path.parent), "-xdev", "-samefile", str(path))
    return InsecureStorageError(
        f"{path} has {found.st_nlink} names (hard links): {danger}; remove the other names, which "
        f"this lists if they are in the same directory: {search}",
        path,
    )


def first_mount_point(*paths: Path) -> Path | None:
    """Return the first of these files that is mounted by itself, as far as the system says."""
    try:
        mounts = _MOUNTS.read_bytes()
    except OSError:  # not Linux
        return None
    points = {line.split(b" ", 5)[4] for line in mounts.splitlines()}
    return next((path for path in paths if _as_mount_point(path) in points), None)


def _as_mount_point(path: Path) -> bytes:
    """Return a path as the list of mount points has it."""
    real = os.fsencode(Path(os.path.realpath(path.parent), path.name))
    return re.sub(rb"[ \t\n\\]", lambda found: b"\\%03o" % ord(found[0]), real)


def restrict_permissions(path: Path, found: os.stat_result) -> None:
    """Remove the permissions of other users from a file or directory of this user, and log it."""
    mode = stat.S_IMODE(found.st_mode)
    if not mode & OTHERS or stat.S_ISLNK(found.st_mode):
        return
    try:
        path.chmod(mode & ~OTHERS)
        _log.warning("%s was accessible to other users (mode %04o); fixed", path, mode)
    except OSError as error:  # on a read-only file system it can still be read
        _log.warning("%s is accessible to other users (mode %04o): %s", path, mode, error.strerror)


def read_trusted(path: Path, *, limit: int, private: bool = False) -> tuple[bytes, os.stat_result]:
    """Return the content of a file that this user or root has written, and its status.

    The checks are of the file that is read, whatever is at the path afterwards. It may be mounted,
    as container engines do with single files.

    Args:
        path: The file.
        limit: The most bytes that it may have.
        private: Whether no other user may read it, as for a key.

    Raises:
        InsecureStorageError: It is a symlink, not a regular file, another user's file, writable by
            other users, has several names, or is too large; or it must be private and is not.
        OSError: It cannot be read.
    """
    remedy = "make it a file of this user or of root"
    named = path.lstat()
    require_own_file(path, named, remedy, or_root=True)  # a FIFO would have to be waited for
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        found = os.fstat(descriptor)
        require_own_file(path, found, remedy, or_root=True)
        _require_mode(path, found, private=private)
        linked = hard_link_error(path, found)
        if linked is not None:
            raise linked
        if found.st_size <= limit:
            content = file.read(limit + 1)  # it may be growing
            if len(content) <= limit:
                return content, found
            del content
    raise InsecureStorageError(f"{path} has more than {limit >> 10} KiB; make it shorter", path)


def _require_mode(path: Path, found: os.stat_result, *, private: bool) -> None:
    if not found.st_mode & (OTHERS if private else _WRITABLE):
        return
    problem, fix = ("is accessible to", "go-rwx") if private else ("can be changed by", "go-w")
    raise InsecureStorageError(
        f"{path} {problem} other users (mode {stat.S_IMODE(found.st_mode):04o}); check its "
        f"content, then run: {shell_command('chmod', fix, str(path))}",
        path,
    )


# -- directories ----------------------------------------------------------------------------------


def require_safe_directory(directory: Path) -> None:
    """Refuse a directory in which another user could replace a file while it is written.

    Raises:
        InsecureStorageError: See `weakness_of`.
        OSError: It cannot be inspected.
    """
    weakness = weakness_of(directory)
    if weakness is not None:
        raise weakness.error()


def weakness_of(directory: Path) -> Weakness | None:
    """Return why another user could replace files in *directory*, or None.

    That user may own the directory, a directory above it, or a symlink on the way, or may be able
    to write to one of them. A sticky directory, such as ``/tmp``, is safe: what is in it can be
    replaced only by its owner.

    Args:
        directory: An absolute path; the directory exists.
    """
    user = os.geteuid()
    for path, found in _way_to(directory):
        is_link = stat.S_ISLNK(found.st_mode)
        if found.st_uid not in {0, user}:
            what = "is a symlink that" if is_link else "is a directory that"
            return Weakness(
                path,
                f"{what} belongs to uid {found.st_uid}, who can replace files in {directory}",
                f"use a directory that belongs to uid {user}, below directories of that user or "
                "of root",
            )
        if not is_link and _others_can_write(path, found) and not found.st_mode & stat.S_ISVTX:
            return Weakness(
                path,
                f"lets other users remove or replace files in {directory} "
                f"(mode {stat.S_IMODE(found.st_mode):04o})",
                f"run: {shell_command('chmod', 'go-w', str(path))}, or use a directory of its own",
            )
    return None


def is_shared(directory: Path) -> bool:
    """Return whether other users can create files in *directory*, as in ``/tmp``."""
    return _others_can_write(directory, directory.stat())


def _way_to(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield every directory and symlink that leads to *directory*, and finally that."""
    reached, links = Path("/"), 0
    yield reached, reached.lstat()
    left = [*reversed(directory.parts[1:])]
    while left:
        name = left.pop()
        if name == "..":
            reached = reached.parent
            continue
        path = reached / name
        found = path.lstat()
        yield path, found
        if not stat.S_ISLNK(found.st_mode):
            reached = path
            continue
        links += 1
        if links > _MAX_LINKS:
            path.stat()  # raises the system's own error
        target = path.readlink()
        if target.is_absolute():
            reached = Path("/")
        left += reversed([part for part in target.parts if part != "/"])


def _others_can_write(path: Path, found: os.stat_result) -> bool:
    if found.st_mode & stat.S_IWOTH:
        return True
    if not found.st_mode & stat.S_IWGRP:
        return False
    return _has_acl(path) or _has_other_members(found.st_gid)


def _has_acl(path: Path) -> bool:
    """Return whether single users or groups have permissions, which the mode only sums up."""
    try:
        return bool(os.getxattr(path, _ACL))
    except (OSError, AttributeError):  # there is none, or it is not Linux
        return False


def _has_other_members(gid: int) -> bool:
    """Return whether a group may have other members than this user and root.

    Many systems give each user a group of that name, and let it write by default.
    """
    if gid == 0:
        return False
    try:
        group = grp.getgrgid(gid)
    except KeyError:  # one that a container was given for its volumes, if this process is in it
        return gid not in {os.getegid(), *os.getgroups()}
    members = {*group.gr_mem, *(user.pw_name for user in pwd.getpwall() if user.pw_gid == gid)}
    try:
        own = pwd.getpwuid(os.geteuid())
    except KeyError:
        return bool(members - {"root"})
    if own.pw_gid == gid and own.pw_name != group.gr_name:
        return True  # the group of all users, whom a directory service need not list
    return bool(members - {"root", own.pw_name})
