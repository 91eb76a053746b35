"""``tokenstore import`` and ``export``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.helpers.command import Ran, old_files, on_a_terminal, save
from tokenstore import TokenRepository

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokenstore.testing import AuthorizationServer


def test_import_reports_every_file_and_ends_with_1_if_one_failed(
    cli: Callable[..., Ran], tmp_path: Path
) -> None:
    old = old_files(tmp_path / "old")

    ran = cli("import", old, "--json")

    assert ran.code == 1
    assert ran.json == {
        "results": [
            {
                "account_name": None,
                "path": str(old / "broken.json"),
                "outcome": "failed",
                "reason": "not valid JSON",
            },
            {
                "account_name": "good",
                "path": str(old / "good.json"),
                "outcome": "imported",
                "reason": None,
            },
        ]
    }


def test_import_reports_every_account_of_a_file_that_holds_many(
    cli: Callable[..., Ran], tmp_path: Path
) -> None:
    file = tmp_path / "alice.json"
    tokens = {"auth.globus.org": {"access_token": "a"}, "broken": {}, "x": {"refresh_token": "r"}}
    file.write_text(
        json.dumps({"by_rs": tokens, "format_version": "1.0", "globus-sdk.version": "3.0.0"})
    )

    ran = cli("import", file, "--json")

    assert ran.code == 1
    assert [(r["account_name"], r["path"], r["outcome"]) for r in ran.json["results"]] == [
        ("alice:auth.globus.org", str(file), "imported"),
        ("alice:broken", str(file), "failed"),
        ("alice:x", str(file), "imported"),
    ]


def test_importing_twice_skips_what_is_stored_and_is_no_failure(
    cli: Callable[..., Ran], tmp_path: Path
) -> None:
    file = old_files(tmp_path / "old") / "good.json"
    assert cli("import", file).code == 0

    ran = cli("import", file)

    assert ran.code == 0
    assert ran.out == f"skipped\tgood\t{file}\talready stored\n"
    assert ran.err == "1 skipped\n"


def test_import_binds_the_accounts_to_the_provider_that_is_named(
    cli: Callable[..., Ran], tmp_path: Path
) -> None:
    cli("import", old_files(tmp_path / "old"), "--provider", "google")

    assert cli("status", "--json").json["accounts"][0]["provider"] == "google"


def test_import_replaces_an_account_only_when_told(
    cli: Callable[..., Ran], tmp_path: Path, database: Path
) -> None:
    file = old_files(tmp_path / "old") / "good.json"
    cli("import", file)
    file.write_text('{"access_token": "b", "refresh_token": "s", "expires_at": 4102444800}')

    cli("import", file)
    with TokenRepository(database) as repository:
        assert repository.load("good") == {"access_token": "a", "refresh_token": "r"}

    assert cli("import", file, "--newer").out.startswith("imported")
    with TokenRepository(database) as repository:
        loaded = repository.load("good") or {}
    assert (loaded["access_token"], loaded["refresh_token"]) == ("b", "s")
    assert loaded["expires_at"] == 4102444800.0

    file.write_text('{"access_token": "c", "refresh_token": "t", "expires_at": 4102444799}')
    assert cli("import", file, "--newer").out.startswith("skipped")
    assert cli("import", file, "--replace").out.startswith("imported")


def test_import_reads_standard_input_under_the_name_that_is_given(
    cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = old_files(tmp_path / "old") / "good.json"

    with file.open() as nameless_input, file.open() as named_input:
        monkeypatch.setattr("sys.stdin", nameless_input)
        nameless = cli("import", "-")
        monkeypatch.setattr("sys.stdin", named_input)
        named = cli("import", "-", "--as", "alice", "--json")

    assert (nameless.code, nameless.out) == (1, "failed\t\t-\thas no name; give the account one\n")
    assert named.json["results"] == [
        {"account_name": "alice", "path": "-", "outcome": "imported", "reason": None}
    ]


def test_a_dry_run_stores_nothing(cli: Callable[..., Ran], tmp_path: Path, database: Path) -> None:
    ran = cli("import", old_files(tmp_path / "old") / "good.json", "--dry-run")

    assert (ran.code, ran.out.split("\t")[0]) == (0, "imported")
    assert ran.err == "1 imported\nnothing was stored\n"
    assert not database.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--provider", "gogle"], "unknown provider 'gogle'; did you mean 'google'?"),
        (["--as", ""], "the account name must not be empty"),
        (["--as", "x", "good.json"], "--as names the account of one file"),
        (["--replace", "--newer"], "--replace and --newer cannot be combined"),
        ([""], "does not exist"),
        (["-", "-"], "standard input can be read only once"),
    ],
)
def test_import_refuses_what_cannot_be_meant(
    arguments: list[str], message: str, cli: Callable[..., Ran], tmp_path: Path
) -> None:
    old = old_files(tmp_path / "old")
    arguments = [str(old / a) if a == "good.json" else a for a in arguments]

    ran = cli("import", old / "good.json", *arguments)

    assert ran.code == 2
    assert message in ran.err


def test_export_refuses_an_empty_directory(cli: Callable[..., Ran]) -> None:
    ran = cli("export", "")

    assert ran.code == 2
    assert "must not be empty" in ran.err


def test_export_names_and_prunes_the_files_of_accounts_that_are_gone(
    cli: Callable[..., Ran], tmp_path: Path, database: Path
) -> None:
    target = tmp_path / "new"
    cli("import", old_files(tmp_path / "old") / "good.json")
    cli("export", target)
    with TokenRepository(database) as repository:
        repository.delete("good")

    named = cli("export", target)
    pruned = cli("export", target, "--prune")

    reason = "its account is gone"
    assert named.out == f"skipped\tgood\t{target / 'good.json'}\t{reason}; prune removes the file\n"
    assert pruned.out.endswith(f"{reason}; the file was removed\n")
    assert list(target.iterdir()) == []


def test_export_writes_private_files(
    cli: Callable[..., Ran], tmp_path: Path, database: Path, server: AuthorizationServer
) -> None:
    save(database, server, "alice", expires_in=3600)
    target = tmp_path / "new"

    ran = cli("export", target, "--json")

    assert ran.code == 0
    assert ran.json["results"] == [
        {
            "account_name": "alice",
            "path": str(target / "alice.json"),
            "outcome": "exported",
            "reason": None,
        }
    ]
    assert (target / "alice.json").stat().st_mode & 0o777 == 0o600
    assert target.stat().st_mode & 0o777 == 0o700


def test_an_import_shows_its_progress_on_a_terminal(database: Path, tmp_path: Path) -> None:
    code, shown = on_a_terminal("--database", database, "import", old_files(tmp_path / "old"))

    assert code == 1
    assert "importing" in shown
    assert "not valid JSON" in shown
