"""``tokenstore import`` and ``export``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

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
    file.write_text('{"access_token": "b", "expires_at": 4102444800}')

    cli("import", file)
    with TokenRepository(database) as repository:
        assert repository.load("good") == {"access_token": "a", "refresh_token": "r"}

    assert cli("import", file, "--newer").out.startswith("imported")
    with TokenRepository(database) as repository:
        assert repository.load("good") == {"access_token": "b", "expires_at": 4102444800.0}

    file.write_text('{"access_token": "c", "expires_at": 4102444799}')
    assert cli("import", file, "--newer").out.startswith("skipped")
    assert cli("import", file, "--replace").out.startswith("imported")


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
