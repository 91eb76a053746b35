"""When a token is due: the buffer before its expiry, by a clock that may have been set back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenstore.models.accounts import due_at, went_back

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenstore.models.accounts import Record


class Freshness:
    """Tells whether a stored access token will do.

    Args:
        clock: The time, in UTC epoch seconds.
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
            expires_at: When it expires, likewise; None if nobody knows.
            refreshed_at: When a refresh gave it, likewise; None if none did.
            min_ttl: Seconds for which it is needed; None: no longer than the buffer.
        """
        due = due_at(expires_at, refreshed_at, self.buffer)
        return due if min_ttl is None or expires_at is None else min(due, expires_at - min_ttl)

    def check(self, min_ttl: float | None) -> Callable[[Record], bool]:
        """Return what tells whether the access token of a record will do."""

        def is_fresh(record: Record) -> bool:
            now = self._clock()
            due = self.due_at(record.tokens.expires_at, record.refreshed_at, min_ttl)
            usable = record.tokens.access_token is not None
            return usable and now < due and not went_back(record.refreshed_at, now)

        return is_fresh
