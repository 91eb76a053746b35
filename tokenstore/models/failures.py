"""Why the last refresh of an account failed: recorded with the account, without any secret."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tokenstore.errors import (
    ClientRejectedError,
    ReauthorizationRequired,
    TokenRefreshError,
    TransientRefreshError,
)

FailureKind = Literal["reauthorization", "transient", "client_rejected"]

MAX_RETRY_AFTER = 3600.0
"""Seconds; a provider that asks for a longer wait is asked again after this."""

_FREE_FAILURES = 3
_FIRST_WAIT = 5.0  # seconds
_LONGEST_WAIT = 300.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why the last refresh of an account failed, without any secret.

    Attributes:
        verdict: Which of the three kinds of failure it is.
        message: The text of the error.
        client: The client and endpoint that it was given to (`Provider.client`).
        retry_at: Until when nobody should ask again, in UTC epoch seconds, or None: the provider
            said so, or it has failed time and again.
        count: How many calls in a row have failed in this way.
    """

    verdict: FailureKind
    message: str
    client: str
    status_code: int | None = None
    error: str | None = None
    error_description: str | None = None
    maybe_spent: bool = False
    retry_at: float | None = None
    count: int = 1

    @classmethod
    def of(
        cls,
        error: TokenRefreshError,
        client: str,
        *,
        now: float,
        previous: Failure | None = None,
    ) -> Failure:
        """Return what is remembered of *error*, which came after *previous*."""
        details: dict[str, Any] = {}
        verdict: FailureKind = "client_rejected"
        if isinstance(error, ReauthorizationRequired):
            verdict = "reauthorization"
        elif isinstance(error, TransientRefreshError):
            verdict = "transient"
            count = _count_after(previous, client)
            wait = backoff(count) if error.retry_after is None else error.retry_after
            details |= {"maybe_spent": error.maybe_spent, "count": count}
            details["retry_at"] = None if wait is None else now + wait
        return cls(
            verdict=verdict,
            message=str(error),
            client=client,
            status_code=error.status_code,
            error=error.error,
            error_description=error.error_description,
            **details,
        )

    @classmethod
    def from_json(cls, text: str) -> Failure:
        """Return the failure that `to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """Return this failure as JSON."""
        return json.dumps({k: v for k, v in asdict(self).items() if v is not None})

    def to_error(self, *, account_name: str, provider: str | None, now: float) -> TokenRefreshError:
        """Return the error again, as it is at *now*."""
        details: dict[str, Any] = {
            "account_name": account_name,
            "provider": provider,
            "status_code": self.status_code,
            "error": self.error,
            "error_description": self.error_description,
        }
        if self.verdict == "reauthorization":
            return ReauthorizationRequired(self.message, **details)
        if self.verdict == "client_rejected":
            return ClientRejectedError(self.message, **details)
        retry_after = None if self.retry_at is None else max(0.0, self.retry_at - now)
        return TransientRefreshError(
            self.message, retry_after=retry_after, maybe_spent=self.maybe_spent, **details
        )

    def stands(self, client: str, *, now: float) -> bool:
        """Tell whether asking again as *client* is known to be in vain."""
        return client == self.client and self.forbids_requests(now)

    def forbids_requests(self, now: float) -> bool:
        """Tell whether the same client had better not ask again at *now*.

        A wait that has longer to go than any wait is left from a clock that was set back since.
        """
        if self.verdict == "transient":
            return self.retry_at is not None and 0 < self.retry_at - now <= MAX_RETRY_AFTER
        return self.verdict == "reauthorization"


def backoff(count: int) -> float | None:
    """Return the seconds to leave a provider alone after *count* calls in a row have failed.

    The first failures cost nothing: whoever asks again may be luckier. Then it doubles.
    """
    if count <= _FREE_FAILURES:
        return None
    return min(_FIRST_WAIT * 2.0 ** min(count - _FREE_FAILURES - 1, 10), _LONGEST_WAIT)


def _count_after(previous: Failure | None, client: str) -> int:
    if previous is None or previous.verdict != "transient" or previous.client != client:
        return 1
    return previous.count + 1
