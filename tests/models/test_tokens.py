from __future__ import annotations

import json
import math
from collections import UserDict
from datetime import UTC, date, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.strategies import examples, json_values
from tokenstore.errors import InvalidTokenError
from tokenstore.models.timestamps import (
    NEVER,
)
from tokenstore.models.tokens import (
    TokenSet,
    fingerprint,
    is_token,
    lifetime_of,
    normalize_account_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
SECRET = "at-canary-77c0"


def saved(tokens: Mapping[str, Any]) -> dict[str, Any]:
    return TokenSet.from_mapping(tokens, now=NOW).to_dict()


def refused(tokens: Any) -> InvalidTokenError:
    with pytest.raises(InvalidTokenError) as caught:
        TokenSet.from_mapping(tokens, now=NOW)
    return caught.value


def nested(depth: int, leaf: object = "leaf") -> object:
    value = leaf
    for level in range(depth):
        value = [value] if level % 2 else {"in": value}
    return value


def circular() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = [value]
    return value


# -- what is accepted -----------------------------------------------------------------------------


def test_every_field_comes_back_as_it_was_given() -> None:
    tokens = {
        "access_token": "ya29.ÀÉ漢🔑",
        "refresh_token": "1//0g",
        "expires_at": NOW,
        "expires_in": "3600",
        "scope": "openid email",
        "id_token": "",
        "nothing": None,
        "flag": False,
        "count": 0,
        "big": 10**300,
        "ratio": 0.1,
        "realmId": {"nested": [1, None, {"ü": "\ud83d\ude00"}]},
        "half a pair": "\udce9",
        "": "no name",
    }

    assert saved(tokens) == tokens


@examples(60)
@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_unknown_fields_are_never_lost(fields: dict[str, Any]) -> None:
    tokens = fields | {"access_token": "a", "refresh_token": "r", "expires_at": NOW}
    tokens.pop("expires_in", None)

    assert json.loads(json.dumps(saved(tokens))) == tokens


@pytest.mark.parametrize("kind", [dict, UserDict, MappingProxyType], ids=lambda kind: kind.__name__)
def test_any_mapping_is_accepted(kind: Any) -> None:
    assert saved(kind({"access_token": "a"})) == {"access_token": "a"}


def test_the_argument_is_not_changed() -> None:
    tokens = {"access_token": "a", "expires_in": 60, "extra": {"k": [1]}}

    saved(tokens)

    assert tokens == {"access_token": "a", "expires_in": 60, "extra": {"k": [1]}}


@pytest.mark.parametrize(
    "tokens",
    [{"access_token": "a"}, {"access_token": "a", "refresh_token": None, "expires_at": None}],
    ids=["absent", "null"],
)
def test_a_missing_refresh_token_and_expiry_stay_missing(tokens: dict[str, Any]) -> None:
    token_set = TokenSet.from_mapping(tokens, now=NOW)

    assert (token_set.refresh_token, token_set.expires_at) == (None, None)
    assert token_set.to_dict() == tokens


def test_the_same_tokens_saved_again_are_the_same() -> None:
    first = saved({"access_token": "a", "expires_in": 3600, "scope": "x"})

    assert TokenSet.from_mapping(first, now=NOW + 500).to_dict() == first


# -- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "None": (None, "tokens"),
    "a list of pairs": ([("access_token", "a")], "tokens"),
    "JSON text": ('{"access_token": "a"}', "tokens"),
    "nothing": ({}, "access_token"),
    "no access token": ({"refresh_token": "r"}, "access_token"),
    "null access token": ({"access_token": None, "refresh_token": "r"}, "access_token"),
    "empty access token": ({"access_token": ""}, "access_token"),
    "bytes": ({"access_token": b"a"}, "access_token"),
    "a number for a token": ({"access_token": 5}, "access_token"),
    "newline": ({"access_token": "a\nb"}, "access_token"),
    "carriage return": ({"access_token": "a\r"}, "access_token"),
    "NUL": ({"access_token": "\0a"}, "access_token"),
    "escape": ({"access_token": "a\x1b[0m"}, "access_token"),
    "DEL": ({"access_token": "a\x7f"}, "access_token"),
    "C1 control": ({"access_token": "a\x85"}, "access_token"),
    "half a surrogate pair": ({"access_token": "a\ud800"}, "access_token"),
    "empty refresh token": ({"access_token": "a", "refresh_token": ""}, "refresh_token"),
    "refresh token 0": ({"access_token": "a", "refresh_token": 0}, "refresh_token"),
    "refresh token False": ({"access_token": "a", "refresh_token": False}, "refresh_token"),
    "refresh token list": ({"access_token": "a", "refresh_token": ["r"]}, "refresh_token"),
    "tab in refresh token": ({"access_token": "a", "refresh_token": "r\t"}, "refresh_token"),
    "words for seconds": ({"access_token": "a", "expires_in": "an hour"}, "expires_in"),
    "empty seconds": ({"access_token": "a", "expires_in": ""}, "expires_in"),
    "NaN seconds": ({"access_token": "a", "expires_in": math.nan}, "expires_in"),
    "endless seconds": ({"access_token": "a", "expires_in": math.inf}, "expires_in"),
    "text for endless seconds": ({"access_token": "a", "expires_in": "Infinity"}, "expires_in"),
    "too many seconds": ({"access_token": "a", "expires_in": 10**400}, "expires_in"),
    "True seconds": ({"access_token": "a", "expires_in": True}, "expires_in"),
    "list of seconds": ({"access_token": "a", "expires_in": [3600]}, "expires_in"),
    "bad seconds and a good timestamp": (
        {"access_token": "a", "expires_in": "soon", "expires_at": NOW},
        "expires_in",
    ),
    "words for a timestamp": ({"access_token": "a", "expires_at": "tomorrow"}, "expires_at"),
    "empty timestamp": ({"access_token": "a", "expires_at": ""}, "expires_at"),
    "NaN timestamp": ({"access_token": "a", "expires_at": math.nan}, "expires_at"),
    "minus infinity": ({"access_token": "a", "expires_at": -math.inf}, "expires_at"),
    "no such timestamp": ({"access_token": "a", "expires_at": 1e300}, "expires_at"),
    "nanoseconds": ({"access_token": "a", "expires_at": int(NOW) * 10**9}, "expires_at"),
    "True timestamp": ({"access_token": "a", "expires_at": True}, "expires_at"),
    "no such day": ({"access_token": "a", "expires_at": "2027-02-30T00:00:00"}, "expires_at"),
    "a date": ({"access_token": "a", "expires_at": date(2027, 1, 15)}, "expires_at"),
    "bad timestamp and good seconds": (
        {"access_token": "a", "expires_in": 3600, "expires_at": "soon"},
        "expires_at",
    ),
    "NaN": ({"access_token": "a", "score": math.nan}, "score"),
    "infinity": ({"access_token": "a", "score": [1, {"x": -math.inf}]}, "score"),
    "datetime elsewhere": ({"access_token": "a", "at": datetime.now(UTC)}, "at"),
    "bytes elsewhere": ({"access_token": "a", "raw": b"x"}, "raw"),
    "set": ({"access_token": "a", "scopes": {"x"}}, "scopes"),
    "Decimal": ({"access_token": "a", "price": Decimal(1)}, "price"),
    "object": ({"access_token": "a", "thing": object()}, "thing"),
    "huge int": ({"access_token": "a", "big": 10**5000}, "big"),
    "circular": ({"access_token": "a", "loop": circular()}, "loop"),
    "deep": ({"access_token": "a", "deep": nested(100_000)}, "deep"),
    "rather deep": ({"access_token": "a", "deep": nested(201)}, "deep"),
    "number as a name": ({"access_token": "a", 5: "x"}, "tokens"),
    "None as a name": ({"access_token": "a", None: "x"}, "tokens"),
    "number as an inner name": ({"access_token": "a", "map": {1: "x"}}, "map"),
    "number as a deeper name": ({"access_token": "a", "map": [{"k": {None: 1}}]}, "map"),
}


