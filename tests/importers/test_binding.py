"""What an import knows of providers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tokenstore import TokenRepository
from tokenstore.jsonfiles import export_accounts, import_accounts
from tokenstore.models.timestamps import NEVER

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_800_000_000
TOKENS = {"access_token": "a", "refresh_token": "r"}


@pytest.mark.parametrize(
    ("content", "lifetime", "expires_at"),
    [
        (TOKENS, "inf", NEVER),
        ({**TOKENS, "expires_at": None}, "inf", NEVER),
        ({"access_token": "a"}, "inf", NEVER),
        ({"refresh_token": "r"}, "inf", None),  # there is no token that could last
        ({**TOKENS, "expires_in": 60}, "inf", 0),
        ({**TOKENS, "obtained_at": NOW}, "7200", NOW + 7200),
        ({**TOKENS, "created_at": NOW * 1000}, "7200", NOW + 7200),
        ({**TOKENS, "obtained_at": NOW, "expires_in": 60}, "7200", NOW + 60),
        ({**TOKENS, "obtained_at": NOW, "expires_at": NOW + 1}, "7200", NOW + 1),
        (TOKENS, "7200", None),  # its age is unknown
        ({"access_token": "a", "obtained_at": NOW}, "7200", None),  # used until it is rejected
    ],
)
def test_the_default_lifetime_of_the_provider_counts_where_nothing_else_does(
    tmp_path: Path, content: dict[str, Any], lifetime: str, expires_at: float | None
) -> None:
    (tmp_path / "providers.toml").write_text(
        f'[ours]\ntoken_endpoint = "https://ours.example/token"\nclient_id = "c"\n'
        f"default_expires_in = {lifetime}\n"
    )
    (tmp_path / "alice.json").write_text(json.dumps(content))
    with TokenRepository(tmp_path / "tokens.db") as repository:
        [result] = import_accounts(repository, tmp_path / "alice.json", provider="ours")
        assert result.outcome == "imported"
        stored = repository.load("alice") or {}
        [result] = export_accounts(repository, tmp_path / "exported")

    assert stored.get("expires_at") == expires_at
    written = json.loads(result.path.read_text())
    assert written.items() >= content.items()
