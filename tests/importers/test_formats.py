from __future__ import annotations

import dataclasses
import json
import unicodedata
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st

from tests.helpers.strategies import examples, json_values
from tokenstore.errors import InvalidTokenError
from tokenstore.importers.formats import (
    ImportedAccount,
    _account,
    _usual_account,
    account_from_json,
    account_to_json,
    file_stem,
    tokens_to_store,
)
from tokenstore.models.timestamps import NEVER, local_iso
from tokenstore.models.tokens import TokenSet

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
LOCAL = {
    "UTC": "2027-01-15T08:00:00",
    "Los_Angeles": "2027-01-15T00:00:00",
    "Kolkata": "2027-01-15T13:30:00",
}
SECRET = "rt-canary-1c4f"
EXPIRED = 0.0


def read(data: Any, stem: str = "alice") -> ImportedAccount:
    return account_from_json(json.loads(json.dumps(data)), stem=stem)


def exported(
    tokens: dict[str, Any], name: str = "alice", provider: str | None = None
) -> dict[str, Any]:
    """Return the parsed content of an exported file."""
    data = account_to_json(name, provider, TokenSet.from_mapping(tokens, now=NOW))
    return dict(json.loads(json.dumps(data)))


# -- formats of other programs --------------------------------------------------------------------


def test_a_file_of_the_previous_manager_is_read(zone: str) -> None:
    file = read(
        {
            "access_token": "a",
            "refresh_token": "r",
            "expires_at": LOCAL[zone],
            "expires_in": 3599,
            "scope": "x y",
            "realmId": None,
        }
    )

    assert (file.account_name, file.provider, file.note) == ("alice", None, None)
    assert file.tokens.to_dict() == {
        "access_token": "a",
        "refresh_token": "r",
        "expires_at": NOW,
        "expires_in": 3599,
        "scope": "x y",
        "realmId": None,
    }


REFRESH_ONLY = {
    "absent": ({"refresh_token": "r"}, {"refresh_token": "r"}),
    "null": (
        {"access_token": None, "refresh_token": "r"},
        {"access_token": None, "refresh_token": "r"},
    ),
    "empty": (
        {"access_token": "", "refresh_token": "r"},
        {"access_token": None, "refresh_token": "r"},
    ),
}


@pytest.mark.parametrize(("data", "stored"), REFRESH_ONLY.values(), ids=REFRESH_ONLY)
def test_a_refresh_token_alone_is_kept(data: dict[str, Any], stored: dict[str, Any]) -> None:
    tokens = read(data).tokens

    assert (tokens.access_token, tokens.refresh_token) == (None, "r")
    assert tokens.to_dict() == stored


GOOGLE_AUTH = {
    "token": "a",
    "refresh_token": "r",
    "token_uri": "https://oauth2.googleapis.com/token",
    "client_id": "app",
    "client_secret": "cs",
    "scopes": ["openid", "email"],
    "universe_domain": "googleapis.com",
    "account": "",
}


@pytest.mark.parametrize(
    "expiry",
    [
        "2027-01-15T08:00:00",
        "2027-01-15T08:00:00Z",
        "2027-01-15T08:00:00.000000Z",
        "2027-01-15T08:00:00.0000000Z",
        "2027-01-15T10:00:00+02:00",
    ],
)
@pytest.mark.usefixtures("zone")
def test_a_file_of_google_auth_is_read_and_its_expiry_is_utc(expiry: str) -> None:
    tokens = read({**GOOGLE_AUTH, "expiry": expiry}).tokens

    kept = {k: v for k, v in GOOGLE_AUTH.items() if k != "token"}
    assert tokens.to_dict() == {"access_token": "a", "expires_at": NOW, **kept}


OAUTH2CLIENT = {
    "access_token": "a",
    "client_id": "app",
    "client_secret": "cs",
    "refresh_token": "r",
    "token_uri": "https://oauth2.googleapis.com/token",
    "user_agent": None,
    "invalid": False,
    "token_response": {"access_token": "a", "expires_in": 3600, "token_type": "Bearer"},
    "scopes": ["openid"],
    "_class": "OAuth2Credentials",
    "_module": "oauth2client.client",
}


@pytest.mark.parametrize("expiry", ["2027-01-15T08:00:00Z", "2027-01-15T08:00:00"])
@pytest.mark.usefixtures("zone")
def test_a_file_of_oauth2client_is_read_and_its_expiry_is_utc(expiry: str) -> None:
    tokens = read({**OAUTH2CLIENT, "token_expiry": expiry}).tokens

    assert tokens.to_dict() == {**OAUTH2CLIENT, "expires_at": NOW}