@pytest.mark.parametrize(("tokens", "field"), REFUSED.values(), ids=REFUSED)
def test_an_invalid_token_set_is_refused_by_field(tokens: Any, field: str) -> None:
    error = refused(tokens)

    assert error.field == field
    assert str(error).startswith(f"{field}: ")


@pytest.mark.parametrize(
    "tokens",
    [
        {"access_token": f"{SECRET}\n"},
        {"access_token": "a", "refresh_token": [SECRET]},
        {"access_token": "a", "expires_in": SECRET},
        {"access_token": "a", "expires_at": SECRET},
        {"access_token": "a", "id_token": {"x": SECRET, "y": {SECRET}}},
        {"access_token": "a", "id_token": {SECRET: SECRET.encode()}},
        SECRET,
    ],
    ids=["access", "refresh", "expires_in", "expires_at", "extra", "bytes", "no mapping"],
)
def test_a_refusal_never_quotes_the_value(tokens: Any) -> None:
    error: BaseException | None = refused(tokens)

    while error is not None:
        assert SECRET not in f"{error} {error!r} {vars(error)}"
        error = error.__cause__ or error.__context__


def test_the_secrets_are_not_in_the_repr_of_a_token_set() -> None:
    token_set = TokenSet.from_mapping(
        {"access_token": SECRET, "refresh_token": SECRET, "id_token": SECRET}, now=NOW
    )

    assert SECRET not in f"{token_set} {token_set!r}"


