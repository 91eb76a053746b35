from __future__ import annotations

import io
import json
import logging
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tokenstore import TokenRepository
from tokenstore.errors import StorageError
from tokenstore.jsonfiles import FileResult, export_accounts, find_files, import_accounts
from tokenstore.models.timestamps import NEVER, local_iso

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = 1_800_000_000.0
SECRET = "rt-canary-90be"
NOBODY = 65534


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[TokenRepository]:
    with TokenRepository(tmp_path / "store" / "tokens.db", clock=lambda: NOW) as repository:
        yield repository


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "files"
    directory.mkdir()
    return directory


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def write(path: Path, content: Any = None, **fields: Any) -> Path:
    """Write a token file, or any *content*."""
    if content is None:
        content = {"access_token": "a", "refresh_token": "r", "expires_at": NOW, **fields}
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def outcomes(results: Iterator[FileResult]) -> dict[str, tuple[str, str | None]]:
    return {result.path.name: (result.outcome, result.reason) for result in results}


def imported(repository: TokenRepository, *paths: Any, **options: Any) -> FileResult:
    """Import files that give one result."""
    (result,) = import_accounts(repository, paths, **options)
    return result


def names(repository: TokenRepository) -> list[str]:
    return [account.name for account in repository.accounts()]


def exported(repository: TokenRepository, target: Path) -> dict[str, dict[str, Any]]:
    results = list(export_accounts(repository, target))
    assert {result.outcome for result in results} <= {"exported"}
    return {path.stem: json.loads(path.read_text()) for path in target.iterdir()}


