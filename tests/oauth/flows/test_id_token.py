from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tokenstore.oauth.flows.id_token import may_replace, stored_subject, user_fields

CLAIMS = ["iss", "sub", "aud", "azp", "nonce", "email", "email_verified", "preferred_username"]
ODD: list[Any] = [None, True, 0, 1.5, "", "x", [], ["x", 1], {}, {"a": [1]}, [[]]]


def id_token(claims: Any) -> str:
    parts = ({"alg": "RS256"}, claims)
    texts = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts)
    return ".".join((*(text.rstrip("=") for text in texts), "x"))


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_a_claim_of_any_kind_is_no_error(claim: str, odd: Any) -> None:
    """An error here would lose the response of a refresh."""
    usual = {"iss": "https://issuer.example", "sub": "1", "email": "alice@example.com"}
    token, fields = id_token({**usual, claim: odd}), {**usual, claim: odd}
    for tokens in ({"id_token": token}, fields):
        subject = stored_subject(tokens)
        assert subject is None or not subject.has_address("bob@example.com")
        user_fields(tokens)
    may_replace(token, id_token(usual))
    may_replace(id_token(usual), token)


@pytest.mark.parametrize(
    ("claims", "known"),
    [
        ({"email": "alice@example.com", "email_verified": True}, True),
        ({"email": "alice@example.com", "email_verified": "true"}, True),
        ({"email": "alice@example.com"}, None),
        ({"email": "alice@example.com", "email_verified": False}, None),
        ({"preferred_username": "alice@example.com"}, None),
        (
            {
                "email": "mallory@example.com",
                "email_verified": True,
                "preferred_username": "alice@example.com",
            },
            None,
        ),
        ({"email": "mallory@example.com", "email_verified": True}, False),
        ({}, None),
    ],
)
def test_only_a_verified_address_is_vouched_for(claims: dict[str, Any], known: bool | None) -> None:
    subject = stored_subject({"id_token": id_token({"sub": "1", **claims})})
    assert subject is not None
    assert subject.has_address("alice@example.com") is known