@pytest.mark.parametrize("depth", [1, 50, 200])
def test_nested_values_are_kept_at_any_depth_of_the_stack(depth: int) -> None:
    tokens = {"access_token": "a", "deep": nested(depth)}

    def read(frames: int) -> object:
        return read(frames - 1) if frames else json.loads(json.dumps(saved(tokens), indent=1))

    assert read(300) == tokens


# -- expiry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["2027-03-14T10:00:00", "2027-11-07T09:00:00"])
def test_expires_in_counts_real_seconds_over_a_clock_change(
    change: str, set_zone: Callable[[str], None]
) -> None:
    set_zone("Los_Angeles")
    now = datetime.fromisoformat(f"{change}+00:00").timestamp() - 60

    token_set = TokenSet.from_mapping({"access_token": "a", "expires_in": 3600}, now=now)

    assert token_set.expires_at == now + 3600


LIFETIMES = {
    "int": (3600, 3600),
    "text": ("3600", 3600),
    "float": (3600.0, 3600),
    "fraction as text": ("3600.5", 3600.5),
    "zero": (0, 0),
    "negative": (-1, -1),
    "negative text": ("-30", -30),
}


@pytest.mark.parametrize(("expires_in", "seconds"), LIFETIMES.values(), ids=LIFETIMES)
def test_expires_in_alone_counts_from_the_time_of_saving(
    expires_in: object, seconds: float
) -> None:
    loaded = saved({"access_token": "a", "expires_in": expires_in})

    assert loaded["expires_at"] == NOW + seconds
    assert loaded["expires_in"] == expires_in


def test_expires_at_takes_precedence_over_expires_in() -> None:
    loaded = saved({"access_token": "a", "expires_in": 3600, "expires_at": NOW + 5})

    assert loaded["expires_at"] == NOW + 5


@pytest.mark.parametrize("seconds", [1e12, 1e300, "1e308"])
def test_a_lifetime_beyond_the_calendar_ends_with_it(seconds: object) -> None:
    assert saved({"access_token": "a", "expires_in": seconds})["expires_at"] == NEVER


# -- the response to a refresh --------------------------------------------------------------------

OLD = TokenSet(
    access_token="old-access",
    refresh_token="old-refresh",
    expires_at=NOW - 10,
    extra={"scope": "a b", "instance_url": "https://x.example", "nested": {"k": [None]}},
)


def merged(response: dict[str, Any], old: TokenSet = OLD, default: float = 1800.0) -> TokenSet:
    return old.merge(
        {"access_token": "new-access", **response}, now=NOW, default_expires_in=default
    )


KEPT = {
    "absent": ({}, "old-refresh"),
    "null": ({"refresh_token": None}, "old-refresh"),
    "empty": ({"refresh_token": ""}, "old-refresh"),
    "the same": ({"refresh_token": "old-refresh"}, "old-refresh"),
    "a new one": ({"refresh_token": "new-refresh"}, "new-refresh"),
    "a number": ({"refresh_token": 7}, "old-refresh"),
    "a list": ({"refresh_token": ["new"]}, "old-refresh"),
    "with a newline": ({"refresh_token": "new\n"}, "old-refresh"),
    "half a surrogate pair": ({"refresh_token": "\udfff"}, "old-refresh"),
}


@pytest.mark.parametrize(("response", "kept"), KEPT.values(), ids=KEPT)
def test_a_response_replaces_the_refresh_token_only_by_a_usable_one(
    response: dict[str, Any], kept: str
) -> None:
    first = merged(response)
    second = merged(response, old=first)

    assert (first.access_token, first.refresh_token) == ("new-access", kept)
    assert second.refresh_token == kept
    assert first.to_dict()["refresh_token"] == kept


def test_a_set_without_a_refresh_token_gets_the_one_of_the_response() -> None:
    old = TokenSet.from_mapping({"access_token": "a", "refresh_token": None}, now=NOW)

    assert merged({"refresh_token": "r"}, old).to_dict()["refresh_token"] == "r"
    assert merged({}, old).refresh_token is None


RESPONSE_LIFETIMES = {
    "int": (3600, 3600),
    "text": ("3600", 3600),
    "float": (3600.0, 3600),
    "fraction as text": ("3600.5", 3600.5),
    "zero": (0, 0),
    "negative": (-1, -1),
    "null": (None, 1800),
    "empty": ("", 1800),
    "words": ("abc", 1800),
    "NaN": (math.nan, 1800),
    "infinity": (math.inf, 1800),
    "1e308": (1e308, 1800),
    "huge int": (10**400, 1800),
    "True": (True, 1800),
    "list": ([], 1800),
}


