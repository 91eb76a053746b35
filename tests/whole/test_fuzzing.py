from __future__ import annotations

import gzip
import json
import math
import re
import tempfile
import unicodedata
import zlib
from collections import ChainMap, OrderedDict, UserDict, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum, StrEnum
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus, urlencode

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from tests.helpers.refreshes import Clock, Raw, World
from tests.helpers.strategies import any_text, examples, json_values, secrets, storable_text
from tokenstore import (
    ClientRejectedError,
    InvalidTokenError,
    Provider,
    ReauthorizationRequired,
    TokenManager,
    TokenRepository,
    TokenStoreError,
    TransientRefreshError,
)
from tokenstore.jsonfiles import export_accounts, import_accounts
from tokenstore.models.timestamps import NEVER
from tokenstore.storage.rows import CorruptRowError
from tokenstore.testing import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenstore.models.accounts import Record

pytestmark = pytest.mark.slow

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenManager]:
    """One for all examples: making a database takes as long as many of them."""
    path = tmp_path_factory.mktemp("fuzzing") / "tokens.db"
    with TokenManager(path, clock=Clock(NOW)) as manager:
        yield manager


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenRepository]:
    with TokenRepository(tmp_path_factory.mktemp("another") / "tokens.db") as repository:
        yield repository


def refused(function: Callable[..., object], *given: Any, **more: Any) -> InvalidTokenError | None:
    """Call a function and return its refusal; it may raise nothing else."""
    error = failure_of(function, *given, **more)
    assert error is None or isinstance(error, InvalidTokenError)
    return error


def failure_of(function: Callable[..., object], *given: Any, **more: Any) -> TokenStoreError | None:
    """Call a function and return an error of ours; it may raise no other."""
    try:
        function(*given, **more)
    except TokenStoreError as error:
        return error
    return None


# -- token sets -----------------------------------------------------------------------------------


class Masked(str):
    """Text that hides itself wherever it is printed, as wrappers of secrets do."""

    __slots__ = ()

    def __str__(self) -> str:
        return "***"

    def __repr__(self) -> str:
        return "'***'"

    def __format__(self, _: str) -> str:
        return "***"


class Token(StrEnum):
    A = "access token of an enumeration"


class Number(IntEnum):
    ONE = 1


class Vague:
    """Compares as arrays do: with a result that is neither true nor false."""

    def __eq__(self, other: object) -> Any:
        return self

    def __hash__(self) -> int:
        return 1

    def __bool__(self) -> bool:
        raise ValueError("the truth value is ambiguous")


class OnlyAMapping(Mapping[str, Any]):
    """What a mapping has to have, and nothing more."""

    def __init__(self, items: dict[str, Any]) -> None:
        self._items = items

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def cyclic(kind: str) -> Any:
    if kind == "list":
        items: list[Any] = []
        items.append({"again": items})
        return items
    mapping: dict[str, Any] = {}
    mapping["again"] = [mapping]
    return mapping


def nested(depth: int) -> Any:
    value: Any = "leaf"
    for level in range(depth):
        value = [value] if level % 2 else {"in": value}
    return value


odd_values = st.one_of(
    json_values,
    st.floats(),
    st.sampled_from([10**400, -(10**4000), 10**5000, 2**63, math.nan, math.inf, -math.inf]),
    st.sampled_from([NEVER, NEVER + 1, 1e11, -1e11, 1e300, -0.0, "1_0", "٣", " 7 ", "1e400"]),
    st.sampled_from([Token.A, Number.ONE, Vague(), object(), Fraction(1, 3), range(3), int]),
    st.text().map(Masked),
    st.binary(max_size=5),
    st.decimals(),
    st.datetimes(),
    st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=23, minutes=59))])),
    st.datetimes().map(datetime.isoformat),
    st.dates(),
    st.complex_numbers(),
    st.sets(st.integers(), max_size=2),
    st.tuples(json_values, json_values),
    st.dictionaries(st.text(), json_values, max_size=2).flatmap(
        lambda items: st.sampled_from(
            [UserDict(items), MappingProxyType(items), OrderedDict(items), defaultdict(int, items)]
        )
    ),
    st.dictionaries(st.integers() | st.none() | st.binary(), json_values, max_size=2),
    st.sampled_from(["list", "dict"]).map(cyclic),
    st.sampled_from([nested(depth) for depth in (199, 200, 201, 999, 1001, 100_000)]),
)
KNOWN = [
    "access_token",
    "refresh_token",
    "expires_at",
    "expires_in",
    "refresh_token_expires_in",
    "refresh_expires_in",
    "client_id",
    "token_type",
    "scope",
]
odd_keys = st.sampled_from(KNOWN) | any_text
odd_tokens = st.builds(
    lambda good, odd: good | odd,
    st.fixed_dictionaries(
        {"access_token": secrets},
        optional={"refresh_token": secrets, "expires_in": st.integers(), "expires_at": st.none()},
    ),
    st.dictionaries(odd_keys, odd_values, max_size=3),
)
mappings = st.sampled_from([dict, UserDict, MappingProxyType, ChainMap, OnlyAMapping, OrderedDict])


