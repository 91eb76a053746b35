"""Check the rows of either database: damage, shared tokens, unanswered refreshes."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import func, select

from tokenstore.doctor.findings import Finding, counted, ok
from tokenstore.models.tokens import fingerprint
from tokenstore.storage.rows import (
    FURTHER_COLUMNS,
    TOKEN_COLUMNS,
    CorruptRowError,
    is_text,
    to_further,
    to_tokens,
)
from tokenstore.storage.tables import access_tokens, accounts, refreshes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy.sql import ClauseElement

    from tokenstore.storage.query import Row


class UnansweredRefresh(NamedTuple):
    """A refresh in the journal that began and has no recorded response."""

    id: int
    account_name: str
    host: str


class RowChecks:
    """Checks the rows of a store with the newest schema.

    Args:
        read: Runs a query and returns its rows, bypassing SQLAlchemy, whose log would show them.
    """

    def __init__(self, read: Callable[[ClauseElement], Iterable[Row]]) -> None:
        self._read = read

    def integrity(self, intact: str, restore: str) -> Iterator[Finding]:
        """Check the checksums of the rows of accounts and of further access tokens.

        Args:
            intact: The message if all are correct.
            restore: The hint if one is not.
        """
        damaged = tuple(self._damaged_accounts())
        if damaged:
            yield Finding(
                "integrity",
                "error",
                f"the stored data of {counted(len(damaged), 'account')} is not what was saved",
                f"{restore}; or sign in again",
                damaged,
            )
        else:
            yield ok("integrity", intact)
        further = tuple(self._damaged_further())
        if further:
            yield Finding(
                "integrity",
                "warning",
                f"further access tokens of {counted(len(further), 'account')} are not what was "
                "saved; they are never used",
                "nothing to do: the next use of each obtains a new one",
                further,
            )

    def shared_tokens(self) -> Iterator[Finding]:
        """Report accounts that share a refresh token; rotating it invalidates the others'."""
        counts = Counter(each for _, each in self._fingerprints())
        shared = {each for each, count in counts.items() if count > 1}
        del counts
        names: dict[str, list[str]] = defaultdict(list)
        for name, each in self._fingerprints() if shared else ():
            if each in shared:
                names[each].append(name)
        for group in names.values():
            yield Finding(
                "shared tokens",
                "warning",
                f"{len(group)} accounts have the same refresh token; if the provider rotates it, "
                "refreshing one account invalidates it for the others",
                "keep one of them; delete the others or sign them in separately",
                tuple(group),
            )
        if not names:
            yield ok("shared tokens", "no two accounts have the same refresh token")

    def unanswered_refreshes(self) -> set[UnansweredRefresh]:
        """Return the refreshes without a recorded response whose token is still stored."""
        last = select(func.max(refreshes.c.id)).group_by(refreshes.c.account_name)
        query = (
            select(
                refreshes.c.id,
                refreshes.c.account_name,
                refreshes.c.host,
                refreshes.c.sent,
                accounts.c.refresh_token,
            )
            .join_from(refreshes, accounts, refreshes.c.account_name == accounts.c.account_name)
            .where(
                refreshes.c.id.in_(last),
                refreshes.c.outcome.is_(None)
                | (refreshes.c.outcome == "interrupted")
                | refreshes.c.maybe_spent,
            )
        )
        return {
            UnansweredRefresh(number, name, host)
            for number, name, host, sent, token in self._read(query)
            if is_text(token) and fingerprint(token) == sent
        }

    def _fingerprints(self) -> Iterator[tuple[str, str]]:
        """Yield the accounts and the fingerprints of their refresh tokens, in the order of names.

        A database that grouped the tokens itself would write them to its temporary files.
        """
        token = accounts.c.refresh_token
        query = select(accounts.c.account_name, token).where(token.is_not(None))
        for name, value in self._read(query.order_by(accounts.c.account_name)):
            if is_text(value):
                yield name, fingerprint(value)

    def _damaged_accounts(self) -> Iterator[str]:
        columns = (accounts.c[name] for name in ("account_name", *TOKEN_COLUMNS, "checksum"))
        query = select(*columns).order_by(accounts.c.account_name)
        for name, *row in self._read(query):
            try:
                to_tokens(name, tuple(row))
            except CorruptRowError:
                yield ascii(name) if not is_text(name) else name

    def _damaged_further(self) -> Iterator[str]:
        """Yield the accounts with a damaged access token for another scope or resource, once."""
        columns = (access_tokens.c[name] for name in ("account_name", *FURTHER_COLUMNS))
        query = select(*columns).order_by(access_tokens.c.account_name)
        last = None
        for name, *row in self._read(query):
            try:
                to_further(name, tuple(row))
            except CorruptRowError:
                if name != last:
                    yield ascii(name) if not is_text(name) else name
                last = name
