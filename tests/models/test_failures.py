from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tokenstore.errors import (
    ClientRejectedError,
    ProviderConfigurationError,
    ReauthorizationRequired,
    TokenRefreshError,
    TransientRefreshError,
)
from tokenstore.models.failures import Failure, backoff

if TYPE_CHECKING:
    from tokenstore.models.failures import FailureKind

NOW = 1_800_000_000.0
CLIENT = "app https://provider.example/token"
DETAILS: dict[str, Any] = {
    "account_name": "alice",
    "provider": "google",
    "status_code": 400,
    "error": "invalid_grant",
    "error_description": "gone",
}

ERRORS = {
    "sign in": ReauthorizationRequired("refused", **DETAILS),
    "bare": ReauthorizationRequired("refused", account_name="alice", provider="google"),
    "wait": TransientRefreshError("busy", retry_after=60.0, **DETAILS),
    "no wait": TransientRefreshError("busy", retry_after=0.0, **DETAILS),
    "spent": TransientRefreshError("lost", maybe_spent=True, **DETAILS),
    "rejected": ClientRejectedError("no such client", **DETAILS),
}
KINDS: dict[str, FailureKind] = {
    "sign in": "reauthorization",
    "bare": "reauthorization",
    "wait": "transient",
    "no wait": "transient",
    "spent": "transient",
    "rejected": "client_rejected",
}


def attributes(error: TokenRefreshError) -> dict[str, Any]:
    return {"type": type(error), "message": str(error), **vars(error)}


@pytest.mark.parametrize("case", ERRORS)
def test_a_recorded_failure_gives_the_same_error(case: str) -> None:
    failure = Failure.from_error(ERRORS[case], CLIENT, now=NOW)

    stored = Failure.from_json(failure.to_json())
    error = stored.to_error(account_name="alice", provider="google", now=NOW)

    assert stored == failure
    assert failure.kind == KINDS[case]
    assert attributes(error) == attributes(ERRORS[case])


def test_the_kind_is_stored_under_the_key_that_databases_have() -> None:
    failure = Failure(kind="transient", message="down", client="c u")

    assert json.loads(failure.to_json())["verdict"] == "transient"


@pytest.mark.parametrize("text", ["", "{}", "5", "null", "[]", '{"verdict": "transient"}', "[1]"])
def test_json_that_is_not_a_failure_is_an_error(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        Failure.from_json(text)


def test_the_remaining_wait_shrinks_to_zero() -> None:
    failure = Failure.from_error(ERRORS["wait"], CLIENT, now=NOW)

    waits = []
    for now in (NOW, NOW + 20, NOW + 90):
        error = failure.to_error(account_name="alice", provider=None, now=now)
        assert isinstance(error, TransientRefreshError)
        waits.append(error.retry_after)

    assert waits == [60.0, 40.0, 0.0]


def test_without_a_requested_wait_there_is_none() -> None:
    failure = Failure.from_error(ERRORS["spent"], CLIENT, now=NOW)
    error = failure.to_error(account_name="alice", provider=None, now=NOW + 5)

    assert isinstance(error, TransientRefreshError)
    assert (error.retry_after, error.maybe_spent) == (None, True)


def test_a_configuration_error_is_a_rejected_client() -> None:
    failure = Failure.from_error(ProviderConfigurationError("no client_id"), CLIENT, now=NOW)

    assert failure.kind == "client_rejected"


@pytest.mark.parametrize(
    ("case", "later", "applies"),
    [
        ("sign in", 0, True),
        ("sign in", 1e9, True),
        ("wait", 0, True),
        ("wait", 59.9, True),
        ("wait", 60, False),
        ("no wait", 0, False),
        ("spent", 0, False),
        ("rejected", 59.9, True),
        ("rejected", 60, False),
    ],
)
def test_a_failure_applies_until_a_request_may_succeed(
    case: str, later: float, *, applies: bool
) -> None:
    failure = Failure.from_error(ERRORS[case], CLIENT, now=NOW)

    assert failure.still_applies(CLIENT, now=NOW + later) is applies


@pytest.mark.parametrize("case", ERRORS)
def test_no_failure_applies_to_another_client_or_endpoint(case: str) -> None:
    failure = Failure.from_error(ERRORS[case], CLIENT, now=NOW)

    assert not failure.still_applies("app https://other.example/token", now=NOW)
    assert not failure.still_applies("other https://provider.example/token", now=NOW)


def test_a_failure_of_an_older_release_counts_as_the_first() -> None:
    text = '{"verdict": "transient", "message": "down", "client": "c u"}'
    failure = Failure.from_json(text)
    assert (failure.count, failure.retry_at) == (1, None)
    assert Failure.from_json(failure.to_json()) == failure


def test_waits_double_up_to_a_cap() -> None:
    waits = [None, None, None, 5, 10, 20, 40, 80, 160, 300, 300, 300]

    assert [backoff(count) for count in range(1, len(waits) + 1)] == waits
    assert backoff(10**6) == 300