def same(given: Any, loaded: Any) -> bool:
    """Tell whether *loaded* is *given*, as far as JSON can tell."""
    if isinstance(given, dict):
        return (
            type(loaded) is dict
            and all(isinstance(key, str) for key in given)
            and given.keys() == loaded.keys()
            and all(same(value, loaded[key]) for key, value in given.items())
        )
    if isinstance(given, (list, tuple)):
        return type(loaded) is list and len(given) == len(loaded) and all(map(same, given, loaded))
    if given is None or isinstance(given, bool):
        return given is loaded
    kind = next((kind for kind in (str, int, float) if isinstance(given, kind)), None)
    return kind is type(loaded) and given == loaded


def check_expiry(tokens: dict[str, Any], loaded: dict[str, Any]) -> None:
    """Check the one field that does not come back as it was given."""
    at, lifetime = tokens.get("expires_at"), tokens.get("expires_in")
    if at is None and lifetime is None:
        assert loaded.get("expires_at") is None
        return
    moment = loaded["expires_at"]
    assert type(moment) is float
    assert -NEVER < moment <= NEVER
    if isinstance(at, (int, float)) and 0 <= at < 1e11:
        assert moment == at
    if at is None and isinstance(lifetime, (int, float)) and 0 <= lifetime < 1e11:
        assert moment == NOW + lifetime


@examples(200)
@given(tokens=odd_tokens, kind=mappings)
@example({"access_token": Masked("secret"), "expires_in": 3600}, dict)
@example({"access_token": "a", "expires_at": Vague()}, dict)
@example({"access_token": "a", "expires_at": Decimal("sNaN")}, dict)
def test_tokens_come_back_as_they_were_given_or_are_refused(
    manager: TokenManager, tokens: dict[Any, Any], kind: Any
) -> None:
    manager.save_tokens("alice", {"access_token": "before"})
    before = manager._repository.record("alice")
    refusal = refused(manager.save_tokens, "alice", kind(tokens))
    if refusal is not None:
        assert refusal.field in {"tokens", *tokens}
        assert manager._repository.record("alice") == before
        return
    loaded = manager.load_tokens("alice")
    assert loaded is not None
    rest = tokens.keys() - {"expires_at"}
    assert rest == loaded.keys() - {"expires_at"}
    assert all(same(tokens[key], loaded[key]) for key in rest)
    check_expiry(tokens, loaded)
    if (loaded.get("expires_at") or 0.0) > NOW + 300:
        assert manager.get_valid_token("alice") == tokens["access_token"]


# -- names of accounts ----------------------------------------------------------------------------

NO_NAMES = [None, 7, math.nan, b"alice", ["alice"], {"alice": 1}, ("alice",), Vague(), object()]
names = st.one_of(
    any_text,
    storable_text,
    st.text("aAàa\u0300Åå\u212b\u212aKk./\\~ -", max_size=5),  # some of these are the same
    # Some are longer as they are stored than they were given.
    st.builds(
        str.__mul__, st.sampled_from("aé\u0958\ufb2c"), st.sampled_from([170, 171, 256, 257])
    ),
    st.builds(str.__mul__, st.sampled_from(["a", "e\u0301"]), st.integers(510, 514)),
    storable_text.map(Masked),
)


