"""Token caches written by MSAL."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msal import SerializableTokenCache
from msal_extensions import FilePersistence, PersistedTokenCache

from tests.helpers.refreshes import World
from tests.helpers.stores import raw
from tokenstore import TokenManager, TokenRepository
from tokenstore.importers.detect import read_accounts
from tokenstore.importers.formats import ImportedAccount, UnreadableEntry, UnreadableFileError
from tokenstore.importers.msal import read_cache
from tokenstore.jsonfiles import export_accounts, import_accounts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = 1_800_000_000
SECRET = "canary-e2c4"
CLOUD = "login.microsoftonline.com"
ALICE = "alice@contoso.example"


def encoded(claims: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")


def id_token(username: str | None, client: str, home: tuple[str, str], realm: str) -> str:
    claims = {
        "iss": f"https://{CLOUD}/{realm}/v2.0",
        "aud": client,
        "exp": 4_000_000_000,
        "sub": f"sub-{home[0]}",
        "oid": home[0],
        "tid": realm,
    }
    named = {"preferred_username": username} if username else {}
    return f"{encoded({'alg': 'none'})}.{encoded(claims | named)}.{SECRET}"


def sign_in(
    cache: SerializableTokenCache,
    username: str | None = ALICE,
    *,
    client: str = "client-a",
    scope: str = "User.Read",
    home: tuple[str, str] = ("alice-id", "contoso-id"),
    realm: str | None = None,
    environment: str = CLOUD,
    now: int = NOW,
    data: dict[str, Any] | None = None,
    **response: Any,
) -> dict[str, Any]:
    """Add a token response to the cache as MSAL does after a sign-in; return the response."""
    realm = realm or home[1]
    token_response = {
        "access_token": f"{SECRET}-access-{client}-{scope}",
        "refresh_token": f"{SECRET}-refresh-{client}",
        "id_token": id_token(username, client, home, realm),
        "client_info": encoded({"uid": home[0], "utid": home[1]}),
        "expires_in": 3600,
        "ext_expires_in": 7200,
        "token_type": "Bearer",
        **response,
    }
    cache.add(
        {
            "client_id": client,
            "scope": scope.split(),
            "token_endpoint": f"https://{environment}/{realm}/oauth2/v2.0/token",
            "environment": environment,
            "grant_type": "authorization_code",
            "data": data or {},
            "response": {
                name: value for name, value in token_response.items() if value is not None
            },
        },
        now=now,
    )
    return token_response


@pytest.fixture
def cache() -> SerializableTokenCache:
    return SerializableTokenCache()


def content(cache: SerializableTokenCache) -> dict[str, Any]:
    return dict(json.loads(cache.serialize()))


def accounts(cache: SerializableTokenCache | dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tokens of each account in a cache."""
    data = cache if isinstance(cache, dict) else content(cache)
    found = read_cache(data)
    return {a.account_name: a.tokens.to_dict() for a in found if isinstance(a, ImportedAccount)}


def further(cache: SerializableTokenCache) -> dict[str, float | None]:
    """Return when the further access tokens of a cache's only account expire, by target."""
    (account,) = read_cache(content(cache))
    assert isinstance(account, ImportedAccount)
    return {each.target.text: each.expires_at for each in account.further}


def notes(cache: SerializableTokenCache | dict[str, Any]) -> list[tuple[str | None, str | None]]:
    """Return the name and the note or reason of each entry of a cache."""
    found = read_cache(cache if isinstance(cache, dict) else content(cache))
    assert SECRET not in str(found)
    return [(a.account_name, a.note if isinstance(a, ImportedAccount) else a.reason) for a in found]


# -- accounts -------------------------------------------------------------------------------------


