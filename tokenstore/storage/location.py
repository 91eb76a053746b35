"""Where things are: the database that a name stands for, the providers file beside it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.engine import URL


def locate(database: str | os.PathLike[str] | URL | None) -> Path | URL:
    """Return what *database* names: the absolute path of a SQLite file, or a PostgreSQL URL.

    Args:
        database: A path, an SQLAlchemy URL, or None for ``$TOKENSTORE_DATABASE`` and, without
            that, ``tokens.db`` in the user's data directory.

    Raises:
        ValueError: It is neither.
    """
    if database is None:
        database = os.environ.get("TOKENSTORE_DATABASE") or _data_directory() / "tokens.db"
    if not isinstance(database, (str, os.PathLike)) or "://" in str(database):
        found = _parsed(database)
        if not isinstance(found, str):
            return found
        database = found
    path = os.fspath(database)
    if not isinstance(path, str) or not path or path == ":memory:" or "\0" in path:
        raise ValueError("database: name a file; tokens that only live in memory get lost")
    # Not resolve(): a symlink has to be seen, to be refused.
    # Not Path.expanduser(): it fails for a file whose name happens to begin with "~".
    return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111


def shown(database: Path | URL) -> str:
    """Return what messages call a database: its path, or its URL without secrets."""
    from sqlalchemy.engine import URL

    if isinstance(database, Path):
        return str(database)
    if database.drivername.startswith("sqlite"):
        return str(database.database)
    harmless = {n: v for n, v in database.query.items() if n in {"host", "port", "schema"}}
    url = URL.create(
        database.drivername,
        database.username,
        host=database.host,
        port=database.port,
        database=database.database,
        query=harmless,
    )
    return url.render_as_string()


def schema_of(url: URL) -> str:
    """Return the schema of a PostgreSQL database that the store is in."""
    return str(url.query.get("schema", _DEFAULT_SCHEMA))


def providers_file(database: Path | URL) -> tuple[Path, bool]:
    """Return the path of ``providers.toml`` and whether somebody named it, so that it must exist.

    It is ``$TOKENSTORE_PROVIDERS``, else the one beside the database; for a database that is no
    file, the one in the user's data directory.
    """
    named = os.environ.get("TOKENSTORE_PROVIDERS")
    if named:
        return Path(os.path.expanduser(named)), True  # noqa: PTH111
    directory = database.parent if isinstance(database, Path) else _data_directory()
    return directory / "providers.toml", False


def _data_directory() -> Path:
    import platformdirs

    return platformdirs.user_data_path("tokenstore", appauthor=False)


def _parsed(database: object) -> str | URL:
    """Return the path that a sqlite URL names, or a PostgreSQL URL with its driver."""
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError

    if not isinstance(database, (str, URL)):
        raise ValueError("database: a path or an SQLAlchemy URL is needed")  # noqa: TRY004
    try:
        url = make_url(database)
    except (ArgumentError, ValueError):  # the text of the latter may quote a password
        raise ValueError("database: neither a path nor an SQLAlchemy URL") from None
    if url.drivername in {"postgresql", "postgresql+psycopg"}:
        schema = url.query.get("schema", _DEFAULT_SCHEMA)
        if not (isinstance(schema, str) and _SCHEMA.fullmatch(schema)):
            raise ValueError("database: schema is one name of letters, digits and _, in lower case")
        return url.set(drivername="postgresql+psycopg")
    if url.drivername not in {"sqlite", "sqlite+pysqlite"}:
        raise ValueError(
            f"database: {url.drivername} is not supported; use sqlite:///PATH or "
            "postgresql+psycopg://USER@HOST/DATABASE"
        )
    if url.host or url.username:
        raise ValueError("database: a sqlite URL has no host; write sqlite:///PATH")
    if url.query:
        raise ValueError("database: a sqlite URL with a ?query is not supported")
    return url.database or ""


_DEFAULT_SCHEMA = "tokenstore"
_SCHEMA = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}")