def stored_as(name: str) -> str | None:
    """Return the form in which a name comes back, None if it is to be refused."""
    normal = unicodedata.normalize("NFC", name)
    categories = set(map(unicodedata.category, normal))
    fits = 0 < len(normal) <= 512 and not categories & {"Cc", "Cs", "Zl", "Zp"}
    return normal if fits else None


@examples(60)
@given(given=st.lists(names, min_size=1, max_size=5))
def test_a_name_comes_back_and_is_nobody_elses_or_is_refused(
    manager: TokenManager, another: TokenRepository, given: list[str]
) -> None:
    clear(manager._repository)
    expected: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(given):
        tokens = {"access_token": f"access-{number}"}
        stored, refusal = stored_as(name), refused(manager.save_tokens, name, tokens)
        if stored is None:
            check_refused(manager, name)
        else:
            assert refusal is None
            expected[stored] = tokens
            assert manager.load_tokens(name) == tokens
    assert [account.name for account in manager.accounts()] == sorted(expected)
    check_files(manager, another, expected)
    for name, tokens in expected.items():
        assert manager.load_tokens(name) == tokens
        assert manager.delete_tokens(unicodedata.normalize("NFD", name))
        assert not manager.delete_tokens(name)


def check_refused(manager: TokenManager, name: Any) -> None:
    """Check that nothing takes what is no name."""
    calls: list[Callable[[], object]] = [
        lambda: manager.save_tokens(name, {"access_token": "a"}),
        lambda: manager.load_tokens(name),
        lambda: manager.delete_tokens(name),
        lambda: manager.get_valid_token(name),
        lambda: manager.ensure_valid_token(name),
        lambda: manager.refresh_token(name, "google"),
    ]
    if name is not None:
        calls.append(lambda: list(manager.history(name)))
    assert [getattr(refused(call), "field", None) for call in calls] == ["account_name"] * len(
        calls
    )


def check_files(manager: TokenManager, another: TokenRepository, expected: dict[str, Any]) -> None:
    """Check that each account has a file of its own, and all come back from there."""
    with tempfile.TemporaryDirectory(dir=Path(another.name).parent) as target:
        exported = list(export_accounts(manager._repository, target))
        assert [(r.account_name, r.outcome) for r in exported] == [
            (name, "exported") for name in sorted(expected)
        ]
        files = list(Path(target).iterdir())
        assert {r.path for r in exported} == {*files}
        assert len(files) == len(expected)
        assert {r.outcome for r in import_accounts(another, target)} <= {"imported"}
    assert {a.name: another.load(a.name) for a in another.accounts()} == expected
    clear(another)


def clear(repository: TokenRepository) -> None:
    with repository.transaction():
        for account in list(repository.accounts()):
            repository.delete(account.name)


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda name: type(name).__name__)
def test_what_is_no_text_is_no_name(manager: TokenManager, name: Any) -> None:
    check_refused(manager, name)


@examples(100)
@given(provider=any_text | storable_text.map(Masked))
@example("")
@example("\0")
@example("\ud800")
def test_the_name_of_a_provider_comes_back_or_is_refused(
    manager: TokenManager, provider: str
) -> None:
    clear(manager._repository)
    error = failure_of(manager.save_tokens, "alice", {"access_token": "a"}, provider=provider)
    assert [a.provider for a in manager.accounts()] == ([provider] if error is None else [])


# -- files ----------------------------------------------------------------------------------------

