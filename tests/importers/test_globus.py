"""Token storages written by globus-sdk; those of 3.66 differ only in the version number."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import globus_sdk
import pytest
import requests
from globus_sdk.token_storage import JSONTokenStorage, SQLiteTokenStorage, TokenStorageData
from globus_sdk.token_storage.legacy import SimpleJSONFileAdapter, SQLiteAdapter
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.refreshes import World
from tests.helpers.stores import raw
from tokenstore import TokenRepository
from tokenstore.importers.detect import read_accounts
from tokenstore.importers.formats import ImportedAccount, UnreadableEntry, UnreadableFileError
from tokenstore.importers.globus import read_json, recognizes_json
from tokenstore.jsonfiles import FileResult, export_accounts, find_files, import_accounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = 1_800_000_000
SECRET = "canary-5b1e"
CLIENT = "4f8a1c5e-0000-4000-8000-0123456789ab"
AUTH, TRANSFER = "auth.globus.org", "transfer.api.globus.org"


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[TokenRepository]:
    with TokenRepository(tmp_path / "store" / "tokens.db", clock=lambda: NOW) as repository:
        yield repository


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "files"
    directory.mkdir()
    return directory


def tokens(server: str, number: object = 0) -> dict[str, Any]:
    return {
        "access_token": f"{SECRET}-access-{number}",
        "refresh_token": f"{SECRET}-refresh-{number}",
        "expires_in": 3600,
        "resource_server": server,
        "scope": f"urn:{server}:all",
        "token_type": "Bearer",
    }


def response(first: dict[str, Any], *others: dict[str, Any]) -> globus_sdk.OAuthTokenResponse:
    """Return the object that globus-sdk makes of a token response."""
    response = requests.Response()
    response.status_code = 200
    response.headers["Content-Type"] = "application/json"
    response._content = json.dumps({**first, "other_tokens": others}).encode()
    return globus_sdk.OAuthTokenResponse(response, globus_sdk.NativeAppAuthClient(CLIENT))


BOTH = response(tokens(AUTH, 1), tokens(TRANSFER, 2))


def old_sqlite(path: Path, response: globus_sdk.OAuthTokenResponse = BOTH, **options: Any) -> Path:
    with closing(SQLiteAdapter(path, **options)) as storage:
        storage.store(response)
    return path


def new_sqlite(path: Path, response: globus_sdk.OAuthTokenResponse = BOTH, **options: Any) -> Path:
    with closing(SQLiteTokenStorage(path, **options)) as storage:
        storage.store_token_response(response)
    return path


def old_json(path: Path, response: globus_sdk.OAuthTokenResponse = BOTH) -> Path:
    SimpleJSONFileAdapter(path).store(response)
    return path


def new_json(path: Path, response: globus_sdk.OAuthTokenResponse = BOTH, **options: Any) -> Path:
    JSONTokenStorage(path, **options).store_token_response(response)
    return path


STORAGES = [old_sqlite, new_sqlite, old_json, new_json]
every_storage = pytest.mark.parametrize("make", STORAGES, ids=lambda make: make.__name__)


def summary(results: Iterator[FileResult]) -> list[tuple[str | None, str, str | None]]:
    return [(result.account_name, result.outcome, result.reason) for result in results]


def found(path: Path) -> dict[str, dict[str, Any]]:
    """Return the tokens of each account in a file."""
    accounts = read_accounts(path)
    return {a.account_name: a.tokens.to_dict() for a in accounts if isinstance(a, ImportedAccount)}


def notes(path: Path) -> list[tuple[str | None, str | None]]:
    """Return the name and the note or reason of each entry of a file."""
    accounts = read_accounts(path)
    assert SECRET not in str(accounts)
    return [
        (a.account_name, a.note if isinstance(a, ImportedAccount) else a.reason) for a in accounts
    ]


# -- accounts -------------------------------------------------------------------------------------


@every_storage
def test_each_resource_server_is_an_account(
    make: Callable[[Path], Path], repository: TokenRepository, files: Path
) -> None:
    path = make(files / "alice")

    results = list(import_accounts(repository, path, provider="globus"))

    assert results == [
        FileResult(f"alice:{AUTH}", path, "imported"),
        FileResult(f"alice:{TRANSFER}", path, "imported"),
    ]
    loaded = repository.load(f"alice:{TRANSFER}") or {}
    made = dict(BOTH.by_resource_server[TRANSFER])
    assert loaded.pop("expires_at") == made.pop("expires_at_seconds")
    assert loaded == made
    assert {account.provider for account in repository.accounts()} == {"globus"}


@pytest.mark.parametrize("make", [old_sqlite, new_sqlite, new_json])
def test_an_account_is_named_after_its_namespace(make: Callable[..., Path], files: Path) -> None:
    for namespace in ("bob", "DEFAULT", "user/profile"):
        make(files / "storage", response(tokens(AUTH, namespace)), namespace=namespace)

    accounts = found(files / "storage")

    assert {name: fields["access_token"] for name, fields in accounts.items()} == {
        f"bob:{AUTH}": f"{SECRET}-access-bob",
        f"storage:{AUTH}": f"{SECRET}-access-DEFAULT",
        f"user/profile:{AUTH}": f"{SECRET}-access-user/profile",
    }


def test_a_namespace_named_like_the_file_keeps_its_name(files: Path) -> None:
    for namespace in ("DEFAULT", "alice"):
        new_sqlite(files / "alice.db", response(tokens(AUTH, namespace)), namespace=namespace)

    accounts = found(files / "alice.db")

    assert set(accounts) == {f"DEFAULT:{AUTH}", f"alice:{AUTH}"}
    assert accounts[f"alice:{AUTH}"]["access_token"] == f"{SECRET}-access-alice"


@pytest.mark.parametrize(
    ("file", "label"),
    [("tokens.db", "my-app"), ("tokens.json", "my-app"), ("sandbox-tokens.db", "my-app:sandbox")],
)
def test_at_the_default_path_an_account_is_named_after_the_application(
    file: str, label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / ".globus" / "app" / CLIENT / "my-app"
    directory.mkdir(parents=True)
    (new_json if file.endswith(".json") else new_sqlite)(directory / file)
    monkeypatch.chdir(directory)

    accounts = found(Path(file))

    assert set(accounts) == {f"{label}:{AUTH}", f"{label}:{TRANSFER}"}
    assert {fields["client_id"] for fields in accounts.values()} == {CLIENT}


@pytest.mark.parametrize("kind", ["sqlite", "json"])
def test_that_is_the_default_path_of_globus_sdk(
    kind: Literal["sqlite", "json"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = globus_sdk.GlobusAppConfig(token_storage=kind)
    with closing(globus_sdk.UserApp("My App", client_id=CLIENT, config=config)) as app:
        data = TokenStorageData(AUTH, None, "openid", "a", None, NOW, None)
        app.token_storage.token_storage.store_token_data_by_resource_server({AUTH: data})

    (path,) = find_files(tmp_path.glob(".globus/app/*/*"))

    assert set(found(path)) == {f"my-app:{AUTH}"}


def test_the_client_in_the_settings_is_imported_with_the_accounts_of_its_namespace(
    files: Path,
) -> None:
    path = files / "s.db"
    for namespace, clients in (("one", ["a"]), ("two", ["b", "c"]), ("none", [])):
        with closing(SQLiteAdapter(path, namespace=namespace)) as storage:
            storage.store(response(tokens(AUTH)))
            for number, client in enumerate(clients):
                data = {"client_id": client, "client_secret": f"{SECRET}-{client}"}
                storage.store_config(f"client-{number}", data)
            storage.store_config("user", {"sub": SECRET})
    with closing(SQLiteAdapter(path, namespace="no tokens")) as storage:
        storage.store_config("client", {"client_id": "d"})

    accounts = found(path)

    assert notes(path) == [
        (f"none:{AUTH}", "6 settings not imported"),
        (f"one:{AUTH}", None),
        (f"two:{AUTH}", None),
    ]
    one = accounts[f"one:{AUTH}"]
    assert (one["client_id"], one["client_secret"]) == ("a", f"{SECRET}-a")
    assert "client_id" not in accounts[f"two:{AUTH}"]


def test_fields_of_the_application_are_kept(files: Path) -> None:
    with closing(SQLiteTokenStorage(files / "s.db")) as storage:
        data = TokenStorageData(AUTH, "alice-id", "openid", "a", None, NOW + 60, None)
        storage.store_token_data_by_resource_server({AUTH: data})
    with raw(files / "s.db") as connection:
        connection.execute(
            "UPDATE token_storage SET token_data_json = json_set(token_data_json, '$.x', 'y')"
        )

    assert found(files / "s.db")[f"s:{AUTH}"] == {
        "access_token": "a",
        "expires_at": NOW + 60,
        "resource_server": AUTH,
        "identity_id": "alice-id",
        "scope": "openid",
        "x": "y",
    }


# -- round trips ----------------------------------------------------------------------------------


@every_storage
def test_an_imported_account_is_refreshed_and_exported(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    with World(tmp_path) as world:
        signed_in = {s: tokens(s) | world.server.sign_in(s) for s in (AUTH, TRANSFER)}
        path = make(tmp_path / "alice", response(*signed_in.values()))
        manager = world.manager()
        with TokenRepository(world.path) as repository:
            list(import_accounts(repository, path, provider="test"))

        new = {s: manager.refresh_token(f"alice:{s}")["refresh_token"] for s in signed_in}

        assert world.posts == 2
        assert all(new[s] != signed_in[s]["refresh_token"] for s in signed_in)
        with TokenRepository(world.path) as repository:
            list(export_accounts(repository, tmp_path / "out"))
        with TokenRepository(tmp_path / "second.db") as second:
            list(import_accounts(second, tmp_path / "out"))
            back = {s: second.load(f"alice:{s}") or {} for s in signed_in}
        assert {s: fields["refresh_token"] for s, fields in back.items()} == new
        assert {s: fields["resource_server"] for s, fields in back.items()} == {
            s: s for s in signed_in
        }


# -- what already stored -----------------------------------------------------------------------


# -- invalid content ------------------------------------------------------------------------------

NEITHER = "access_token: neither an access token nor a refresh token"
ODD: dict[str, tuple[Any, str]] = {
    "not JSON": (f"{{{SECRET}", NEITHER),
    "deep": ("[" * 100_000, NEITHER),
    "list": (f'["{SECRET}"]', NEITHER),
    "nothing": ("{}", NEITHER),
    "null": (None, NEITHER),
    "number": (5, NEITHER),
    "bytes": (b"\xff\xfe", NEITHER),
    "odd token": (
        f'{{"access_token": ["{SECRET}"]}}',
        "access_token: expected a string, got list",
    ),
    "line break": (
        f'{{"refresh_token": "{SECRET}\\n"}}',
        "refresh_token: control characters are not allowed",
    ),
    "deep value": (
        '{"access_token": "a", "x": ' + "[" * 300 + "]" * 300 + "}",
        "x: cannot be stored as JSON",
    ),
}


@pytest.mark.parametrize(("data", "reason"), ODD.values(), ids=ODD)
def test_an_invalid_row_is_reported_and_the_others_are_read(
    data: Any, reason: str, odd: Callable[..., Path]
) -> None:
    path = odd(("A", "x", data))

    assert notes(path) == [("A:x", reason), (f"s:{AUTH}", None), (f"s:{TRANSFER}", None)]


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage whose columns accept any value."""
    path = old_sqlite(tmp_path_factory.mktemp("loose") / "s.db")
    with raw(path) as connection:
        connection.executescript(
            "CREATE TABLE loose (namespace, resource_server, token_data_json);"
            "INSERT INTO loose SELECT * FROM token_storage; DROP TABLE token_storage;"
            "ALTER TABLE loose RENAME TO token_storage"
        )
    return path