def test_the_access_token_may_be_only_in_the_token_response() -> None:
    response = {"access_token": "a", "expires_in": 3600}

    tokens = read({"refresh_token": "r", "token_response": response}).tokens

    assert (tokens.access_token, tokens.refresh_token) == ("a", "r")
    assert tokens.extra == {"token_response": response}
    assert tokens.expires_at is None


@pytest.mark.parametrize("response", [None, "a", [], {}, {"access_token": ""}], ids=repr)
def test_a_token_response_without_a_token_is_kept_unchanged(response: object) -> None:
    tokens = read({"refresh_token": "r", "token_response": response}).tokens

    assert tokens.access_token is None
    assert tokens.extra == {"token_response": response}


def test_camel_case_keys_and_milliseconds_are_read() -> None:
    tokens = read(
        {
            "accessToken": "a",
            "refreshToken": "r",
            "expiresAt": int(NOW) * 1000,
            "subscriptionType": "max",
        }
    ).tokens

    assert tokens.to_dict() == {
        "access_token": "a",
        "refresh_token": "r",
        "expires_at": NOW,
        "subscriptionType": "max",
    }


def test_a_file_of_google_auth_for_nodejs_is_read() -> None:
    tokens = read(
        {"access_token": "a", "refresh_token": "r", "expiry_date": int(NOW) * 1000, "scope": "x"}
    ).tokens

    assert tokens.to_dict() == {
        "access_token": "a",
        "refresh_token": "r",
        "expires_at": NOW,
        "scope": "x",
    }


@pytest.mark.parametrize("scope", ["a b", ["a", "b"], [], None, ""], ids=repr)
def test_a_scope_is_kept_unchanged(scope: object) -> None:
    assert read({"access_token": "a", "scope": scope}).tokens.extra == {"scope": scope}


EXPIRIES: dict[str, Any] = {
    "seconds": NOW,
    "seconds as text": "1800000000",
    "milliseconds": 1800000000000,
    "milliseconds as text": "1800000000000",
    "fraction of a millisecond": 1800000000000.25,
    "ISO with Z": "2027-01-15T08:00:00Z",
    "ISO with offset": "2027-01-15T13:30:00+05:30",
}
EXPIRY_FIELDS = ["expires_at", "expiresAt", "expiry", "token_expiry", "expiry_date"]


@pytest.mark.parametrize("field", EXPIRY_FIELDS)
@pytest.mark.parametrize("timestamp", EXPIRIES.values(), ids=EXPIRIES)
@pytest.mark.usefixtures("zone")
def test_every_way_to_write_an_expiry_is_the_same_instant(field: str, timestamp: object) -> None:
    tokens = read({"access_token": "a", field: timestamp}).tokens

    assert tokens.expires_at == pytest.approx(NOW, abs=0.001)
    assert tokens.extra == {}


@pytest.mark.parametrize("timestamp", [*EXPIRIES.values(), *LOCAL.values(), 0, -5.5], ids=str)
@pytest.mark.parametrize("more", [{}, {"expires_in": 60, "obtained_at": NOW}, {"token_type": None}])
@pytest.mark.usefixtures("zone")
def test_the_shortcut_for_most_files_reads_what_the_whole_way_reads(
    timestamp: object, more: dict[str, Any]
) -> None:
    data = {"access_token": "a", "refresh_token": "r", "expires_at": timestamp, **more}

    short = _usual_account(data, "alice")
    whole = _account(dict(data), {}, name="alice", stem="alice")

    assert short is not None
    assert dataclasses.replace(short, shape=whole.shape) == whole
    first, second = (
        account_to_json("alice", None, tokens_to_store(each.tokens, each.shape))
        for each in (short, whole)
    )
    first["tokenstore"].pop("file", None)
    second["tokenstore"].pop("file", None)
    assert json.dumps(first) == json.dumps(second)
    assert first.items() >= data.items()


@pytest.mark.parametrize("field", EXPIRY_FIELDS)
def test_a_naive_timestamp_is_local_or_utc_depending_on_the_key(field: str, zone: str) -> None:
    timestamp = LOCAL[zone] if field in {"expires_at", "expiresAt"} else LOCAL["UTC"]

    assert read({"access_token": "a", field: timestamp}).tokens.expires_at == NOW


