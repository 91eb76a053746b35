"""Where things are: the database that a name stands for, the providers file beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

if TYPE_CHECKING:
    from sqlalchemy.engine import URL


def locate(database: str | os.PathLike[str] | URL | None) -> Path:
    """Return the absolute path of the SQLite file that *database* names.

    Args:
        database: A path, an SQLAlchemy URL, or None for ``$TOKENSTORE_DATABASE`` and, without
            that, ``tokens.db`` in the user's data directory.

    Raises:
        ValueError: It is not a path and not the URL of a SQLite file.
    """
    if database is None:
        database = os.environ.get("TOKENSTORE_DATABASE") or (
            platformdirs.user_data_path("tokenstore", appauthor=False) / "tokens.db"
        )
    if not isinstance(database, (str, os.PathLike)) or "://" in str(database):
        database = _path_of_url(database)
    path = os.fspath(database)
    if not isinstance(path, str) or not path or path == ":memory:" or "\0" in path:
        raise ValueError("database: name a file; tokens that only live in memory get lost")
    # Not resolve(): a symlink has to be seen, to be refused.
    # Not Path.expanduser(): it fails for a file whose name happens to begin with "~".
    return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111


def providers_file(database: Path) -> tuple[Path, bool]:
    """Return the path of ``providers.toml`` and whether somebody named it, so that it must exist.

    It is ``$TOKENSTORE_PROVIDERS``, else the one beside the database.
    """
    named = os.environ.get("TOKENSTORE_PROVIDERS")
    if named:
        return Path(os.path.expanduser(named)), True  # noqa: PTH111
    return database.with_name("providers.toml"), False


def _path_of_url(database: object) -> str:
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError

    if not isinstance(database, (str, URL)):
        raise ValueError("database: a path or an SQLAlchemy URL is needed")  # noqa: TRY004
    try:
        url = make_url(database)
    except (ArgumentError, ValueError):  # the text of the latter may quote a password
        raise ValueError("database: neither a path nor an SQLAlchemy URL") from None
    if url.drivername not in {"sqlite", "sqlite+pysqlite"}:
        raise ValueError(f"database: {url.drivername} is not supported; use sqlite:///PATH")
    if url.host or url.username:
        raise ValueError("database: a sqlite URL has no host; write sqlite:///PATH")
    if url.query:
        raise ValueError("database: a sqlite URL with a ?query is not supported")
    return url.database or ""
