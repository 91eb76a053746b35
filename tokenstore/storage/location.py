"""The locations of the database and of the providers file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.engine import URL


def locate(database: str | os.PathLike[str] | URL | None) -> Path | URL:
    """Return the absolute path of a SQLite file, or the URL of a PostgreSQL database.

    Args:
        database: A path or an SQLAlchemy URL. Defaults to ``$TOKENSTORE_DATABASE``, or else to
            ``tokens.db`` in the user's data directory.

    Raises:
        ValueError: *database* is neither, or the user has no home directory and it is not given.
    """
    if database is None:
        database = os.environ.get("TOKENSTORE_DATABASE") or _default_database()
    if not isinstance(database, (str, os.PathLike)) or "://" in str(database):
        location = _parse(database)
        if not isinstance(location, str):
            return location
        database = location
    path = os.fspath(database)
    if not isinstance(path, str) or not path or path == ":memory:" or "\0" in path:
        raise ValueError("database: expected the path of a file; tokens in memory would be lost")
    # Not resolve(): a symlink must be seen, to be refused.
    return Path(os.path.abspath(_expand(path, "database")))  # noqa: PTH100


def display_name(database: Path | URL) -> str:
    """Return the name of a database in messages: its path, or its URL without secrets."""
    from sqlalchemy.engine import URL

    if isinstance(database, Path):
        return str(database)
    if database.drivername.startswith("sqlite"):
        return str(database.database)
    harmless = {n: v for n, v in database.query.items() if n in {"host", "port", "schema", "owner"}}
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
    """Return the schema of a PostgreSQL database that holds the tables."""
    return str(url.query.get("schema", _DEFAULT_SCHEMA))


def owner_of(url: URL) -> str | None:
    """Return the role that may own the schema and the tables besides this one, or None."""
    owner = url.query.get("owner")
    return None if owner is None else str(owner)


def quoted(schema: str) -> str:
    """Return the name of a schema for a statement: it may be a word of SQL."""
    return f'"{schema}"'


def providers_file(database: Path | URL) -> tuple[Path | None, bool]:
    """Return the path of ``providers.toml``, and whether that file must exist.

    It is ``$TOKENSTORE_PROVIDERS``, which must exist, or else the file next to the database. For a
    PostgreSQL database, it is in the user's data directory, or None if the user has none.

    Raises:
        ValueError: ``$TOKENSTORE_PROVIDERS`` is in the home directory of a user who has none.
    """
    configured = os.environ.get("TOKENSTORE_PROVIDERS")
    if configured:
        return Path(_expand(configured, "TOKENSTORE_PROVIDERS")), True
    directory = database.parent if isinstance(database, Path) else _data_directory()
    return None if directory is None else directory / "providers.toml", False


def _default_database() -> Path:
    directory = _data_directory()
    if directory is None:
        raise ValueError(
            "database: there is no default, because neither HOME nor the user database names the "
            "home directory of this user; set TOKENSTORE_DATABASE (or --database) to a path or URL"
        )
    return directory / "tokens.db"


def _data_directory() -> Path | None:
    """Return the user's data directory, or None if the user has no home directory.

    What is not absolute would be another directory for each working directory: older versions of
    platformdirs return ``~/…`` if the home directory is unknown.
    """
    import platformdirs

    try:
        directory = platformdirs.user_data_path("tokenstore", appauthor=False)
    except RuntimeError:
        return None
    return directory if directory.is_absolute() else None


def _expand(path: str, name: str) -> str:
    """Return a path with the home directory in place of ``~``.

    Args:
        path: The path.
        name: What it is the path of, for errors.

    Raises:
        ValueError: The user has no home directory, or the file system cannot have the path.
    """
    # Not Path.expanduser(): it fails for a file name that begins with "~".
    expanded = os.path.expanduser(path)  # noqa: PTH111
    if path.split("/", maxsplit=1)[0] == "~" and not os.path.isabs(expanded):  # noqa: PTH117
        raise ValueError(
            f"{name}: {path}: this user has no home directory; set HOME, or use an absolute path"
        )
    try:
        os.fsencode(expanded)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: {path!a}: the encoding of this locale ({error.encoding}) cannot write "
            "the path; use a UTF-8 locale or another path"
        ) from None
    return expanded


def _parse(database: object) -> str | URL:
    """Return the path in a sqlite URL, or a PostgreSQL URL with its driver."""
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError

    if not isinstance(database, (str, URL)):
        kind = type(database).__name__
        raise ValueError(f"database: expected a path or a URL, got {kind}")  # noqa: TRY004
    try:
        url = make_url(database)
    except (ArgumentError, ValueError):  # the text of the latter may quote a password
        raise ValueError("database: not a valid path or SQLAlchemy URL") from None
    if url.drivername in {"postgresql", "postgresql+psycopg"}:
        schema = url.query.get("schema", _DEFAULT_SCHEMA)
        if not (isinstance(schema, str) and _SCHEMA.fullmatch(schema)):
            raise ValueError(
                "database: schema must be a name of lower-case letters, digits and _, at most 63, "
                "and none of PostgreSQL's own"
            )
        if not isinstance(url.query.get("owner", ""), str):
            raise ValueError("database: owner must be the name of one role")
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
_SCHEMA = re.compile(r"(?!pg_|information_schema$)[a-z_][a-z0-9_]{0,62}")
