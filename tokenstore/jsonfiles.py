"""Imports accounts from files, and exports each account to a JSON file."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tokenstore.errors import StorageError, SupersededTokenError
from tokenstore.files import (
    atomic_write,
    create_temporary,
    file_error,
    make_private_directory,
    sync_directory,
    writer_lock,
)
from tokenstore.importers.detect import is_token_storage, read_accounts
from tokenstore.importers.formats import (
    ImportedAccount,
    UnreadableEntry,
    account_to_json,
    file_stem,
)
from tokenstore.logs import is_enabled, log_operation
from tokenstore.models.tokens import normalize_account_name
from tokenstore.redaction import protect
from tokenstore.storage.rows import CorruptRowError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenstore.models.accounts import Record
    from tokenstore.storage.repository import ConflictPolicy, TokenRepository

Outcome = Literal["imported", "exported", "skipped", "failed"]

_BATCH = 1000  # accounts stored in one transaction


@dataclass(frozen=True, slots=True)
class FileResult:
    """The result of importing or exporting one account. Contains no secrets.

    Attributes:
        account_name: The account, or None if it is unknown.
        path: The file.
        outcome: ``imported``, ``exported``, ``skipped`` or ``failed``.
        reason: Why the account was skipped or failed, or what was not imported; or None.
    """

    account_name: str | None
    path: Path
    outcome: Outcome
    reason: str | None = None


def find_files(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the files to import from *paths*: files, and the token files in directories.

    In a directory these are every ``*.json`` file, and every ``*.db`` file that is a token storage
    of globus-sdk. Other files, such as MSAL's ``*.bin``, must be given by their own paths.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    found: list[Path] = []
    for path in map(Path, paths):
        try:
            names = sorted(os.listdir(path))  # noqa: PTH208 - twice as fast as iterdir()
            found += [
                path / name
                for name in names
                if not name.startswith(".")
                and (
                    name.endswith(".json")
                    or (name.endswith(".db") and is_token_storage(path / name))
                )
            ]
        except (OSError, ValueError):  # not a readable directory: reading it reports why
            found.append(path)
    return found


def import_accounts(
    repository: TokenRepository,
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    provider: str | None = None,
    replace: bool = False,
    newer: bool = False,
) -> Iterator[FileResult]:
    """Import the accounts in files; the files are not changed.

    A file is JSON with one account, or a globus-sdk token storage or MSAL token cache with many.
    There is a result for each account, and for each file without accounts. An account that is
    already stored is skipped. A file that cannot be read does not stop the import. Accounts are
    stored in transactions of a thousand; a result is yielded once its account is stored.

    Args:
        repository: The repository to import into.
        paths: Files and directories (`find_files`).
        provider: Provider of the accounts. Defaults to the provider in the file, if any.
        replace: Whether to replace an account that is already stored.
        newer: Whether to replace a stored account if the token in the file expires later.

    Raises:
        StorageError: The database operation failed.
    """
    if replace and newer:
        raise ValueError("replace and newer cannot be combined")
    existing: ConflictPolicy = "replace" if replace else "keep_newer" if newer else "keep"
    return _import(repository, iter(find_files(paths)), provider, existing)


def export_accounts(
    repository: TokenRepository, directory: str | os.PathLike[str]
) -> Iterator[FileResult]:
    """Export every account to its own file, with mode 0600, atomically replacing an existing one.

    A refresh token that rotates must be used from one place only: either from the files or from the
    database.

    Args:
        repository: The repository to export from.
        directory: The directory for the files. Created with mode 0700 if it is missing.

    Raises:
        StorageError: The directory cannot be created, or the database cannot be read.
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


def _import(
    repository: TokenRepository,
    files: Iterator[Path],
    provider: str | None,
    existing: ConflictPolicy,
) -> Iterator[FileResult]:
    seen: dict[str, Path] = {}
    contents = ((path, content) for path in files for content in read_accounts(path))
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
    content: ImportedAccount | UnreadableEntry,
    provider: str | None,
    existing: ConflictPolicy,
    seen: dict[str, Path],
) -> FileResult:
    if isinstance(content, UnreadableEntry):
        return FileResult(content.account_name, path, "failed", content.reason)
    name = content.account_name
    if name in seen and existing != "keep_newer":
        return FileResult(name, path, "skipped", f"{seen[name].name} has the same account")
    try:
        stored = repository.put(
            normalize_account_name(name),
            content.tokens,
            provider=provider or content.provider,
            existing=existing,
        )
    except SupersededTokenError as error:
        return FileResult(name, path, "failed", str(error))
    seen[name] = path
    if stored:
        return FileResult(name, path, "imported", content.note)
    reason = "already stored" if existing == "keep" else "the stored token expires no earlier"
    return FileResult(name, path, "skipped", reason)


def _export(
    directory: Path, record: Record | CorruptRowError, *, case_sensitive: bool
) -> tuple[FileResult, str | None]:
    name = record.account_name
    path = directory / f"{file_stem(name, case_sensitive=case_sensitive)}.json"
    if isinstance(record, CorruptRowError):
        reason = "the stored tokens are damaged; restore a backup, or sign in again"
        return FileResult(name, path, "failed", reason), None
    text = json.dumps(account_to_json(name, record.provider, record.tokens), indent=2)
    try:
        if path.is_symlink():
            return FileResult(name, path, "failed", "is a symlink; remove it"), record.provider
        with atomic_write(path) as new:
            new.write_text(f"{text}\n", "utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return FileResult(name, path, "failed", reason), record.provider
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


protect(__name__)
