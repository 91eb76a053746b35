"""Whatever the files of a directory look like, an import and an export give them back."""

from __future__ import annotations

import copy
import json
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from tests.helpers.strategies import examples
from tokenstore import TokenRepository
from tokenstore.importers.formats import account_from_json as read_account
from tokenstore.importers.formats import account_to_json, tokens_to_store
from tokenstore.jsonfiles import export_accounts, import_accounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = 1_800_000_000
texts = st.text("abcXYZ0189._~-", min_size=1, max_size=12)
keys = st.sampled_from(["scope", "id_token", "realmId", "user", "version", "tokenstore", "n"])
values = st.none() | texts | st.integers(0, 99) | st.lists(texts, max_size=2) | st.just({"a": 1})
rests = st.dictionaries(keys, values, max_size=3)


@dataclass(frozen=True)
class Style:
    """How a program writes the tokens of an account, and how it reads them.

    Attributes:
        access, refresh, expiry: The names of the fields.
        write: Returns an expiry, given in UTC epoch seconds, as the program writes it.
        read: Returns what the program reads from that.
    """

    access: str
    refresh: str
    expiry: str | None
    write: Callable[[int], Any] = int
    read: Callable[[Any], float] = float


def utc_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_text(text: str) -> float:
    assert isinstance(text, str)
    return datetime.fromisoformat(text).timestamp()


def read_integer(value: Any) -> float:
    assert type(value) is int  # JavaScript would not mind, Go and Rust would
    return value


STYLES = [
    Style("access_token", "refresh_token", "expires_at", lambda s: datetime.fromtimestamp(s).isoformat(), read_text),  # noqa: DTZ006, E501
    Style("access_token", "refresh_token", "expires_at", int, read_integer),
    Style("access_token", "refresh_token", "expires_at", lambda s: s + 0.5),
    Style("access_token", "refresh_token", "expires_at", str, lambda t: int(t) + 0.0),
    Style("access_token", "refresh_token", "expires_at", utc_text, read_text),
    Style("access_token", "refresh_token", "expiry_date", lambda s: s * 1000, lambda n: read_integer(n) / 1000),  # noqa: E501
    Style("accessToken", "refreshToken", "expiresAt", lambda s: s * 1000, lambda n: read_integer(n) / 1000),  # noqa: E501
    Style("token", "refresh_token", "expiry", utc_text, read_text),
    Style("access_token", "refresh_token", "token_expiry", utc_text, read_text),
    Style("access_token", "refresh_token", None),
]  # fmt: skip


@dataclass(frozen=True)
class File:
    """A file, and where in it which program looks for its tokens."""

    name: str
    style: Style
    paths: tuple[tuple[str, ...], ...]
    content: dict[str, Any]

    def tokens(self, content: Any) -> list[tuple[str, str, float | None]]:
        """Return access token, refresh token and expiry of each account, as the program does."""
        found = []
        for path in self.paths:
            fields = content
            for key in path:
                fields = fields[key]
            expiry = self.style.expiry
            expires_at = None if expiry is None else self.style.read(fields[expiry])
            found.append((fields[self.style.access], fields[self.style.refresh], expires_at))
        return found


@st.composite
def token_files(draw: st.DrawFn, name: str, number: int) -> File:
    style = draw(st.sampled_from(STYLES))
    places = st.sampled_from([((),), (("tokens",),), (("a", "b"),), (("x",), ("y",)), (("u", "x"), ("u", "y"))])  # fmt: skip  # noqa: E501
    paths = draw(places)
    content: dict[str, Any] = draw(rests)
    for position, path in enumerate(paths):
        own = f"{number}-{position}"
        tokens = {**draw(rests), style.access: f"at-{own}", style.refresh: f"rt-{own}"}
        if style.expiry is not None:
            tokens[style.expiry] = style.write(NOW + draw(st.integers(-(10**6), 10**6)))
        place = content
        for key in path[:-1]:
            place = place.setdefault(key, {})
        if path:
            place[path[-1]] = tokens
        else:
            content |= tokens
    return File(name, style, paths, content)


@st.composite
def directories(draw: st.DrawFn) -> list[File]:
    names = st.sampled_from(
        ["alice.json", "bob@example.com", "bob@example.org", "bob@example.com.json", "a b.json",
         "Ünal.json", "token.json", "x~y.json", "auth.json", "漢字.json"]
    )  # fmt: skip
    chosen = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    return [draw(token_files(name, number)) for number, name in enumerate(chosen)]