TIMES = [
    1_800_000_000,
    "1800000000",
    1_800_000_000_123,
    "2027-01-15T08:00:00",
    "2027-01-15T08:00:00.123456Z",
    "2027-11-07T01:30:00",  # comes twice in Los Angeles
    "9999-12-31T23:59:59",
    "0001-01-01T00:00:00",
    0,
    -1,
    -1e300,
    "soon",
    None,
]
GOOGLE = {"token_uri": "https://CANARY.example/", "client_id": "CANARY", "client_secret": "CANARY"}
SHAPES: list[dict[str, Any]] = [  # of DESIGN.md 2.2
    {
        "access_token": "CANARY-a",
        "refresh_token": "CANARY-r",
        "expires_at": "2027-01-15T08:00:00",
        "expires_in": 3599,
        "realmId": {"CANARY": ["CANARY", None, 1.5]},
    },
    {"refresh_token": "CANARY-r", "access_token": None},
    {"token": "CANARY-a", "refresh_token": "CANARY-r", "expiry": "2027-01-15T08:00:00Z", **GOOGLE},
    {
        "access_token": "CANARY-a",
        "refresh_token": "CANARY-r",
        "token_expiry": "2027-01-15T08:00:00Z",
        "token_response": {"access_token": "CANARY-b", "expires_in": 3599},
        **GOOGLE,
    },
    {"accessToken": "CANARY-a", "refreshToken": "CANARY-r", "expiresAt": 1_800_000_000_000},
    {"access_token": "CANARY-a", "expiry_date": 1_800_000_000_000, "scope": ["CANARY", "b"]},
    {"access_token": "CANARY-a", "expires_in": 3600},
    {"access_token": "CANARY-a", "expires_in": "3600", "obtained_at": 1_800_000_000},
    {"access_token": "CANARY-a", "expires_in": 3600, "created_at": "2027-01-15T08:00:00Z"},
    {
        "access_token": "CANARY-a",
        "expires_at": "2027-01-15T08:00:00",
        "tokenstore": {
            "version": 1,
            "account_name": "a/b",
            "provider": "google",
            "expires_at": 1_800_000_000.0,
        },
    },
]
UNDERSTOOD = {
    *("access_token", "accessToken", "token", "refresh_token", "refreshToken"),
    *("expires_at", "expiresAt", "expiry", "token_expiry", "expiry_date"),
}
FIELDS = sorted({key for shape in SHAPES for key in shape})
odd_fields = st.one_of(
    st.sampled_from(TIMES),
    st.sampled_from(["CANARY", "CANARY\n", "CANARY\ud800", "", [], {}, ["CANARY"], True, 1e308]),
    json_values.filter(lambda value: not isinstance(value, str)),
)
changes = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.sampled_from(FIELDS) | any_text, odd_fields),
        st.tuples(st.just("drop"), st.sampled_from(FIELDS)),
        st.tuples(st.just("rename"), st.sampled_from(FIELDS), st.sampled_from(FIELDS)),
        st.tuples(
            st.just("block"),
            st.sampled_from(["account_name", "provider", "expires_at"]),
            st.sampled_from(TIMES) | names,
        ),
    ),
    max_size=3,
)


def changed(shape: dict[str, Any], changes: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Return a token file as somebody else may have changed it."""
    data = dict(shape)
    for kind, key, *rest in changes:
        if kind == "set":
            data[key] = rest[0]
        elif kind == "block":
            block = data.get("tokenstore")
            data["tokenstore"] = {**(block if isinstance(block, dict) else {}), key: rest[0]}
        elif key in data:
            value = data.pop(key)
            if kind == "rename":
                data[rest[0]] = value
    return data


token_files = st.builds(changed, st.sampled_from(SHAPES), changes)
canaries = st.recursive(
    st.none() | st.booleans() | st.floats() | any_text.map("CANARY{}".format),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(any_text, values, max_size=3),
    max_leaves=5,
)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Return the bytes of a file: a good one, one that is broken somewhere, or anything."""
    kind = draw(st.sampled_from(["tokens", "tokens", "broken", "broken", "JSON", "bytes"]))
    if kind == "bytes":
        return b"CANARY".join(draw(st.lists(st.binary(max_size=20), min_size=2, max_size=4)))
    data = draw(canaries if kind == "JSON" else token_files)
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32-be"]))
    content = json.dumps(data, ensure_ascii=draw(st.booleans())).encode(encoding, "replace")
    if kind == "broken":
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(start + 9, len(content))) | st.just(len(content)))
        content = content[:start] + draw(st.binary(max_size=4)) + content[end:]
    return content