def test_the_first_valid_key_is_used_and_the_others_are_kept() -> None:
    data = {"access_token": "a", "accessToken": "b", "expires_at": NOW, "expiry": "2001-01-01"}

    tokens = read(data).tokens

    assert (tokens.access_token, tokens.expires_at) == ("a", NOW)
    assert tokens.extra == {"accessToken": "b", "expiry": "2001-01-01"}


def test_an_empty_token_does_not_hide_another() -> None:
    tokens = read({"access_token": "", "token": "a", "refresh_token": None, "refreshToken": "r"})

    assert (tokens.tokens.access_token, tokens.tokens.refresh_token) == ("a", "r")


# -- expires_in -----------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["obtained_at", "created_at"])
@pytest.mark.parametrize(
    "obtained", [NOW, str(int(NOW)), int(NOW) * 1000, "2027-01-15T08:00:00Z"], ids=str
)
@pytest.mark.parametrize("lifetime", [3600, "3600"], ids=repr)
def test_a_lifetime_counts_from_when_the_token_was_obtained(
    field: str, obtained: object, lifetime: object
) -> None:
    data = {"access_token": "a", "expires_in": lifetime, field: obtained}

    tokens = read(data).tokens

    assert tokens.expires_at == NOW + 3600
    assert tokens.extra == {"expires_in": lifetime, field: obtained}


@pytest.mark.parametrize("lifetime", [3600, "3600", 10**9, "soon", -5, 0], ids=repr)
def test_a_lifetime_alone_is_due_at_once_as_the_age_of_a_file_is_unknown(lifetime: object) -> None:
    assert read({"access_token": "a", "expires_in": lifetime}).tokens.expires_at == EXPIRED


@pytest.mark.parametrize("data", [{}, {"expires_in": None}, {"obtained_at": NOW}], ids=str)
def test_without_an_expiry_it_is_unknown(data: dict[str, Any]) -> None:
    assert read({"access_token": "a", **data}).tokens.expires_at is None


@pytest.mark.parametrize("lifetime", [1e300, -1e300], ids=["far future", "far past"])
def test_a_lifetime_beyond_the_calendar_can_be_exported(lifetime: float, zone: str) -> None:
    tokens = read({"access_token": "a", "expires_in": lifetime, "obtained_at": NOW}).tokens

    assert account_to_json("alice", None, tokens)["expires_at"] == local_iso(
        tokens.expires_at or 0
    ), zone


MALFORMED = ["", "tomorrow", "2027-13-01", 1e300, True, [], {"at": 5}]


@pytest.mark.parametrize("field", EXPIRY_FIELDS)
@pytest.mark.parametrize("timestamp", MALFORMED, ids=repr)
def test_an_invalid_expiry_is_due_at_once_with_a_note(field: str, timestamp: object) -> None:
    file = read({"access_token": "a", "refresh_token": "r", field: timestamp})

    assert file.tokens.expires_at == EXPIRED
    assert file.note == f"{field} is not a valid timestamp; the token counts as expired"
    assert field == "expires_at" or file.tokens.extra == {field: timestamp}


def test_an_invalid_expiry_is_ignored_if_there_is_a_valid_one() -> None:
    by_field = read({"access_token": "a", "expires_at": "soon", "expiry_date": NOW * 1000})
    by_lifetime = read(
        {"access_token": "a", "expires_at": "soon", "expires_in": 60, "obtained_at": NOW}
    )

    assert (by_field.tokens.expires_at, by_field.note) == (NOW, None)
    assert (by_lifetime.tokens.expires_at, by_lifetime.note) == (NOW + 60, None)


# -- invalid content ------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, str]] = {
    "null": (None, "file"),
    "list": ([{"access_token": SECRET}], "file"),
    "text": (SECRET, "file"),
    "number": (5, "file"),
    "empty": ({}, "access_token"),
    "neither token": ({"expires_at": NOW, "scope": SECRET}, "access_token"),
    "null tokens": ({"access_token": None, "refresh_token": None}, "access_token"),
    "empty tokens": ({"access_token": "", "token": "", "refresh_token": ""}, "access_token"),
    "number for a token": ({"access_token": 5, "refresh_token": SECRET}, "access_token"),
    "object for a token": ({"token": {"value": SECRET}}, "access_token"),
    "list for a refresh token": ({"refreshToken": [SECRET]}, "refresh_token"),
    "newline in a token": ({"access_token": f"{SECRET}\n"}, "access_token"),
    "newline in a refresh token": ({"refresh_token": f"{SECRET}\r\n"}, "refresh_token"),
    "half a surrogate pair": ({"access_token": f"{SECRET}\ud800"}, "access_token"),
    "name with a newline": (
        {"access_token": SECRET, "tokenstore": {"account_name": "a\nb", "expires_at": None}},
        "account_name",
    ),
    "number for a name": (
        {"access_token": SECRET, "tokenstore": {"account_name": 5, "expires_at": None}},
        "account_name",
    ),
}