@pytest.fixture
def odd(loose: Path, files: Path) -> Callable[..., Path]:
    """Make a storage with rows that globus-sdk does not write."""

    def make(*rows: tuple[Any, Any, Any]) -> Path:
        path = files / "s.db"
        shutil.copy(loose, path)
        with raw(path) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            connection.executemany("INSERT INTO token_storage VALUES (?, ?, ?)", rows)
        return path

    return make


GOOD = '{"refresh_token": "r"}'
NAMES: dict[str, tuple[tuple[Any, Any], str]] = {
    "null namespace": ((None, "x"), "the entry has an unsupported format"),
    "null server": (("A", None), "the entry has an unsupported format"),
    "number": ((5, "x"), "the entry has an unsupported format"),
    "bytes": ((b"A", "x"), "the entry has an unsupported format"),
    "control": (("A\x1b[31m", "x"), "account_name: control characters are not allowed"),
    "long": (("A", "x" * 600), "account_name: longer than 512 characters"),
}


@pytest.mark.parametrize(("key", "reason"), NAMES.values(), ids=NAMES)
def test_a_row_with_an_invalid_name_is_reported(
    key: tuple[Any, Any], reason: str, odd: Callable[..., Path]
) -> None:
    path = odd((*key, GOOD))

    assert (None, reason) in notes(path)
    assert len(found(path)) == 2