@pytest.mark.parametrize(
    ("expires_in", "seconds"), RESPONSE_LIFETIMES.values(), ids=RESPONSE_LIFETIMES
)
def test_a_response_expires_as_it_says_or_after_the_default(
    expires_in: object, seconds: float
) -> None:
    token_set = merged({"expires_in": expires_in})

    assert token_set.access_token == "new-access"
    assert token_set.expires_at == NOW + seconds
    assert (lifetime_of({"expires_in": expires_in}, now=NOW) is None) is (seconds == 1800)


def test_without_expires_in_the_default_applies_and_not_the_old_value() -> None:
    old = TokenSet.from_mapping({"access_token": "a", "expires_in": 5}, now=NOW - 100)

    token_set = merged({}, old)

    assert token_set.expires_at == NOW + 1800
    assert "expires_in" not in token_set.to_dict()


def test_without_expires_in_a_token_may_never_expire() -> None:
    assert merged({}, default=math.inf).expires_at == NEVER
    assert merged({"expires_in": 60}, default=math.inf).expires_at == NOW + 60


def test_the_expires_at_of_a_response_is_ignored() -> None:
    token_set = merged({"expires_in": 60, "expires_at": "2001-01-01"})

    assert token_set.expires_at == token_set.to_dict()["expires_at"] == NOW + 60


@pytest.mark.parametrize("seconds", [-1e300, 1e300], ids=["past", "future"])
def test_a_merged_expiry_is_always_a_date(seconds: float) -> None:
    expires_at = merged({"expires_in": seconds}).expires_at

    assert expires_at is not None
    assert datetime.fromtimestamp(expires_at, UTC)


def test_fields_of_the_response_replace_old_ones_and_the_others_stay() -> None:
    token_set = merged({"expires_in": 60, "scope": "a", "id_token": "new", "nested": None})

    assert token_set.to_dict() == {
        "access_token": "new-access",
        "refresh_token": "old-refresh",
        "expires_at": NOW + 60,
        "expires_in": 60,
        "scope": "a",
        "instance_url": "https://x.example",
        "nested": None,
        "id_token": "new",
    }


@pytest.mark.parametrize(
    "value",
    [math.nan, nested(100_000), nested(201), 10**5000, {1: "x"}],
    ids=["NaN", "very deep", "deep", "huge", "number as a name"],
)
def test_a_field_that_cannot_be_stored_does_not_lose_the_new_tokens(value: object) -> None:
    token_set = merged({"odd": value, "scope": value, "refresh_token": "new-refresh"})

    assert token_set.refresh_token == "new-refresh"
    assert "odd" not in token_set.extra
    assert token_set.extra["scope"] == "a b"
    json.dumps(token_set.to_dict(), allow_nan=False)


def test_a_merge_does_not_change_the_old_set() -> None:
    before = OLD.to_dict()

    merged({"scope": "other", "refresh_token": "new-refresh"})

    assert OLD.to_dict() == before


# -- small parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["a", "ü", "a b", "🔑", "x" * 100_000], ids=lambda v: v[:3])
def test_text_is_a_token(value: str) -> None:
    assert is_token(value)


@pytest.mark.parametrize(
    "value", [None, "", 0, 1, b"a", ["a"], "a\n", "\0", "\x9f", "\ud83d"], ids=repr
)
def test_anything_else_is_not_a_token(value: object) -> None:
    assert not is_token(value)


def test_a_fingerprint_distinguishes_tokens_without_revealing_them() -> None:
    assert fingerprint(SECRET) == fingerprint(SECRET)
    assert fingerprint(SECRET) != fingerprint(f"{SECRET}x")
    assert len(fingerprint("é" * 1000)) == 16
    assert SECRET not in fingerprint(SECRET)


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "alice@example.com",
        "../x",
        "a/b",
        " ",
        "C:\\x",
        "CON",
        ".",
        "漢字",
        "x" * 512,
        "🔑" * 512,
    ],
    ids=lambda name: name[:20],
)
def test_an_account_name_may_be_any_text_of_up_to_512_characters(name: str) -> None:
    assert normalize_account_name(name) == name


def test_composed_and_decomposed_names_are_one_account() -> None:
    assert (
        normalize_account_name("Jose\u0301") == normalize_account_name("Jos\u00e9") == "Jos\u00e9"
    )


def test_the_length_of_a_name_is_that_of_its_composed_form() -> None:
    assert len(normalize_account_name("e\u0301" * 512)) == 512


@pytest.mark.parametrize(
    "name",
    ["", "x" * 513, "a\n", "a\0", "\x7f", "\x85", "a\u2028", "\ud800", None, 5, b"a", ["a"]],
    ids=lambda name: repr(name)[:12],
)
def test_anything_else_is_not_an_account_name(name: object) -> None:
    with pytest.raises(InvalidTokenError) as caught:
        normalize_account_name(name)

    assert caught.value.field == "account_name"