def contents(repository: TokenRepository) -> dict[str, Any]:
    return {a.name: (a.provider, repository.load(a.name)) for a in repository.accounts()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- import ---------------------------------------------------------------------------------------


def test_a_directory_is_imported_file_by_file(repository: TokenRepository, files: Path) -> None:
    write(files / "bob.json", scope="x")
    write(files / "alice@example.com.json")

    results = list(import_accounts(repository, files))

    assert results == [
        FileResult("alice@example.com", files / "alice@example.com.json", "imported"),
        FileResult("bob", files / "bob.json", "imported"),
    ]
    assert repository.load("bob") == {
        "access_token": "a",
        "refresh_token": "r",
        "expires_at": NOW,
        "scope": "x",
        "tokenstore_file": {"expiry": {"expires_at": 0.0}},  # a float
    }


def test_the_files_are_not_changed(repository: TokenRepository, files: Path) -> None:
    path = write(files / "alice.json")
    os.utime(path, (1, 1))
    before = path.read_bytes()

    list(import_accounts(repository, files))

    assert path.read_bytes() == before
    assert path.stat().st_mtime == 1
    assert [p.name for p in files.iterdir()] == ["alice.json"]


def test_paths_may_be_files_and_directories_strings_and_paths(
    repository: TokenRepository, files: Path
) -> None:
    write(files / "alice.json")
    single = write(files.parent / "single.token")

    results = list(import_accounts(repository, [str(files), single]))

    assert [result.account_name for result in results] == ["alice", "single.token"]


def test_visible_json_files_are_found_in_a_directory(files: Path) -> None:
    for name in ("b.json", "a.json", ".hidden.json", "c.json.bak", "d.txt", "json", ".json"):
        write(files / name)
    (files / "deeper").mkdir()
    write(files / "deeper" / "e.json")

    assert find_files(files) == [files / "a.json", files / "b.json"]


def test_an_empty_directory_has_nothing_to_import(repository: TokenRepository, files: Path) -> None:
    assert list(import_accounts(repository, files)) == []


def test_the_provider_argument_overrides_the_provider_of_a_file(
    repository: TokenRepository, files: Path
) -> None:
    block = {"account_name": "bob", "provider": "microsoft", "expires_at": NOW}
    write(files / "alice.json")
    write(files / "bob.json", tokenstore=block)

    list(import_accounts(repository, files, provider="google"))

    assert [a.provider for a in repository.accounts()] == ["google", "google"]


def test_the_provider_defaults_to_the_provider_of_the_file(
    repository: TokenRepository, files: Path
) -> None:
    block = {"account_name": "bob", "provider": "microsoft", "expires_at": NOW}
    write(files / "alice.json")
    write(files / "bob.json", tokenstore=block)

    list(import_accounts(repository, files))

    assert [a.provider for a in repository.accounts()] == [None, "microsoft"]


# -- stored accounts ------------------------------------------------------------------------------

STORED = {"access_token": "stored", "expires_at": NOW}


def test_an_account_that_is_stored_is_skipped(repository: TokenRepository, files: Path) -> None:
    repository.save("alice", STORED)

    result = imported(repository, write(files / "alice.json", expires_at=NOW + 9))

    assert (result.outcome, result.reason) == ("skipped", "already stored")
    assert repository.load("alice") == STORED


def test_importing_again_changes_nothing(repository: TokenRepository, files: Path) -> None:
    for name in ("alice", "bob"):
        write(files / f"{name}.json", refresh_token=name)
    list(import_accounts(repository, files))
    before = list(repository.listing.records())

    for newer in (False, True):
        again = outcomes(import_accounts(repository, files, newer=newer))
        assert {outcome for outcome, _ in again.values()} == {"skipped"}

    assert list(repository.listing.records()) == before


def test_replace_replaces_every_field_but_the_provider(
    repository: TokenRepository, files: Path
) -> None:
    repository.save("alice", {**STORED, "scope": "old", "refresh_token": "old"}, provider="google")

    result = imported(
        repository,
        write(files / "alice.json", {"access_token": "new", "expires_at": NOW - 9}),
        replace=True,
    )

    assert result.outcome == "imported"
    loaded = repository.load("alice") or {}
    assert loaded.pop("tokenstore_file") == {"expiry": {"expires_at": NOW - 9}}
    assert loaded == {"access_token": "new", "expires_at": NOW - 9}
    assert [a.provider for a in repository.accounts()] == ["google"]


NEWER = {
    "later": (NOW, NOW + 1, True),
    "the same": (NOW, NOW, False),
    "earlier": (NOW, NOW - 1, False),
    "never": (NOW, "9999-12-31T00:00:00Z", True),
    "later than never": (NEVER, NOW, False),
    "unknown": (NOW, None, False),
    "later than unknown": (None, NOW, True),
    "unknown and unknown": (None, None, False),
    "not understood": (NOW, "soon", False),
}


@pytest.mark.parametrize(("stored", "found", "replaced"), NEWER.values(), ids=NEWER)
def test_newer_replaces_a_token_by_one_that_expires_later(
    stored: float | None,
    found: object,
    repository: TokenRepository,
    files: Path,
    *,
    replaced: bool,
) -> None:
    repository.save("alice", {"access_token": "stored", "expires_at": stored})

    result = imported(
        repository,
        write(files / "alice.json", {"access_token": "found", "expires_at": found}),
        newer=True,
    )

    assert result.outcome == ("imported" if replaced else "skipped")
    assert (result.reason is None) is replaced
    loaded = repository.load("alice")
    assert loaded is not None
    assert loaded["access_token"] == ("found" if replaced else "stored")


@pytest.mark.parametrize("option", ["replace", "newer"])
def test_either_option_imports_accounts_that_are_not_stored(
    option: str, repository: TokenRepository, files: Path
) -> None:
    assert imported(repository, write(files / "a.json"), **{option: True}).outcome == "imported"


def test_replace_and_newer_exclude_each_other(repository: TokenRepository, files: Path) -> None:
    with pytest.raises(ValueError, match="replace and newer"):
        list(import_accounts(repository, files, replace=True, newer=True))


def test_an_import_forgets_that_a_sign_in_was_needed(
    repository: TokenRepository, files: Path
) -> None:
    repository.save("alice", {"access_token": "old", "expires_at": NOW - 1})
    assert [a.state for a in repository.accounts()] == ["sign_in"]

    imported(repository, write(files / "alice.json", expires_at=NOW + 9999), replace=True)

    assert [a.state for a in repository.accounts()] == ["valid"]


# -- several files with one account ---------------------------------------------------------------


@pytest.mark.parametrize("replace", [False, True])
def test_of_two_files_with_one_account_the_first_is_imported(
    repository: TokenRepository, files: Path, *, replace: bool
) -> None:
    block = {"account_name": "alice", "expires_at": NOW}
    write(files / "a copy.json", tokenstore=block, scope="copy")
    write(files / "alice.json", scope="plain")

    assert outcomes(import_accounts(repository, files, replace=replace)) == {
        "a copy.json": ("imported", None),
        "alice.json": ("skipped", "a copy.json has the same account"),
    }
    assert (repository.load("alice") or {})["scope"] == "copy"


def test_of_two_files_with_one_account_newer_imports_the_newer(
    repository: TokenRepository, files: Path
) -> None:
    block = {"account_name": "alice", "expires_at": NOW}
    write(files / "a copy.json", tokenstore=block)
    write(files / "alice.json", expires_at=NOW + 5)

    results = outcomes(import_accounts(repository, files, newer=True))

    assert {outcome for outcome, _ in results.values()} == {"imported"}
    assert (repository.load("alice") or {})["expires_at"] == NOW + 5


def test_a_file_given_twice_is_imported_once(repository: TokenRepository, files: Path) -> None:
    path = write(files / "alice.json")

    results = list(import_accounts(repository, [files, path]))

    assert [result.outcome for result in results] == ["imported", "skipped"]


def test_composed_and_decomposed_file_names_are_one_account(
    repository: TokenRepository, files: Path
) -> None:
    write(files / "Jos\u00e9.json")
    write(files / "Jose\u0301.json")

    results = [result.outcome for result in import_accounts(repository, files)]

    assert sorted(results) == ["imported", "skipped"]
    assert names(repository) == ["Jos\u00e9"]


# -- names of accounts ---------------------------------------------------------------------------


def test_only_json_is_taken_off_the_name_of_a_file(
    repository: TokenRepository, files: Path
) -> None:
    for name in ("bob@example.com", "bob@example.org.json", "v1.2.json", "x.txt"):
        write(files / name, refresh_token=name)

    list(import_accounts(repository, sorted(files.iterdir())))

    assert names(repository) == ["bob@example.com", "bob@example.org", "v1.2", "x.txt"]


def test_files_named_by_addresses_are_found_in_a_directory(files: Path) -> None:
    write(files / "bob@example.com")
    write(files / "bob@example.com.bak")
    write(files / "notes@home.txt", "text")
    write(files / "empty@example.com", {"a": 1})

    assert find_files(files) == [files / "bob@example.com"]


def test_files_with_one_name_take_their_folders_before_it(
    repository: TokenRepository, files: Path
) -> None:
    for folder in ("x/tokens", "y/tokens", "z"):
        (files / folder).mkdir(parents=True)
        write(files / folder / "alice.json", refresh_token=folder)
    write(files / "z" / "bob.json", refresh_token="b")

    list(import_accounts(repository, [files / f for f in ("x/tokens", "y/tokens", "z")]))

    assert {n: (repository.load(n) or {})["refresh_token"] for n in names(repository)} == {
        "x/tokens/alice": "x/tokens",
        "y/tokens/alice": "y/tokens",
        "z/alice": "z",
        "bob": "b",
    }


def test_a_name_with_and_without_json_in_one_folder_stay_two_accounts(
    repository: TokenRepository, files: Path, target: Path
) -> None:
    write(files / "alice", refresh_token="1")
    write(files / "alice.json", refresh_token="2")

    list(import_accounts(repository, sorted(files.iterdir())))

    assert names(repository) == ["alice", "alice.json"]
    list(export_accounts(repository, target))
    assert {p.name: json.loads(p.read_text())["refresh_token"] for p in target.iterdir()} == {
        "alice": "1",
        "alice.json": "2",
    }


def test_a_single_file_can_be_given_a_name(
    repository: TokenRepository, files: Path, target: Path
) -> None:
    result = imported(repository, write(files / "auth.json"), account_name="codex")

    assert (result.account_name, names(repository)) == ("codex", ["codex"])
    assert [*exported(repository, target)] == ["auth"]


@pytest.mark.parametrize("several", ["two files", "a directory"])
def test_several_files_cannot_be_given_one_name(
    several: str, repository: TokenRepository, files: Path
) -> None:
    paths = [write(files / "a.json"), write(files / "b.json")]

    with pytest.raises(ValueError, match="single file"):
        import_accounts(
            repository, paths if several == "two files" else files, account_name="alice"
        )


# -- shapes ---------------------------------------------------------------------------------------

INNER = {"access_token": "a", "refresh_token": "r", "expires_at": NOW}


def test_tokens_further_down_are_found_with_all_around_them(
    repository: TokenRepository, files: Path, target: Path
) -> None:
    data = {"key": None, "tokens": {**INNER, "id": 1}, "last_refresh": "2026-11-20T08:15:30Z"}

    assert imported(repository, write(files / "auth.json", data)).account_name == "auth"

    loaded = repository.load("auth") or {}
    assert loaded["last_refresh"] == data["last_refresh"]
    assert (loaded["key"], loaded["id"], loaded["refresh_token"]) == (None, 1, "r")
    back = exported(repository, target)["auth"]
    assert back.pop("tokenstore")["account_name"] == "auth"
    assert back == data


def test_several_token_sets_in_a_file_are_accounts_and_become_one_file_again(
    repository: TokenRepository, files: Path, target: Path
) -> None:
    data = {"version": 2, "users": {n: {**INNER, "refresh_token": n} for n in ("ann", "bob")}}
    write(files / "app.json", data)

    results = list(import_accounts(repository, files))

    assert [r.account_name for r in results] == ["app:ann", "app:bob"]
    back = exported(repository, target)["app"]
    block = back.pop("tokenstore")
    assert back == data
    assert [b["account_name"] for b in block["accounts"]] == ["app:ann", "app:bob"]


def test_an_entry_that_is_not_valid_does_not_hide_the_others(
    repository: TokenRepository, files: Path
) -> None:
    write(files / "app.json", {"ann": {**INNER, "refresh_token": 5}, "bob": INNER})

    results = [(r.account_name, r.outcome) for r in import_accounts(repository, files)]

    assert results == [("app:ann", "failed"), ("app:bob", "imported")]


def test_tokens_too_far_down_are_reported(repository: TokenRepository, files: Path) -> None:
    result = imported(repository, write(files / "x.json", {"a": {"b": {"c": INNER}}}))

    assert result.reason == "file: its tokens are nested more than two levels deep"


def test_a_field_called_like_the_key_of_an_export_comes_back(
    repository: TokenRepository, target: Path, tmp_path: Path
) -> None:
    repository.save("a", {"access_token": "a", "tokenstore": {"mine": 1}, "refreshToken": "no"})

    exported(repository, target)
    with TokenRepository(tmp_path / "other.db") as other:
        list(import_accounts(other, target))
        assert other.load("a") == repository.load("a")


def test_an_account_above_the_limit_of_a_file_comes_back(
    repository: TokenRepository, target: Path, tmp_path: Path
) -> None:
    repository.save("a", {"access_token": "a", "id_token": "x" * (2 << 20)})

    exported(repository, target)
    with TokenRepository(tmp_path / "other.db") as other:
        assert imported(other, target).outcome == "imported"
        assert other.load("a") == repository.load("a")


def test_another_time_zone_changes_nothing(
    repository: TokenRepository,
    target: Path,
    tmp_path: Path,
    set_zone: Callable[[str | None], None],
) -> None:
    set_zone("Kolkata")
    repository.save("alice", {"access_token": "a", "refresh_token": "r", "expires_at": NOW})
    exported(repository, target)
    repository.save("alice", {"access_token": "b", "refresh_token": "s", "expires_at": NOW + 60})

    set_zone("Los_Angeles")
    with TokenRepository(tmp_path / "other.db") as other:
        list(import_accounts(other, target))
        assert (other.load("alice") or {})["expires_at"] == NOW
    assert imported(repository, target, newer=True).outcome == "skipped"


# -- options --------------------------------------------------------------------------------------


def test_newer_never_costs_the_only_refresh_token(repository: TokenRepository, files: Path) -> None:
    repository.save("alice", {**STORED, "refresh_token": "r"})
    before = repository.load("alice")

    result = imported(
        repository,
        write(files / "alice.json", {"access_token": "b", "expires_at": NOW + 9}),
        newer=True,
    )

    assert result.outcome == "skipped"
    assert result.reason == "the file has no refresh token, but the stored account has one"
    assert repository.load("alice") == before


MICROSOFT = "https://login.microsoftonline.com/common/oauth2/v2.0/token"
OLD_GOOGLE = "https://accounts.google.com/o/oauth2/token"


@pytest.mark.parametrize("by", ["argument", "file"])
def test_a_file_is_not_bound_to_a_provider_that_its_token_uri_contradicts(
    by: str, repository: TokenRepository, files: Path
) -> None:
    block = {"account_name": "alice", "provider": "google", "expires_at": NOW}
    more = {} if by == "argument" else {"tokenstore": block}
    path = write(files / "alice.json", token_uri=MICROSOFT, **more)

    result = imported(repository, path, provider="google" if by == "argument" else None)

    assert result.outcome == "failed"
    assert (result.reason or "").startswith("its tokens are from login.microsoftonline.com, but")
    assert names(repository) == []


@pytest.mark.parametrize(
    ("provider", "token_uri"),
    [("google", OLD_GOOGLE), ("microsoft", MICROSOFT), ("mine", MICROSOFT), ("google", "?")],
)
def test_a_token_uri_that_does_not_contradict_the_provider_is_no_obstacle(
    provider: str, token_uri: str, repository: TokenRepository, files: Path
) -> None:
    path = write(files / "alice.json", token_uri=token_uri)

    assert imported(repository, path, provider=provider).outcome == "imported"


@pytest.mark.parametrize("option", [None, "replace", "newer"])
def test_a_dry_run_reports_what_an_import_would_and_stores_nothing(
    option: str | None, repository: TokenRepository, files: Path
) -> None:
    repository.save("old", {**STORED, "refresh_token": "r"})
    write(files / "old.json", expires_at=NOW - 1)
    write(files / "later.json", expires_at=NOW + 9, tokenstore={"account_name": "old"})
    write(files / "new.json")
    write(files / "bad.json", "{")
    options: dict[str, Any] = {} if option is None else {option: True}
    before = list(repository.listing.records())

    planned = list(import_accounts(repository, files, dry_run=True, **options))

    assert list(repository.listing.records()) == before
    assert list(import_accounts(repository, files, **options)) == planned


def test_a_dry_run_does_not_create_the_database(repository: TokenRepository, files: Path) -> None:
    assert imported(repository, write(files / "a.json"), dry_run=True).outcome == "imported"
    assert not Path(repository.name).exists()


def test_a_stream_is_read_like_a_file(repository: TokenRepository) -> None:
    content = json.dumps(INNER).encode()

    nameless = imported(repository, io.BytesIO(content))
    named = imported(repository, io.BytesIO(content), account_name="alice")

    assert (nameless.outcome, nameless.reason) == ("failed", "has no name; give the account one")
    assert (named.account_name, named.path, named.outcome) == ("alice", Path("-"), "imported")


def test_empty_paths_are_refused(repository: TokenRepository) -> None:
    with pytest.raises(ValueError, match="empty"):
        import_accounts(repository, "")
    with pytest.raises(ValueError, match="empty"):
        list(export_accounts(repository, ""))


# -- files of earlier exports ---------------------------------------------------------------------


def test_files_of_accounts_that_are_gone_are_reported_and_pruned(
    repository: TokenRepository, target: Path
) -> None:
    for name in ("alice", "bob", "changed"):
        repository.save(name, STORED)
    exported(repository, target)
    changed = json.loads((target / "changed.json").read_text())
    write(target / "changed.json", {**changed, "expires_at": "2031-01-01T00:00:00"})
    write(target / "foreign.json")
    for name in ("bob", "changed"):
        repository.delete(name)

    reported = outcomes(export_accounts(repository, target, prune=False))
    assert reported["bob.json"] == ("skipped", "its account is gone; prune removes the file")
    assert {*reported} == {"alice.json", "bob.json", "changed.json"}
    assert (target / "bob.json").exists()

    pruned = outcomes(export_accounts(repository, target, prune=True))
    assert pruned["bob.json"] == ("skipped", "its account is gone; the file was removed")
    left = sorted(path.name for path in target.iterdir())
    assert left == ["alice.json", "changed.json", "foreign.json"]


def test_the_database_is_never_overwritten(tmp_path: Path) -> None:
    with TokenRepository(tmp_path / "store.json") as repository:
        repository.save("store", STORED)

        results = outcomes(export_accounts(repository, tmp_path, prune=True))

        assert results["store.json"][0] == "failed"
        assert repository.load("store") == STORED


# -- invalid files --------------------------------------------------------------------------------

BAD: dict[str, tuple[Any, str]] = {
    "empty": (b"", "is empty"),
    "blank": (b" \n", "not valid JSON"),
    "half": (f'{{"refresh_token": "{SECRET}', "not valid JSON"),
    "two": ('{"access_token": "a"}{"access_token": "b"}', "not valid JSON"),
    "not JSON": (f"refresh_token={SECRET}", "not valid JSON"),
    "HTML": (f"<html>{SECRET}</html>", "not valid JSON"),
    "not UTF-8": (b'{"access_token": "\xff\xfe"}', "not valid JSON"),
    "binary": (bytes(range(256)), "not valid JSON"),
    "SQLite": (b"SQLite format 3\0" + bytes(100), "is a damaged SQLite database"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "deep objects": ('{"access_token":' * 50_000, "not valid JSON"),
    "huge number": ('{"access_token": "a", "n": ' + "9" * 10_000 + "}", "not valid JSON"),
    "encrypted": (
        bytes.fromhex("01000000d08c9ddf0115d1118c7a00c04fc297eb") + SECRET.encode(),
        "is encrypted with Windows DPAPI",
    ),
    "too large": (b'{"access_token": "' + b"a" * (1 << 20) + b'"}', "larger than 1 MiB"),
    "null": ("null", "file: expected a JSON object"),
    "endless": ('{"access_token": "a", "n": 1e999}', "n: cannot be stored as JSON"),
    "rather deep": (
        '{"access_token": "a", "n": ' + "[" * 300 + "]" * 300 + "}",
        "n: cannot be stored as JSON",
    ),
}


@pytest.mark.parametrize(("content", "reason"), BAD.values(), ids=BAD)
def test_an_invalid_file_is_reported_and_not_quoted(
    content: Any,
    reason: str,
    repository: TokenRepository,
    files: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = write(files / "bad.json", content)

    with caplog.at_level(logging.DEBUG, "tokenstore"):
        result = imported(repository, path)

    assert (result.account_name, result.path, result.outcome) == (None, path, "failed")
    assert (result.reason or "").startswith(reason)
    assert SECRET not in f"{result} {caplog.text}"
    assert names(repository) == []


def test_one_bad_file_among_a_thousand_stops_nothing(
    repository: TokenRepository, files: Path
) -> None:
    for number in range(1000):
        write(files / f"account-{number:04}.json")
    write(files / "account-0499.json", "{")

    results = list(import_accounts(repository, files))

    failed = [result for result in results if result.outcome != "imported"]
    assert [result.path.name for result in failed] == ["account-0499.json"]
    assert len(results) == 1000
    assert len(names(repository)) == 999


GOOD = {
    "BOM": b'\xef\xbb\xbf{"access_token": "a"}',
    "UTF-16": '{"access_token": "a"}'.encode("utf-16"),
    "blanks": b'\r\n\t {"access_token": "a"}\r\n',
    "twice": b'{"access_token": "old", "access_token": "a"}',
    "large": b'{"access_token": "a", "id_token": "' + b"x" * 1_000_000 + b'"}',
}


@pytest.mark.parametrize("content", GOOD.values(), ids=GOOD)
def test_an_unusual_file_with_a_valid_token_is_imported(
    content: bytes, repository: TokenRepository, files: Path
) -> None:
    assert imported(repository, write(files / "odd.json", content)).reason is None
    assert (repository.load("odd") or {})["access_token"] == "a"


def test_nan_and_infinity_become_null_and_this_is_reported(
    repository: TokenRepository, files: Path
) -> None:
    content = b'{"access_token": "a", "score": NaN, "others": [Infinity, -Infinity]}'
    result = imported(repository, write(files / "a.json", content))

    assert result.reason == "NaN and infinite numbers were imported as null"

    loaded = repository.load("a") or {}
    assert (loaded["score"], loaded["others"]) == (None, [None, None])


def test_a_note_is_reported_as_the_reason(repository: TokenRepository, files: Path) -> None:
    result = imported(repository, write(files / "a.json", expires_at=SECRET))

    assert result.outcome == "imported"
    assert result.reason == "expires_at is not a valid timestamp; the token counts as expired"


@pytest.mark.parametrize("path", ["gone.json", "gone", "gone/a.json", "a\0b.json"], ids=repr)
def test_a_missing_file_is_reported(path: str, repository: TokenRepository, files: Path) -> None:
    write(files / "alice.json")

    results = list(import_accounts(repository, [files / path, files / "alice.json"]))

    assert [(result.outcome, result.reason) for result in results] == [
        ("failed", "no such file"),
        ("imported", None),
    ]


def test_an_impossible_path_is_reported(repository: TokenRepository, files: Path) -> None:
    long, below = files / ("x" * 300), write(files / "alice.json") / "below.json"

    results = outcomes(import_accounts(repository, [long, below, files]))

    assert results[long.name] == ("failed", "File name too long")
    assert results["below.json"][0] == "failed"
    assert results["alice.json"] == ("imported", None)


def test_anything_but_a_file_is_reported_without_waiting(
    repository: TokenRepository, files: Path
) -> None:
    os.mkfifo(files / "a.json")
    (files / "b.json").mkdir()
    (files / "c.json").symlink_to("gone.json")
    (files / "d.json").symlink_to("d.json")
    write(files / "e.json")

    results = outcomes(import_accounts(repository, files))

    assert results == {
        "a.json": ("failed", "neither a file nor a readable directory"),
        "b.json": ("failed", "neither a file nor a readable directory"),
        "c.json": ("failed", "no such file"),
        "d.json": ("failed", "no such file"),
        "e.json": ("imported", None),
    }


def test_the_name_of_a_symlink_is_the_account(repository: TokenRepository, files: Path) -> None:
    real = write(files.parent / "real.json")
    (files / "alice.json").symlink_to(real)

    assert imported(repository, files / "alice.json").account_name == "alice"
    assert names(repository) == ["alice"]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are always text")
def test_a_file_name_that_is_not_utf8_is_reported(repository: TokenRepository, files: Path) -> None:
    Path(os.fsdecode(bytes(files) + b"/caf\xe9.json")).write_text('{"access_token": "a"}')
    write(files / "alice.json")

    results = list(import_accounts(repository, files))

    assert sorted(result.outcome for result in results) == ["failed", "imported"]


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A directory with a database of an unprivileged user, as which the test runs."""
    directory = Path(tempfile.mkdtemp())
    user = os.geteuid()
    with TokenRepository(directory / "tokens.db") as repository:
        # Imports all code now: the other user may not have access to it.
        repository.save("alice", STORED)
        list(export_accounts(repository, directory / "tried"))
        list(import_accounts(repository, directory / "tried"))
        repository.delete("alice")
    shutil.rmtree(directory / "tried")
    try:
        if user == 0:
            for path in (directory, *directory.rglob("*")):
                os.chown(path, NOBODY, -1)
            os.seteuid(NOBODY)
        yield directory
    finally:
        os.seteuid(user)
        for path in directory.rglob("*"):
            path.chmod(0o700)
        shutil.rmtree(directory)


def test_a_file_without_read_permission_is_reported(unprivileged: Path) -> None:
    files, closed = unprivileged / "files", unprivileged / "closed"
    for directory in (files, closed):
        directory.mkdir()
        write(directory / "alice.json")
    secret = write(files / "secret.json")
    secret.chmod(0)
    closed.chmod(0)

    with TokenRepository(unprivileged / "tokens.db") as repository:
        results = list(import_accounts(repository, [closed, closed / "x.json", files]))
        stored = names(repository)

    assert [(r.path, r.outcome, r.reason) for r in results] == [
        (closed, "failed", "neither a file nor a readable directory"),
        (closed / "x.json", "failed", "Permission denied"),
        (files / "alice.json", "imported", None),
        (secret, "failed", "Permission denied"),
    ]
    assert stored == ["alice"]


@pytest.mark.slow
def test_results_are_yielded_while_files_are_stored(
    repository: TokenRepository, files: Path
) -> None:
    for number in range(1200):
        write(files / f"a{number:04}.json")
    results = import_accounts(repository, files)

    next(results)

    assert 0 < len(names(repository)) < 1200
    assert len(list(results)) == 1199


def test_an_error_of_the_database_is_raised(tmp_path: Path, files: Path) -> None:
    write(files / "alice.json")
    (tmp_path / "file").touch()

    with pytest.raises(StorageError):
        list(import_accounts(TokenRepository(tmp_path / "file" / "tokens.db"), files))


# -- export ---------------------------------------------------------------------------------------


def test_every_account_is_exported_to_its_own_file(
    repository: TokenRepository, target: Path
) -> None:
    for name in ("bob", "alice@example.com"):
        repository.save(name, {"access_token": name, "expires_at": NOW}, provider="google")

    results = list(export_accounts(repository, target))

    assert results == [
        FileResult("alice@example.com", target / "alice@example.com.json", "exported"),
        FileResult("bob", target / "bob.json", "exported"),
    ]
    data = json.loads((target / "bob.json").read_text())
    assert data["access_token"] == "bob"
    assert data["tokenstore"] == {
        "version": 1,
        "account_name": "bob",
        "provider": "google",
        "expires_at": NOW,
        "written": local_iso(NOW),
    }


@pytest.mark.parametrize("existing", [True, False], ids=["database", "no database"])
def test_nothing_is_exported_from_a_store_without_accounts(
    repository: TokenRepository, target: Path, *, existing: bool
) -> None:
    if existing:
        repository.save("alice", STORED)
        repository.delete("alice")

    assert list(export_accounts(repository, target)) == []
    assert list(target.iterdir()) == []
    assert Path(repository.name).exists() is existing


UMASKS = [0o000, 0o022, 0o077]


@pytest.mark.parametrize("umask", UMASKS, ids=oct)
def test_exported_files_are_private_whatever_the_umask(
    umask: int, repository: TokenRepository, target: Path
) -> None:
    repository.save("alice", STORED)
    before = os.umask(umask)
    try:
        results = export_accounts(repository, target / "made" / "too")
        assert next(results).outcome == "exported"
        list(results)
    finally:
        os.umask(before)

    assert mode(target / "made" / "too" / "alice.json") == 0o600
    assert [mode(p) for p in (target, target / "made", target / "made" / "too")] == [0o700] * 3


def test_an_existing_directory_keeps_its_mode_and_its_files(
    repository: TokenRepository, target: Path
) -> None:
    repository.save("alice", STORED)
    target.mkdir()
    target.chmod(0o755)
    write(target / "other.json")

    exported(repository, target)

    assert mode(target) == 0o755
    assert sorted(path.name for path in target.iterdir()) == ["alice.json", "other.json"]


def test_an_existing_file_is_replaced_by_a_private_one(
    repository: TokenRepository, target: Path
) -> None:
    repository.save("alice", STORED)
    target.mkdir()
    old = write(target / "alice.json", "old")
    old.chmod(0o644)
    with old.open() as reader:
        exported(repository, target)

        assert reader.read() == "old"
    assert json.loads(old.read_text())["access_token"] == "stored"
    assert mode(old) == 0o600


def test_a_reader_never_sees_half_a_file(repository: TokenRepository, target: Path) -> None:
    repository.save("alice", {"access_token": "a" * 50_000})
    exported(repository, target)
    path, done, seen = target / "alice.json", threading.Event(), 0

    def export() -> None:
        try:
            for _ in range(20):
                exported(repository, target)
        finally:
            done.set()

    writer = threading.Thread(target=export)
    writer.start()
    while not done.is_set():
        assert len(json.loads(path.read_text())["access_token"]) == 50_000
        seen += 1
    writer.join()

    assert seen
    assert [p.name for p in target.iterdir()] == ["alice.json"]


KILLED = """
import os, signal, sys
from tokenstore import TokenRepository
from tokenstore.jsonfiles import export_accounts

def die(event, arguments):
    if event == sys.argv[3] and str(arguments[0]).endswith(".tmp"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
list(export_accounts(TokenRepository(sys.argv[1]), sys.argv[2]))
"""


@pytest.mark.slow
def test_an_export_that_is_killed_before_its_end_leaves_the_old_file(
    repository: TokenRepository, target: Path
) -> None:
    repository.save("alice", STORED)
    exported(repository, target)
    before = (target / "alice.json").read_bytes()
    repository.save("alice", {"access_token": "new"})
    repository.close()

    arguments = [str(Path(repository.name)), str(target), "os.rename"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)

    assert killed.returncode == -9
    assert (target / "alice.json").read_bytes() == before
    (left,) = {path.name for path in target.iterdir()} - {"alice.json"}
    assert mode(target / left) == 0o600
    assert find_files(target) == [target / "alice.json"]
    assert exported(repository, target)["alice"]["access_token"] == "new"
    assert [path.name for path in target.iterdir()] == [
        "alice.json"
    ]  # the temporary file was removed


def test_a_file_that_cannot_be_written_to_its_end_leaves_the_old_one(
    repository: TokenRepository, target: Path
) -> None:
    for name in ("alice", "bob"):
        repository.save(name, STORED)
    exported(repository, target)
    before = (target / "alice.json").read_bytes()
    repository.save("alice", {"access_token": "a" * 100_000})

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        results = outcomes(export_accounts(repository, target))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert results == {"alice.json": ("failed", "File too large"), "bob.json": ("exported", None)}
    assert (target / "alice.json").read_bytes() == before
    assert sorted(path.name for path in target.iterdir()) == ["alice.json", "bob.json"]


def test_a_link_in_the_place_of_a_file_is_not_followed(
    repository: TokenRepository, target: Path
) -> None:
    target.mkdir()
    outside = write(target.parent / "outside.json", "mine")
    (target / "alice.json").symlink_to(outside)
    for name in ("alice", "bob"):
        repository.save(name, STORED)

    results = outcomes(export_accounts(repository, target))

    assert results["alice.json"] == ("failed", "is a symlink; remove it")
    assert results["bob.json"] == ("exported", None)
    assert outside.read_text() == "mine"
    assert (target / "alice.json").is_symlink()


def test_a_directory_in_the_place_of_a_file_does_not_stop_the_export(
    repository: TokenRepository, target: Path
) -> None:
    (target / "alice.json").mkdir(parents=True)
    for name in ("alice", "bob"):
        repository.save(name, STORED)

    results = outcomes(export_accounts(repository, target))

    assert {name: outcome for name, (outcome, _) in results.items()} == {
        "alice.json": "failed",
        "bob.json": "exported",
    }
    assert sorted(path.name for path in target.iterdir()) == ["alice.json", "bob.json"]


@pytest.mark.parametrize("below", [".", "below"])
def test_a_file_in_the_place_of_the_directory_is_an_error(
    below: str, repository: TokenRepository, target: Path
) -> None:
    repository.save("alice", STORED)
    write(target, "mine")

    with pytest.raises(StorageError) as caught:
        list(export_accounts(repository, target / below))

    assert str(target) in (caught.value.path or "")
    assert target.read_text() == "mine"


def test_a_directory_without_write_permission_is_an_error_and_logged(
    unprivileged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    closed = unprivileged / "closed"
    closed.mkdir(0o500)

    with TokenRepository(unprivileged / "tokens.db") as repository:
        repository.save("alice", STORED)
        caplog.clear()
        for directory in (closed, closed / "below"):
            with pytest.raises(StorageError) as caught:
                list(export_accounts(repository, directory))

            assert str(caught.value).startswith(f"{directory}: Permission denied")
            assert (caught.value.path, caught.value.errno) == (str(directory), 13)

    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


# -- round trips ----------------------------------------------------------------------------------

HOSTILE = ["../x", "a/b", "C:\\x", "CON", ".", "..", "a", "A", "x" * 300, "Jos\u00e9", "a~b", "-"]


def test_hostile_names_stay_in_the_directory_and_are_imported_again(
    repository: TokenRepository, target: Path, tmp_path: Path
) -> None:
    for name in HOSTILE:
        repository.save(name, {"access_token": name[:9]})
    outside = {*tmp_path.iterdir()}

    exported(repository, target)
    assert {*tmp_path.iterdir()} == {*outside, target}
    with TokenRepository(tmp_path / "other.db") as other:
        list(import_accounts(other, target))
        loaded = {name: (other.load(name) or {})["access_token"] for name in names(other)}

    assert loaded == {name: name[:9] for name in HOSTILE}
    assert len(list(target.iterdir())) == len(HOSTILE)


@pytest.mark.usefixtures("zone")
def test_a_whole_store_is_imported_again_unchanged(
    repository: TokenRepository, target: Path, tmp_path: Path
) -> None:
    repository.save("full", {"access_token": "ä", "refresh_token": "r", "expires_in": 3600.25})
    repository.save("never", {"access_token": "a", "expires_at": NEVER, "expires_in": 1})
    repository.save("unknown", {"access_token": "a", "refresh_token": None})
    repository.save("past", {"access_token": "a", "expires_at": "0001-01-01T00:00:00Z"})
    repository.save("rich", {"access_token": "a", "n": {"": [None, True, 1.5, "\udce9"]}})
    repository.save("bound", {"access_token": "a"}, provider="google")

    exported(repository, target)
    with TokenRepository(tmp_path / "other.db") as other:
        assert {r.outcome for r in import_accounts(other, target)} == {"imported"}
        back = contents(other)

    assert back == contents(repository)


def test_an_exported_file_refreshed_by_another_program_is_imported_as_newer(
    repository: TokenRepository, target: Path
) -> None:
    repository.save("a/b", {"access_token": "a", "refresh_token": "r", "expires_at": NOW})
    exported(repository, target)
    (path,) = target.iterdir()
    data = json.loads(path.read_text())
    later = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(NOW + 3600))
    write(path, {**data, "access_token": "b", "expires_at": later})

    results = outcomes(import_accounts(repository, target, newer=True))

    assert results == {path.name: ("imported", None)}
    assert repository.load("a/b") == {
        "access_token": "b",
        "refresh_token": "r",
        "expires_at": NOW + 3600,
    }


# -- the log --------------------------------------------------------------------------------------


def test_every_file_is_logged_once_without_secrets(
    repository: TokenRepository, files: Path, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(files / "alice.json", access_token=SECRET, refresh_token=SECRET)
    write(files / "broken.json", f'{{"access_token": "{SECRET}"')
    (target / "alice.json").mkdir(parents=True)

    with caplog.at_level(logging.DEBUG, "tokenstore"):
        list(import_accounts(repository, files))
        list(import_accounts(repository, files / "alice.json"))
        list(export_accounts(repository, target))

    facts = [
        (r.levelname, *(getattr(r, fact) for fact in ("operation", "account_name", "outcome")))
        for r in caplog.records
        if hasattr(r, "operation")
    ]
    assert facts == [
        ("INFO", "import", "alice", "imported"),
        ("WARNING", "import", None, "failed"),
        ("INFO", "import", "alice", "skipped"),
        ("WARNING", "export", "alice", "failed"),
    ]
    assert SECRET not in caplog.text


@pytest.mark.parametrize("name", ["a\nWARNING forged", "a\x1b[2J"], ids=["line", "escape"])
def test_a_file_name_cannot_forge_a_log_line(
    name: str, repository: TokenRepository, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = imported(repository, write(files / f"{name}.json"))

    assert result.outcome == "failed"
    (record,) = caplog.records
    assert record.getMessage().isprintable()


# -- files with several accounts ------------------------------------------------------------------

BOTH = {"a": {"access_token": "1", "refresh_token": "ra"}, "b": {"access_token": "2"}}


def outcomes_of(repository: TokenRepository, directory: Path) -> dict[str | None, str]:
    return {r.account_name: r.outcome for r in export_accounts(repository, directory)}


def test_an_export_does_not_replace_a_file_that_has_more_accounts(tmp_path: Path) -> None:
    file = tmp_path / "creds.json"
    file.write_text(json.dumps({**BOTH, "c": {"access_token": "3", "refresh_token": "\x00"}}))
    before = file.read_bytes()
    with TokenRepository(tmp_path / "tokens.db") as repository:
        outcomes = [result.outcome for result in import_accounts(repository, file)]
        assert sorted(outcomes) == ["failed", "imported", "imported"]
        assert outcomes_of(repository, tmp_path) == {"creds:a": "failed", "creds:b": "failed"}
        assert file.read_bytes() == before
        file.unlink()
        assert outcomes_of(repository, tmp_path) == {"creds:a": "exported", "creds:b": "exported"}


def test_an_export_does_not_replace_a_file_with_fields_that_are_not_stored(tmp_path: Path) -> None:
    file = tmp_path / "creds.json"
    file.write_text(json.dumps({**BOTH, "note": "x" * 3000}))
    with TokenRepository(tmp_path / "tokens.db") as repository:
        list(import_accounts(repository, file))
        repository.delete("creds:a")  # it had remembered the note
        assert outcomes_of(repository, tmp_path) == {"creds:b": "failed"}
        assert "note" in json.loads(file.read_text())


def test_an_account_with_the_shape_of_another_one_gets_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "creds.json").write_text(json.dumps(BOTH))
    with TokenRepository(tmp_path / "tokens.db") as repository:
        list(import_accounts(repository, tmp_path / "creds.json"))
        repository.save("alice", {**(repository.load("creds:a") or {}), "access_token": "new"})
        assert set(outcomes_of(repository, tmp_path).values()) == {"exported"}
    files = (path.read_text() for path in tmp_path.glob("*.json"))
    found = [text for text in files if '"new"' in text or '"1"' in text]
    assert sum(text.count('"new"') for text in found) == 1
    assert sum(text.count('"1"') for text in found) == 1


def test_a_key_of_an_export_alone_is_one_failed_file(tmp_path: Path) -> None:
    block = {"account_name": "a", "expires_at": None, "x": {"access_token": "t"}}
    (tmp_path / "bad.json").write_text(json.dumps({"tokenstore": block}))
    (tmp_path / "good.json").write_text(json.dumps({"access_token": "t"}))
    with TokenRepository(tmp_path / "tokens.db") as repository:
        results = {r.path.name: r.outcome for r in import_accounts(repository, tmp_path)}
    assert results == {"bad.json": "failed", "good.json": "imported"}


def test_a_lock_of_a_stranger_on_the_directory_is_not_waited_for(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        flock(descriptor, LOCK_EX)
        with TokenRepository(tmp_path / "tokens.db") as repository:
            repository.save("alice", {"access_token": "t"})
            assert repository.load("alice") == {"access_token": "t"}
    finally:
        os.close(descriptor)