@pytest.mark.parametrize(("data", "field"), REFUSED.values(), ids=REFUSED)
def test_content_without_tokens_is_refused_and_not_quoted(data: Any, field: str) -> None:
    with pytest.raises(InvalidTokenError) as caught:
        read(data)

    assert caught.value.field == field
    assert SECRET not in f"{caught.value} {caught.value!r}"


@pytest.mark.parametrize("stem", ["", "a\nb", "caf\udce9", "x" * 513], ids=lambda s: repr(s)[:8])
def test_a_file_name_that_is_not_an_account_name_is_refused(stem: str) -> None:
    with pytest.raises(InvalidTokenError) as caught:
        read({"access_token": "a"}, stem=stem)

    assert caught.value.field == "account_name"


# -- export ---------------------------------------------------------------------------------------


def test_an_export_adds_one_key_to_the_previous_format(zone: str) -> None:
    data = exported(
        {"access_token": "a", "refresh_token": "r", "expires_at": NOW, "realmId": [1, None]},
        provider="google",
    )

    assert data == {
        "access_token": "a",
        "refresh_token": "r",
        "expires_at": LOCAL[zone],
        "realmId": [1, None],
        "tokenstore": {
            "version": 1,
            "account_name": "alice",
            "provider": "google",
            "expires_at": NOW,
            "written": LOCAL[zone],
        },
    }


def test_a_token_that_never_expires_is_exported_with_null() -> None:
    data = exported({"access_token": "a", "expires_at": NEVER})

    assert data["expires_at"] is None
    assert data["tokenstore"]["expires_at"] == NEVER


@pytest.mark.parametrize("given", [{}, {"expires_at": None}], ids=["absent", "null"])
def test_an_unknown_expiry_is_not_exported_as_never(given: dict[str, Any]) -> None:
    data = exported({"access_token": "a", **given})

    assert "expires_at" not in data
    assert data["tokenstore"]["expires_at"] is None


def test_a_field_named_like_the_export_key_is_overwritten() -> None:
    data = exported({"access_token": "a", "tokenstore": {"account_name": "mallory"}})

    assert data["tokenstore"]["account_name"] == "alice"


def is_expired_for_the_previous_manager(data: dict[str, Any], buffer: float) -> bool:
    if data["expires_at"] is None:
        return False
    now = datetime.now()  # noqa: DTZ005
    return datetime.fromisoformat(data["expires_at"]) <= now + timedelta(seconds=buffer)


@pytest.mark.parametrize(
    ("seconds", "expired"), [(-60, True), (60, True), (600, False), (1e300, False)], ids=str
)
@pytest.mark.usefixtures("zone")
def test_the_previous_manager_reads_the_same_expiry(seconds: float, *, expired: bool) -> None:
    now = datetime.now().timestamp()  # noqa: DTZ005
    token_set = TokenSet.from_mapping({"access_token": "a", "expires_in": seconds}, now=now)

    data = json.loads(json.dumps(account_to_json("alice", None, token_set)))

    assert is_expired_for_the_previous_manager(data, buffer=300) is expired
    assert data["access_token"] == "a"


# -- round trips ----------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\u2028\u2029"))
names = texts.filter(lambda name: 0 < len(unicodedata.normalize("NFC", name)) <= 512)
secrets = texts.filter(bool)
TAKEN = {"access_token", "refresh_token", "expires_at", "tokenstore", "token_response"}
ALIASES = {"token", "accessToken", "refreshToken"}
odd_keys = st.sampled_from(["expires_in", "obtained_at", "expiry", "expiresAt", "scope", "id"])
extras = st.dictionaries(odd_keys | st.text(), json_values, max_size=5)
timestamps = (
    st.none() | st.just(NEVER) | st.floats(-1e9, 90e9) | st.integers(0, 4_000_000_000).map(float)
)


