"""The accounts in a database. Each change is one transaction."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from tokenstore.errors import InvalidTokenError, SupersededTokenError
from tokenstore.models.tokens import TokenSet, fingerprint, normalize_account_name
from tokenstore.redaction import protect
from tokenstore.storage import statements as sql
from tokenstore.storage.factory import database_for
from tokenstore.storage.further import FurtherTokens
from tokenstore.storage.journal import Journal
from tokenstore.storage.listing import AccountListing
from tokenstore.storage.location import locate
from tokenstore.storage.rows import (
    CorruptRowError,
    corrupt_account_error,
    is_text,
    new_version,
    to_access_token,
    to_columns,
    to_record,
    to_tokens,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from sqlalchemy.engine import URL

    from tokenstore.models.accounts import Account, Record
    from tokenstore.models.further_tokens import FurtherToken
    from tokenstore.models.targets import Target
    from tokenstore.storage.base import JournalMode, Restored
    from tokenstore.storage.locks import HeldLock

ConflictPolicy = Literal["replace", "keep", "keep_newer"]


def refuse_pickling(value: object) -> NoReturn:
    """Raise the error for an object with connections, locks and threads that belong to a process.

    It is the ``__reduce__`` of its class, which `pickle` and `copy` call.
    """
    raise TypeError(
        f"{type(value).__name__} cannot be pickled or copied, as its connections belong to this "
        "process; pass the path or URL of the database, and create one from it in each process"
    )


class TokenRepository:
    """The accounts of one database, shared by threads and processes.

    It never sends a request to a provider. Creating a repository does no I/O. Reading never
    creates the database; the first `save` does.

    Args:
        database: A path to a SQLite file, or an SQLAlchemy URL. Defaults to
            ``$TOKENSTORE_DATABASE``, or else to ``tokens.db`` in the user's data directory.
        upgrade: Migrate an older database, after a backup, instead of raising
            `SchemaOutdatedError`.
        journal_mode: ``wal``, or ``delete`` for file systems without shared memory.
        clock: Returns the current time, in UTC epoch seconds.

    Every method may raise a `StorageError`. The public ones raise an `InvalidTokenError` for an
    invalid account name; a valid one has 1 to 512 characters and no control characters.
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
        self.further = FurtherTokens(self._database)
        self.journal = Journal(self._database, self.record, self.further, clock)
        self.listing = AccountListing(self._database, clock)

    def __enter__(self) -> TokenRepository:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    __reduce__ = refuse_pickling

    def close(self) -> None:
        """Close the database. The next call opens it again."""
        self._database.close()

    # -- public -------------------------------------------------------------------------------

    def save(
        self,
        account_name: str,
        tokens: Mapping[str, Any] | TokenSet,
        *,
        provider: str | None = None,
    ) -> None:
        """Replace the tokens of an account, and clear its recorded failure.

        Its further access tokens are dropped: they belong to the login that is replaced.

        Args:
            account_name: The account.
            tokens: A token set, as for `TokenManager.save_tokens`.
            provider: The provider to bind the account to. Defaults to the current one.

        Raises:
            InvalidTokenError: *tokens* is not a valid token set; nothing is written.
        """
        if not isinstance(tokens, TokenSet):
            tokens = TokenSet.from_mapping(tokens, now=self._clock())
        self.put(normalize_account_name(account_name), tokens, provider=provider)

    def load(self, account_name: str) -> dict[str, Any] | None:
        """Return every saved field, with ``expires_at`` in UTC epoch seconds.

        Returns:
            The fields, or None if there is no such account.
        """
        name = normalize_account_name(account_name)
        row = self._database.fetch_one(sql.LOAD, {"account_name": name})
        if row is None:
            return None
        try:
            return to_tokens(name, row).to_dict()
        except CorruptRowError:
            raise corrupt_account_error(self.name, name) from None

    def delete(self, account_name: str) -> bool:
        """Remove an account and its bytes; return whether it existed."""
        name = {"account_name": normalize_account_name(account_name)}
        if self._database.fetch_one(sql.EXISTS, name) is None:
            return False

        def remove() -> bool:
            deleted = self._database.execute(sql.DELETE, name)
            self._database.execute(sql.DROP_FURTHER, name)
            self._database.execute(sql.FORGET_REFRESHES, name)
            self._database.scrub_after_commit()
            return deleted > 0

        return self._database.run(remove)

    def accounts(
        self,
        *,
        expiry_buffer: float = 300.0,
        client_of: Callable[[str | None], str | None] = lambda _: None,
        is_unattended: Callable[[str | None], bool] = lambda _: False,
        names: Iterable[str] | None = None,
    ) -> Iterator[Account]:
        """Yield accounts in the order of their names, without secrets, read page by page.

        Args:
            expiry_buffer: Seconds before its expiry at which a token counts as due.
            client_of: Returns, for the name of a provider, the `Provider.client` in its current
                configuration, or None. A recorded failure of another client is ignored.
            is_unattended: Returns, for the name of a provider, whether its accounts need no sign-in
                (`Provider.is_unattended`).
            names: Yield only the accounts with these names. Defaults to all accounts.
        """
        yield from self.listing.accounts(
            expiry_buffer=expiry_buffer,
            client_of=client_of,
            is_unattended=is_unattended,
            names=names,
        )

    def in_transaction(self) -> bool:
        """Return whether the calling thread is inside a transaction on this database."""
        return self._database.in_transaction()

    @contextmanager
    def transaction(self) -> Iterator[TokenRepository]:
        """Make all changes in the block one transaction: all of them are stored, or none.

        It belongs to the thread, and to the coroutine or generator, that opens it. What other code
        of the thread saves while these are suspended fails, instead of becoming part of it. An
        inner ``transaction()`` that raises undoes the whole, even if its error is caught.
        """
        with self._database.transaction():
            yield self

    def backup(self, target: str | os.PathLike[str], *, replace: bool = False) -> Path:
        """Copy the database to a file, 0600, while other threads and processes keep writing.

        The copy is one consistent state of the database, and the file appears complete or not at
        all. The copy is checked first, so that a damaged database never replaces a good backup.

        Args:
            target: The file to write. Missing directories are created, 0700.
            replace: Whether to replace an existing file.

        Returns:
            The absolute path of the file.
        """
        path = Path(os.path.abspath(target))  # noqa: PTH100 - a symlink must be seen
        self._database.backup(path, replace=replace)
        return path

    def restore(self, source: str | os.PathLike[str]) -> Restored:
        """Replace the SQLite database with a copy of it, such as `backup` makes.

        The copy is checked first. What was there is moved aside, with its log. No process may have
        the database open, as far as the system shows that.

        Args:
            source: The copy, which stays where it is.

        Returns:
            Where the previous database is, and which accounts' refresh tokens were exchanged since
            the copy was made: these accounts need a new sign-in.

        Raises:
            StorageError: The copy is damaged or not a tokenstore database, or a process has the
                database open. Nothing was changed.
        """
        return self._database.restore(Path(os.path.abspath(source)))  # noqa: PTH100

    # -- for the manager, import, export and the command ---------------------------------------

    def exists(self) -> bool:
        """Return whether the database exists; this creates nothing."""
        return self._database.exists()

    def put(
        self,
        account_name: str,
        tokens: TokenSet,
        *,
        provider: str | None = None,
        existing: ConflictPolicy = "replace",
        further: Iterable[FurtherToken] = (),
    ) -> bool:
        """Store the tokens of an account; return whether they were stored.

        Args:
            account_name: The account, normalized.
            tokens: The tokens.
            provider: The provider to bind the account to. Defaults to the current one.
            existing: What to do if the account exists: ``replace`` it, ``keep`` it, or
                ``keep_newer``, which replaces it if *tokens* expire later.
            further: Further access tokens of the same login; those that are stored are dropped.

        Raises:
            SupersededTokenError: The refresh token was exchanged for another one before.
        """
        if provider is not None and not is_text(provider):
            raise InvalidTokenError("provider", "contains half of a surrogate pair")
        row = {
            "account_name": account_name,
            "provider": provider,
            "version": new_version(),
            **to_columns(account_name, tokens),
        }
        of_now = {
            "account_name": account_name,
            "refresh_token": tokens.refresh_token,
            "sent": tokens.refresh_token and fingerprint(tokens.refresh_token),
        }

        def store() -> bool:
            # Whether it holds another refresh token, None if there is no such account; and when
            # the new refresh token was exchanged for another one, None if it was not.
            found = self._database.fetch_one(sql.BEFORE_SAVE, of_now)
            rotates, spent_at, has_further = found or (None, None, False)
            if spent_at is not None:
                if existing != "replace" and rotates is not None:
                    return False  # an old copy is no newer than what the account holds
                raise _superseded(account_name, spent_at)
            stored = self._database.execute(_PUT[existing], row) > 0
            if stored and rotates:
                self._database.scrub_after_commit()
            # Where others write meanwhile, a refresh may have stored one since that was read.
            alone = self._database.excludes_writers
            if stored and (has_further or not (alone or rotates is None)):
                self.further.drop(account_name)
            for each in further if stored else ():
                self.further.store(account_name, each)
            return stored

        return self._database.run(store)

    def access_token(
        self, account_name: str
    ) -> tuple[str | None, float | None, float | None, str | None] | None:
        """Return access token, ``expires_at``, ``refreshed_at`` and provider, or None.

        This is the hot path, with the narrowest query.

        Args:
            account_name: The account, normalized.
        """
        row = self._database.fetch_one(sql.ACCESS_TOKEN, {"account_name": account_name})
        if row is None:
            return None
        try:
            return to_access_token(account_name, row)
        except CorruptRowError:
            raise corrupt_account_error(self.name, account_name) from None

    def record(self, account_name: str, target: Target | None = None) -> Record | None:
        """Return the record of an account, or None if there is no such account.

        Args:
            account_name: The account, normalized.
            target: Show the further access token of this target. Defaults to the account's own.
        """
        row = self._database.fetch_one(sql.RECORD, {"account_name": account_name})
        if row is None:
            return None
        try:
            record = to_record(row)
        except CorruptRowError:
            raise corrupt_account_error(self.name, account_name) from None
        return record if target is None else self.further.shown(record, target)

    @contextmanager
    def refresh_lock(self, account_name: str, *, timeout: float) -> Iterator[HeldLock]:
        """Hold the refresh lock of an account (see `RefreshLocks.account`)."""
        with self._database.locks.account(account_name, timeout=timeout) as lock:
            yield lock


def _superseded(account_name: str, spent_at: float) -> SupersededTokenError:
    at = datetime.fromtimestamp(spent_at, UTC).isoformat(timespec="seconds")
    return SupersededTokenError(
        "refresh_token",
        f"it was exchanged for another one at {at}, so these tokens of {account_name!r} are an "
        "old copy; nothing was stored. Load the account's tokens before changing them, or "
        "sign in again",
        spent_at=spent_at,
    )


_PUT = {"replace": sql.REPLACE, "keep": sql.INSERT, "keep_newer": sql.REPLACE_OLDER}

protect(__name__)
