"""The journal: a refresh is recorded before its token is spent, and closed with its outcome.

It is the history as well: an entry that is begun and the refresh that it became are one row. It is
also the second line of defence where a lock was lost: it knows which tokens are spent, and which
refreshes of living processes are still under way.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tokenstore.errors import StorageError
from tokenstore.models.failures import Failure
from tokenstore.models.targets import is_refused_target
from tokenstore.models.tokens import TokenSet, fingerprint, normalize_account_name
from tokenstore.storage import statements as sql
from tokenstore.storage.processes import may_be_at_work
from tokenstore.storage.rows import new_version, row_size, to_columns, to_history_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenstore.models.accounts import HistoryEntry, Record
    from tokenstore.models.further_tokens import FurtherToken
    from tokenstore.models.targets import Target
    from tokenstore.storage.base import Database
    from tokenstore.storage.further import FurtherTokens
    from tokenstore.storage.locks import HeldLock

Reason = Literal["due", "forced", "rejected"]

_PAGE = 500  # rows per query
_at_work: set[tuple[str, int]] = set()  # the refreshes of this process: database and number


@dataclass(frozen=True, slots=True)
class Refresh:
    """A refresh that is recorded as begun.

    Attributes:
        id: Its number; of two refreshes of an account, the later one has the higher number.
        started_at: When it began, in UTC epoch seconds.
        record: What was stored when it began; its refresh token is the one that is sent.
        identity: The database in which it is recorded (`Database.identity`).
        sent: Fingerprint of the refresh token that is sent; empty if none is.
        target: Which further access token it is for; None for the account's own.
        lock_lost: Whether another process could refresh the account at the same time.
    """

    id: int
    started_at: float
    record: Record
    identity: object
    sent: str
    target: Target | None = None
    lock_lost: bool = False


@dataclass(frozen=True, slots=True)
class Unanswered:
    """An earlier use of the same refresh token whose outcome is unknown.

    Attributes:
        host: The machine.
        started_at: When it began, in UTC epoch seconds.
        interrupted: Whether its process died; otherwise there was no usable response.
        status_code: The HTTP status of an unusable response, or None.
    """

    host: str
    started_at: float
    interrupted: bool
    status_code: int | None


class AccountChanged(Exception):  # noqa: N818 - not an error: the caller reads the account again
    """The account has changed since it was read, so that nothing was begun."""


class SpentToken(Exception):  # noqa: N818 - likewise
    """The stored refresh token was exchanged for another one before.

    Attributes:
        at: When, in UTC epoch seconds.
    """

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = at


class UnderWay(Exception):  # noqa: N818 - likewise: the caller waits, or reports it
    """A process that is alive has begun a refresh of the account and not ended it.

    Attributes:
        entry: The journal's entry of it.
    """

    def __init__(self, entry: HistoryEntry) -> None:
        super().__init__()
        self.entry = entry


class Journal:
    """The refreshes of the accounts of one database.

    Args:
        database: The database.
        record: Returns what is stored of an account, None if there is none.
        further: The further access tokens.
        clock: The time, in UTC epoch seconds.
    """

    def __init__(
        self,
        database: Database,
        record: Callable[[str], Record | None],
        further: FurtherTokens,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._record = record
        self._further = further
        self._clock = clock

    def last_begun(self, account_name: str) -> int:
        """Return the number of the account's last refresh, 0 if there was none."""
        row = self._database.fetch_one(sql.LAST_REFRESH, {"account_name": account_name})
        return 0 if row is None else int(row[0] or 0)

    def last_begun_at(self) -> float | None:
        """Return when the last refresh of any account began, in UTC epoch seconds."""
        row = self._database.fetch_one(sql.LAST_BEGUN, {})
        return None if row is None else row[0]

    def open_entry(self, account_name: str) -> HistoryEntry | None:
        """Return the account's refresh that is begun and not ended, None if there is none."""
        row = self._database.fetch_one(sql.OPEN_REFRESH, {"account_name": account_name})
        return None if row is None else to_history_entry(row)

    def unanswered(self, refresh: Refresh) -> Unanswered | None:
        """Return the last earlier use of the same refresh token whose outcome is unknown."""
        if not refresh.sent:
            return None
        row = self._database.fetch_one(
            sql.UNANSWERED,
            {
                "account_name": refresh.record.account_name,
                "before": refresh.id,
                "sent": refresh.sent,
            },
        )
        if row is None:
            return None
        host, started_at, outcome, status_code = row
        return Unanswered(host, started_at, outcome in {None, "interrupted"}, status_code)

    def spent_at(self, refresh_token: str) -> float | None:
        """Return when a refresh token was exchanged for another one, None if it was not.

        The account is not compared: the same login may be stored under two names.
        """
        row = self._database.fetch_one(sql.SPENT_AT, {"sent": fingerprint(refresh_token)})
        return None if row is None else row[0]

    def reason_of(self, record: Record) -> str | None:
        """Return why the refresh was made that a record comes from, None if that is unknown."""
        row = self._database.fetch_one(sql.REASON, {"id_": record.refresh_id})
        return None if row is None else row[0]

    def history(self, account_name: str | None = None) -> Iterator[HistoryEntry]:
        """Yield the recorded refreshes, of one account or of all, newest first."""
        query = sql.PAGE_OF_HISTORY if account_name is None else sql.PAGE_OF_ITS_HISTORY
        its = {} if account_name is None else {"account_name": normalize_account_name(account_name)}
        before = 2**62
        while rows := self._database.fetch_all(query, its | {"before": before, "page": _PAGE}):
            yield from map(to_history_entry, rows)
            before = rows[-1][0]

    def begin(
        self,
        record: Record,
        *,
        provider: str,
        reason: Reason,
        longest: float,
        spends: bool = True,
        target: Target | None = None,
    ) -> Refresh:
        """Record that a refresh begins. The caller holds the account's lock.

        It touches the account's own row, and requires room for the outcome: so it proves that the
        outcome can be stored, before the refresh token is spent.

        Args:
            record: What is stored of the account.
            provider: The provider that the request goes to.
            reason: Why the account is refreshed.
            longest: Seconds that a refresh may last at most, in any process.
            spends: Whether the stored refresh token is sent; not so for an account of no user.
            target: Which further access token is requested. Defaults to the account's own.

        Raises:
            AccountChanged: The account has changed since *record* was read.
            UnderWay: Another process is refreshing the account, lock or no lock.
            SpentToken: The stored refresh token must not be sent again.
            StorageError: The outcome could not be stored.
        """
        now, sent = self._clock(), _fingerprint(record.tokens) if spends else ""
        account = {"account_name": record.account_name}
        begun = {
            "provider": provider,
            "reason": reason,
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "started_at": now,
            "sent": sent,
            "target": target and target.text,
        }
        unchanged = {"name": record.account_name, "read_version": record.version}

        def begin() -> Refresh:
            # First, because it takes the row's lock: of two that come here together, the second
            # one waits, and then sees the entry of the first.
            if not self._database.execute(sql.TOUCH, unchanged):
                raise AccountChanged
            self._require_ended(record.account_name, now, longest)
            spent_at = self.spent_at(record.tokens.refresh_token or "") if spends else None
            if spent_at is not None:
                raise SpentToken(spent_at)
            self._close_interrupted(record.account_name, now)
            ((number,),) = self._database.fetch_all(sql.BEGIN_REFRESH, account | begun)
            return Refresh(int(number), now, record, self._database.identity(), sent, target)

        self._database.require_room(row_size(record.tokens))
        try:
            refresh = self._database.run(begin)
        except StorageError:
            self._close_unknown(record.account_name, now, longest)
            raise
        _at_work.add((self._database.name, refresh.id))
        return refresh

    def _close_unknown(self, account_name: str, now: float, longest: float) -> None:
        """Close an entry that was committed although the commit was reported as failed.

        Otherwise other processes would take it for a refresh of this one, as long as it lives.
        """

        def close() -> None:
            self._require_ended(account_name, now, longest)
            self._close_interrupted(account_name, now)

        with suppress(StorageError, UnderWay):
            self._database.run(close)

    def _close_interrupted(self, account_name: str, now: float) -> None:
        its = {"account_name": account_name, "finished_at": now}
        self._database.execute(sql.CLOSE_INTERRUPTED, its)

    def note_failure(self, record: Record, failure: Failure) -> None:
        """Store a failure that no request led to, unless the account has changed meanwhile."""
        row = {
            "name": record.account_name,
            "read_version": record.version,
            "refresh_id": record.refresh_id,
            "failure": failure.to_json(),
        }
        self._database.run(lambda: self._database.execute(sql.STORE_FAILURE, row))

    def abandon(self, refresh: Refresh) -> None:
        """Give up a refresh whose outcome cannot be stored; its entry counts as interrupted."""
        _at_work.discard((self._database.name, refresh.id))

    def _require_ended(self, account_name: str, now: float, longest: float) -> None:
        """Raise `UnderWay` if an entry is open and its process may still be at work."""
        entry = self.open_entry(account_name)
        if entry is None:
            return
        if entry.host == os.uname().nodename and entry.pid == os.getpid():
            alive = (self._database.name, entry.id) in _at_work
        else:
            alive = may_be_at_work(
                entry.host, entry.pid, since=entry.started_at, now=now, longest=longest
            )
        if alive:
            raise UnderWay(entry)

    def finish(
        self,
        refresh: Refresh,
        outcome: Failure | Callable[[TokenSet], TokenSet],
        *,
        provider: str,
        lock: HeldLock | None = None,
        further: FurtherToken | None = None,
    ) -> Record | None:
        """Store the outcome and close the journal's entry, in one transaction.

        The row is read again first. If it still holds the refresh token that was sent, the outcome
        belongs to it, whatever else of it was changed meanwhile. If it holds another one, or is
        gone, it is left as it is and the journal says ``superseded``. This may be called again
        when it is not known whether an earlier call has stored anything.

        Args:
            refresh: What `begin` returned.
            outcome: Merges the response into the tokens that are stored now; or the failure.
            provider: The provider that responded.
            lock: The account's lock, which is released with the commit where the backend can.
            further: The further access token, if the refresh was for one and succeeded. Then
                *outcome* changes the refresh token alone.

        Returns:
            What is stored now, None if the account is gone.
        """
        now = self._clock()

        def finish() -> Record | None:
            if self._is_stored(refresh):  # by an earlier call, whose success was not reported
                current = self._record(refresh.record.account_name)
                return current and self._further.shown(current, refresh.target)
            current = self._database_record(refresh.record.account_name)
            applied = current is not None and _holds_what_was_sent(current, refresh)
            if current is not None and applied:
                self._apply(refresh, current, outcome, provider)
                if further is not None:
                    self._further.store(current.account_name, further)
                current = self._record(current.account_name)
            self._close(refresh, outcome, current, applied=applied, now=now)
            return current and self._further.shown(current, refresh.target)

        stored = self._database.run(finish, expected_identity=refresh.identity, lock=lock)
        _at_work.discard((self._database.name, refresh.id))
        return stored

    def _is_stored(self, refresh: Refresh) -> bool:
        return self._database.fetch_one(sql.IS_STORED, {"id_": refresh.id}) is not None

    def _database_record(self, account_name: str) -> Record | None:
        """Return what is stored, and keep others from changing it until the transaction ends."""
        if not self._database.execute(sql.LOCK_ROW, {"account_name": account_name}):
            return None
        return self._record(account_name)

    def _apply(
        self,
        refresh: Refresh,
        current: Record,
        outcome: Failure | Callable[[TokenSet], TokenSet],
        provider: str,
    ) -> None:
        row = {
            "name": current.account_name,
            "read_version": current.version,
            "refresh_id": refresh.id,
        }
        target = refresh.target
        if isinstance(outcome, Failure):
            if target is not None and is_refused_target(target, outcome):
                self._further.refuse(current.account_name, target, outcome, refresh_id=refresh.id)
                return
            self._database.execute(sql.STORE_FAILURE, row | {"failure": outcome.to_json()})
            return
        if target is not None:  # the account's own access token stays as it is
            row["refresh_id"] = current.refresh_id
        row |= {
            "version": new_version(),
            "provider": provider,
            "refreshed_at": refresh.started_at if target is None else current.refreshed_at,
            **to_columns(current.account_name, outcome(current.tokens)),
        }
        self._database.scrub_after_commit()
        self._database.execute(sql.STORE_TOKENS, row)

    def _close(
        self,
        refresh: Refresh,
        outcome: Failure | Callable[[TokenSet], TokenSet],
        stored: Record | None,
        *,
        applied: bool,
        now: float,
    ) -> None:
        if stored is None:  # a deleted account is forgotten, this refresh included
            self._database.execute(sql.FORGET_REFRESH, {"id_": refresh.id})
            return
        failure = outcome if isinstance(outcome, Failure) else None
        result = "refreshed" if failure is None else failure.kind
        # what the response gave, even if the row holds something else by now
        sent = refresh.record.tokens
        received = sent if isinstance(outcome, Failure) else outcome(sent)
        self._database.execute(
            sql.CLOSE_REFRESH,
            {
                "id_": refresh.id,
                "finished_at": now,
                "outcome": result if applied else "superseded",
                "received": _fingerprint(received) if refresh.sent else "",
                "status_code": failure and failure.status_code,
                "error": _error_of(failure, refresh),
                "maybe_spent": bool(refresh.sent and failure and _maybe_spent(failure)),
            },
        )
        self._database.execute(sql.PRUNE_REFRESHES, {"account_name": refresh.record.account_name})


def _error_of(failure: Failure | None, refresh: Refresh) -> str | None:
    if failure is not None:
        return failure.error or failure.kind
    return sql.LOCK_LOST if refresh.lock_lost else None


def _maybe_spent(failure: Failure) -> bool:
    """Return whether the token may be spent: a gateway can lose a successful response, too."""
    return failure.maybe_spent or (failure.status_code or 0) >= 500  # noqa: PLR2004


def _holds_what_was_sent(current: Record, refresh: Refresh) -> bool:
    is_same = current.tokens.refresh_token == refresh.record.tokens.refresh_token
    # Where nothing was sent, only the provider says whose tokens these are.
    return is_same and (bool(refresh.sent) or current.provider == refresh.record.provider)


def _fingerprint(tokens: TokenSet) -> str:
    return fingerprint(tokens.refresh_token or "")
