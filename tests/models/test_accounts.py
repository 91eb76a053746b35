from __future__ import annotations

import dataclasses

import pytest

from tokenstore.models.accounts import Account, Record
from tokenstore.models.tokens import TokenSet

NOW = 1_800_000_000.0
SECRET = "rt-canary-a911"


def test_a_record_does_not_show_its_tokens() -> None:
    record = Record(
        account_name="alice",
        provider="google",
        tokens=TokenSet(access_token=SECRET, refresh_token=SECRET, extra={"id_token": SECRET}),
        version=1,
        refreshed_at=None,
        refresh_id=None,
        failure=None,
    )

    assert "alice" in repr(record)
    assert SECRET not in f"{record!r} {record}"


def test_an_account_has_the_fields_of_the_contract_and_cannot_be_changed() -> None:
    account = Account("alice", None, "valid", NOW, None, None)

    assert [field.name for field in dataclasses.fields(account)][:6] == [
        "name",
        "provider",
        "state",
        "expires_at",
        "refreshed_at",
        "last_error",
    ]
    with pytest.raises(dataclasses.FrozenInstanceError):
        account.name = "bob"  # type: ignore[misc]
