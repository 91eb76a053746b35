"""Accounts in the database: rows to token sets and back, each change one transaction."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenstore.errors import InvalidTokenError
from tokenstore.models.tokens import TokenSet, normalize_account_name
from tokenstore.redaction import protect
from tokenstore.storage import statements as sql
from tokenstore.storage.factory import database_for
from tokenstore.storage.journal import Journal
from tokenstore.storage.listing import Listing
from tokenstore.storage.location import locate
from tokenstore.storage.rows import (
    CorruptRowError,
    damaged,
    is_text,
    new_version,
    to_access,
    to_columns,
    to_record,
    to_tokens,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from sqlalchemy.engine import URL

    from tokenstore.models.accounts import Account, Record
    from tokenstore.storage.base import JournalMode
    from tokenstore.storage.locks import HeldLock

ConflictPolicy = Literal["replace", "keep", "keep_newer"]


class TokenRepository:
    """The accounts of one database, shared by threads and processes.

    It stores and gives back; it never talks to a provider. Creating one does no I/O. Reading
    never creates the database, the first `save` does.

    Args:
        database: A path to the SQLite file, or an SQLAlchemy URL. None:
            ``$TOKENSTORE_DATABASE``, else ``tokens.db`` in the user's data directory.
        upgrade: Migrate an older database, after a backup, in place of raising
            `SchemaOutdatedError`.
        journal_mode: ``wal``, or ``delete`` for file systems without shared memory.
        clock: The time, in UTC epoch seconds.

    Every method may raise a `StorageError`, and an `InvalidTokenError` for what is no account
    name: 1 to 512 characters, none of them a control character.
    """

    def __init__(
        self,
        database: str | os.PathLike[str] | URL | None = None,
        *,
        upgrade: bool = False,
        journal_mode: JournalMode = "wal",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.location = locate(database)
        self._clock = clock
        self._database = database_for(self.location, journal_mode=journal_mode, upgrade=upgrade)
        self.name = self._database.name
        self.journal = Journal(self._database, self.record, clock)
        self.listing = Listing(self._database, clock)

    def __enter__(self) -> TokenRepository:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; whoever goes on using the repository opens it again."""
        self._database.close()

    # -- the public five ----------------------------------------------------------------------

    def save(
        self,
        account_name: str,
        tokens: Mapping[str, Any] | TokenSet,
        *,
        provider: str | None = None,
    ) -> None:
        """Store *tokens* in place of all that the account had, and forget why it failed.

        Args:
            account_name: The account.
            tokens: A token set, as for `TokenManager.save_tokens`.
            provider: The provider to bind the account to; None leaves that as it is.

        Raises:
            InvalidTokenError: *tokens* is no token set; nothing is written.
        """
        if not isinstance(tokens, TokenSet):
            tokens = TokenSet.from_mapping(tokens, now=self._clock())
        self.put(account_name, tokens, provider=provider)

    def load(self, account_name: str) -> dict[str, Any] | None:
        """Return every field that was saved, ``expires_at`` in UTC epoch seconds.

        None if there is no such account.
        """
        name = normalize_account_name(account_name)
        row = self._database.fetch_one(sql.LOAD, {"account_name": name})
        if row is None:
            return None
        try:
            return to_tokens(name, row).to_dict()
        except CorruptRowError:
            raise damaged(self.name, name) from None

    def delete(self, account_name: str) -> bool:
        """Remove the account, its bytes too; tell whether there was one."""
        name = {"account_name": normalize_account_name(account_name)}
        if self._database.fetch_one(sql.EXISTS, name) is None:
            return False

        def remove() -> bool:
            deleted = self._database.execute(sql.DELETE, name)
            self._database.execute(sql.FORGET_REFRESHES, name)
            self._database.scrub_after_commit()
            return deleted > 0

        return self._database.run(remove)

    def accounts(
        self,
        *,
        expiry_buffer: float = 300.0,
        client_of: Callable[[str | None], str | None] = lambda _: None,
        names: Iterable[str] | None = None,
    ) -> Iterator[Account]:
        """Yield every account in the order of names, without secrets, read page by page.

        Args:
            expiry_buffer: Seconds before its expiry at which a token counts as due.
            client_of: Returns the `Provider.client` of a provider's name as it is configured now,
                or None: what was remembered of another one does not count.
            names: Yield only the accounts of these names, those that there are.
        """
        yield from self.listing.accounts(
            expiry_buffer=expiry_buffer, client_of=client_of, names=names
        )

    @contextmanager
    def transaction(self) -> Iterator[TokenRepository]:
        """Make what this thread does inside one transaction: all of it is stored, or nothing."""
        with self._database.transaction():
            yield self

    def backup(self, target: str | os.PathLike[str], *, replace: bool = False) -> Path:
        """Copy the database to a file, 0600, while others go on writing.

        The copy is one state of the database and appears as a whole, or not at all. It is checked
        before that, so that a damaged database does not take the place of a sound backup.

        Args:
            target: The file; directories that are missing are made, 0700.
            replace: Replace a file that is there already.

        Returns:
            Its absolute path.
        """
        path = Path(os.path.abspath(target))  # noqa: PTH100 - a symlink has to be seen
        self._database.backup(path, replace=replace)
        return path

    # -- for the manager, import and export ---------------------------------------------------

    def put(
        self,
        account_name: str,
        tokens: TokenSet,
        *,
        provider: str | None = None,
        existing: ConflictPolicy = "replace",
    ) -> bool:
        """Store *tokens*; tell whether that was done.

        Args:
            account_name: The account.
            tokens: Its tokens.
            provider: The provider to bind the account to; None leaves that as it is.
            existing: What to do with an account that is there: ``replace`` it, ``keep`` it, or
                ``keep_newer``: replace it if *tokens* expire later.
        """
        name = normalize_account_name(account_name)
        if provider is not None and not is_text(provider):
            raise InvalidTokenError("provider", "half a surrogate pair is not a character")
        row = {
            "account_name": name,
            "provider": provider,
            "version": new_version(),
            **to_columns(name, tokens),
        }
        token = {"account_name": name, "refresh_token": tokens.refresh_token}

        def store() -> bool:
            rotates = existing != "keep" and self._database.fetch_one(sql.ROTATES, token)
            stored = self._database.execute(_PUT[existing], row) > 0
            if stored and rotates:
                self._database.scrub_after_commit()
            return stored

        return self._database.run(store)

    def access(self, account_name: str) -> tuple[str | None, float | None, float | None] | None:
        """Return access token, ``expires_at`` and ``refreshed_at``, None without an account.

        This is the hot path: the narrowest of queries.
        """
        row = self._database.fetch_one(sql.ACCESS, {"account_name": account_name})
        if row is None:
            return None
        try:
            return to_access(account_name, row)
        except CorruptRowError:
            raise damaged(self.name, account_name) from None

    def record(self, account_name: str) -> Record | None:
        """Return all that is stored of an account, None if there is none."""
        name = normalize_account_name(account_name)
        row = self._database.fetch_one(sql.RECORD, {"account_name": name})
        if row is None:
            return None
        try:
            return to_record(row)
        except CorruptRowError:
            raise damaged(self.name, name) from None

    @contextmanager
    def refresh_lock(self, account_name: str, *, timeout: float) -> Iterator[HeldLock]:
        """Hold the account's refresh lock, which dies with its holder.

        Raises:
            TimeoutError: Somebody else held it for *timeout* seconds.
        """
        with self._database.locks.account(account_name, timeout=timeout) as hold:
            yield hold


_PUT = {"replace": sql.REPLACE, "keep": sql.INSERT, "keep_newer": sql.REPLACE_OLDER}

protect(__name__)
