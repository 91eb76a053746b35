"""What the tables hold, in whichever database: damage, shared tokens, refreshes without an end."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import func, select

from tokenstore.doctor.findings import Finding, counted, ok
from tokenstore.models.tokens import fingerprint
from tokenstore.storage.rows import TOKEN_COLUMNS, CorruptRowError, is_text, to_tokens
from tokenstore.storage.tables import accounts, refreshes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy.sql import ClauseElement

    from tokenstore.storage.query import Row


class Unanswered(NamedTuple):
    """A refresh that was begun, and of which nobody knows an end: its number, whose, and where."""

    id: int
    account_name: str
    host: str


class Rows:
    """The rows of a store with the newest schema.

    Args:
        read: Runs a query and returns its rows, past SQLAlchemy, whose log would show them.
    """

    def __init__(self, read: Callable[[ClauseElement], Iterable[Row]]) -> None:
        self._read = read

    def integrity(self, whole: str, restore: str) -> Iterator[Finding]:
        """Look at the checksums of what is stored.

        Args:
            whole: What to say if all is in order.
            restore: What to do if it is not.
        """
        damaged = tuple(self._damaged())
        if damaged:
            yield Finding(
                "integrity",
                "error",
                f"what is stored of {counted(len(damaged), 'account')} is not what was saved",
                f"{restore}; or sign them in again",
                damaged,
            )
        else:
            yield ok("integrity", whole)

    def shared_tokens(self) -> Iterator[Finding]:
        """Look for accounts that share a refresh token: one that rotates kills the other."""
        token = accounts.c.refresh_token
        shared = select(token).group_by(token).having(func.count() > 1)
        names: dict[str, list[str]] = defaultdict(list)
        query = select(accounts.c.account_name, token).where(token.in_(shared))
        for name, value in self._read(query.order_by(accounts.c.account_name)):
            names[value].append(name)
        for group in names.values():
            yield Finding(
                "shared tokens",
                "warning",
                f"{len(group)} accounts have the same refresh token; where a provider rotates it, "
                "the first refresh of one ends the others",
                "keep one of them, and delete the others or sign them in on their own",
                tuple(group),
            )
        if not names:
            yield ok("shared tokens", "no two accounts have the same refresh token")

    def unanswered(self) -> set[Unanswered]:
        """Return the refreshes that had no answer that anybody knows of, of tokens still stored."""
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
            Unanswered(number, name, host)
            for number, name, host, sent, token in self._read(query)
            if is_text(token) and fingerprint(token) == sent
        }

    def _damaged(self) -> Iterator[str]:
        columns = (accounts.c[name] for name in ("account_name", *TOKEN_COLUMNS, "checksum"))
        query = select(*columns).order_by(accounts.c.account_name)
        for name, *row in self._read(query):
            try:
                to_tokens(name, tuple(row))
            except CorruptRowError:
                yield ascii(name) if not is_text(name) else name
