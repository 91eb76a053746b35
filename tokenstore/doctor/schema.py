"""The schema of a store against the one that this version works with."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from tokenstore import migrate
from tokenstore.doctor.findings import Finding, ok
from tokenstore.errors import StorageError
from tokenstore.storage.location import display_name
from tokenstore.storage.tables import REVISION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy.engine import URL


def compare_schema(database: Path | URL, revision: str | None) -> Iterator[Finding]:
    """Look at the schema: is it the one that this version works with?

    Args:
        database: Where the store is.
        revision: The newest migration that it says it has had.
    """
    if revision is not None and revision > REVISION:
        what = f"schema {revision} is newer than {REVISION}, which this tokenstore knows"
        yield Finding("schema", "error", what, "upgrade tokenstore")
    elif revision != REVISION:
        what = f"schema {revision or 'base'} is older than {REVISION}"
        cure = f"run: tokenstore --database '{display_name(database)}' db upgrade"
        yield Finding("schema", "error", what, cure)
    else:
        try:
            migrate.check(database, stdout=io.StringIO())
        except StorageError:
            what = f"the tables are not those of revision {REVISION}: somebody changed them"
            cure = "undo the changes, which tokenstore db check lists, or restore a backup"
            yield Finding("schema", "error", what, cure)
        else:
            yield ok("schema", f"revision {REVISION}, as this version wants it")