def test_a_login_is_an_account(cache: SerializableTokenCache) -> None:
    token_response = sign_in(cache, scope="User.Read Mail.Read", refresh_in=1800)

    assert notes(cache) == [(ALICE, None)]
    assert accounts(cache)[ALICE] == {
        "access_token": token_response["access_token"],
        "refresh_token": token_response["refresh_token"],
        "id_token": token_response["id_token"],
        "expires_at": NOW + 3600,
        "extended_expires_on": str(NOW + 7200),
        "refresh_on": str(NOW + 1800),
        "cached_at": str(NOW),
        "last_modification_time": str(NOW),
        "client_id": "client-a",
        "scope": "Mail.Read User.Read",
        "token_type": "Bearer",
        "username": ALICE,
        "home_account_id": "alice-id.contoso-id",
        "local_account_id": "alice-id",
        "environment": CLOUD,
        "realm": "contoso-id",
        "authority_type": "MSSTS",
        "account_source": "authorization_code",
    }


def test_the_age_of_the_refresh_token_is_imported(cache: SerializableTokenCache) -> None:
    sign_in(cache, now=NOW - 1000)
    sign_in(cache, refresh_token=None)

    (account,) = read_cache(content(cache))

    assert isinstance(account, ImportedAccount)
    assert account.tokens.refresh_token_obtained_at == NOW - 1000


@pytest.mark.parametrize("suffix", [".json", ".bin", ""])
def test_a_file_of_msal_extensions_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"cache{suffix}"
    sign_in(PersistedTokenCache(FilePersistence(str(path))))

    (account,) = read_accounts(path)

    assert isinstance(account, ImportedAccount)
    assert account.account_name == ALICE


def test_the_empty_file_of_a_keyring_is_reported(tmp_path: Path) -> None:
    FilePersistence(str(tmp_path / "signal.bin")).touch()

    (account,) = read_accounts(tmp_path / "signal.bin")

    assert isinstance(account, UnreadableEntry)
    assert "Keychain or libsecret" in account.reason


def test_of_several_access_tokens_the_last_to_expire_is_imported(
    cache: SerializableTokenCache,
) -> None:
    sign_in(cache, scope="a", expires_in=3600)
    sign_in(cache, scope="b", expires_in=9000)
    sign_in(cache, scope="c", expires_in=100, now=NOW + 60)

    assert notes(cache) == [(ALICE, None)]
    assert accounts(cache)[ALICE]["scope"] == "b"
    assert accounts(cache)[ALICE]["expires_at"] == NOW + 9000
    assert further(cache) == {"c": NOW + 160, "a": NOW + 3600}


def test_the_other_access_tokens_are_used_for_their_scopes(
    cache: SerializableTokenCache, tmp_path: Path
) -> None:
    graph = sign_in(cache, scope="Mail.Read User.Read", expires_in=3600)
    sign_in(cache, scope="imap", expires_in=9000)
    file = tmp_path / "cache.json"
    file.write_text(cache.serialize())
    clock = lambda: float(NOW)  # noqa: E731
    with TokenRepository(tmp_path / "tokens.db", clock=clock) as repository:
        assert [r.outcome for r in import_accounts(repository, file)] == ["imported"]
    with TokenManager(tmp_path / "tokens.db", clock=clock) as manager:
        found = manager.get_access_token(ALICE, scope="User.Read Mail.Read")
        assert (found.token, found.scope) == (graph["access_token"], "Mail.Read User.Read")
        assert manager.get_valid_token(ALICE) != found.token


def test_of_two_with_the_same_expiry_the_newer_is_imported(cache: SerializableTokenCache) -> None:
    sign_in(cache, scope="a", expires_in=3660)
    sign_in(cache, scope="b", expires_in=3600, now=NOW + 60)

    assert notes(cache) == [(ALICE, None)]
    assert accounts(cache)[ALICE]["scope"] == "b"
    assert further(cache) == {"a": NOW + 3660}