def fields_of(content: bytes) -> dict[str, Any]:
    """Return the fields that a reader of the file would see, none if it is no JSON object."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


@examples(250)
@given(content=contents())
def test_whatever_is_in_a_file_it_is_imported_or_reported(
    another: TokenRepository, content: bytes
) -> None:
    file = Path(another.name).with_name("alice.json")
    file.write_bytes(content)
    [result] = import_accounts(another, file)
    accounts = [account.name for account in another.accounts()]
    loaded = another.load(result.account_name) if result.account_name is not None else None
    clear(another)
    assert result.path == file
    assert "CANARY" not in str(result)
    token = fields_of(content).get("access_token")
    usable = isinstance(token, str) and re.fullmatch(r"[!-~]+", token)
    if result.outcome == "imported":
        assert accounts == [result.account_name]
        assert loaded is not None
        assert loaded["access_token" if loaded.get("access_token") else "refresh_token"]
        assert not usable or loaded["access_token"] == token
        return
    assert (result.outcome, accounts, loaded) == ("failed", [], None)
    assert result.reason


def facts(record: Record | CorruptRowError) -> tuple[Any, ...]:
    """Return what an export keeps of an account; there, null is an expiry that never comes."""
    assert not isinstance(record, CorruptRowError)
    tokens = record.tokens.to_dict()
    if tokens.get("expires_at") is None:
        tokens.pop("expires_at", None)
    return record.account_name, record.provider, tokens, record.tokens.refresh_token_obtained_at


def check_unknown_fields(repository: TokenRepository, files: list[dict[str, Any]]) -> None:
    """Check that what only the owner of a file understands is stored as it is."""
    for number, data in enumerate(files):
        loaded = repository.load(f"account {number}")
        if loaded is not None and "tokenstore" not in data:
            assert all(same(data[key], loaded[key]) for key in data.keys() - UNDERSTOOD)


@examples(40, suppress_health_check=[HealthCheck.function_scoped_fixture])  # the zone stays
@given(files=st.lists(token_files, min_size=1, max_size=4))
@example([{"refresh_token": "CANARY-r", "accessToken": [], "token": 1}])
@pytest.mark.usefixtures("zone")
def test_what_was_imported_once_comes_back_from_every_export(
    manager: TokenManager, another: TokenRepository, files: list[dict[str, Any]]
) -> None:
    first = manager._repository
    clear(first)
    with tempfile.TemporaryDirectory(dir=Path(another.name).parent) as directory:
        old, new, newer = (Path(directory) / name for name in ("old", "new", "newer"))
        old.mkdir()
        for number, data in enumerate(files):
            (old / f"account {number}.json").write_text(json.dumps(data))
        outcomes = [result.outcome for result in import_accounts(first, old)]
        assert len(outcomes) == len(files)
        assert outcomes.count("imported") == len(list(first.accounts()))
        list(export_accounts(first, new))
        list(import_accounts(another, new))
        check_unknown_fields(first, files)
        stored, again = (
            list(map(facts, first.listing.records())),
            list(map(facts, another.listing.records())),
        )
        list(export_accounts(another, newer))
        clear(another)
        assert [file.read_bytes() for file in sorted(new.iterdir())] == [
            file.read_bytes() for file in sorted(newer.iterdir())
        ]
    assert again == stored


# -- answers of providers -------------------------------------------------------------------------

SENT = "1//CANARY+sent/é"
CURRENT = {"access_token": "CANARY-current", "refresh_token": SENT, "expires_in": 3600}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("answers")) as world:
        yield world


@pytest.fixture(scope="module")
def refresher(world: World) -> TokenManager:
    return world.manager(timeout=10.0)


canary = st.text("abc-._~/+=", max_size=9).map("CANARY{}".format)
lifetimes: st.SearchStrategy[Any] = st.sampled_from(
    [3600, "3600", 3600.5, 0, -1, None, "", "abc", [], True, 1e308, 10**400, 10**30, {"a": 1}]
)
words = any_text | st.sampled_from(
    ["invalid_grant", "invalid_client", "server_error", f"bad {SENT}", quote_plus(SENT), SENT * 99]
)
errors = st.one_of(
    words,
    st.fixed_dictionaries({}, optional={"code": words, "message": words, "status": words}),
    st.lists(words, max_size=2),
    st.integers() | st.none() | st.booleans(),
)
unknown_fields = st.dictionaries(
    st.sampled_from(["id_token", "scope", "expires_at", "client_id", "refresh_expires_in", "x"]),
    st.recursive(
        canary | lifetimes,
        lambda values: st.lists(values, max_size=2) | st.dictionaries(canary, values, max_size=2),
        max_leaves=4,
    ),
    max_size=3,
)
odd_answers = st.builds(
    lambda fields, known: fields | known,
    unknown_fields,
    st.fixed_dictionaries(
        {},
        optional={
            "access_token": canary | st.sampled_from(["", None, 1, [], "CANARY\n", "CANARY\ud800"]),
            "refresh_token": canary | st.sampled_from(["", None, 1, {}, "CANARY\0"]),
            "expires_in": lifetimes,
            "error": errors,
            "error_description": words,
            "errors": errors,
        },
    ),
)
good_answers = st.builds(
    lambda fields, token, known: fields | {"access_token": token} | known,
    unknown_fields,
    canary,
    st.fixed_dictionaries({}, optional={"refresh_token": canary, "expires_in": lifetimes}),
)
statuses = st.sampled_from([200, 200, 201, 400, 401, 403, 429, 500, 503]) | st.integers(200, 999)
header_text = st.text(st.characters(max_codepoint=255, exclude_categories=["Cc"]), max_size=20)
headers = st.dictionaries(
    st.sampled_from(["Retry-After", "Date", "Location", "Set-Cookie", "Link", "WWW-Authenticate"])
    | st.from_regex(r"X-[A-Za-z]{1,5}", fullmatch=True),
    header_text
    | st.sampled_from(
        ["60", "-1", "1e9", "Fri, 31 Dec 9999 23:59:59 GMT", "https://[", "a=CANARY"]
    ),
    max_size=3,
)
types = st.sampled_from(
    [None, "application/json", "text/html; charset=utf-16", "application/json; charset=x", ";;"]
)


@st.composite
def encoded(draw: st.DrawFn, fields: dict[str, Any]) -> bytes:
    """Return an answer as providers encode it."""
    if draw(st.booleans()) and all(isinstance(value, str) for value in fields.values()):
        return urlencode(fields, errors="replace").encode()
    text = json.dumps(fields, ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.just(1)))
    encodings = ["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32-le"]
    return text.encode(draw(st.sampled_from(encodings)), "replace")


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Return what may come back in place of a good answer."""
    kind = draw(st.sampled_from(["odd", "odd", "cut", "bytes", "deep"]))
    if kind == "bytes":
        return b"CANARY".join(draw(st.lists(st.binary(max_size=20), min_size=2, max_size=4)))
    if kind == "deep":
        return draw(st.sampled_from([b"[" * 3000, b'{"access_token":' * 1500, b"&=" * 3000]))
    body = draw(odd_answers.flatmap(encoded))
    return body[: draw(st.integers(0, len(body)))] if kind == "cut" else body