@pytest.mark.slow
@examples(
    80,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the zone stays as it is
)
@given(
    name=names,
    provider=st.none() | secrets,
    access=secrets,
    refresh=st.none() | secrets,
    expires_at=timestamps,
    extra=extras,
)
@pytest.mark.usefixtures("zone")
def test_an_export_is_imported_unchanged(
    name: str,
    provider: str | None,
    access: str,
    refresh: str | None,
    expires_at: float | None,
    extra: dict[str, Any],
) -> None:
    assume(not (TAKEN | ALIASES) & extra.keys())
    name = unicodedata.normalize("NFC", name)
    token_set = TokenSet(
        access_token=access, refresh_token=refresh, expires_at=expires_at, extra=extra
    )

    written = json.dumps(account_to_json(name, provider, token_set), indent=2)
    back = account_from_json(json.loads(written), stem=file_stem(name))

    assert (back.account_name, back.provider, back.note) == (name, provider, None)
    assert back.tokens.to_dict() == token_set.to_dict()
    assert json.dumps(account_to_json(name, provider, back.tokens), indent=2) == written


@pytest.mark.slow
@examples(60)
@given(tokens=extras, stem=st.sampled_from(["alice", "bob@example.com"]))
def test_a_file_is_imported_exported_and_imported_unchanged(
    tokens: dict[str, Any], stem: str
) -> None:
    assume(not TAKEN & tokens.keys())
    data = {"access_token": "a", "refresh_token": "r", **tokens}

    first = account_from_json(data, stem=stem)
    again = account_from_json(
        account_to_json(first.account_name, None, first.tokens), stem="elsewhere"
    )

    assert again.account_name == stem
    assert again.tokens == first.tokens
    assert {*data} - {"expiry", "expiresAt"} <= {*again.tokens.to_dict()}


def test_a_refresh_token_alone_is_exported_and_imported() -> None:
    first = read({"refresh_token": "r", "scope": "x"})

    again = read(account_to_json("alice", None, first.tokens))

    assert again.tokens == first.tokens


@pytest.mark.parametrize("extra", [{"expires_in": 3600}, {"expires_in": ""}], ids=str)
def test_no_expiry_is_imported_even_with_a_lifetime(extra: dict[str, Any]) -> None:
    token_set = TokenSet(access_token="a", expires_at=NEVER, extra=extra)

    assert read(account_to_json("alice", None, token_set)).tokens == token_set


def test_the_repeated_hour_of_a_clock_change_is_imported_unchanged(
    set_zone: Callable[[str], None],
) -> None:
    set_zone("Los_Angeles")
    second = datetime.fromisoformat("2027-11-07T09:30:00+00:00").timestamp()
    assert local_iso(second) == local_iso(second - 3600)

    data = exported({"access_token": "a", "expires_at": second})

    assert read(data).tokens.expires_at == second


# -- exports that another program has changed -----------------------------------------------------


def test_account_and_provider_come_from_the_export_key_not_the_file_name() -> None:
    data = exported({"access_token": "a", "expires_in": 60}, name="a/b", provider="google")

    file = read(data, stem="copy of something")

    assert (file.account_name, file.provider) == ("a/b", "google")
    assert file.tokens.expires_at == NOW + 60


def test_a_difference_of_less_than_a_second_is_ignored() -> None:
    data = exported({"access_token": "a", "expires_at": NOW + 0.75})
    data["expires_at"] = data["expires_at"][:19]

    assert read(data, stem="x").account_name == "alice"
    assert read(data, stem="x").tokens.expires_at == NOW + 0.75


def rewritten(expires_at: object, name: str = "alice") -> dict[str, Any]:
    """Return an export whose tokens another program has refreshed."""
    data = exported({"access_token": "old", "expires_at": NOW}, name=name, provider="google")
    return {**data, "access_token": "new", "expires_at": expires_at}


REWRITTEN = {
    "later": ("2030-01-01T00:00:00Z", 1893456000.0),
    "earlier": ("2020-01-01T00:00:00Z", 1577836800.0),
    "two seconds later": (NOW + 2, NOW + 2),
    "a number": (1893456000, 1893456000.0),
    "null": (None, None),
    "nonsense": ("soon", EXPIRED),
}


@pytest.mark.parametrize(("written", "meant"), REWRITTEN.values(), ids=REWRITTEN)
def test_a_file_changed_since_its_export_is_imported_as_it_is(
    written: object, meant: float | None
) -> None:
    file = read(rewritten(written), stem="bob")

    assert (file.account_name, file.provider) == ("bob", None)
    assert (file.tokens.access_token, file.tokens.expires_at) == ("new", meant)
    assert "tokenstore" not in file.tokens.extra