@pytest.mark.parametrize(
    ("response", "data"),
    [({"token_type": "pop"}, {"key_id": "k"}), ({}, {"fmi_path": "a/b"})],
    ids=["bound to a key", "for special parameters"],
)
def test_an_access_token_with_a_key_or_parameters_is_not_imported(
    response: dict[str, Any], data: dict[str, Any], cache: SerializableTokenCache
) -> None:
    sign_in(cache, scope="special", expires_in=9000, data=data, **response)
    assert "access_token" not in accounts(cache)[ALICE]

    sign_in(cache, scope="plain")

    assert accounts(cache)[ALICE]["scope"] == "plain"
    assert notes(cache) == [(ALICE, "1 access token for other tenants or uses not imported")]


def test_without_an_access_token_the_refresh_token_is_imported(
    cache: SerializableTokenCache,
) -> None:
    token_response = sign_in(cache)
    data = content(cache) | {"AccessToken": {}}

    loaded = accounts(data)[ALICE]

    assert loaded["refresh_token"] == token_response["refresh_token"]
    assert not loaded.keys() & {"access_token", "expires_at"}
    assert (loaded["client_id"], loaded["id_token"]) == ("client-a", token_response["id_token"])


def test_app_only_tokens_are_not_imported(cache: SerializableTokenCache) -> None:
    own: dict[str, Any] = {"id_token": None, "client_info": None, "refresh_token": None}
    sign_in(cache, scope="a", **own)
    sign_in(cache, scope="b", **own)
    with pytest.raises(UnreadableFileError) as caught:
        read_cache(content(cache))

    sign_in(cache)

    note = "2 access tokens of the application itself not imported"
    assert str(caught.value) == f"is an MSAL token cache without logins; {note}"
    assert notes(cache) == [(ALICE, note)]


def test_tokens_without_a_user_are_imported_if_they_can_be_refreshed(
    cache: SerializableTokenCache,
) -> None:
    token_response = sign_in(cache, id_token=None, client_info=None)

    assert notes(cache) == [("client-a", None)]
    loaded = accounts(cache)["client-a"]
    assert loaded["refresh_token"] == token_response["refresh_token"]
    assert loaded["access_token"] == token_response["access_token"]


def test_an_account_without_tokens_is_reported(cache: SerializableTokenCache) -> None:
    sign_in(cache)
    sign_in(cache, "bob@contoso.example", home=("bob-id", "contoso-id"))
    data = content(cache)
    for section in ("AccessToken", "RefreshToken", "IdToken"):
        data[section] = {k: v for k, v in data[section].items() if "bob" not in k}

    assert notes(data) == [
        (ALICE, None),
        ("bob@contoso.example", "access_token: neither an access token nor a refresh token"),
    ]


# -- names ----------------------------------------------------------------------------------------


def test_accounts_are_named_after_their_usernames(cache: SerializableTokenCache) -> None:
    for name in ("bob", "alice"):
        sign_in(cache, f"{name}@x", home=(name, "t"), access_token=name)

    assert {name: a["access_token"] for name, a in accounts(cache).items()} == {
        "alice@x": "alice",
        "bob@x": "bob",
    }


def test_logins_with_one_username_get_different_names(cache: SerializableTokenCache) -> None:
    sign_in(cache, client="a")
    sign_in(cache, client="b")
    sign_in(cache, client="b", home=("other", "t"))
    sign_in(cache, "bob@x", client="b", home=("bob", "t"))

    assert set(accounts(cache)) == {
        f"{ALICE}:a",
        f"{ALICE}:b:alice-id.contoso-id",
        f"{ALICE}:b:other.t",
        "bob@x",
    }


def test_one_user_at_two_authorities_is_two_accounts(cache: SerializableTokenCache) -> None:
    for host in ("adfs.a.example", "adfs.b.example"):
        sign_in(cache, environment=host, access_token=host, refresh_token=f"r-{host}")

    found = accounts(cache)

    assert len(found) == 2
    for name, loaded in found.items():
        host = loaded["environment"]
        assert name == f"{ALICE}:client-a:alice-id.contoso-id:{host}"
        assert (loaded["access_token"], loaded["refresh_token"]) == (host, f"r-{host}")


