"""A store in a SQLite file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenstore.doctor.contents import Contents
from tokenstore.doctor.files import Files
from tokenstore.doctor.findings import Finding
from tokenstore.errors import InsecureStorageError, StorageError
from tokenstore.storage.sqlite.connector import Connector
from tokenstore.storage.sqlite.database import SQLiteDatabase

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tokenstore.doctor.integrity import Unanswered


class SQLiteStore:
    """Looks at the file, at those around it, and at what is in it.

    Args:
        path: The database file.
        fix: Whether to put right what is safe to.
    """

    def __init__(self, path: Path, *, fix: bool) -> None:
        self._path = path
        self._fix = fix
        self._opener = Connector(path, journal_mode="wal", upgrade=False)
        self._database = SQLiteDatabase(path)
        self.is_readable = False  # as long as nobody has looked

    def examine(self) -> Iterator[Finding]:
        """Look at everything save the accounts."""
        file = self._opener.file
        if file.inspect() is None:
            file.reject_stale_wal()
            what = f"{self._path}: there is no database; the first save creates it"
            yield Finding("database", "warning", what, "check the path, if there should be one")
            return
        try:
            with self._database.inspection():
                pass
        except InsecureStorageError:  # it is somebody else's: nothing around it is our business
            raise
        except StorageError:
            yield from Files(file, fix=False).permissions(opened=False)
            raise
        files = Files(file, fix=self._fix)
        yield from files.permissions()
        yield from files.leftovers()
        with self._database.inspection() as connection:
            contents = Contents(self._path, connection)
            yield from files.file_system(contents.journal_mode)
            yield from contents.examine()
            self.is_readable = contents.is_readable

    def unanswered(self) -> set[Unanswered]:
        """Return the refreshes that had no answer that anybody knows of."""
        with self._database.inspection() as connection:
            return Contents(self._path, connection).rows.unanswered()

    def is_held(self, account_name: str) -> bool:
        """Tell whether somebody refreshes an account just now."""
        return self._opener.locks.is_held(account_name)

    def close(self) -> None:
        """Close what was opened."""
        self._database.close()
