from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from tokenstore.models.expiry import refresh_due_at, state_of
from tokenstore.models.failures import Failure
from tokenstore.models.timestamps import NEVER

if TYPE_CHECKING:
    from tokenstore.models.accounts import State

NOW = 1_800_000_000.0
CLIENT = "app https://provider.example/token"


# -- when a token is due --------------------------------------------------------------------------

DUE = {
    "saved": (NOW + 3600, None, 300.0, NOW + 3300),
    "no buffer": (NOW + 3600, None, 0.0, NOW + 3600),
    "refreshed, buffer within half the lifetime": (NOW + 3600, NOW, 300.0, NOW + 3300),
    "refreshed, buffer of half the lifetime": (NOW + 600, NOW, 300.0, NOW + 300),
    "refreshed, buffer beyond half the lifetime": (NOW + 30, NOW, 300.0, NOW + 15),
    "saved, buffer beyond the lifetime": (NOW + 30, None, 300.0, NOW - 270),
    "refreshed, expired at once": (NOW, NOW, 300.0, NOW),
    "refreshed, expired before": (NOW - 60, NOW, 300.0, NOW - 60),
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


# -- the state of an account ----------------------------------------------------------------------

REFUSED = Failure(kind="reauthorization", message="refused", client=CLIENT)
WAIT = Failure(kind="transient", message="busy", client=CLIENT, retry_at=NOW + 60)
WAIT_OVER = Failure(kind="transient", message="busy", client=CLIENT, retry_at=NOW)
NO_WAIT = Failure(kind="transient", message="busy", client=CLIENT)
REJECTED = Failure(kind="client_rejected", message="unknown client", client=CLIENT)

STATES: list[tuple[bool, bool, Failure | None, State]] = [
    (False, True, None, "valid"),
    (False, False, None, "valid"),
    (False, True, WAIT, "valid"),
    (False, True, REJECTED, "misconfigured"),
    (False, True, REFUSED, "sign_in"),
    (True, True, None, "due"),
    (True, True, WAIT_OVER, "due"),
    (True, True, NO_WAIT, "due"),
    (True, True, REJECTED, "misconfigured"),
    (True, True, WAIT, "retry_later"),
    (True, True, REFUSED, "sign_in"),
    (True, False, None, "sign_in"),
    (True, False, WAIT, "sign_in"),
    (True, False, REFUSED, "sign_in"),
]


@pytest.mark.parametrize(("due", "refreshable", "failure", "state"), STATES)
def test_the_state_of_an_account(
    failure: Failure | None, state: State, *, due: bool, refreshable: bool
) -> None:
    assert state_of(due=due, refreshable=refreshable, failure=failure, now=NOW) == state
