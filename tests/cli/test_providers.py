"""``tokenstore providers``, and the choice of one by ``tokenstore login``."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.command import Ran, on_a_terminal, save

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokenstore.testing import AuthorizationServer


@pytest.fixture(autouse=True)
def _no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if "CLIENT_ID" in variable or "CLIENT_SECRET" in variable:
            monkeypatch.delenv(variable)


def listed(cli: Callable[..., Ran], *arguments: str) -> dict[str, Any]:
    ran = cli("providers", *arguments, "--json")
    assert ran.code == 0, ran.err
    return {entry["name"]: entry for entry in ran.json["providers"]}


def test_a_built_in_provider_names_the_variables_that_it_needs(
    cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_CLIENT_ID", "app")
    monkeypatch.setenv("GITHUB_CLIENT_ID", "app")
    found = listed(cli)

    assert found["google"] == {
        "name": "google",
        "source": "built-in",
        "ready": False,
        "needs": ["GOOGLE_CLIENT_SECRET"],
        "token_endpoint": "https://oauth2.googleapis.com/token",
        "documentation": "https://developers.google.com/identity/protocols/oauth2/web-server",
        "accounts": 0,
    }
    assert (found["github"]["ready"], found["github"]["needs"]) == (True, [])
    assert found["auth0"]["needs"] == ["AUTH0_CLIENT_ID", "AUTH0_DOMAIN"]
    assert found["auth0"]["token_endpoint"] is None


def test_a_table_of_the_file_names_the_keys_that_it_needs(
    cli: Callable[..., Ran], database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CORP_SECRET", raising=False)
    (database.parent / "providers.toml").write_text(
        "[corp]\n"
        'preset = "auth0"\n'
        'client_id = "app"\n'
        "[google]\n"
        'client_id = "app"\n'
        'client_secret_env = "CORP_SECRET"\n'
        "[own]\n"
        'client_id = "app"\n'
    )
    found = listed(cli)

    assert {found[n]["source"] for n in ("corp", "google", "own")} == {"providers.toml"}
    assert {n: found[n]["needs"] for n in ("corp", "google", "own")} == {
        "corp": ["domain"],
        "google": ["CORP_SECRET"],
        "own": ["token_endpoint"],
    }
    assert found["corp"]["documentation"] == found["auth0"]["documentation"]
    assert found["own"]["documentation"] is None


def test_accounts_are_counted(
    cli: Callable[..., Ran],
    database: Path,
    server: AuthorizationServer,
    providers: Path,  # noqa: ARG001 - has to be there
) -> None:
    for name in ("alice", "bob"):
        save(database, server, name, expires_in=3600)

    assert listed(cli)["test"]["accounts"] == 2
    assert listed(cli)["google"]["accounts"] == 0


def test_one_provider_is_described_with_what_to_register(cli: Callable[..., Ran]) -> None:
    (withings,) = listed(cli, "withings").values()
    assert withings["client"] == "confidential"
    assert withings["refresh_token_lifetime"] == 365 * 86400
    (github,) = listed(cli, "github").values()
    assert github["redirect_uri"] == "http://127.0.0.1/callback/github"
    assert github["access_token_lifetime"] is None
    assert github["registration_url"].startswith("https://github.com/")

    text = cli("providers", "github").out
    assert "redirect URI\thttp://127.0.0.1/callback/github\n" in text
    assert "needs\tGITHUB_CLIENT_ID\n" in text
    assert "requires https" in cli("providers", "withings").out


def test_an_unknown_provider_is_exit_code_2(cli: Callable[..., Ran]) -> None:
    ran = cli("providers", "githbu")

    assert (ran.code, ran.out) == (2, "")
    assert "did you mean 'github'?" in ran.err


def test_a_broken_file_is_exit_code_2(cli: Callable[..., Ran], database: Path) -> None:
    (database.parent / "providers.toml").write_text("[broken")

    ran = cli("providers")

    assert (ran.code, ran.out) == (2, "")
    assert "not valid TOML" in ran.err


@pytest.mark.parametrize("columns", ["60", "120"])
def test_the_table_fits_the_terminal(columns: str, database: Path) -> None:
    code, shown = on_a_terminal(
        "--database", database, "providers", COLUMNS=columns, GITHUB_CLIENT_ID="app"
    )

    assert code == 0
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= int(columns)
    first = lines[1].split()
    assert first[0] == "github"
    assert "yes" in first
    assert ("SOURCE" in lines[0]) == (columns == "120")


def test_a_sign_in_without_a_provider_offers_those_that_are_ready(database: Path) -> None:
    code, shown = on_a_terminal(
        "--database", database, "login", "alice", "--no-browser", "--timeout", "1s",
        keys="none\ngithub\n", GITHUB_CLIENT_ID="app",
    )  # fmt: skip

    assert code == 1
    assert "no sign-in within 1 s" in shown
    assert "Provider (github) [github]: " in shown
    assert "'none' is not" in shown
