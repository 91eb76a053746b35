"""Imports accounts from files, and exports them to JSON files."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import unicodedata
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, cast

from tokenstore.errors import InvalidTokenError, StorageError, SupersededTokenError
from tokenstore.files import (
    atomic_write,
    create_temporary,
    decode_name,
    file_error,
    make_private_directory,
    sync_directory,
    writer_lock,
)
from tokenstore.importers.binding import DatabaseFiles, KnownProviders
from tokenstore.importers.detect import may_have_accounts, read_accounts, read_json, stem_of
from tokenstore.importers.formats import (
    ExportedAccount,
    ImportedAccount,
    UnreadableEntry,
    accounts_to_json,
    exported_account,
    exported_accounts,
    file_stem,
    has_more,
    hashed_stem,
    is_file_name,
    shape_of_file,
    tokens_to_store,
)
from tokenstore.logs import is_enabled, log_operation
from tokenstore.models.tokens import normalize_account_name
from tokenstore.redaction import protect
from tokenstore.storage.rows import CorruptRowError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenstore.importers.shapes import FileShape
    from tokenstore.models.accounts import Record
    from tokenstore.models.tokens import TokenSet
    from tokenstore.storage.repository import ConflictPolicy, TokenRepository

Outcome = Literal["imported", "exported", "skipped", "failed"]

_BATCH = 1000  # accounts stored in one transaction
_DEEPEST = 32  # folders that a name takes before it
_MAX_STREAM = (16 << 20) + 1  # bytes; one more than what may be read
_ALREADY = "already stored"
_NOT_NEWER = "the stored token expires no earlier"
_NO_NAME = "-"  # instead of an account name, where there is no file name


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

    In a directory these are every ``*.json`` file, every ``*.db`` file that is a token storage of
    globus-sdk, every file that is named by an e-mail address and has tokens, and whatever an
    export has written. Other files, such as MSAL's ``*.bin``, must be given by their own paths.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    found: list[Path] = []
    for given in paths:
        if not os.fspath(given):
            raise ValueError("paths: a path must not be empty")
        path = Path(given)
        try:
            names = sorted(os.listdir(path))  # noqa: PTH208 - twice as fast as iterdir()
            found += [
                path / name
                for name in names
                if not name.startswith(".")
                and (name.endswith(".json") or may_have_accounts(path / name))
            ]
        except (OSError, ValueError):  # not a readable directory: reading it reports why
            found.append(path)
    return found


def import_accounts(
    repository: TokenRepository,
    paths: str | os.PathLike[str] | BinaryIO | Iterable[str | os.PathLike[str] | BinaryIO],
    *,
    provider: str | None = None,
    replace: bool = False,
    newer: bool = False,
    account_name: str | None = None,
    dry_run: bool = False,
) -> Iterator[FileResult]:
    """Import the accounts in files; the files are not changed.

    A file is JSON with one account or several, or a globus-sdk token storage or MSAL token cache.
    There is a result for each account, and for each file without accounts. An account that is
    already stored is skipped. A file that cannot be read does not stop the import. Accounts are
    stored in transactions of a thousand; a result is yielded once its account is stored.

    An account is called like its file, without ``.json``. Where that is the name of several files,
    each takes the name of its folder before it.

    Args:
        repository: The repository to import into.
        paths: Files and directories (`find_files`), and binary streams such as
            ``sys.stdin.buffer``, each with the content of one file.
        provider: Provider of the accounts. Defaults to the provider in the file, if any. A file
            whose ``token_uri`` belongs to another provider fails.
        replace: Whether to replace an account that is already stored.
        newer: Whether to replace a stored account if the token in the file expires later. An
            account with a refresh token is not replaced by a file without one.
        account_name: The name of the account, for a single file with a single account.
        dry_run: Report what would be imported, and store nothing.

    Raises:
        StorageError: The database operation failed.
        ValueError: The arguments contradict each other.
    """
    if replace and newer:
        raise ValueError("replace and newer cannot be combined")
    sources = _sources(paths)
    if account_name is not None:
        account_name = normalize_account_name(account_name)
        is_one = isinstance(paths, (str, os.PathLike)) or len(_listed(paths)) == 1
        if len(sources) != 1 or not is_one or _is_directory(paths):
            raise ValueError("account_name: names the account of a single file")
    existing: ConflictPolicy = "replace" if replace else "keep_newer" if newer else "keep"
    importer = _Importer(repository, provider, existing, account_name, dry_run=dry_run)
    return importer.run(sources)


def export_accounts(
    repository: TokenRepository, directory: str | os.PathLike[str], *, prune: bool | None = None
) -> Iterator[FileResult]:
    """Export every account to a file, with mode 0600, atomically replacing an existing one.

    A file that was imported is written in the shape and under the name that it had; of several
    accounts in one file, all are written to one. Any other account gets a file of its own, under
    its name where that is a valid file name.

    A refresh token that rotates must be used from one place only: either from the files or from the
    database.

    Args:
        repository: The repository to export from.
        directory: The directory for the files. Created with mode 0700 if it is missing; it must
            belong to this user or root, and no other user may be able to replace files in it.
        prune: Whether to remove the files that earlier exports wrote for accounts that are gone;
            if False, they are reported as skipped. Defaults to not looking for them.

    Raises:
        InsecureStorageError: Another user could replace files in the directory.
        StorageError: The directory cannot be created, or the database cannot be read.
        ValueError: *directory* is empty.
    """
    if not os.fspath(directory):
        raise ValueError("directory: must not be empty")
    target = Path(directory).absolute()
    make_private_directory(target)
    try:
        with writer_lock(target, is_file_name):
            exporter = _Exporter(repository, target)
            for result, provider in exporter.run(prune=prune):
                yield _logged("export", result, provider)
            sync_directory(target)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise file_error(error, target) from None


# -- import ---------------------------------------------------------------------------------------


class _Source(NamedTuple):
    """A file to import, or a stream.

    Attributes:
        path: The path of the file; ``-`` for a stream.
        stem: The account name if the content has none.
        stream: The stream, or None.
    """

    path: Path
    stem: str
    stream: BinaryIO | None = None

    @property
    def file_name(self) -> str | None:
        """The name to export the file under, None if there is none, or it is not the only one."""
        is_named = self.stream is None and "/" not in self.stem
        return decode_name(self.path.name) if is_named else None

    def read(self) -> list[ImportedAccount | UnreadableEntry]:
        if self.stream is None:
            return read_accounts(self.path, stem=self.stem)
        try:
            content = self.stream.read(_MAX_STREAM)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "cannot be read"
            return [UnreadableEntry(reason)]
        return read_accounts(self.path, stem=_NO_NAME, content=content)


def _listed(paths: object) -> list[Any]:
    if isinstance(paths, (str, os.PathLike)) or hasattr(paths, "read"):
        return [paths]
    return list(cast("Iterable[Any]", paths))


def _is_directory(paths: object) -> bool:
    return any(not hasattr(path, "read") and Path(path).is_dir() for path in _listed(paths))


def _sources(paths: object) -> list[_Source]:
    found: list[Path | BinaryIO] = []
    for item in _listed(paths):
        found += [item] if hasattr(item, "read") else find_files(item)
    stems = iter(_stems([each for each in found if isinstance(each, Path)]))
    return [
        _Source(each, next(stems)) if isinstance(each, Path) else _Source(Path("-"), _NO_NAME, each)
        for each in found
    ]


def _stems(files: list[Path]) -> list[str]:
    """Return the account names of files: their names without ``.json``, made different."""
    found = [stem_of(path) for path in files]
    if len({unicodedata.normalize("NFC", stem) for stem in found}) == len(found):
        return found
    stems = dict(zip(files, found, strict=True))
    for number in range(_DEEPEST):
        collisions = _colliding(stems)
        if not collisions:
            break
        for same in collisions:
            folders = {path.absolute().parent for path in same}
            for path in same:
                absolute = path.absolute()
                if number == 0 and len(folders) < len(same):
                    stems[path] = decode_name(path.name)  # "a" and "a.json" in one folder
                else:
                    parents = map(decode_name, absolute.parent.parts[1:][-max(number, 1) :])
                    stems[path] = "/".join((*parents, stem_of(path)))
    for same in _colliding(stems):  # names that only differ in how Unicode is composed
        for path in same:
            stems[path] = stem_of(path)
    return [stems[path] for path in files]


def _colliding(stems: dict[Path, str]) -> list[list[Path]]:
    """Return the groups of different files that have one name."""
    groups: dict[str, dict[str, Path]] = {}
    for path, stem in stems.items():
        group = groups.setdefault(unicodedata.normalize("NFC", stem), {})
        group[os.path.abspath(path)] = path  # noqa: PTH100 - the same file given twice is no collision
    return [list(group.values()) for group in groups.values() if len(group) > 1]


class _Importer:
    """Stores the accounts in files.

    Args:
        repository: The repository to import into.
        provider: Provider of the accounts, or None.
        existing: What to do if an account exists.
        account_name: The name of the only account, or None.
        dry_run: Whether to store nothing.
    """

    def __init__(
        self,
        repository: TokenRepository,
        provider: str | None,
        existing: ConflictPolicy,
        account_name: str | None,
        *,
        dry_run: bool,
    ) -> None:
        self._repository = repository
        self._provider = provider
        self._existing = existing
        self._account_name = account_name
        self._dry_run = dry_run
        self._providers = KnownProviders(repository.location)
        self._seen: dict[str, Path] = {}  # the file of each account
        self._planned: dict[str, TokenSet] = {}  # what a dry run would have stored

    def run(self, sources: Iterable[_Source]) -> Iterator[FileResult]:
        contents = (
            (source, content) for source in sources for content in self._named(source.read())
        )
        while batch := list(islice(contents, _BATCH)):
            transaction = nullcontext() if self._dry_run else self._repository.transaction()
            with transaction:
                results = [self._store(source, content) for source, content in batch]
            yield from map(_logged, repeat("import"), results, repeat(self._provider))

    def _named(
        self, contents: list[ImportedAccount | UnreadableEntry]
    ) -> list[ImportedAccount | UnreadableEntry]:
        name = self._account_name
        if name is None:
            return contents
        if len(contents) > 1:
            return [UnreadableEntry(f"has {len(contents)} accounts, so {name!r} cannot name it")]
        return [
            dataclasses.replace(content, account_name=name, source="file")
            if isinstance(content, ImportedAccount)
            else content
            for content in contents
        ]

    def _store(self, source: _Source, content: ImportedAccount | UnreadableEntry) -> FileResult:
        path = source.path
        is_nameless = source.stream is not None and self._account_name is None
        if isinstance(content, UnreadableEntry):
            name = None if is_nameless else content.account_name
            return FileResult(name, path, "failed", content.reason)
        if is_nameless and content.source in {"file", "key"}:
            return FileResult(None, path, "failed", "has no name; give the account one")
        if content.source in {"content", "key"}:
            content = self._apart(content, path)
        name = content.account_name
        holder = self._seen.get(name)
        if holder is not None and (self._existing != "keep_newer" or _is_same(holder, path)):
            return FileResult(name, path, "skipped", f"{holder.name} has the same account")
        result = self._put(name, content, source)
        if result.outcome == "imported" or (result.outcome == "skipped" and not self._dry_run):
            self._seen[name] = path
        return result

    def _apart(self, content: ImportedAccount, path: Path) -> ImportedAccount:
        """Return the account with a name of its own, if another file has an account so called."""
        name, folder = content.account_name, decode_name(path.absolute().parent.name)
        if not folder or _is_same(self._seen.get(name, path), path):
            return content
        if self._is_same_login(name, content.tokens):
            return content  # a copy: under another name it would end this one's login
        return dataclasses.replace(content, account_name=f"{folder}/{name}")

    def _is_same_login(self, name: str, tokens: TokenSet) -> bool:
        with suppress(CorruptRowError):
            stored = self._stored(name)
            token = tokens.refresh_token
            return stored is not None and token is not None and stored.refresh_token == token
        return False

    def _stored(self, name: str) -> TokenSet | None:
        """Return the tokens that an account has, or would have after what a dry run has planned.

        Raises:
            CorruptRowError: They are damaged.
        """
        planned = self._planned.get(name)
        if planned is not None:
            return planned
        record = _intact(self._repository, name)
        return None if record is None else record.tokens

    def _put(self, name: str, content: ImportedAccount, source: _Source) -> FileResult:
        """Store an account under a name that no other file of this import has."""
        provider = self._provider or content.provider
        tokens = _with_shape(content, source)
        if provider is not None:
            problem = self._providers.contradiction(provider, tokens)
            if problem is not None:
                return FileResult(name, source.path, "failed", problem)
            tokens = self._providers.with_expiry(provider, tokens)
        try:
            reason = self._reason_to_keep(name, tokens)
            if reason is None and self._dry_run:
                self._require_unspent(tokens)
                self._planned[name] = tokens
            elif reason is None:
                # Another process may have stored the account meanwhile.
                existing, further = self._existing, content.further
                if not self._repository.put(
                    name, tokens, provider=provider, existing=existing, further=further
                ):
                    reason = _ALREADY if existing == "keep" else _NOT_NEWER
        except (SupersededTokenError, InvalidTokenError) as error:
            return FileResult(name, source.path, "failed", str(error))
        if reason is not None:
            return FileResult(name, source.path, "skipped", reason)
        return FileResult(name, source.path, "imported", content.note)

    def _reason_to_keep(self, name: str, tokens: TokenSet) -> str | None:
        """Return why the stored account is kept, None if it is replaced or does not exist."""
        if self._existing == "replace" or (self._existing == "keep" and not self._dry_run):
            return None  # `put` decides
        try:
            stored = self._stored(name)
        except CorruptRowError:
            return "the stored tokens are damaged; they can only be replaced"
        if stored is None or self._existing == "keep":
            return None if stored is None else _ALREADY
        if tokens.refresh_token is None and stored.refresh_token is not None:
            return "the file has no refresh token, but the stored account has one"
        is_later = tokens.expires_at is not None and (
            stored.expires_at is None or stored.expires_at < tokens.expires_at
        )
        return None if is_later else _NOT_NEWER

    def _require_unspent(self, tokens: TokenSet) -> None:
        spent_at = tokens.refresh_token and self._repository.journal.spent_at(tokens.refresh_token)
        if spent_at:
            raise SupersededTokenError(
                "refresh_token",
                "it was exchanged for another one, so this file is an old copy",
                spent_at=spent_at,
            )


def _intact(repository: TokenRepository, name: str) -> Record | None:
    """Return the record of an account, None if there is none.

    Raises:
        CorruptRowError: This row is damaged.
        StorageError: The database cannot be read.
    """
    try:
        return repository.record(name)
    except StorageError as error:
        if error.errno != errno.EIO:
            raise
    raise CorruptRowError(name)


def _is_same(one: Path, other: Path) -> bool:
    return one is other or one.absolute() == other.absolute()


def _with_shape(content: ImportedAccount, source: _Source) -> TokenSet:
    """Return the tokens of an account with what an export needs to give its file back."""
    shape = content.shape
    if content.source in {"file", "key"} and source.file_name != f"{content.account_name}.json":
        shape = dataclasses.replace(shape, name=source.file_name)
    return tokens_to_store(content.tokens, shape)


# -- export ---------------------------------------------------------------------------------------


class _Exporter:
    """Writes the accounts of a repository to the files of a directory.

    Args:
        repository: The repository to export from.
        directory: The directory.
    """

    def __init__(self, repository: TokenRepository, directory: Path) -> None:
        self._repository = repository
        self._directory = directory
        self._case_sensitive = _is_case_sensitive(directory)
        self._database_files = DatabaseFiles(repository.location)
        # A hash for each file that was written: a million names would need much more memory.
        self._written: set[int] = set()
        self._failed: set[str] = set()  # accounts that were not exported
        self._places: set[int] = set()  # likewise, for each place in a file
        self._groups: dict[str, list[str]] = {}  # the accounts of each file with several

    def run(self, *, prune: bool | None) -> Iterator[tuple[FileResult, str | None]]:
        for record in self._repository.listing.records():
            if isinstance(record, CorruptRowError):
                yield self._corrupt(record.account_name), None
                continue
            name, provider = record.account_name, record.provider
            account = exported_account(name, provider, record.tokens)
            file = self._file_of(name, account.shape)
            self._places.add(hash((file, account.shape.path)))
            if account.shape.several and file == account.shape.name:
                self._groups.setdefault(file, []).append(name)
                continue
            yield self._write(file, account.document(), [name])[0], provider
        for file, names in self._groups.items():
            yield from self._write_group(file, names)
        if prune is not None:
            for result in self._leftovers(prune=prune):
                yield result, None

    def _corrupt(self, name: str) -> FileResult:
        reason = "the stored tokens are damaged; restore a backup, or sign in again"
        self._failed.add(name)
        stem = file_stem(name, case_sensitive=self._case_sensitive)
        return FileResult(name, self._directory / f"{stem}.json", "failed", reason)

    def _write_group(self, file: str, names: list[str]) -> Iterator[tuple[FileResult, str | None]]:
        """Write one file with several accounts."""
        accounts: dict[str, ExportedAccount] = {}
        for name in names:
            try:
                record = _intact(self._repository, name)
            except CorruptRowError:
                yield self._corrupt(name), None
                continue
            if record is not None:  # it was not deleted meanwhile
                accounts[name] = exported_account(name, record.provider, record.tokens)
        if accounts:
            document = accounts_to_json([*accounts.values()])
            if has_more(read_json(self._directory / file), document):
                reason = "has more than the database knows; import it first, or move it"
                self._failed.update(accounts)
                for name in accounts:
                    yield FileResult(name, self._directory / file, "failed", reason), None
                return
            for result in self._write(file, document, [*accounts]):
                yield result, accounts[str(result.account_name)].block["provider"]

    def _file_of(self, name: str, shape: FileShape) -> str:
        """Return the name of an account's file: the one that it had, unless another has it."""
        file = shape.name
        if file is not None and self._is_usable(file):
            is_free = hash((file, shape.path)) not in self._places
            if shape.several and file in self._groups and is_free:
                return file
            if not self._is_taken(file) and not self._is_wanted(file, by_other_than=name):
                return file
        default = f"{file_stem(name, case_sensitive=self._case_sensitive)}.json"
        return f"{hashed_stem(name)}.json" if self._is_taken(default) else default

    def _is_taken(self, file: str) -> bool:
        return hash(file) in self._written or file in self._groups

    def _is_wanted(self, file: str, *, by_other_than: str) -> bool:
        """Return whether an account is called like the file, and has not had another file."""
        owner = file.removesuffix(".json")
        if owner in {file, by_other_than} or not self._exists(owner):
            return False
        try:
            record = self._repository.record(owner)
        except StorageError:  # its row is damaged
            return True
        return record is not None and shape_of_file(record.tokens).name in {None, file}

    def _is_usable(self, file: str) -> bool:
        stem = file.removesuffix(".json")
        return (
            is_file_name(file)
            and (self._case_sensitive or file == file.casefold())
            # A name with a hash belongs to another account.
            and (not file.endswith(".json") or file_stem(stem) == stem)
        )

    def _exists(self, name: str) -> bool:
        return self._repository.listing.names(name, limit=1) == [name]

    def _write(self, file: str, document: dict[str, Any], names: list[str]) -> list[FileResult]:
        """Write the file of these accounts; return a result for each."""
        path = self._directory / file
        reason = None
        if path.is_symlink():
            reason = "is a symlink; remove it"
        elif self._database_files.include(path):
            reason = "is part of the database; choose another directory"
        else:
            try:
                text = json.dumps(document, indent=2)
                with atomic_write(path) as new:
                    new.write(f"{text}\n".encode())
            except OSError as error:
                reason = error.strerror or str(error)
        if reason is not None:
            self._failed.update(names)
            return [FileResult(name, path, "failed", reason) for name in names]
        self._written.add(hash(file))
        return [FileResult(name, path, "exported") for name in names]

    def _leftovers(self, *, prune: bool) -> Iterator[FileResult]:
        """Yield the files of earlier exports whose accounts are gone or are in another file."""
        with os.scandir(self._directory) as entries:
            unwritten = [e.name for e in entries if hash(e.name) not in self._written]
        for name in sorted(unwritten):
            path = self._directory / name
            if name.startswith(".") or path.is_symlink():
                continue
            if self._database_files.include(path):
                continue
            accounts = exported_accounts(read_json(path))
            names = [account for account, _ in accounts]
            if not names or not self._failed.isdisjoint(names):
                continue
            kept = [account for account in names if self._exists(account)]
            if any(self._is_file_of(account, name) for account in kept):
                continue  # it was stored while this export ran
            reason = "its account is in another file now" if kept else "its account is gone"
            if not all(unchanged for _, unchanged in accounts):
                reason += "; a program has changed the file since its export"
            elif prune:
                try:
                    path.unlink()
                    reason += "; the file was removed"
                except OSError as error:
                    reason = error.strerror or type(error).__name__
                    yield FileResult(min(names), path, "failed", reason)
                    continue
            else:
                reason += "; prune removes the file"
            yield FileResult(min(names), path, "skipped", reason)

    def _is_file_of(self, account_name: str, file: str) -> bool:
        """Return whether the next export writes an account to this file."""
        try:
            record = self._repository.record(account_name)
        except StorageError:  # its row is damaged
            return True
        if record is None:
            return False
        stem = file_stem(account_name, case_sensitive=self._case_sensitive)
        return file == (shape_of_file(record.tokens).name or f"{stem}.json")


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
