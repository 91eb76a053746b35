"""Directories of JSON files, one an account: import them, export to them."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tokenstore.errors import InvalidTokenError, StorageError
from tokenstore.formats import TokenFile, file_stem, from_json, to_json
from tokenstore.logs import tell
from tokenstore.rows import Damaged
from tokenstore.sealed import sealed
from tokenstore.storefile import make_private_directory, storage_error
from tokenstore.wholefile import new_version, sync_directory, temporary, writing_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenstore.accounts import Record
    from tokenstore.repository import Existing, TokenRepository

Outcome = Literal["imported", "exported", "skipped", "failed"]

_MAX_FILE = 1 << 20  # bytes; a token file has a few thousand
_BATCH = 500  # files that are stored in one transaction


@dataclass(frozen=True, slots=True)
class FileResult:
    """What became of one file. No secret is in it.

    Attributes:
        account_name: The account, None if the file does not tell.
        path: The file.
        outcome: ``imported``, ``exported``, ``skipped`` or ``failed``.
        reason: Why, for an outcome that needs it, else None.
    """

    account_name: str | None
    path: Path
    outcome: Outcome
    reason: str | None = None


def find_files(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the files that *paths* name: a file itself, of a directory every ``*.json`` in it."""
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    found: list[Path] = []
    for path in map(Path, paths):
        try:
            found += sorted(
                p for p in path.iterdir() if p.suffix == ".json" and not p.name.startswith(".")
            )
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
    """Store the accounts of JSON files; the files stay as they are.

    An account that is already stored is skipped. A file that cannot be read stops nothing. Files
    are stored a few hundred a transaction, and a result is yielded when its file is stored.

    Args:
        repository: Where to store them.
        paths: Files, and directories of ``*.json`` files.
        provider: What to bind the accounts to; None: what a file says, if it does.
        replace: Replace an account that is already stored.
        newer: Replace it if the file's token expires later than the stored one.

    Raises:
        StorageError: The database cannot take them.
    """
    if replace and newer:
        raise ValueError("replace and newer exclude each other")
    existing: Existing = "replace" if replace else "keep_newer" if newer else "keep"
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
        with writing_in(target, lambda name: name.endswith(".json")):
            case_sensitive = _is_case_sensitive(target)
            for record in repository.records():
                yield _logged("export", *_export(target, record, case_sensitive=case_sensitive))
            sync_directory(target)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise storage_error(error, target) from None


@sealed
def _import(
    repository: TokenRepository, files: Iterator[Path], provider: str | None, existing: Existing
) -> Iterator[FileResult]:
    seen: dict[str, Path] = {}
    while batch := list(islice(files, _BATCH)):
        parsed = [(path, _read(path)) for path in batch]
        with repository.transaction():
            results = [
                _store(repository, path, content, provider, existing, seen)
                for path, content in parsed
            ]
        yield from map(_logged, repeat("import"), results, repeat(provider))


def _read(path: Path) -> TokenFile | str:
    """Return what the file says, or why that cannot be told, without quoting it."""
    try:
        if not path.is_file():
            return "not a file, nor a readable directory" if path.exists() else "no such file"
        with path.open("rb") as file:
            content = file.read(_MAX_FILE + 1)
        if len(content) > _MAX_FILE:
            return f"larger than {_MAX_FILE >> 20} MiB"
        data = json.loads(content, parse_constant=lambda _: None)
        return from_json(data, stem=path.stem)
    except InvalidTokenError as error:
        return str(error)
    except OSError as error:
        return error.strerror or type(error).__name__
    except (ValueError, RecursionError):
        return "not valid JSON"


def _store(
    repository: TokenRepository,
    path: Path,
    content: TokenFile | str,
    provider: str | None,
    existing: Existing,
    seen: dict[str, Path],
) -> FileResult:
    if isinstance(content, str):
        return FileResult(None, path, "failed", content)
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
    directory: Path, record: Record | Damaged, *, case_sensitive: bool
) -> tuple[FileResult, str | None]:
    name = record.account_name
    path = directory / f"{file_stem(name, case_sensitive=case_sensitive)}.json"
    if isinstance(record, Damaged):
        why = "what is stored of it is damaged; restore a backup, or sign it in again"
        return FileResult(name, path, "failed", why), None
    text = json.dumps(to_json(name, record.provider, record.tokens), indent=2)
    try:
        if path.is_symlink():
            return FileResult(name, path, "failed", "is a symlink; remove it"), record.provider
        with new_version(path) as new:
            new.write_text(f"{text}\n", "utf-8")
    except OSError as error:
        why = error.strerror or type(error).__name__
        return FileResult(name, path, "failed", why), record.provider
    return FileResult(name, path, "exported"), record.provider


def _is_case_sensitive(directory: Path) -> bool:
    probe = temporary(directory / "a.json")
    try:
        return not probe.with_name(probe.name.upper()).exists()
    finally:
        probe.unlink()


def _logged(operation: str, result: FileResult, provider: str | None) -> FileResult:
    level = logging.WARNING if result.outcome == "failed" else logging.INFO
    details = "" if result.reason is None else f" ({str(result.path)!r}: {result.reason})"
    tell(level, operation, result.account_name, provider, result.outcome, details)
    return result
