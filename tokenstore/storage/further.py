"""Further access tokens of a login: each for a scope or resource, next to the account's own.

They are stored with the account, and dropped in the same transaction as its tokens. One that is
damaged counts as missing, since a refresh gives another.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tokenstore.models.further_tokens import FurtherToken
from tokenstore.models.targets import MAX_FURTHER_TOKENS
from tokenstore.storage import statements as sql
from tokenstore.storage.rows import CorruptRowError, further_columns, to_further

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenstore.models.accounts import Record
    from tokenstore.models.failures import Failure
    from tokenstore.models.targets import Target
    from tokenstore.storage.base import Database

_log = logging.getLogger(__name__)


class FurtherTokens:
    """The further access tokens of the accounts of one database.

    What writes runs inside a transaction of the caller.

    Args:
        database: The database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def shown(self, record: Record, target: Target | None) -> Record:
        """Return *record* with the access token of *target*, which is None for its own."""
        if target is None:
            return record
        its = {"account_name": record.account_name, "target_digest": target.digest}
        row = self._database.fetch_one(sql.FURTHER_TOKEN, its)
        found = None
        if row is not None:
            try:
                found = to_further(record.account_name, row)
            except CorruptRowError:
                _log.warning(
                    "%s: its stored access token for another target is damaged; it is obtained "
                    "anew",
                    record.account_name,
                )
        return record.showing(found or FurtherToken(target=target))

    def of(self, account_name: str) -> Iterator[FurtherToken]:
        """Yield the further access tokens of an account in the order of targets, if not damaged."""
        rows = self._database.fetch_all(sql.FURTHER_TOKENS, {"account_name": account_name})
        for row in sorted(rows, key=lambda row: str(row[0])):
            try:
                yield to_further(account_name, row)
            except CorruptRowError:
                continue

    def store(self, account_name: str, further: FurtherToken) -> None:
        """Store a token; of more than the maximum, the longest expired are dropped."""
        self._database.execute(sql.STORE_FURTHER, further_columns(account_name, further))
        self._evict(account_name, further.target)

    def refuse(
        self, account_name: str, target: Target, failure: Failure, *, refresh_id: int
    ) -> None:
        """Store that the provider refused a target; a token that is stored for it stays."""
        refused = FurtherToken(target=target, failure=failure, refresh_id=refresh_id)
        self._database.execute(sql.STORE_REFUSAL, further_columns(account_name, refused))
        self._evict(account_name, target)

    def drop(self, account_name: str) -> None:
        """Drop all further access tokens of an account, and their bytes."""
        if self._database.execute(sql.DROP_FURTHER, {"account_name": account_name}):
            self._database.scrub_after_commit()

    def _evict(self, account_name: str, newest: Target) -> None:
        """Drop what is too much: the longest expired, and never the one that was just stored."""
        its = {"account_name": account_name}
        rows = self._database.fetch_all(sql.FURTHER_EXPIRIES, its)
        if len(rows) <= MAX_FURTHER_TOKENS:
            return
        rows.sort(key=lambda row: (row[0] != newest.digest, -(row[1] or 0.0), row[0]))
        for digest, _ in rows[MAX_FURTHER_TOKENS:]:
            self._database.execute(sql.EVICT_FURTHER, its | {"target_digest": digest})
