"""Many accounts at once: read page by page, without a transaction that stays open between them."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from tokenstore.models.accounts import Account, Record
from tokenstore.models.expiry import clock_moved_back, refresh_due_at, state_of
from tokenstore.models.tokens import normalize_account_name
from tokenstore.storage import statements as sql
from tokenstore.storage.rows import (
    CorruptRowError,
    damaged,
    is_moment,
    is_text,
    to_failure,
    to_record,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tokenstore.storage.base import Database
    from tokenstore.storage.query import Query, Row

_PAGE = 500  # rows a query


class Listing:
    """The accounts of one database, in lists.

    Args:
        database: The database.
        clock: The time, in UTC epoch seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def accounts(
        self,
        *,
        expiry_buffer: float,
        client_of: Callable[[str | None], str | None],
        names: Iterable[str] | None = None,
    ) -> Iterator[Account]:
        """Yield every account in the order of names (see `TokenRepository.accounts`)."""
        if names is None:
            rows = self._pages(sql.PAGE_OF_ACCOUNTS, _name_of, after="")
        else:
            rows = self._rows_of(names)
        for row in rows:
            yield self._account(row, expiry_buffer, client_of)

    def due_candidates(
        self,
        *,
        before: float,
        expiry_buffer: float,
        client_of: Callable[[str | None], str | None],
    ) -> Iterator[Account]:
        """Yield the accounts whose token expires by a moment, and those that have none.

        The most urgent come first. It costs what they are, not what all accounts are.

        Args:
            before: The moment, in UTC epoch seconds.
            expiry_buffer: As for `TokenRepository.accounts`.
            client_of: Likewise.
        """
        scans = (
            self._pages(
                sql.PAGE_OF_EXPIRING,
                _expiry_of,
                horizon=before,
                after_expiry=_FIRST_MOMENT,
                after="",
            ),
            self._pages(sql.PAGE_OF_UNDATED, _name_of, after=""),
            self._pages(sql.PAGE_OF_TOKENLESS, _name_of, horizon=before, after=""),
        )
        for row in chain(*scans):
            yield self._account(row, expiry_buffer, client_of)

    def records(self) -> Iterator[Record | CorruptRowError]:
        """Yield all that is stored of every account in the order of names, page by page.

        One that is damaged is told as such and stops nothing.
        """
        for row in self._pages(sql.PAGE_OF_RECORDS, _name_of, after=""):
            try:
                yield to_record(row)
            except CorruptRowError as damaged:
                yield damaged

    def names(self, prefix: str, *, limit: int) -> list[str]:
        """Return the names that begin with *prefix*, in order, so many at most."""
        span = {"first": prefix, "last": prefix + "\U0010ffff", "page": limit}
        return [str(name) for (name,) in self._database.fetch_all(sql.NAMES, span)]

    def _pages(
        self, query: Query, place_of: Callable[[Row], dict[str, Any]], **first: Any
    ) -> Iterator[Row]:
        """Yield rows page by page; a name that is damaged hides no other.

        Args:
            query: The query of one page.
            place_of: Returns the parameters with which a page begins after a row.
            first: Those of the first page, and all that are the same for every page.
        """
        place = first
        told: set[object] = set()
        while rows := self._database.fetch_all(query, {**place, "page": _PAGE}):
            yield from (row for row in rows if row[0] not in told)
            told = {row[0] for row in rows}
            last = max(
                (row for row in rows if is_text(row[0])),
                key=lambda row: tuple(place_of(row).values()),
                default=None,
            )
            following = place if last is None else {**first, **place_of(last)}
            if following == place:  # damaged names alone are left
                if len(rows) == _PAGE:
                    raise damaged(self._database.name, str(rows[0][0]))
                return
            place = following

    def _rows_of(self, names: Iterable[str]) -> Iterator[Row]:
        for name in sorted(set(map(normalize_account_name, names))):
            row = self._database.fetch_one(sql.ACCOUNT, {"account_name": name})
            if row is not None:
                yield row

    def _account(
        self, row: Row, expiry_buffer: float, client_of: Callable[[str | None], str | None]
    ) -> Account:
        name, provider, details, usable, refreshable, *moments = row
        expires_at, refreshed_at, obtained_at, dies_at = (
            moment if is_moment(moment) else None for moment in moments
        )
        name, provider = (v if v is None or is_text(v) else ascii(v) for v in (name, provider))
        now = self._clock()
        failure = to_failure(details)
        last_error = None if failure is None else failure.message.removeprefix(f"{name}: ")
        if failure is not None and client_of(provider) not in {None, failure.client}:
            failure = None  # the settings were changed since: it is worth another try
        state = state_of(
            due=not usable
            or refresh_due_at(expires_at, refreshed_at, expiry_buffer) <= now
            or clock_moved_back(refreshed_at, now),
            refreshable=bool(refreshable),
            failure=failure,
            now=now,
        )
        return Account(
            name,
            provider,
            state,
            expires_at,
            refreshed_at,
            last_error,
            obtained_at,
            dies_at,
            refreshable=bool(refreshable)
            and (failure is None or not failure.forbids_requests(now)),
        )


def _name_of(row: Row) -> dict[str, Any]:
    return {"after": row[0]}


def _expiry_of(row: Row) -> dict[str, Any]:
    return {"after_expiry": row[_EXPIRES_AT], "after": row[0]}


_EXPIRES_AT = 5  # of the columns of `Account`s
_FIRST_MOMENT = float("-inf")