def usable(body: bytes) -> dict[str, Any]:
    """Return the fields of a body that has a good access token for certain."""
    token = fields_of(body).get("access_token")
    return fields_of(body) if isinstance(token, str) and re.fullmatch("[!-~]+", token) else {}


def check_stored(world: World, manager: TokenManager, fields: dict[str, Any]) -> None:
    """Check that the tokens of an answer are what is stored now."""
    refresh_token = fields.get("refresh_token")
    usable = isinstance(refresh_token, str) and re.fullmatch("[!-~]+", refresh_token)
    stored = manager.load_tokens("alice")
    assert stored is not None
    assert stored["access_token"] == fields["access_token"]
    assert stored["refresh_token"] == (refresh_token if usable else SENT)
    assert world.clock.now - 2 <= stored["expires_at"] <= NEVER
    assert world.outcomes()[-1] == "refreshed"
    unknown = fields.keys() - {*CURRENT, "expires_at", "client_id"}
    assert all(same(fields[key], stored[key]) for key in unknown)


def check_failure(world: World, error: TokenStoreError, before: dict[str, Any]) -> None:
    """Check that a refresh that failed has cost nothing, and told nothing."""
    assert isinstance(error, (ReauthorizationRequired, TransientRefreshError, ClientRejectedError))
    shown = f"{error} {error!r} {vars(error)} {world.sql('SELECT failure FROM accounts')}"
    assert "CANARY" not in shown
    after = world.row()
    changed = {k for k in after if after[k] != before[k]}
    if "refresh_token" in changed:  # R17: there was a new one, and no access token
        assert "gave a new refresh token, which is stored, and no usable access token" in shown
        assert after["access_token"] == before["access_token"]
        assert world.outcomes()[-1] == "refreshed"
        return
    assert changed <= {"failure", "refresh_id"}
    assert world.outcomes()[-1] in {"reauthorization", "transient", "client_rejected"}


