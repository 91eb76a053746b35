"""The token storages of globus-sdk, SQLite and JSON, old and new, to accounts.

Each holds the tokens of a *resource server* under a *namespace*. Every resource server has a
refresh token of its own, so each is an account: ``{namespace}:{resource server}``. A storage that
was not told a namespace has "DEFAULT", which says nothing; then the file tells whose it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenstore.importers.formats import (
    TokenFile,
    UnreadableError,
    Unusable,
    from_storage,
    parse,
    with_note,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_DEFAULT = "DEFAULT"  # globus-sdk's name for "no namespace was given"
_COLUMNS = {"namespace", "resource_server", "token_data_json"}

_Row = tuple[object, object, object]  # namespace, resource server, parsed token data

# Where globus-sdk puts an application's tokens: …/app/{client id}/{application}/tokens.db
_PLACE = re.compile(
    r"/app/(?P<client_id>(?i:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}))/(?P<application>[^/]+)"
    r"/(?:(?P<environment>[a-z0-9]+)-)?tokens\.(?:db|json)$"
)


def recognizes(data: Mapping[str, Any]) -> bool:
    """Tell whether parsed JSON is a storage of globus-sdk, of whatever version."""
    return "globus-sdk.version" in data and "format_version" in data


def from_json(data: Mapping[str, Any], path: Path) -> list[TokenFile | Unusable]:
    """Read a ``SimpleJSONFileAdapter`` or ``JSONTokenStorage`` file.

    Args:
        data: The parsed JSON.
        path: Where it lies.

    Raises:
        UnreadableError: There is no account in it.
    """
    if isinstance(data.get("data"), Mapping):
        namespaces = data["data"]
    elif isinstance(data.get("by_rs"), Mapping):
        namespaces = {_DEFAULT: data["by_rs"]}
    else:
        raise UnreadableError("a token storage of globus-sdk of a kind that is not known here")
    rows: list[_Row] = []
    for namespace, servers in namespaces.items():
        if isinstance(servers, Mapping):
            rows += [(namespace, server, tokens) for server, tokens in servers.items()]
        else:
            rows.append((namespace, None, None))
    return list(_accounts(rows, {}, path))


def is_storage(connection: sqlite3.Connection) -> bool:
    """Tell whether a SQLite file is a ``SQLiteAdapter`` or ``SQLiteTokenStorage`` one."""
    return _has_table(connection, "token_storage", _COLUMNS)


def from_sqlite(connection: sqlite3.Connection, path: Path) -> list[TokenFile | Unusable]:
    """Read a ``SQLiteAdapter`` or ``SQLiteTokenStorage`` file.

    Args:
        connection: A connection to it.
        path: Where it lies.

    Raises:
        UnreadableError: There is no account in it.
    """
    rows: list[_Row] = [
        (namespace, server, _parsed(text))
        for namespace, server, text in connection.execute(
            "SELECT namespace, resource_server, token_data_json FROM token_storage ORDER BY 1, 2"
        )
    ]
    settings: list[tuple[object, object]] = []
    if _has_table(connection, "config_storage", {"namespace", "config_data_json"}):
        settings = [
            (namespace, _parsed(text))
            for namespace, text in connection.execute(
                "SELECT namespace, config_data_json FROM config_storage"
            )
        ]
    clients = _clients(settings)
    accounts = list(_accounts(rows, clients, path))
    left = len(settings) - len(clients.keys() & {namespace for namespace, _, _ in rows})
    return with_note(accounts, f"{left} of the file's settings left out") if left else accounts


def _accounts(
    rows: list[_Row], clients: Mapping[object, dict[str, str]], path: Path
) -> Iterator[TokenFile | Unusable]:
    if not rows:
        raise UnreadableError("a token storage of globus-sdk without any tokens")
    place = _PLACE.search(path.absolute().as_posix())
    named = {} if place is None else {"client_id": place["client_id"]}
    label = path.stem
    if place is not None:
        label = ":".join(filter(None, place.group("application", "environment")))
    if any(namespace == label for namespace, _, _ in rows):
        label = _DEFAULT
    for namespace, server, tokens in rows:
        if not isinstance(namespace, str) or not isinstance(server, str):
            yield Unusable("an entry that was not understood")
            continue
        name = f"{label if namespace == _DEFAULT else namespace}:{server}"
        fields = named | clients.get(namespace, {})
        fields |= tokens if isinstance(tokens, Mapping) else {}
        expires_at = fields.pop("expires_at_seconds", None)
        yield from_storage(name, fields, expires_at=expires_at)


def _clients(settings: Iterable[tuple[object, object]]) -> dict[object, dict[str, str]]:
    """Return the client of each namespace whose configuration names exactly one.

    ``SQLiteAdapter`` also keeps whatever an application configures. Where it registers a client
    of its own, as the command-line client of Globus does, this is the only place that knows it.
    """
    found: dict[object, list[dict[str, str]]] = {}
    for namespace, data in settings:
        if isinstance(data, Mapping) and isinstance(data.get("client_id"), str):
            names = ("client_id", "client_secret")
            client = {name: data[name] for name in names if isinstance(data.get(name), str)}
            found.setdefault(namespace, []).append(client)
    return {namespace: clients[0] for namespace, clients in found.items() if len(clients) == 1}


def _has_table(connection: sqlite3.Connection, name: str, columns: set[str]) -> bool:
    """Tell whether there is such a table; a view, which may run for ever, is none."""
    found = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)
    ).fetchone()
    told = connection.execute("SELECT name FROM pragma_table_info(?)", (name,))
    return found is not None and columns <= {column for (column,) in told}


def _parsed(text: object) -> Any:
    try:
        return parse(text) if isinstance(text, (str, bytes)) else None
    except ValueError:
        return None