@pytest.mark.parametrize("username", [None, ""])
def test_without_a_username_the_name_is_the_home_account(
    username: str | None, cache: SerializableTokenCache
) -> None:
    sign_in(cache, username)

    assert notes(cache) == [("alice-id.contoso-id", None)]


def test_a_guest_of_other_tenants_is_one_account_with_the_home_username(
    cache: SerializableTokenCache,
) -> None:
    sign_in(cache, "alice_contoso#EXT#@fabrikam.example", realm="fabrikam-id", scope="theirs")
    ours = sign_in(cache, realm="contoso-id", scope="ours", expires_in=9000)

    assert notes(cache) == [(ALICE, "1 access token for other tenants or uses not imported")]
    assert accounts(cache)[ALICE]["realm"] == "contoso-id"
    assert accounts(cache)[ALICE]["id_token"] == ours["id_token"]


# -- families, aliases ----------------------------------------------------------------------------


def test_a_client_of_a_family_uses_its_refresh_token(cache: SerializableTokenCache) -> None:
    sign_in(cache, client="a", foci="1", now=NOW - 10, refresh_token="older")
    shared = sign_in(cache, client="b", foci="1")
    sign_in(cache, client="c", foci="1", refresh_token=None)
    sign_in(cache, client="d", refresh_token=None)
    sign_in(cache, "bob@x", client="c", home=("bob", "t"), foci="1", refresh_token=None)

    data = content(cache)
    data["AccessToken"] = {}  # MSAL removes those that have expired

    found = accounts(data)

    assert found[f"{ALICE}:a"]["refresh_token"] == "older"
    c = found[f"{ALICE}:c"]
    assert (c["refresh_token"], c["client_id"]) == (shared["refresh_token"], "c")
    assert set(found) == {f"{ALICE}:{client}" for client in "abc"}
    assert [note for name, note in notes(data) if name == f"{ALICE}:c"] == [
        "the refresh token is shared by a client family"
    ]


def test_an_invalid_family_has_no_refresh_token(cache: SerializableTokenCache) -> None:
    sign_in(cache, foci="1")
    sign_in(cache, client="b", refresh_token=None)
    data = content(cache)
    each("AppMetadata", family_id=["1"])(data)

    assert "refresh_token" not in accounts(data)[f"{ALICE}:b"]


def test_aliases_of_an_authority_are_one_environment(
    cache: SerializableTokenCache,
) -> None:
    sign_in(cache, environment="login.windows.net", refresh_token="older", now=NOW - 10)
    new = sign_in(cache, environment=CLOUD)

    assert [name for name, _ in notes(cache)] == [ALICE]
    assert accounts(cache)[ALICE]["refresh_token"] == new["refresh_token"]


# -- round trips ----------------------------------------------------------------------------------


