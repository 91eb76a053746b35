"""Providers that cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.helpers.doctor import bad, only, tokens
from tokenstore import Provider, TokenManager

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_providers_that_cannot_be_used_are_told_with_their_accounts(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_CLIENT_ID", raising=False)
    with TokenManager(path) as manager:
        manager.save_tokens("carol", tokens(3), provider="google")
        manager.save_tokens("dave", tokens(4), provider="gogle")
        manager.save_tokens("erin", tokens(5), provider="sound")
    sound = {"sound": Provider("sound", "https://provider.example/token", "id")}

    found = [finding for finding in bad(path, providers=sound) if finding.check == "providers"]

    assert [finding.accounts for finding in found] == [("dave",), ("carol",)]
    assert "did you mean 'google'?" in found[0].message
    assert "GOOGLE_CLIENT_ID" in found[1].message


def test_a_providers_file_that_others_can_change_is_told_once(path: Path) -> None:
    with TokenManager(path) as manager:
        manager.save_tokens("carol", tokens(3), provider="one")
    file = path.with_name("providers.toml")
    file.write_text('[one]\nclient_secret = "CANARY"\n')
    file.chmod(0o666)

    found = only(path)

    assert (found.check, found.severity) == ("providers", "error")
    assert found.message == f"{file} can be changed by other users (mode 0666)"
    assert str(found.hint).endswith(f"run: chmod go-w {file}")


def test_a_client_secret_that_others_can_read_is_told(path: Path) -> None:
    file = path.with_name("providers.toml")
    file.write_text('[one]\ntoken_endpoint = "https://p.example/t"\nclient_id = "c"\n')
    file.chmod(0o644)
    assert not bad(path)

    file.write_text(file.read_text() + 'client_secret = "CANARY"\n')

    found = only(path)
    assert (found.check, found.severity) == ("providers", "warning")
    assert "contains a client secret and is accessible to other users" in found.message
    file.chmod(0o600)
    assert not bad(path)


def test_a_broken_providers_file_is_told_once(path: Path) -> None:
    with TokenManager(path) as manager:
        manager.save_tokens("carol", tokens(3), provider="one")
        manager.save_tokens("dave", tokens(4), provider="two")
    file = path.with_name("providers.toml")
    file.write_text('[one]\nclient_secret = "CANARY\n')

    found = only(path)

    assert found.check == "providers"
    assert str(file) in found.message
