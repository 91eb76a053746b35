"""Files that hold accounts: import them; export to a JSON file each."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tokenstore.errors import StorageError
from tokenstore.files import (
    atomic_write,
    create_temporary,
    file_error,
    make_private_directory,
    sync_directory,
    writer_lock,
)
from tokenstore.importers.detect import is_storage, read
from tokenstore.importers.formats import TokenFile, Unusable, file_stem, to_json
from tokenstore.logs import is_enabled, log_operation
from tokenstore.redaction import sealed
from tokenstore.storage.rows import CorruptRowError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenstore.models.accounts import Record
    from tokenstore.storage.repository import ConflictPolicy, TokenRepository

Outcome = Literal["imported", "exported", "skipped", "failed"]

_BATCH = 1000  # accounts that are stored in one transaction


@dataclass(frozen=True, slots=True)
class FileResult:
    """What became of one account of a file. No secret is in it.

    Attributes:
        account_name: The account, None if the file does not tell.
        path: The file.
        outcome: ``imported``, ``exported``, ``skipped`` or ``failed``.
        reason: Why, for an outcome that needs it, and what was left out, else None.
    """

    account_name: str | None
    path: Path
    outcome: Outcome
    reason: str | None = None


def find_files(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the files that *paths* name: a file itself; what is in a directory.

    In a directory that is every ``*.json``, and a ``*.db`` that is a token storage of another
    library: that is what globus-sdk calls its own. A file of another name, such as MSAL's
    ``*.bin``, may be anything, and one that is no storage is nobody's mistake there: name it.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    found: list[Path] = []
    for path in map(Path, paths):
        try:
            names = sorted(os.listdir(path))  # noqa: PTH208 - in half the time of paths
            found += [
                path / name
                for name in names
                if not name.startswith(".")
                and (name.endswith(".json") or (name.endswith(".db") and is_storage(path / name)))
            ]
        except (OSError, ValueError):  # no directory, or not to be listed: reading it will tell
            found.append(path)
    return found


@sealed
def import_accounts(
    repository: TokenRepository,
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    provider: str | None = None,
    replace: bool = False,
    newer: bool = False,
) -> Iterator[FileResult]:
    """Store the accounts of files; the files stay as they are.

    A file is JSON with one account, or a storage of globus-sdk or a cache of MSAL with many; each
    account has its result, and so has a file without any. An account that is already stored is
    skipped. A file that cannot be read stops nothing. Accounts are stored a thousand a
    transaction, and a result is yielded when its account is stored.

    Args:
        repository: Where to store them.
        paths: Files, and directories of them (`find_files`).
        provider: What to bind the accounts to; None: what a file says, if it does.
        replace: Replace an account that is already stored.
        newer: Replace it if the file's token expires later than the stored one.

    Raises:
        StorageError: The database cannot take them.
    """
    if replace and newer:
        raise ValueError("replace and newer exclude each other")
    existing: ConflictPolicy = "replace" if replace else "keep_newer" if newer else "keep"
    return _import(repository, iter(find_files(paths)), provider, existing)


@sealed
def export_accounts(
    repository: TokenRepository, directory: str | os.PathLike[str]
) -> Iterator[FileResult]:
    """Write every account to a file of its own, 0600, which replaces one of that name as a whole.

    A rotated refresh token may live in one place only: whoever goes on using the files must not
    go on using the database.

    Args:
        repository: Where the accounts are.
        directory: Where the files go; it is made, 0700, if it is missing.

    Raises:
        StorageError: The directory cannot be made, or the database cannot be read.
    """
    target = Path(directory).absolute()
    make_private_directory(target)
    try:
        with writer_lock(target, lambda name: name.endswith(".json")):
            case_sensitive = _is_case_sensitive(target)
            for record in repository.listing.records():
                yield _logged("export", *_export(target, record, case_sensitive=case_sensitive))
            sync_directory(target)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise file_error(error, target) from None


@sealed
def _import(
    repository: TokenRepository,
    files: Iterator[Path],
    provider: str | None,
    existing: ConflictPolicy,
) -> Iterator[FileResult]:
    seen: dict[str, Path] = {}
    contents = ((path, content) for path in files for content in read(path))
    while batch := list(islice(contents, _BATCH)):
        with repository.transaction():
            results = [
                _store(repository, path, content, provider, existing, seen)
                for path, content in batch
            ]
        yield from map(_logged, repeat("import"), results, repeat(provider))


def _store(
    repository: TokenRepository,
    path: Path,
    content: TokenFile | Unusable,
    provider: str | None,
    existing: ConflictPolicy,
    seen: dict[str, Path],
) -> FileResult:
    if isinstance(content, Unusable):
        return FileResult(content.account_name, path, "failed", content.reason)
    name = content.account_name
    if name in seen and existing != "keep_newer":
        return FileResult(name, path, "skipped", f"{seen[name].name} is of the same account")
    stored = repository.put(
        name, content.tokens, provider=provider or content.provider, existing=existing
    )
    seen[name] = path
    if stored:
        return FileResult(name, path, "imported", content.note)
    why = "is stored already" if existing == "keep" else "a token that lives as long is stored"
    return FileResult(name, path, "skipped", why)


def _export(
    directory: Path, record: Record | CorruptRowError, *, case_sensitive: bool
) -> tuple[FileResult, str | None]:
    name = record.account_name
    path = directory / f"{file_stem(name, case_sensitive=case_sensitive)}.json"
    if isinstance(record, CorruptRowError):
        why = "what is stored of it is damaged; restore a backup, or sign it in again"
        return FileResult(name, path, "failed", why), None
    text = json.dumps(to_json(name, record.provider, record.tokens), indent=2)
    try:
        if path.is_symlink():
            return FileResult(name, path, "failed", "is a symlink; remove it"), record.provider
        with atomic_write(path) as new:
            new.write_text(f"{text}\n", "utf-8")
    except OSError as error:
        why = error.strerror or type(error).__name__
        return FileResult(name, path, "failed", why), record.provider
    return FileResult(name, path, "exported"), record.provider


def _is_case_sensitive(directory: Path) -> bool:
    probe = create_temporary(directory / "a.json")
    try:
        return not probe.with_name(probe.name.upper()).exists()
    finally:
        probe.unlink()


def _logged(operation: str, result: FileResult, provider: str | None) -> FileResult:
    level = logging.WARNING if result.outcome == "failed" else logging.INFO
    if is_enabled(level):
        details = "" if result.reason is None else f" ({str(result.path)!r}: {result.reason})"
        log_operation(level, operation, result.account_name, provider, result.outcome, details)
    return result
