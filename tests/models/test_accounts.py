from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pytest

from tokenstore.errors import (
    ClientRejectedError,
    ProviderConfigurationError,
    ReauthorizationRequired,
    TokenRefreshError,
    TransientRefreshError,
)
from tokenstore.models.accounts import Account, Record
from tokenstore.models.expiry import refresh_due_at, state_of
from tokenstore.models.failures import Failure
from tokenstore.models.timestamps import NEVER
from tokenstore.models.tokens import TokenSet

if TYPE_CHECKING:
    from tokenstore.models.accounts import State
    from tokenstore.models.failures import FailureKind

NOW = 1_800_000_000.0
CLIENT = "app https://provider.example/token"
SECRET = "rt-canary-a911"
DETAILS: dict[str, Any] = {
    "account_name": "alice",
    "provider": "google",
    "status_code": 400,
    "error": "invalid_grant",
    "error_description": "gone",
}

ERRORS = {
    "sign in": ReauthorizationRequired("dead", **DETAILS),
    "bare": ReauthorizationRequired("dead", account_name="alice", provider="google"),
    "wait": TransientRefreshError("busy", retry_after=60.0, **DETAILS),
    "no wait": TransientRefreshError("busy", retry_after=0.0, **DETAILS),
    "spent": TransientRefreshError("lost", maybe_spent=True, **DETAILS),
    "rejected": ClientRejectedError("no such client", **DETAILS),
}
VERDICTS: dict[str, FailureKind] = {
    "sign in": "reauthorization",
    "bare": "reauthorization",
    "wait": "transient",
    "no wait": "transient",
    "spent": "transient",
    "rejected": "client_rejected",
}


def shown(error: TokenRefreshError) -> dict[str, Any]:
    return {"type": type(error), "text": str(error), **vars(error)}


@pytest.mark.parametrize("kind", ERRORS)
def test_a_remembered_failure_is_the_same_error_again(kind: str) -> None:
    failure = Failure.from_error(ERRORS[kind], CLIENT, now=NOW)

    remembered = Failure.from_json(failure.to_json())
    again = remembered.to_error(account_name="alice", provider="google", now=NOW)

    assert remembered == failure
    assert failure.kind == VERDICTS[kind]
    assert shown(again) == shown(ERRORS[kind])


def test_what_is_left_of_a_wait_shrinks_with_time_and_never_below_nothing() -> None:
    failure = Failure.from_error(ERRORS["wait"], CLIENT, now=NOW)

    waits = []
    for now in (NOW, NOW + 20, NOW + 90):
        error = failure.to_error(account_name="alice", provider=None, now=now)
        assert isinstance(error, TransientRefreshError)
        waits.append(error.retry_after)

    assert waits == [60.0, 40.0, 0.0]


def test_a_provider_that_named_no_wait_is_not_given_one() -> None:
    failure = Failure.from_error(ERRORS["spent"], CLIENT, now=NOW)
    error = failure.to_error(account_name="alice", provider=None, now=NOW + 5)

    assert isinstance(error, TransientRefreshError)
    assert (error.retry_after, error.maybe_spent) == (None, True)


def test_a_configuration_error_asks_for_another_configuration() -> None:
    failure = Failure.from_error(ProviderConfigurationError("no client_id"), CLIENT, now=NOW)

    assert failure.kind == "client_rejected"


@pytest.mark.parametrize(
    ("kind", "later", "stands"),
    [
        ("sign in", 0, True),
        ("sign in", 1e9, True),
        ("wait", 0, True),
        ("wait", 59.9, True),
        ("wait", 60, False),
        ("no wait", 0, False),
        ("spent", 0, False),
        ("rejected", 0, False),
    ],
)
def test_a_verdict_stands_while_asking_again_is_in_vain(
    kind: str, later: float, *, stands: bool
) -> None:
    failure = Failure.from_error(ERRORS[kind], CLIENT, now=NOW)

    assert failure.still_applies(CLIENT, now=NOW + later) is stands


@pytest.mark.parametrize("kind", ERRORS)
def test_no_verdict_stands_for_another_client_or_endpoint(kind: str) -> None:
    failure = Failure.from_error(ERRORS[kind], CLIENT, now=NOW)

    assert not failure.still_applies("app https://other.example/token", now=NOW)
    assert not failure.still_applies("other https://provider.example/token", now=NOW)


# -- when a token is due --------------------------------------------------------------------------

DUE = {
    "saved": (NOW + 3600, None, 300.0, NOW + 3300),
    "no buffer": (NOW + 3600, None, 0.0, NOW + 3600),
    "refreshed, buffer within half the lifetime": (NOW + 3600, NOW, 300.0, NOW + 3300),
    "refreshed, buffer of half the lifetime": (NOW + 600, NOW, 300.0, NOW + 300),
    "refreshed, buffer beyond half the lifetime": (NOW + 30, NOW, 300.0, NOW + 15),
    "saved, buffer beyond the lifetime": (NOW + 30, None, 300.0, NOW - 270),
    "refreshed, born expired": (NOW, NOW, 300.0, NOW),
    "refreshed, expired before it was born": (NOW - 60, NOW, 300.0, NOW - 60),
    "never": (NEVER, NOW, 300.0, NEVER - 300),
    "unknown": (None, None, 300.0, -math.inf),
    "refreshed, unknown": (None, NOW, 300.0, -math.inf),
    "endless buffer": (NOW + 3600, None, math.inf, -math.inf),
}


@pytest.mark.parametrize(("expires_at", "refreshed_at", "buffer", "due"), DUE.values(), ids=DUE)
def test_a_token_is_due_a_buffer_before_it_expires_but_not_before_half_its_lifetime(
    expires_at: float | None, refreshed_at: float | None, buffer: float, due: float
) -> None:
    assert refresh_due_at(expires_at, refreshed_at, buffer) == due


# -- how an account is ----------------------------------------------------------------------------

DEAD = Failure(kind="reauthorization", message="dead", client=CLIENT)
WAIT = Failure(kind="transient", message="busy", client=CLIENT, retry_at=NOW + 60)
WAITED = Failure(kind="transient", message="busy", client=CLIENT, retry_at=NOW)
BUSY = Failure(kind="transient", message="busy", client=CLIENT)
REJECTED = Failure(kind="client_rejected", message="who?", client=CLIENT)

STATES: list[tuple[bool, bool, Failure | None, State]] = [
    (False, True, None, "valid"),
    (False, False, None, "valid"),
    (False, True, WAIT, "valid"),
    (False, True, REJECTED, "valid"),
    (False, True, DEAD, "sign_in"),
    (True, True, None, "due"),
    (True, True, WAITED, "due"),
    (True, True, BUSY, "due"),
    (True, True, REJECTED, "due"),
    (True, True, WAIT, "retry_later"),
    (True, True, DEAD, "sign_in"),
    (True, False, None, "sign_in"),
    (True, False, WAIT, "sign_in"),
    (True, False, DEAD, "sign_in"),
]


@pytest.mark.parametrize(("due", "refreshable", "failure", "state"), STATES)
def test_the_state_says_what_the_next_use_can_do(
    failure: Failure | None, state: State, *, due: bool, refreshable: bool
) -> None:
    assert state_of(due=due, refreshable=refreshable, failure=failure, now=NOW) == state


# -- what is shown --------------------------------------------------------------------------------


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
