"""Chooses the backend of a database. No other module imports a backend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokenstore.storage.location import locate

if TYPE_CHECKING:
    import os

    from sqlalchemy.engine import URL

    from tokenstore.storage.base import Database, JournalMode


def database_for(
    database: str | os.PathLike[str] | URL | None,
    *,
    journal_mode: JournalMode = "wal",
    upgrade: bool = False,
) -> Database:
    """Return the database at a location, without opening it.

    Args:
        database: A path, an SQLAlchemy URL, or None for the default (see `locate`).
        journal_mode: ``wal`` or ``delete``, for a SQLite file.
        upgrade: Migrate an older database instead of refusing it.

    Raises:
        ValueError: The location is neither a SQLite file nor a PostgreSQL database.
        ModuleNotFoundError: It is a PostgreSQL database, and the driver is not installed.
    """
    location = locate(database)
    if isinstance(location, Path):
        from tokenstore.storage.sqlite.database import SQLiteDatabase

        return SQLiteDatabase(location, journal_mode=journal_mode, upgrade=upgrade)
    if journal_mode != "wal":
        raise ValueError("journal_mode: only for a SQLite file")
    try:
        from tokenstore.storage.postgresql.database import PostgreSQLDatabase
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise ModuleNotFoundError(
            "PostgreSQL needs psycopg; run: pip install 'tokenstore[postgresql]'", name="psycopg"
        ) from None
    return PostgreSQLDatabase(location, upgrade=upgrade)
