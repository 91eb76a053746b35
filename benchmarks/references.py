"""Lower bounds for each operation, and a typical hand-written file store."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Memory:
    """A dictionary and a clock."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[str, float]] = {}

    def save(self, name: str, tokens: dict[str, Any]) -> None:
        """Keep a token."""
        self._entries[name] = tokens["access_token"], tokens["expires_at"]

    def get_valid_token(self, name: str) -> str | None:
        """Return the token if it is valid."""
        entry = self._entries.get(name)
        if entry is not None and time.time() < entry[1]:
            return entry[0]
        return None


class RawSQLite:
    """One table and one connection with tokenstore's pragmas, without any validation."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
            self.connection.execute(f"PRAGMA {pragma}")
        self.connection.execute(
            "CREATE TABLE IF NOT EXISTS tokens (account_name TEXT PRIMARY KEY, access_token TEXT,"
            " refresh_token TEXT, expires_at REAL, extra TEXT)"
        )

    def token(self, name: str) -> tuple[str, float]:
        """Return an access token and its expiry."""
        row: tuple[str, float] = self.connection.execute(
            "SELECT access_token, expires_at FROM tokens WHERE account_name = ?", (name,)
        ).fetchone()
        return row

    def load(self, name: str) -> tuple[Any, ...]:
        """Return the row of an account."""
        row: tuple[Any, ...] = self.connection.execute(
            "SELECT * FROM tokens WHERE account_name = ?", (name,)
        ).fetchone()
        return row

    def save(self, name: str, tokens: dict[str, Any]) -> None:
        """Store tokens in one durable transaction."""
        self.save_all([(name, tokens)])

    def save_all(self, accounts: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Store many tokens in one durable transaction."""
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(_UPSERT, (_row(*account) for account in accounts))
        self.connection.execute("COMMIT")

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


_UPSERT = (
    "INSERT INTO tokens VALUES (?, ?, ?, ?, ?) ON CONFLICT (account_name) DO UPDATE SET"
    " access_token = excluded.access_token, refresh_token = excluded.refresh_token,"
    " expires_at = excluded.expires_at, extra = excluded.extra"
)


def _row(name: str, tokens: dict[str, Any]) -> tuple[Any, ...]:
    extra = {key: value for key, value in tokens.items() if key not in _COLUMNS}
    return name, *(tokens.get(column) for column in _COLUMNS), json.dumps(extra)


_COLUMNS = ("access_token", "refresh_token", "expires_at")


def read_json(path: Path) -> Any:
    """Read and parse a JSON file."""
    with path.open("rb") as file:
        return json.load(file)


class FileManager:
    """One JSON file per account, written to a temporary file and renamed.

    Args:
        directory: The directory of the files.
        durable: Whether a save calls fsync.
    """

    _BUFFER = timedelta(seconds=300)

    def __init__(self, directory: Path, *, durable: bool = False) -> None:
        self._directory = directory
        self._durable = durable
        self._cache: dict[str, dict[str, Any]] = {}

    def path(self, name: str) -> Path:
        """Return the file of an account."""
        return self._directory / f"{name}.json"

    def save(self, name: str, tokens: dict[str, Any]) -> None:
        """Replace an account's file atomically."""
        expiry = datetime.fromtimestamp(tokens["expires_at"]).isoformat()  # noqa: DTZ006 - local time
        path = self.path(name)
        new = path.with_suffix(".tmp")
        with new.open("w") as file:
            json.dump(tokens | {"expires_at": expiry}, file)
            if self._durable:
                file.flush()
                os.fsync(file.fileno())
        new.replace(path)
        self._cache.pop(name, None)

    def load(self, name: str) -> dict[str, Any] | None:
        """Read the file of an account."""
        path = self.path(name)
        if not path.exists():
            return None
        tokens: dict[str, Any] = read_json(path)
        return tokens

    def get_valid_token(self, name: str) -> str | None:
        """Return the token if it is valid; reads the file once."""
        tokens = self._cache.get(name)
        if tokens is None:
            tokens = self.load(name)
            if tokens is None:
                return None
            self._cache[name] = tokens
        return None if self.is_expired(tokens) else tokens["access_token"]

    def get_stored_token(self, name: str) -> str | None:
        """Return the token if it is valid; reads the file each time."""
        tokens = self.load(name)
        return None if tokens is None or self.is_expired(tokens) else tokens["access_token"]

    def is_expired(self, tokens: dict[str, Any]) -> bool:
        """Return whether the token expires within five minutes."""
        expiry = datetime.fromisoformat(tokens["expires_at"])
        return datetime.now() >= expiry - self._BUFFER  # noqa: DTZ005 - local time
