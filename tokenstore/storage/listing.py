"""Lists of accounts, read page by page, without a transaction that stays open between pages."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from tokenstore.models.accounts import Account, Record
from tokenstore.models.expiry import clock_moved_back, refresh_due_at, state_of
from tokenstore.models.timestamps import has_end
from tokenstore.models.tokens import normalize_account_name
from tokenstore.storage import statements as sql
from tokenstore.storage.rows import (
    CorruptRowError,
    corrupt_account_error,
    is_text,
    is_timestamp,
    to_failure,
    to_record,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tokenstore.storage.base import Database
    from tokenstore.storage.query import CompiledStatement, Row

_PAGE = 500  # rows per query


class AccountListing:
    """Lists the accounts of one database.

    Args:
        database: The database.
        clock: Returns the current time, in UTC epoch seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def accounts(
        self,
        *,
        expiry_buffer: float,
        client_of: Callable[[str | None], str | None],
        is_unattended: Callable[[str | None], bool] = lambda _: False,
        names: Iterable[str] | None = None,
    ) -> Iterator[Account]:
        """Yield accounts in the order of their names (see `TokenRepository.accounts`)."""
        if names is None:
            rows = self._pages(sql.PAGE_OF_ACCOUNTS, _name_of, after="")
        else:
            rows = self._rows_of(names)
        for row in rows:
            yield self._account(row, expiry_buffer, client_of, is_unattended)

    def due_candidates(
        self,
        *,
        before: float,
        expiry_buffer: float,
        client_of: Callable[[str | None], str | None],
        is_unattended: Callable[[str | None], bool] = lambda _: False,
    ) -> Iterator[Account]:
        """Yield the accounts whose token expires soon or at an unknown time, or that have no token.

        The most urgent come first. The cost depends on their number, not on that of all accounts.

        Args:
            before: The latest expiry, in UTC epoch seconds.
            expiry_buffer: As for `TokenRepository.accounts`.
            client_of: As for `TokenRepository.accounts`.
            is_unattended: As for `TokenRepository.accounts`.
        """
        scans = (
            self._pages(
                sql.PAGE_OF_EXPIRING,
                _expiry_of,
                horizon=before,
                after_expiry=float("-inf"),
                after="",
            ),
            self._pages(sql.PAGE_OF_UNDATED, _name_of, after=""),
            self._pages(sql.PAGE_OF_TOKENLESS, _name_of, horizon=before, after=""),
        )
        for row in chain(*scans):
            yield self._account(row, expiry_buffer, client_of, is_unattended)

    def records(self) -> Iterator[Record | CorruptRowError]:
        """Yield the record of every account in the order of names, or an error if it is damaged."""
        for row in self._pages(sql.PAGE_OF_RECORDS, _name_of, after=""):
            try:
                yield to_record(row)
            except CorruptRowError as error:
                yield error

    def count_by_provider(self) -> dict[str | None, int]:
        """Return the number of accounts of each provider."""
        return dict(self._database.fetch_all(sql.COUNT_BY_PROVIDER, {}))

    def names(self, prefix: str, *, limit: int) -> list[str]:
        """Return the first *limit* names that begin with *prefix*, in order."""
        span = {"first": prefix, "last": prefix + "\U0010ffff", "page": limit}
        return [str(name) for (name,) in self._database.fetch_all(sql.NAMES, span)]

    def _pages(
        self,
        statement: CompiledStatement,
        position_of: Callable[[Row], dict[str, Any]],
        **first: Any,
    ) -> Iterator[Row]:
        """Yield rows page by page. A damaged name does not hide other accounts.

        Args:
            statement: The query of one page.
            position_of: Returns the parameters for the page that starts after a row.
            first: The parameters of the first page, and those that all pages share.
        """
        position = first
        previous: set[object] = set()
        while rows := self._database.fetch_all(statement, {**position, "page": _PAGE}):
            yield from (row for row in rows if row[0] not in previous)
            previous = {row[0] for row in rows}
            last = max(
                (row for row in rows if is_text(row[0])),
                key=lambda row: tuple(position_of(row).values()),
                default=None,
            )
            following = position if last is None else {**first, **position_of(last)}
            if following == position:  # only damaged names remain
                if len(rows) == _PAGE:
                    raise corrupt_account_error(self._database.name, str(rows[0][0]))
                return
            position = following

    def _rows_of(self, names: Iterable[str]) -> Iterator[Row]:
        for name in sorted(set(map(normalize_account_name, names))):
            row = self._database.fetch_one(sql.ACCOUNT, {"account_name": name})
            if row is not None:
                yield row

    def _account(
        self,
        row: Row,
        expiry_buffer: float,
        client_of: Callable[[str | None], str | None],
        is_unattended: Callable[[str | None], bool],
    ) -> Account:
        name, provider, details, usable, has_refresh_token, *timestamps = row
        expires_at, refreshed_at, obtained_at, refresh_expires_at = (
            timestamp if is_timestamp(timestamp) else None for timestamp in timestamps
        )
        name, provider = (v if v is None or is_text(v) else ascii(v) for v in (name, provider))
        now = self._clock()
        failure = to_failure(details)
        # As Record.is_endless and Record.is_permanent.
        endless = usable and not has_refresh_token and not has_end(expires_at)
        permanent = endless and (failure is None or failure.kind != "reauthorization")
        refreshable = bool(has_refresh_token) or is_unattended(provider)
        last_error = None if failure is None else failure.message.removeprefix(f"{name}: ")
        if failure is not None and client_of(provider) not in {None, failure.client}:
            failure = None  # the settings have changed since, so a retry may succeed
        state = state_of(
            due=not permanent
            and (
                endless
                or not usable
                or refresh_due_at(expires_at, refreshed_at, expiry_buffer) <= now
                or clock_moved_back(refreshed_at, now)
            ),
            refreshable=refreshable,
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
            refresh_expires_at,
            refreshable=refreshable and (failure is None or not failure.forbids_requests(now)),
        )


def _name_of(row: Row) -> dict[str, Any]:
    return {"after": row[0]}


def _expiry_of(row: Row) -> dict[str, Any]:
    return {"after_expiry": row[_EXPIRES_AT], "after": row[0]}


_EXPIRES_AT = 5  # the column of an `Account` row