def test_an_imported_account_is_refreshed_and_exported(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        tokens = world.server.sign_in("alice")
        client = str(world.server.provider().client_id)
        path = tmp_path / "cache.bin"
        persisted = PersistedTokenCache(FilePersistence(str(path)))
        sign_in(persisted, client=client, now=int(world.clock.now) - 7200, **tokens)
        manager = world.manager()
        with TokenRepository(world.path) as repository:
            (result,) = import_accounts(repository, path, provider="test")

            new = manager.ensure_valid_token(ALICE)

            list(export_accounts(repository, tmp_path / "out"))
            loaded = repository.load(ALICE) or {}
            again = [r.outcome for r in import_accounts(repository, path)]
            newer = [r.outcome for r in import_accounts(repository, path, newer=True)]
        with TokenRepository(tmp_path / "second.db") as second:
            list(import_accounts(second, tmp_path / "out"))
            back = second.load(ALICE)

    assert (result.account_name, result.outcome) == (ALICE, "imported")
    assert world.posts == 1
    assert new == loaded["access_token"] != tokens["access_token"]
    assert loaded["refresh_token"] != tokens["refresh_token"]
    assert loaded["home_account_id"] == "alice-id.contoso-id"
    assert back == loaded
    assert (again, newer) == (["skipped"], ["skipped"])


# -- invalid content ------------------------------------------------------------------------------

NOTE = "invalid entries: 1"


def each(section: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    """Change every entry of a section; ... removes a field."""

    def change(data: dict[str, Any]) -> None:
        for key, entry in data[section].items():
            changed = entry | changes
            data[section][key] = {n: v for n, v in changed.items() if v is not ...}

    return change


def whole(section: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        data[section] = value

    return change


INVALID: dict[str, tuple[Callable[[dict[str, Any]], None], str | None, str | None]] = {
    "list of tokens": (whole("AccessToken", [SECRET]), ALICE, NOTE),
    "text of tokens": (whole("RefreshToken", SECRET), ALICE, NOTE),
    "list of accounts": (whole("Account", []), "alice-id.contoso-id", NOTE),
    "no accounts": (whole("Account", None), "alice-id.contoso-id", None),
    "text for an entry": (whole("AccessToken", {"k": SECRET}), ALICE, NOTE),
    "null for an entry": (whole("RefreshToken", {"k": None}), ALICE, NOTE),
    "no secret": (each("RefreshToken", secret=...), ALICE, NOTE),
    "odd secret": (each("AccessToken", secret=[SECRET]), ALICE, NOTE),
    "empty secret": (each("AccessToken", secret=""), ALICE, NOTE),
    "line break": (each("RefreshToken", secret=f"{SECRET}\n"), ALICE, NOTE),
    "odd client": (each("RefreshToken", client_id=5), ALICE, NOTE),
    "no client": (each("AccessToken", client_id=...), ALICE, NOTE),
    "no environment": (each("RefreshToken", environment=None), ALICE, NOTE),
    "odd home": (each("RefreshToken", home_account_id=["x"]), ALICE, NOTE),
    "odd username": (each("Account", username=5), "alice-id.contoso-id", None),
    "odd realm": (each("Account", realm={}), ALICE, None),
    "odd type": (each("AccessToken", token_type=5), ALICE, None),
    "odd target": (each("AccessToken", target=[SECRET]), ALICE, None),
    "odd family": (each("RefreshToken", family_id=[1]), ALICE, None),
    "odd metadata": (whole("AppMetadata", {"k": 5}), ALICE, NOTE),
    "odd times": (each("RefreshToken", last_modification_time="soon"), ALICE, None),
    "later sections": (whole("Later", {"k": {"secret": SECRET}}), ALICE, None),
}


@pytest.mark.parametrize(("change", "name", "reason"), INVALID.values(), ids=INVALID)
def test_an_invalid_entry_is_reported_and_the_others_are_read(
    change: Callable[[dict[str, Any]], None],
    name: str | None,
    reason: str | None,
    cache: SerializableTokenCache,
) -> None:
    sign_in(cache)
    data = content(cache)
    change(data)

    assert name in accounts(data)
    reasons = [reason for named, reason in notes(data) if named is None]
    assert reasons == ([] if reason is None else [reason])


def test_fields_named_like_tokens_are_not_imported(cache: SerializableTokenCache) -> None:
    sign_in(cache)
    data = content(cache) | {"AccessToken": {}}
    each("Account", access_token=SECRET, expires_at=NOW, expires_in=1, token="t")(data)

    assert not accounts(data)[ALICE].keys() & {"access_token", "expires_at", "expires_in"}


EMPTY = [
    {"AccessToken": {}},
    {"AccessToken": {}, "RefreshToken": {}, "IdToken": {}, "Account": {}, "AppMetadata": {}},
    {"AppMetadata": {"k": {"environment": CLOUD, "client_id": "a"}}},
]


@pytest.mark.parametrize("data", EMPTY, ids=range(3))
def test_a_cache_without_a_login_is_reported(data: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    path.write_text(json.dumps(data))

    assert read_accounts(path) == [UnreadableEntry("is an MSAL token cache without logins")]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"access_token": "a", "Account": {"k": {}}, "AccessToken": {"k": {}}}, "alice"),
        ({"refreshToken": "a", "AppMetadata": {}}, "alice"),
        ({"AccessToken": "a", "RefreshToken": "r"}, None),
    ],
)
def test_a_file_with_one_account_is_not_read_as_a_cache(
    data: dict[str, Any], name: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "alice.json"
    path.write_text(json.dumps(data))

    (account,) = read_accounts(path)

    assert account.account_name == name
    assert "MSAL" not in str(account)


@pytest.mark.slow
def test_a_cache_may_have_up_to_16_mib(cache: SerializableTokenCache, tmp_path: Path) -> None:
    for number in range(600):
        sign_in(cache, f"user-{number}", home=(f"id-{number}", "t"), access_token="a" * 2000)
    path = tmp_path / "cache.json"
    path.write_text(cache.serialize())
    assert path.stat().st_size > 1 << 20

    assert [account.account_name for account in read_accounts(path)] == [
        f"user-{n}" for n in range(600)
    ]

    with path.open("a") as file:
        file.write(" " * (16 << 20))
    assert read_accounts(path) == [UnreadableEntry("larger than 16 MiB")]


VALUES = st.sampled_from([None, "", "x", "1", CLOUD, 1, -1e400, True, [], {}, ["x"], {"x": "x"}])
FIELDS = (
    "secret home_account_id environment client_id realm target username expires_on cached_at "
    "last_modification_time family_id token_type"
)
ENTRY = st.dictionaries(st.sampled_from(FIELDS.split()), VALUES, min_size=5)
SECTION = (
    VALUES | st.lists(ENTRY, max_size=2) | st.dictionaries(st.text(max_size=2), ENTRY | VALUES)
)


@pytest.mark.slow
@given(
    st.dictionaries(
        st.sampled_from(["Account", "RefreshToken", "AccessToken", "IdToken", "AppMetadata"]),
        SECTION,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_cache_is_read_or_reported(data: dict[str, Any]) -> None:
    try:
        found = read_cache(data)
    except UnreadableFileError:
        return

    assert found
    named = [account.account_name for account in found if isinstance(account, ImportedAccount)]
    assert len(named) == len(set(named))


def in_two_folders(directory: Path, *caches: SerializableTokenCache) -> list[Path]:
    """Write each cache to a folder of its own, under one name."""
    paths = [directory / folder / "cache.json" for folder in ("one", "two")]
    for path, cache in zip(paths, caches, strict=True):
        path.parent.mkdir()
        path.write_text(cache.serialize())
    return paths


def outcomes(repository: TokenRepository, paths: list[Path]) -> list[tuple[str | None, str]]:
    return [(r.account_name, r.outcome) for r in import_accounts(repository, paths)]


def test_a_copy_of_a_cache_is_no_second_account(
    cache: SerializableTokenCache, tmp_path: Path
) -> None:
    """The first rotation of one would end the login of the other."""
    sign_in(cache)
    paths = in_two_folders(tmp_path, cache, cache)
    with TokenRepository(tmp_path / "tokens.db") as repository:
        assert outcomes(repository, paths) == [(ALICE, "imported"), (ALICE, "skipped")]


def test_a_damaged_account_does_not_end_an_import(
    cache: SerializableTokenCache, tmp_path: Path
) -> None:
    sign_in(cache)
    other = SerializableTokenCache()
    sign_in(other, refresh_token=f"{SECRET}-other")
    paths = in_two_folders(tmp_path, cache, other)
    with TokenRepository(tmp_path / "tokens.db") as repository:
        outcomes(repository, paths[:1])
        with raw(tmp_path / "tokens.db") as connection:
            connection.execute("UPDATE accounts SET access_token = 'damaged'")
        assert outcomes(repository, paths) == [(ALICE, "skipped"), (f"two/{ALICE}", "imported")]
