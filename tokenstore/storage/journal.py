"""The journal: a refresh is written down before its token is spent, and closed with its outcome.

It is the history at the same time: what is begun and what has ended are one row.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tokenstore.models.failures import Failure
from tokenstore.models.tokens import TokenSet, fingerprint, normalize_account_name
from tokenstore.storage import statements as sql
from tokenstore.storage.rows import new_version, to_columns, to_history_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenstore.models.accounts import HistoryEntry, Record
    from tokenstore.storage.base import Database

Reason = Literal["due", "forced", "rejected"]

LOCK_LOST = "lock_lost"
"""The journal's ``error`` of a refresh during which somebody else could refresh the account."""

_PAGE = 500  # rows a query


@dataclass(frozen=True, slots=True)
class Refresh:
    """A refresh that is written down as begun.

    Attributes:
        id: Its number; of two refreshes of an account, the later has the higher one.
        started_at: When it began, in UTC epoch seconds.
        record: What was stored when it began.
        where: The database that it was written down in (`Database.identity`).
        lock_lost: Whether somebody else could refresh the account at the same time.
    """

    id: int
    started_at: float
    record: Record
    where: object
    lock_lost: bool = False


@dataclass(frozen=True, slots=True)
class Suspicion:
    """An earlier use of the same refresh token of which nobody knows the outcome."""

    host: str
    started_at: float
    interrupted: bool  # the process died, as opposed to: no usable answer came


class Journal:
    """The refreshes of the accounts of one database.

    Args:
        database: The database.
        record: Returns what is stored of an account, None if there is none.
        clock: The time, in UTC epoch seconds.
    """

    def __init__(
        self,
        database: Database,
        record: Callable[[str], Record | None],
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._record = record
        self._clock = clock

    def last_begun(self, account_name: str) -> int:
        """Return the number of the account's last refresh, 0 if there was none."""
        row = self._database.fetch_one(sql.LAST_REFRESH, {"account_name": account_name})
        return 0 if row is None else int(row[0] or 0)

    def last_begun_at(self) -> float | None:
        """Return when the last refresh of any account began, in UTC epoch seconds."""
        row = self._database.fetch_one(sql.LAST_BEGUN, {})
        return None if row is None else row[0]

    def suspicion(self, refresh: Refresh) -> Suspicion | None:
        """Return the last earlier use of the same refresh token whose outcome nobody knows."""
        row = self._database.fetch_one(
            sql.SUSPICION,
            {
                "account_name": refresh.record.account_name,
                "before": refresh.id,
                "sent": _fingerprint(refresh.record.tokens),
            },
        )
        return None if row is None else Suspicion(row[0], row[1], row[2] == "interrupted")

    def history(self, account_name: str | None = None) -> Iterator[HistoryEntry]:
        """Yield the remembered refreshes, of one account or of all, the newest first."""
        query = sql.PAGE_OF_HISTORY if account_name is None else sql.PAGE_OF_ITS_HISTORY
        its = {} if account_name is None else {"account_name": normalize_account_name(account_name)}
        before = 2**62
        while rows := self._database.fetch_all(query, its | {"before": before, "page": _PAGE}):
            yield from map(to_history_entry, rows)
            before = rows[-1][0]

    def begin(self, record: Record, *, provider: str, reason: Reason) -> Refresh:
        """Write down that a refresh begins. Its caller holds the account's lock.

        A refresh that is still open then was interrupted: its process died.
        """
        now = self._clock()
        account = {"account_name": record.account_name}
        begun = {
            "provider": provider,
            "reason": reason,
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "started_at": now,
            "sent": _fingerprint(record.tokens),
        }

        def begin() -> Refresh:
            self._database.execute(sql.CLOSE_INTERRUPTED, account | {"finished_at": now})
            ((number,),) = self._database.fetch_all(sql.BEGIN_REFRESH, account | begun)
            return Refresh(int(number), now, record, self._database.identity())

        return self._database.run(begin)

    def finish(
        self,
        refresh: Refresh,
        outcome: TokenSet | Failure,
        *,
        provider: str,
    ) -> Record | None:
        """Store the outcome and close the journal's entry, in one transaction.

        If the row changed since the refresh began, by a sign-in, an import or a delete, it is
        left as it is, and the journal says ``superseded``. It may be called again when it is not
        known whether it has stored anything.

        Args:
            refresh: What `begin` returned.
            outcome: The new tokens, or why there are none.
            provider: Who gave them.

        Returns:
            What is stored now, None if the account is gone.
        """
        now = self._clock()

        def finish() -> Record | None:
            applied = self._apply(refresh, outcome, provider)
            stored = self._record(refresh.record.account_name)
            applied = applied or (stored is not None and stored.refresh_id == refresh.id)
            self._close(refresh, outcome, stored, applied=applied, now=now)
            return stored

        return self._database.run(finish, expected_identity=refresh.where)

    def _apply(self, refresh: Refresh, outcome: TokenSet | Failure, provider: str) -> bool:
        """Store the outcome if nothing has changed since the refresh began; tell whether."""
        name = refresh.record.account_name
        row = {
            "name": name,
            "read_version": refresh.record.version,
            "refresh_id": refresh.id,
        }
        if isinstance(outcome, Failure):
            failure = {"failure": outcome.to_json()}
            return self._database.execute(sql.STORE_FAILURE, row | failure) > 0
        row |= {
            "version": new_version(),
            "provider": provider,
            "refreshed_at": refresh.started_at,
            **to_columns(name, outcome),
        }
        self._database.scrub_after_commit()
        return self._database.execute(sql.STORE_TOKENS, row) > 0

    def _close(
        self,
        refresh: Refresh,
        outcome: TokenSet | Failure,
        stored: Record | None,
        *,
        applied: bool,
        now: float,
    ) -> None:
        failure = outcome if isinstance(outcome, Failure) else None
        told = "refreshed" if failure is None else failure.kind
        self._database.execute(
            sql.CLOSE_REFRESH,
            {
                "id_": refresh.id,
                "finished_at": now,
                "outcome": told if applied else "superseded",
                "received": None if stored is None else _fingerprint(stored.tokens),
                "status_code": failure and failure.status_code,
                "error": (failure and failure.error) or (LOCK_LOST if refresh.lock_lost else None),
                "maybe_spent": bool(failure and failure.maybe_spent),
            },
        )
        self._database.execute(sql.PRUNE_REFRESHES, {"account_name": refresh.record.account_name})


def _fingerprint(tokens: TokenSet) -> str:
    return fingerprint(tokens.refresh_token or "")