@examples(150)
@given(
    body=bodies() | good_answers.flatmap(encoded),
    status=statuses,
    headers=headers,
    content_type=types,
)
def test_whatever_a_provider_answers_costs_no_login(
    world: World,
    refresher: TokenManager,
    body: bytes,
    status: int,
    headers: dict[str, str],
    content_type: str | None,
) -> None:
    refresher.delete_tokens("alice")  # the journal knows the token as spent
    refresher.save_tokens("alice", CURRENT, provider="test")
    before = world.row()
    world.server.script(Answer(status, body, headers, content_type))
    error = failure_of(refresher.refresh_token, "alice")
    redirected_or_empty = 300 <= status < 400 or status in {204, 205}
    fields = {} if redirected_or_empty else usable(body)
    if error is not None:
        assert not fields
        check_failure(world, error, before)
    elif fields:
        check_stored(world, refresher, fields)
    [account] = refresher.accounts()
    assert account.state in {"valid", "due", "retry_later", "sign_in", "misconfigured"}
    world.server.script(Answer(200, CURRENT))
    assert refresher.refresh_token("alice")["access_token"] == CURRENT["access_token"]


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@st.composite
def transferred(draw: st.DrawFn, body: bytes) -> bytes:
    """Return a good answer as it may be transferred."""
    kind = draw(
        st.sampled_from(["length", "until closed", "chunks", "gzip", "deflate", "HTTP/1.0"])
    )
    if kind == "until closed":
        return HEAD + b"\r\n" + body
    if kind == "chunks":
        size = draw(st.integers(1, len(body)))
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    head = HEAD
    if kind in {"gzip", "deflate"}:
        body = gzip.compress(body) if kind == "gzip" else zlib.compress(body)
        head += b"Content-Encoding: " + kind.encode() + b"\r\n"
    whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    if kind == "HTTP/1.0":
        return whole.replace(b"1.1", b"1.0", 1)
    return draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"])) + whole


@pytest.fixture(scope="module")
def wire() -> Iterator[Raw]:
    with Raw() as raw:
        yield raw


@examples(100)
@given(data=st.data(), fields=good_answers, damage=st.sampled_from(["none", "cut", "other bytes"]))
def test_whatever_happens_on_the_way_costs_no_login(
    world: World,
    refresher: TokenManager,
    wire: Raw,
    data: st.DataObject,
    fields: dict[str, Any],
    damage: str,
) -> None:
    provider = Provider("raw", wire.url, "id")
    refresher.delete_tokens("alice")
    refresher.save_tokens("alice", CURRENT, provider="raw")
    before = world.row()
    wire.answer = data.draw(transferred(json.dumps(fields).encode()))
    if damage != "none":
        start = data.draw(st.integers(0, len(wire.answer)))
        rest = b"" if damage == "cut" else data.draw(st.binary()) + wire.answer[start + 2 :]
        wire.answer = wire.answer[:start] + rest
    error = failure_of(refresher.refresh_token, "alice", provider)
    if error is not None:
        assert damage != "none"
        check_failure(world, error, before)
    elif damage == "none":
        check_stored(world, refresher, fields)
    wire.answer = HEAD + b"\r\n" + json.dumps(CURRENT).encode()
    assert refresher.refresh_token("alice", provider)["access_token"] == CURRENT["access_token"]
