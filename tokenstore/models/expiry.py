"""When an access token is due for a refresh, and the account state that follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenstore.models.accounts import Record, State
    from tokenstore.models.failures import Failure

_CLOCK_TOLERANCE = 60.0  # seconds that a clock may be corrected by, or differ between machines


class ExpiryPolicy:
    """Decides whether a stored access token is fresh enough to use.

    Args:
        clock: Returns the current time, in UTC epoch seconds.
        buffer: Seconds before its expiry at which a token is due.
    """

    def __init__(self, clock: Callable[[], float], buffer: float) -> None:
        self._clock = clock
        self.buffer = buffer

    def due_at(
        self, expires_at: float | None, refreshed_at: float | None, min_ttl: float | None = None
    ) -> float:
        """Return when a token is due, in UTC epoch seconds.

        Args:
            expires_at: When it expires, in UTC epoch seconds, or None if unknown.
            refreshed_at: When a refresh produced it, in UTC epoch seconds, or None.
            min_ttl: Seconds that the token must stay valid, if longer than the buffer.
        """
        return refresh_due_at(expires_at, refreshed_at, max(self.buffer, min_ttl or 0.0))

    def check(self, min_ttl: float | None) -> Callable[[Record], bool]:
        """Return a function that returns whether a record's access token is fresh enough."""

        def is_fresh(record: Record) -> bool:
            if record.is_endless:
                return record.is_permanent
            now = self._clock()
            due = self.due_at(record.tokens.expires_at, record.refreshed_at, min_ttl)
            usable = record.tokens.access_token is not None
            return usable and now < due and not clock_moved_back(record.refreshed_at, now)

        return is_fresh


def refresh_due_at(expires_at: float | None, refreshed_at: float | None, buffer: float) -> float:
    """Return when a token is due, in UTC epoch seconds: at once if its expiry is unknown.

    A token from a refresh is due after half its lifetime at the earliest. Otherwise a buffer longer
    than the lifetime would cause a refresh at every use.
    """
    if expires_at is None:
        return float("-inf")
    if refreshed_at is not None:
        buffer = min(buffer, max(0.0, expires_at - refreshed_at) / 2)
    return expires_at - buffer


def clock_moved_back(refreshed_at: float | None, now: float) -> bool:
    """Return whether the clock was set back after a token was refreshed.

    By such a clock, a token would stay valid longer than its provider said.
    """
    return refreshed_at is not None and now < refreshed_at - _CLOCK_TOLERANCE


def state_of(*, due: bool, refreshable: bool, failure: Failure | None, now: float) -> State:
    """Return the state of an account."""
    if failure is not None and failure.kind == "reauthorization":
        return "sign_in"
    if failure is not None and failure.kind == "client_rejected":
        return "misconfigured"
    if not due:
        return "valid"
    if not refreshable:
        return "sign_in"
    if failure is not None and failure.forbids_requests(now):
        return "retry_later"
    return "due"
