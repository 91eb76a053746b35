"""Which kind of database a name stands for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokenstore.storage.location import locate

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from sqlalchemy import Connection
    from sqlalchemy.engine import URL

    from tokenstore.storage.base import Storage
    from tokenstore.storage.sqlite.schema import JournalMode


def storage(
    database: str | os.PathLike[str] | URL | None,
    migrate: Callable[[Connection], None],
    *,
    journal_mode: JournalMode = "wal",
    upgrade: bool = False,
) -> Storage:
    """Return the storage of a database, which is not touched yet.

    Args:
        database: A path, an SQLAlchemy URL, or None for the default (see `locate`).
        migrate: Brings the database of a connection to the newest schema.
        journal_mode: Of a SQLite file.
        upgrade: Migrate an older database in place of refusing it.

    Raises:
        ValueError: It is neither a SQLite file nor a PostgreSQL database.
        ModuleNotFoundError: It is the latter, and the driver is not installed.
    """
    found = locate(database)
    if isinstance(found, Path):
        from tokenstore.storage.sqlite.database import Database

        return Database(found, migrate, journal_mode=journal_mode, upgrade=upgrade)
    if journal_mode != "wal":
        raise ValueError("journal_mode: only a SQLite file has one")
    try:
        from tokenstore.storage.postgresql.database import PostgreSQLDatabase
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise ModuleNotFoundError(
            "PostgreSQL needs psycopg; run: pip install 'tokenstore[postgresql]'", name="psycopg"
        ) from None
    return PostgreSQLDatabase(found, migrate, upgrade=upgrade)
