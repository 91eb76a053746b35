"""Private files that are replaced atomically.

The content is written to a temporary file in the same directory, which then gets the final name. A
process that is killed while writing leaves its temporary file, which may contain secrets; the next
writer deletes it.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from typing import TYPE_CHECKING

from tokenstore.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_log = logging.getLogger(__name__)
_CHECK = "check the path and its permissions"
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.tmp(-journal|-wal|-shm)?")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield an empty file, 0600, that durably replaces *path* at the end.

    After an error, *path* is unchanged. To make the new name durable too, call `sync_directory`,
    once for all files of a directory.

    Raises:
        OSError: The file cannot be written.
    """
    new = create_temporary(path)
    try:
        yield new
        _sync(new)
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


def create_temporary(path: Path) -> Path:
    """Create an empty file, 0600, next to *path*, with a name that `leftovers` recognises."""
    new = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
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
                with suppress(OSError):
                    path.unlink()
        _lock(descriptor, LOCK_SH)
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
    """Yield the temporary files of this user.

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
    """Create *directory* and its missing parents, each 0700.

    Raises:
        StorageError: It cannot be created, or it is not a directory.
    """
    if directory.is_dir():
        return
    if directory.parent != directory:
        make_private_directory(directory.parent)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        if not directory.is_dir():
            raise StorageError(f"{directory}: is not a directory", directory) from None
    except OSError as error:
        raise file_error(error, directory) from None


def file_error(error: OSError, path: Path) -> StorageError:
    """Log a file-system error about *path*, and return the `StorageError` for it."""
    _log.error("%s: %s", path, error.strerror, extra={"raised": True})
    too_many = error.errno in {errno.EMFILE, errno.ENFILE}
    remedy = "close some, or raise the limit (ulimit -n)" if too_many else _CHECK
    return StorageError(f"{path}: {error.strerror}; {remedy}", path, errno=error.errno)


def _lock(descriptor: int, operation: int) -> bool:
    try:
        flock(descriptor, operation)
    except OSError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
