"""What callers ask of a refresh and what they get, and how long that may take."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tokenstore.errors import TransientRefreshError

if TYPE_CHECKING:
    from collections.abc import Callable

    import requests

    from tokenstore.errors import TokenRefreshError
    from tokenstore.lifecycle.hooks import Hooks
    from tokenstore.models.accounts import HistoryEntry, Record
    from tokenstore.models.targets import Target
    from tokenstore.oauth.registry import ProviderRegistry
    from tokenstore.storage.journal import Reason
    from tokenstore.storage.repository import TokenRepository

BUSY = 30.0
"""Seconds that a refresh may spend on the database, besides its requests."""


def hard_end(timeout: float) -> float:
    """Return the seconds after which a token request is ended, whatever the provider does."""
    return 2.0 * timeout


def longest_hold(timeout: float) -> float:
    """Return the seconds for which a refresh may hold an account's lock: two requests."""
    return 2.0 * hard_end(timeout) + BUSY


@dataclass(frozen=True, slots=True)
class RefreshRequest:
    """What a caller wants of a refresh.

    Attributes:
        reason: ``due`` respects a recorded failure; ``forced`` and ``rejected`` do not.
        satisfied_by: Returns whether a stored record will do, so that nothing is requested.
        patience: Seconds to wait for another process that refreshes the account. Defaults to as
            long as that may take.
        rejected: The access token that a resource server rejected, or None.
        target: Which further access token is wanted, and shown by records; None for the account's
            own.
    """

    reason: Reason
    satisfied_by: Callable[[Record], bool]
    patience: float | None = None
    rejected: str | None = None
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Attributes:
        record: What is stored, if that will do.
        error: Why it will not; neither means that another process is refreshing the account.
        refreshed: Whether the job has refreshed the account itself.
        requested_at: When it sent its first request (`time.monotonic`), None if it sent none.
    """

    record: Record | None = None
    error: TokenRefreshError | None = None
    refreshed: bool = False
    requested_at: float | None = None

    def answers(self, request: RefreshRequest, asked_at: float) -> bool:
        """Return whether this is an answer for a caller that joined the job.

        Args:
            request: What the caller wants.
            asked_at: When it asked (`time.monotonic`).
        """
        if request.reason == "forced":  # only a refresh that began after the call
            return self.requested_at is not None and self.requested_at >= asked_at
        if self.record is not None:
            return self.refreshed or request.satisfied_by(self.record)
        return self.error is not None and (request.reason == "due" or self.requested_at is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshContext:
    """What every refresh of a manager works with.

    Attributes:
        repository: The repository.
        providers: The providers.
        hooks: The application's hooks.
        timeout: Seconds that a caller waits for one token request.
        session: The session that requests go through, or None.
        clock: The time, in UTC epoch seconds.
        metadata: What is known of issuers.
        hurry: Set while the manager closes: outcomes that wait to be stored are tried at once.
    """

    repository: TokenRepository
    providers: ProviderRegistry
    hooks: Hooks
    timeout: float
    session: requests.Session | None
    clock: Callable[[], float]
    metadata: dict[str, Any] = field(default_factory=dict)
    hurry: threading.Event = field(default_factory=threading.Event)


def busy_error(
    repository: TokenRepository, name: str, entry: HistoryEntry | None = None
) -> TransientRefreshError:
    """Return the error that another process is refreshing an account; it names the process."""
    entry = entry or repository.journal.open_entry(name)
    process, record = "another process", repository.record(name)
    if entry is not None:
        process = f"process {entry.pid} on {entry.host}, since {iso(entry.started_at)},"
    return TransientRefreshError(
        f"{name}: {process} is refreshing it, or storing the result; try again later",
        account_name=name,
        provider=entry.provider if entry else record and record.provider,
    )


def iso(timestamp: float) -> str:
    """Return a timestamp in ISO 8601, in UTC."""
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="seconds")