def test_invalid_text_is_not_quoted(odd: Callable[..., Path]) -> None:
    path = odd()
    with raw(path) as connection:
        connection.execute(
            "INSERT INTO token_storage VALUES ('A', 'x', CAST(? AS TEXT))",
            (b'{"access_token": "' + SECRET.encode() + b'\xff"}',),
        )

    assert notes(path)[0] == ("A:x", "access_token: unpaired surrogates are not allowed")


def test_of_two_entries_with_one_name_the_first_is_imported(
    repository: TokenRepository, odd: Callable[..., Path]
) -> None:
    path = odd(("A", "b:c", GOOD), ("A:b", "c", GOOD))

    results = summary(import_accounts(repository, path, replace=True))

    assert results[:2] == [
        ("A:b:c", "imported", None),
        ("A:b:c", "skipped", "s.db has the same account"),
    ]


EXPIRIES: dict[str, tuple[Any, float | None, str | None]] = {
    "text": ("1800000060", 1_800_000_060, None),
    "milliseconds": (1_800_000_060_000, 1_800_000_060, None),
    "odd": ("soon", 0, "its expiry is not a valid timestamp; the token counts as expired"),
    "endless": (float("inf"), None, None),
}


@pytest.mark.parametrize(("value", "expected", "note"), EXPIRIES.values(), ids=EXPIRIES)
def test_an_expiry_in_another_format_is_read_or_reported(
    value: Any, expected: float | None, note: str | None, odd: Callable[..., Path]
) -> None:
    data = json.dumps({"refresh_token": "r", "access_token": "a", "expires_at_seconds": value})
    path = odd(("A", "x", data))

    assert notes(path)[0] == ("A:x", note)
    assert found(path)["A:x"].get("expires_at") == expected


