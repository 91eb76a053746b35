"""Reads the token storages of globus-sdk: SQLite and JSON, of old and new versions.

A storage has the tokens of *resource servers*, grouped by *namespace*. Each resource server has its
own refresh token and becomes an account named ``{namespace}:{resource server}``. For the default
namespace, the name of the application or of the file is used instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenstore.importers.formats import (
    ImportedAccount,
    UnreadableEntry,
    UnreadableFileError,
    account_from_entry,
    add_note,
    parse_json,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_DEFAULT = "DEFAULT"  # the namespace of globus-sdk if an application names none
_COLUMNS = {"namespace", "resource_server", "token_data_json"}

_Row = tuple[object, object, object]  # namespace, resource server, parsed token data

# The default path of the tokens of an application: …/app/{client id}/{application}/tokens.db
_DEFAULT_PATH = re.compile(
    r"/app/(?P<client_id>(?i:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}))/(?P<application>[^/]+)"
    r"/(?:(?P<environment>[a-z0-9]+)-)?tokens\.(?:db|json)$"
)


def recognizes_json(data: Mapping[str, Any]) -> bool:
    """Return whether parsed JSON is a globus-sdk token storage of any version."""
    return "globus-sdk.version" in data and "format_version" in data


def read_json(data: Mapping[str, Any], path: Path) -> list[ImportedAccount | UnreadableEntry]:
    """Read a ``SimpleJSONFileAdapter`` or ``JSONTokenStorage`` file.

    Args:
        data: The parsed JSON.
        path: The path of the file.

    Raises:
        UnreadableFileError: The file has no accounts.
    """
    if isinstance(data.get("data"), Mapping):
        namespaces = data["data"]
    elif isinstance(data.get("by_rs"), Mapping):
        namespaces = {_DEFAULT: data["by_rs"]}
    else:
        raise UnreadableFileError("is a globus-sdk token storage in an unsupported format")
    rows: list[_Row] = []
    for namespace, servers in namespaces.items():
        if isinstance(servers, Mapping):
            rows += [(namespace, server, tokens) for server, tokens in servers.items()]
        else:
            rows.append((namespace, None, None))
    return list(_accounts(rows, {}, path))


def recognizes_sqlite(connection: sqlite3.Connection) -> bool:
    """Return whether a database is a ``SQLiteAdapter`` or ``SQLiteTokenStorage`` file."""
    return _has_table(connection, "token_storage", _COLUMNS)


def read_sqlite(
    connection: sqlite3.Connection, path: Path
) -> list[ImportedAccount | UnreadableEntry]:
    """Read a ``SQLiteAdapter`` or ``SQLiteTokenStorage`` file.

    Args:
        connection: A connection to the database.
        path: The path of the file.

    Raises:
        UnreadableFileError: The file has no accounts.
    """
    rows: list[_Row] = [
        (namespace, server, _parse_or_none(text))
        for namespace, server, text in connection.execute(
            "SELECT namespace, resource_server, token_data_json FROM token_storage ORDER BY 1, 2"
        )
    ]
    settings: list[tuple[object, object]] = []
    if _has_table(connection, "config_storage", {"namespace", "config_data_json"}):
        settings = [
            (namespace, _parse_or_none(text))
            for namespace, text in connection.execute(
                "SELECT namespace, config_data_json FROM config_storage"
            )
        ]
    clients = _clients(settings)
    accounts = list(_accounts(rows, clients, path))
    unused = len(settings) - len(clients.keys() & {namespace for namespace, _, _ in rows})
    return add_note(accounts, f"{unused} settings not imported") if unused else accounts


def _accounts(
    rows: list[_Row], clients: Mapping[object, dict[str, str]], path: Path
) -> Iterator[ImportedAccount | UnreadableEntry]:
    if not rows:
        raise UnreadableFileError("is a globus-sdk token storage without tokens")
    match = _DEFAULT_PATH.search(path.absolute().as_posix())
    client = {} if match is None else {"client_id": match["client_id"]}
    label = path.stem
    if match is not None:
        label = ":".join(filter(None, match.group("application", "environment")))
    if any(namespace == label for namespace, _, _ in rows):
        label = _DEFAULT
    for namespace, server, tokens in rows:
        if not isinstance(namespace, str) or not isinstance(server, str):
            yield UnreadableEntry("the entry has an unsupported format")
            continue
        name = f"{label if namespace == _DEFAULT else namespace}:{server}"
        fields = client | clients.get(namespace, {})
        fields |= tokens if isinstance(tokens, Mapping) else {}
        expires_at = fields.pop("expires_at_seconds", None)
        yield account_from_entry(name, fields, expires_at=expires_at)


def _clients(settings: Iterable[tuple[object, object]]) -> dict[object, dict[str, str]]:
    """Return the client of each namespace with exactly one in its settings.

    ``SQLiteAdapter`` also stores the settings of an application. If it registers its own client, as
    the Globus CLI does, the client is stored only there.
    """
    found: dict[object, list[dict[str, str]]] = {}
    for namespace, data in settings:
        if isinstance(data, Mapping) and isinstance(data.get("client_id"), str):
            names = ("client_id", "client_secret")
            client = {name: data[name] for name in names if isinstance(data.get(name), str)}
            found.setdefault(namespace, []).append(client)
    return {namespace: clients[0] for namespace, clients in found.items() if len(clients) == 1}


def _has_table(connection: sqlite3.Connection, name: str, columns: set[str]) -> bool:
    """Return whether there is such a table.

    A view or a virtual table, which has no pages of its own, is not accepted: its query might not
    end.
    """
    found = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ? AND rootpage > 0", (name,)
    ).fetchone()
    if found is None:
        return False
    rows = connection.execute("SELECT name FROM pragma_table_info(?)", (name,))
    return columns <= {column for (column,) in rows}


def _parse_or_none(text: object) -> Any:
    try:
        return parse_json(text) if isinstance(text, (str, bytes)) else None
    except ValueError:
        return None
