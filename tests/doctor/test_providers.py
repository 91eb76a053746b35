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


def test_a_broken_providers_file_is_told_once(path: Path) -> None:
    with TokenManager(path) as manager:
        manager.save_tokens("carol", tokens(3), provider="one")
        manager.save_tokens("dave", tokens(4), provider="two")
    file = path.with_name("providers.toml")
    file.write_text('[one]\nclient_secret = "CANARY\n')

    found = only(path)

    assert found.check == "providers"
    assert str(file) in found.message