EMPTY = "is a globus-sdk token storage without tokens"
UNKNOWN = "is a globus-sdk token storage in an unsupported format"
JSON: dict[str, tuple[dict[str, Any], str]] = {
    "no tokens": ({"data": {}}, EMPTY),
    "no tokens of the namespace": ({"data": {"DEFAULT": {}}}, EMPTY),
    "no tokens, old": ({"by_rs": {}}, EMPTY),
    "a later version": ({"format_version": "3.0"}, UNKNOWN),
    "a list": ({"data": [SECRET]}, UNKNOWN),
    "a list of servers": ({"data": {"DEFAULT": [SECRET]}}, "the entry has an unsupported format"),
    "text of a server": ({"data": {"DEFAULT": {"x": SECRET}}}, NEITHER),
}


@pytest.mark.parametrize(("content", "reason"), JSON.values(), ids=JSON)
def test_a_json_storage_without_tokens_is_reported(
    content: dict[str, Any], reason: str, files: Path
) -> None:
    data = {"globus-sdk.version": "4.10.0", "format_version": "2.0", **content}
    path = files / "a.json"
    path.write_text(json.dumps(data))

    assert [reason for _, reason in notes(path)] == [reason]


def test_a_sqlite_storage_without_tokens_is_reported(files: Path) -> None:
    SQLiteTokenStorage(files / "s.db").close()

    assert notes(files / "s.db") == [(None, EMPTY)]


@pytest.mark.slow
@given(
    st.dictionaries(
        st.sampled_from(["data", "by_rs"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.dictionaries(
                    st.sampled_from(
                        ["DEFAULT", "a", "access_token", "refresh_token", "expires_at_seconds"]
                    ),
                    inner,
                    max_size=4,
                )
                | st.lists(inner, max_size=2)
            ),
            max_leaves=15,
        ),
    )
)
@settings(max_examples=60, deadline=None)
def test_any_json_is_read_or_reported(content: dict[str, Any]) -> None:
    data = {"globus-sdk.version": "4", "format_version": "2.0", **content}
    assert recognizes_json(data)

    try:
        found = read_json(data, Path("alice.json"))
    except UnreadableFileError:
        return

    assert found
    assert all(isinstance(account, (ImportedAccount, UnreadableEntry)) for account in found)
