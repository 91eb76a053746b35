"""Fill a store of any size in seconds: the usual rows, inserted without tokenstore."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

from benchmarks.sample_data import LIFETIME, name, tokens
from tokenstore import TokenRepository
from tokenstore.models.tokens import TokenSet
from tokenstore.storage.rows import new_version, to_columns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.references import RawSQLite

DUE = 100  # accounts that expire within the hour; all others expire after a day or later
HOUR = 3600.0


def fill(path: Path, accounts: int, *, now: float) -> None:
    """Create a store with this number of accounts."""
    with TokenRepository(path) as repository:
        repository.save(name(0), tokens())  # creates the file, its tables and its settings
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        connection.execute("DELETE FROM accounts")
        columns = next(_columns(1, now))
        statement = f"INSERT INTO accounts ({', '.join(columns)}) VALUES (:{', :'.join(columns)})"
        connection.executemany(statement, _columns(accounts, now))
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")


def fill_raw(raw: RawSQLite, accounts: int, *, now: float) -> None:
    """Fill the raw reference with the same accounts and tokens."""
    raw.connection.execute("PRAGMA journal_mode = OFF")
    raw.connection.execute("PRAGMA synchronous = OFF")
    raw.connection.execute("BEGIN")
    rows = (
        (name(number), t.access_token, t.refresh_token, t.expires_at, json.dumps(t.extra))
        for number, t in enumerate(_token_sets(accounts, now))
    )
    raw.connection.executemany("INSERT INTO tokens VALUES (?, ?, ?, ?, ?)", rows)
    raw.connection.execute("COMMIT")
    raw.connection.execute("PRAGMA journal_mode = WAL")
    raw.connection.execute("PRAGMA synchronous = FULL")


def _columns(accounts: int, now: float) -> Iterator[dict[str, Any]]:
    for number, token_set in enumerate(_token_sets(accounts, now)):
        account = name(number)
        columns = to_columns(account, token_set)
        yield {"account_name": account, "version": new_version(), **columns}


def _token_sets(accounts: int, now: float) -> Iterator[TokenSet]:
    sample = tokens()
    access, refresh = sample["access_token"][12:], sample["refresh_token"][12:]
    extra = {"scope": sample["scope"], "token_type": sample["token_type"]}
    for number in range(accounts):
        yield TokenSet(
            access_token=f"{number:012}{access}",
            refresh_token=f"{number:012}{refresh}",
            expires_at=now + (HOUR / 2 if number < DUE else LIFETIME + number % 86400),
            refresh_token_obtained_at=now,
            extra=extra,
        )