@pytest.fixture(scope="module")
def stores() -> Iterator[tuple[TokenRepository, TokenRepository]]:
    with (
        tempfile.TemporaryDirectory() as directory,
        TokenRepository(Path(directory) / "first.db") as first,
        TokenRepository(Path(directory) / "second.db") as second,
    ):
        yield first, second


def clear(repository: TokenRepository) -> None:
    with repository.transaction():
        for account in list(repository.accounts()):
            repository.delete(account.name)


def parsed(directory: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text("utf-8")) for path in directory.iterdir()}


@pytest.mark.slow
@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(files=directories())
@example([File("x.json", STYLES[1], ((),), {"access_token": "a", "refresh_token": "r", "expires_at": 1})])  # fmt: skip  # noqa: E501
@pytest.mark.usefixtures("zone")
def test_the_program_that_wrote_a_file_finds_what_it_had(
    stores: tuple[TokenRepository, TokenRepository], files: list[File]
) -> None:
    first, second = stores
    with tempfile.TemporaryDirectory() as place:
        old, new, newer = (Path(place) / name for name in ("old", "new", "newer"))
        old.mkdir()
        for file in files:
            (old / file.name).write_text(json.dumps(file.content), "utf-8")
        try:
            results = list(import_accounts(first, [old / file.name for file in files]))
            assert {r.outcome for r in results} == {"imported"}, results
            assert len(results) == sum(len(file.paths) for file in files)
            list(export_accounts(first, new))
            back = parsed(new)
            assert {*back} == {file.name for file in files}
            for file in files:
                assert file.tokens(back[file.name]) == file.tokens(file.content)
                assert without_own(back[file.name]) == without_own(file.content)

            results = list(import_accounts(second, new))
            assert {r.outcome for r in results} == {"imported"}, results
            assert accounts(second) == accounts(first)
            list(export_accounts(second, newer))
            assert parsed(newer) == back
        finally:
            clear(first)
            clear(second)


def accounts(repository: TokenRepository) -> dict[str, Any]:
    return {account.name: repository.load(account.name) for account in repository.accounts()}


def without_own(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content without the key that an export adds, which may hide a field."""
    content = copy.deepcopy(content)
    content.pop("tokenstore", None)
    if "expires_at" in content and not isinstance(content["expires_at"], (int, float)):
        content["expires_at"] = str(content["expires_at"])
    return content


@pytest.mark.parametrize("style", STYLES, ids=lambda style: f"{style.access}, {style.expiry}")
@pytest.mark.usefixtures("zone")
def test_after_a_refresh_the_program_finds_the_new_tokens(style: Style) -> None:
    data: dict[str, Any] = {style.access: "old", style.refresh: "old", "realmId": 5}
    if style.expiry is not None:
        data[style.expiry] = style.write(NOW)
    account = read_account(data, stem="alice")
    response = {"access_token": "new", "refresh_token": "newer", "expires_in": 3600}

    tokens = tokens_to_store(account.tokens, account.shape)
    merged = tokens.merge(response, now=NOW + 60.0, default_expires_in=60.0)
    written = json.loads(json.dumps(account_to_json("alice", None, merged)))

    assert (written[style.access], written[style.refresh], written["realmId"]) == (
        "new",
        "newer",
        5,
    )
    if style.expiry is not None:
        assert style.read(written[style.expiry]) == NOW + 3660


@pytest.mark.parametrize("obtained", [NOW, NOW * 1000, utc_text(NOW)], ids=str)
def test_after_a_refresh_the_lifetime_counts_from_the_new_time(obtained: Any) -> None:
    data = {"access_token": "old", "refresh_token": "r", "expires_in": 60, "created_at": obtained}
    account = read_account(data, stem="alice")

    tokens = tokens_to_store(account.tokens, account.shape)
    merged = tokens.merge(
        {"access_token": "new", "expires_in": 3600}, now=NOW + 120.0, default_expires_in=60.0
    )
    written = account_to_json("alice", None, merged)

    later = {NOW: NOW + 120, NOW * 1000: (NOW + 120) * 1000}
    assert written["created_at"] == later.get(obtained, utc_text(NOW + 120))
    assert account_to_json("alice", None, tokens)["created_at"] == obtained