def test_a_changed_file_without_expiry_is_imported_as_it_is() -> None:
    data = rewritten(None)
    del data["expires_at"]

    assert read(data, stem="bob").tokens.expires_at is None
    assert read({**data, "expires_in": 60}, stem="bob").tokens.expires_at == EXPIRED


def test_a_changed_file_does_not_get_the_exported_no_expiry() -> None:
    data = exported({"access_token": "a", "expires_at": NEVER})
    del data["expires_at"]

    assert read({**data, "expires_in": 60}).tokens.expires_at == EXPIRED


@pytest.mark.parametrize("case_sensitive", [True, False])
@pytest.mark.parametrize("name", ["alice", "Alice@Example.com", "a/b", "漢字"])
def test_a_changed_file_under_its_exported_name_keeps_its_account(
    name: str, *, case_sensitive: bool
) -> None:
    stem = file_stem(name, case_sensitive=case_sensitive)

    file = read(rewritten("2030-01-01T00:00:00Z", name), stem=stem)

    assert (file.account_name, file.provider) == (name, "google")
    assert file.tokens.expires_at == 1893456000.0


@pytest.mark.parametrize(
    "block",
    [
        None,
        "x",
        [],
        {},
        5,
        {"account_name": None},
        {"account_name": "", "expires_at": NOW},
        {"expires_at": "soon"},
    ],
    ids=repr,
)
def test_with_an_invalid_export_key_the_account_is_the_file_name(block: object) -> None:
    file = read({"access_token": "a", "expires_at": NOW, "tokenstore": block})

    assert (file.account_name, file.provider, file.tokens.expires_at) == ("alice", None, NOW)


@pytest.mark.parametrize("provider", [None, "", 5, ["google"], "a\nb", "\ud800"], ids=repr)
def test_an_invalid_provider_in_the_export_key_is_ignored(provider: object) -> None:
    data = exported({"access_token": "a"})
    data["tokenstore"]["provider"] = provider

    assert read(data).provider is None


# -- file names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "alice",
        "alice@example.com",
        "a.b-c_d+e=f",
        "A",
        "0",
        "@",
        "a.json",
        "x" * 199,
        "x" * 220,
        "a.",
        "a b",
        " ",
        "a*?",
        "Ünal",
        "漢字",
        "a%2Fb",
        "C:\\x",
        "CON",
        "con.txt",
        "a~b",
    ],
)
def test_a_safe_name_is_the_file_name(name: str) -> None:
    assert file_stem(name) == name


HOSTILE = [
    "../x",
    "a/b",
    "/etc/passwd",
    "..",
    ".",
    ".hidden",
    "-rf",
    "-",
    "x" * 230,
    "漢" * 100,
    "a~0123456789abcdef",
    "....//",
    "\u202ea",
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: name[:20])
def test_any_other_name_gets_a_safe_file_name(name: str) -> None:
    stem = file_stem(name)

    assert stem != name
    assert stem.isascii()
    assert not {*stem} & {*'/\\:*?"<>|. \0'}
    assert not stem.startswith(("-", "~"))
    assert len(f".{stem}.json.0123456789abcdef.tmp") <= 255


def test_names_that_differ_in_case_get_different_files_everywhere() -> None:
    stems = {file_stem(name, case_sensitive=False).lower() for name in ("alice", "Alice", "ALICE")}

    assert len(stems) == 3
    assert file_stem("alice", case_sensitive=False) == "alice"


tricky = st.text("aAbB.~/\\_-+@= é0\u0301", min_size=1, max_size=6) | st.sampled_from(HOSTILE)


@pytest.mark.slow
@examples(200)
@given(
    name=tricky | names,
    other=tricky | names,
    case_sensitive=st.booleans(),
)
def test_two_accounts_never_share_a_file(name: str, other: str, *, case_sensitive: bool) -> None:
    assume(name != other)

    stems = [file_stem(n, case_sensitive=case_sensitive) for n in (name, other)]
    if not case_sensitive:
        stems = [stem.lower() for stem in stems]

    assert stems[0] != stems[1]


@pytest.mark.slow
@examples(100)
@given(name=tricky | names)
def test_the_file_name_of_one_account_is_not_that_of_another(name: str) -> None:
    """An account named like the file of another gets a different file name."""
    assume(file_stem(name) != name)

    assert file_stem(file_stem(name)) != file_stem(name)
