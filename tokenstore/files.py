"""Files that appear whole or not at all, and to nobody else.

What is written goes to a temporary file in the same directory, which then takes the final name. A
process that dies on the way leaves its temporary file, with secrets in it, to be swept away.
"""

from __future__ import annotations

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
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.tmp(-journal|-wal|-shm)?")


@contextmanager
def new_version(path: Path) -> Iterator[Path]:
    """Yield an empty file, 0600, that takes the place of *path* at the end, durably.

    After an error *path* is as it was. For many files in one directory, `sync_directory` once at
    their end makes their names durable.

    Raises:
        OSError: It cannot be written there.
    """
    new = temporary(path)
    try:
        yield new
        _sync(new)
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


def temporary(path: Path) -> Path:
    """Create an empty file, 0600, beside *path*, that `writing_in` would know as a leftover."""
    new = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    return new


@contextmanager
def writing_in(directory: Path, mine: Callable[[str], bool]) -> Iterator[None]:
    """Mark *directory* as one in which files are being written.

    Whoever comes while nobody else is there first sweeps away what those who died have left: the
    temporary files of names that are *mine*. The mark is a lock that ends with its process; where
    the file system has none, nothing is swept.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _lock(descriptor, LOCK_EX | LOCK_NB):
            for left in leftovers(directory, mine):
                with suppress(OSError):
                    left.unlink()
        _lock(descriptor, LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def is_written_in(directory: Path) -> bool:
    """Tell whether somebody marks *directory* just now (see `writing_in`)."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file system has no such locks
        return False
    finally:
        os.close(descriptor)
    return False


def leftovers(directory: Path, mine: Callable[[str], bool]) -> Iterator[Path]:
    """Yield the temporary files, of this user, of names that are *mine*."""
    for path in directory.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if found is not None and mine(found["name"]):
            with suppress(FileNotFoundError):
                if path.lstat().st_uid == os.geteuid():
                    yield path


def sync_directory(directory: Path) -> None:
    """Make the names in *directory* durable."""
    _sync(directory)


def make_private_directory(directory: Path) -> None:
    """Make *directory* and the parents that are missing, each 0700.

    Raises:
        StorageError: It cannot be made, or something else is there.
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
    """Return the `StorageError` for a file-system error about *path*."""
    _log.error("%s: %s", path, error.strerror, extra={"raised": True})
    return StorageError(
        f"{path}: {error.strerror}; check the path and its permissions", path, errno=error.errno
    )


def _lock(descriptor: int, kind: int) -> bool:
    try:
        flock(descriptor, kind)
    except OSError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
