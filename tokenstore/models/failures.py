"""Why the last refresh of an account failed: recorded with the account, without secrets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from tokenstore.errors import (
    ClientRejectedError,
    ReauthorizationRequired,
    TokenRefreshError,
    TransientRefreshError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FailureKind = Literal["reauthorization", "transient", "client_rejected"]

MAX_RETRY_AFTER = 3600.0
"""Seconds; a longer wait that a provider requests is cut to this."""

_FAILURES_WITHOUT_WAIT = 3
_FIRST_WAIT = 5.0  # seconds
_LONGEST_WAIT = 300.0  # seconds
_FIRST_REFUSAL_WAIT = 60.0  # seconds
_STORED_KIND = "verdict"  # the key of `Failure.kind` in stored rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why the last refresh of an account failed, without secrets.

    Attributes:
        kind: Which of the three kinds of failure it is.
        message: The text of the error.
        client: The client and endpoint that received the failure (`Provider.client`).
        status_code: The HTTP status of the response, or None.
        error: The error code of the response, or None.
        error_description: The provider's explanation, or None.
        maybe_spent: Whether the refresh token may have been used although no usable response
            arrived.
        retry_at: When the next request may be sent, in UTC epoch seconds, because the provider
            said so or has failed repeatedly; None if at once.
        count: How many calls in a row have failed in this way.
    """

    kind: FailureKind
    message: str
    client: str
    status_code: int | None = None
    error: str | None = None
    error_description: str | None = None
    maybe_spent: bool = False
    retry_at: float | None = None
    count: int = 1

    @classmethod
    def from_error(
        cls,
        error: TokenRefreshError,
        client: str,
        *,
        now: float,
        previous: Failure | None = None,
    ) -> Failure:
        """Return the failure to record for an error.

        Args:
            error: The error.
            client: The client and endpoint that received it (`Provider.client`).
            now: The current time, in UTC epoch seconds.
            previous: The failure recorded before, or None.
        """
        kind: FailureKind = "client_rejected"
        details: dict[str, Any] = {}
        retry_after: float | None = None
        wait_for: Callable[[int], float | None] = refusal_backoff
        if isinstance(error, ReauthorizationRequired):
            kind = "reauthorization"
        elif isinstance(error, TransientRefreshError):
            kind, retry_after = "transient", error.retry_after
            details["maybe_spent"] = error.maybe_spent
            wait_for = refusal_backoff if error.unexplained else backoff
        if kind != "reauthorization":
            count = _count_after(previous, kind, client)
            wait = wait_for(count) if retry_after is None else retry_after
            details |= {"count": count, "retry_at": None if wait is None else now + wait}
        return cls(
            kind=kind,
            message=str(error),
            client=client,
            status_code=error.status_code,
            error=error.error,
            error_description=error.error_description,
            **details,
        )

    @classmethod
    def from_json(cls, text: str) -> Failure:
        """Return the failure that `to_json` wrote.

        Raises:
            ValueError: The text is not JSON.
            TypeError: The JSON does not describe a failure.
        """
        stored = dict(json.loads(text))
        return cls(**{("kind" if k == _STORED_KIND else k): v for k, v in stored.items()})

    def to_json(self) -> str:
        """Return this failure as JSON."""
        details = asdict(self)
        stored = {_STORED_KIND: details.pop("kind"), **details}
        return json.dumps({k: v for k, v in stored.items() if v is not None})

    def to_error(self, *, account_name: str, provider: str | None, now: float) -> TokenRefreshError:
        """Return the error that was recorded, with the wait that remains at *now*."""
        details: dict[str, Any] = {
            "account_name": account_name,
            "provider": provider,
            "status_code": self.status_code,
            "error": self.error,
            "error_description": self.error_description,
        }
        if self.kind == "reauthorization":
            return ReauthorizationRequired(self.message, **details)
        if self.kind == "client_rejected":
            return ClientRejectedError(self.message, **details)
        retry_after = None if self.retry_at is None else max(0.0, self.retry_at - now)
        return TransientRefreshError(
            self.message, retry_after=retry_after, maybe_spent=self.maybe_spent, **details
        )

    def still_applies(self, client: str, *, now: float) -> bool:
        """Return whether a request of *client* is already known to fail."""
        return client == self.client and self.forbids_requests(now)

    def forbids_requests(self, now: float) -> bool:
        """Return whether the same client must not send another request at *now*.

        A remaining wait longer than any allowed wait means that the clock was set back; it is
        ignored.
        """
        if self.kind == "reauthorization":
            return True
        return self.retry_at is not None and 0 < self.retry_at - now <= MAX_RETRY_AFTER


def backoff(count: int) -> float | None:
    """Return the seconds to wait after *count* calls in a row have failed, or None.

    There is no wait after the first failures, since the next request may succeed. Then it doubles.
    """
    if count <= _FAILURES_WITHOUT_WAIT:
        return None
    return min(_FIRST_WAIT * 2.0 ** min(count - _FAILURES_WITHOUT_WAIT - 1, 10), _LONGEST_WAIT)


def refusal_backoff(count: int) -> float:
    """Return the seconds to wait after the provider has refused the client *count* times in a row.

    A person has to change something; until then, requests only annoy the provider.
    """
    return min(_FIRST_REFUSAL_WAIT * 2.0 ** min(count - 1, 10), MAX_RETRY_AFTER)


def _count_after(previous: Failure | None, kind: FailureKind, client: str) -> int:
    if previous is None or previous.kind != kind or previous.client != client:
        return 1
    return previous.count + 1
