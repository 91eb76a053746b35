"""Compare the schema of a store with the one that this version requires."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from tokenstore import migrate
from tokenstore.doctor.findings import Finding, ok
from tokenstore.errors import StorageError
from tokenstore.storage.location import display_name
from tokenstore.storage.migrations import command
from tokenstore.storage.tables import REVISION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy.engine import URL


def compare_schema(database: Path | URL, revision: str | None) -> Iterator[Finding]:
    """Report whether the schema is the one that this version requires.

    Args:
        database: The path or the URL of the store.
        revision: The revision that the store records, or None.
    """
    if revision is not None and revision > REVISION:
        message = f"schema {revision} is newer than {REVISION}, the newest this version supports"
        yield Finding("schema", "error", message, "upgrade tokenstore")
    elif revision != REVISION:
        message = f"schema {revision or 'base'} is older than {REVISION}"
        hint = f"run: {command(display_name(database), 'db', 'upgrade')}"
        try:
            migrate.require_tables(database)
        except StorageError as error:
            message, _, hint = str(error).partition("; ")
        yield Finding("schema", "error", message, hint)
    else:
        try:
            migrate.check(database, stdout=io.StringIO())
        except StorageError:
            message = f"the tables were changed and do not match revision {REVISION}"
            hint = "undo the changes that tokenstore db check lists, or restore a backup"
            yield Finding("schema", "error", message, hint)
        else:
            yield ok("schema", f"revision {REVISION}, as this version requires")
