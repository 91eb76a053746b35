"""Private files that are replaced atomically.

The content is written to a temporary file next to the final one, which then gets the final name. A
process that is killed while writing leaves its temporary file, which may contain secrets; the next
writer deletes it.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import time
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from typing import TYPE_CHECKING

from tokenstore.errors import InsecureStorageError, StorageError
from tokenstore.trust import require_safe_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

_log = logging.getLogger(__name__)
_CHECK = "check the path and its permissions"
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.tmp")
_CLEANING = 2.0  # seconds that deleting what killed writers have left may take
_BUILD = "x"  # short: SQLite limits the length of a path
BUILD_ROOM = len("..0123456789abcdef.tmp/x")
"""Bytes by which the path of a `private_build` is longer than the final one."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield an empty file, 0600, that durably replaces *path* at the end.

    The content is written through the descriptor that created the file, whatever happens to its
    name. After an error, *path* is unchanged. To make the new name durable too, call
    `sync_directory`, once for all files of a directory.

    Raises:
        InsecureStorageError: Another file took its name while it was written.
        OSError: The file cannot be written.
    """
    new = _temporary(path)
    descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            yield file
            file.flush()
            os.fsync(descriptor)
            _rename(new, path, os.fstat(descriptor))
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


@contextmanager
def private_build(path: Path) -> Iterator[Path]:
    """Yield an empty file, 0600, for a library that opens files by name, such as SQLite.

    It is alone in a directory, 0700, next to *path*: nobody else can replace it, or create the
    files that the library uses besides. `publish` gives it its final name; otherwise nothing is
    left.

    Raises:
        OSError: The file cannot be created.
    """
    directory = _temporary(path)
    directory.mkdir(mode=0o700)
    try:
        new = directory / _BUILD
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield new
    finally:
        _remove(directory)


def publish(new: Path, path: Path) -> None:
    """Let a finished `private_build`, which is closed, durably replace *path*.

    Raises:
        InsecureStorageError: Another file took its name.
        OSError: It cannot be renamed.
    """
    # No descriptor stays open: closing it later would end SQLite's locks on the file.
    _rename(new, path, _sync(new))
    _remove(new.parent)
    sync_directory(path.parent)


def create_temporary(path: Path) -> Path:
    """Create an empty file, 0600, next to *path*, with a name that `leftovers` recognizes."""
    new = _temporary(path)
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    return new


@contextmanager
def writer_lock(directory: Path, is_ours: Callable[[str], bool]) -> Iterator[None]:
    """Hold a shared lock on *directory* while writing files in it.

    If no other writer holds it, first delete the temporary files that killed writers have left. On
    a file system without locks, nothing is deleted.

    Args:
        directory: The directory.
        is_ours: Returns whether the temporary files for a file name may be deleted.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _lock(descriptor, LOCK_EX | LOCK_NB):
            for path in leftovers(directory, is_ours):
                _remove(path)
        # Whoever may read the directory may lock it; such a lock is not waited for.
        deadline = time.monotonic() + _CLEANING
        while not _lock(descriptor, LOCK_SH | LOCK_NB) and time.monotonic() < deadline:
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def has_writers(directory: Path) -> bool:
    """Return whether a process or thread holds the `writer_lock` of *directory*."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file system has no locks
        return False
    finally:
        os.close(descriptor)
    return False


def leftovers(directory: Path, is_ours: Callable[[str], bool]) -> Iterator[Path]:
    """Yield the temporary files and directories of this user.

    Args:
        directory: The directory.
        is_ours: Returns whether to yield the temporary files for a file name.
    """
    for path in directory.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match is not None and is_ours(match["name"]):
            with suppress(FileNotFoundError):
                if path.lstat().st_uid == os.geteuid():
                    yield path


def decode_name(name: str) -> str:
    """Return a file name, or an argument of this process, as the text of its UTF-8 bytes.

    Where the locale's encoding is ASCII, Python has surrogates in their place. A name that is not
    UTF-8 is returned as it is.
    """
    if name.isascii():
        return name
    try:
        name.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(name).decode()
        except UnicodeError:
            pass
    return name


def sync_directory(directory: Path) -> None:
    """Make the file names in *directory* durable."""
    _sync(directory)


def make_private_directory(directory: Path) -> None:
    """Create *directory* and its missing parents, each 0700, for files that are secret.

    Raises:
        InsecureStorageError: Another user could replace files in it (`require_safe_directory`).
        StorageError: It cannot be created, or it is not a directory.
    """
    try:
        if not directory.is_dir():
            if directory.parent != directory:
                make_private_directory(directory.parent)
            with suppress(FileExistsError):
                directory.mkdir(mode=0o700)
            if not directory.is_dir():
                raise StorageError(f"{directory}: is not a directory", directory)
        require_safe_directory(directory)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise file_error(error, directory) from None


def file_error(error: OSError, path: Path) -> StorageError:
    """Log a file-system error about *path*, and return the `StorageError` for it."""
    _log.error("%s: %s", path, error.strerror, extra={"raised": True})
    too_many = error.errno in {errno.EMFILE, errno.ENFILE}
    remedy = "close some, or raise the limit (ulimit -n)" if too_many else _CHECK
    return StorageError(f"{path}: {error.strerror}; {remedy}", path, errno=error.errno)


def _temporary(path: Path) -> Path:
    """Return a name next to *path* that nobody can guess, and that `leftovers` recognizes."""
    return path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")


def _rename(new: Path, path: Path, written: os.stat_result) -> None:
    """Rename *new* to *path* if it is the file that was written.

    Afterwards, another writer of this user may have replaced or removed it, but no other user.
    """
    if _identity(new.lstat()) != _identity(written):
        raise _replaced_error(new)
    new.replace(path)
    with suppress(FileNotFoundError):
        if path.lstat().st_uid != written.st_uid:
            raise _replaced_error(path)


def _replaced_error(path: Path) -> InsecureStorageError:
    return InsecureStorageError(
        f"{path} was replaced while it was written; choose a directory that other users cannot "
        "write to",
        path,
    )


def _identity(found: os.stat_result) -> tuple[int, ...]:
    """Identify a file and its content: the number of a file that is removed is used again."""
    return found.st_dev, found.st_ino, found.st_uid, found.st_size, found.st_mtime_ns


def _remove(path: Path) -> None:
    """Remove a temporary file, or a temporary directory and the files in it, if possible."""
    with suppress(OSError):
        if stat.S_ISDIR(path.lstat().st_mode):
            for inner in path.iterdir():
                inner.unlink()
            path.rmdir()
        else:
            path.unlink()


def _lock(descriptor: int, operation: int) -> bool:
    try:
        flock(descriptor, operation)
    except OSError:
        return False
    return True


def _sync(path: Path) -> os.stat_result:
    """Make a file or directory durable; return its status."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)
