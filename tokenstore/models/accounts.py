"""What is known of an account beside its tokens: whose it is, how it is, why a refresh failed."""

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
    from tokenstore.models.tokens import TokenSet

State = Literal["valid", "due", "retry_later", "sign_in"]
Verdict = Literal["reauthorization", "transient", "client_rejected"]

MAX_RETRY_AFTER = 3600.0
"""Seconds; a provider that asks for a longer wait is asked again after this."""


@dataclass(frozen=True, slots=True)
class Account:
    """One account without any secret.

    Attributes:
        name: The account's name.
        provider: The provider that it is bound to, or None.
        state: ``valid``; ``due``: the next use refreshes; ``retry_later``: the provider asked to
            wait; ``sign_in``: only a new sign-in helps.
        expires_at: When the access token expires, in UTC epoch seconds, or None if unknown.
        refreshed_at: When the stored tokens came from a refresh, in UTC epoch seconds, or None if
            they were saved or imported.
        last_error: Why the last refresh failed, or None if it did not.
        refresh_token_obtained_at: When the refresh token was obtained, in UTC epoch seconds, or
            None if unknown.
        refresh_token_expires_at: When it dies of age or disuse, in UTC epoch seconds, going by
            what the provider said or is configured to do; None if nobody knows.
        refreshable: Whether a refresh may be tried: there is a refresh token, it is not known to
            be dead, and the provider did not ask to wait.
    """

    name: str
    provider: str | None
    state: State
    expires_at: float | None
    refreshed_at: float | None
    last_error: str | None
    refresh_token_obtained_at: float | None = None
    refresh_token_expires_at: float | None = None
    refreshable: bool = True

    @property
    def refresh_token_used_at(self) -> float | None:
        """When the refresh token was obtained or last used, in UTC epoch seconds."""
        return max_of(self.refresh_token_obtained_at, self.refreshed_at)


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

    verdict: Verdict
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
        verdict: Verdict = "client_rejected"
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
        return client == self.client and self.speaks_against_asking(now)

    def speaks_against_asking(self, now: float) -> bool:
        """Tell whether the same client had better not ask again at *now*.

        A wait that has longer to go than any wait is left from a clock that was set back since.
        """
        if self.verdict == "transient":
            return self.retry_at is not None and 0 < self.retry_at - now <= MAX_RETRY_AFTER
        return self.verdict == "reauthorization"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """All that is stored of an account. Secrets stay out of the repr, as `TokenSet` keeps them.

    Attributes:
        version: Another number after every change of the tokens, also after a delete.
        refreshed_at: When the tokens came from a refresh, in UTC epoch seconds, else None.
        refresh_id: The journal's number of the refresh that these tokens or this failure are of.
    """

    account_name: str
    provider: str | None
    tokens: TokenSet
    version: int
    refreshed_at: float | None
    refresh_id: int | None
    failure: Failure | None

    @property
    def is_dead(self) -> bool:
        """Whether the provider has refused the refresh token."""
        return self.failure is not None and self.failure.verdict == "reauthorization"


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One refresh that was begun. No secret is in it.

    Attributes:
        id: Its number; later refreshes have higher ones.
        account_name: The account.
        provider: The provider that was asked.
        reason: ``due``, ``forced`` or ``rejected``.
        host: The machine on which it ran.
        pid: The process.
        started_at: When it began, in UTC epoch seconds.
        sent: Fingerprint of the refresh token that was sent.
        finished_at: When it ended, in UTC epoch seconds; None if it has not.
        outcome: ``refreshed``, ``reauthorization``, ``transient``, ``client_rejected``;
            ``superseded`` if the account had changed meanwhile; ``interrupted`` if its process
            died; None while it runs.
        received: Fingerprint of the refresh token that was stored afterwards.
        status_code: The HTTP status of an answer that was no success.
        error: Its error code.
        maybe_spent: Whether the token may have been spent without an answer.
    """

    id: int
    account_name: str
    provider: str
    reason: str
    host: str
    pid: int
    started_at: float
    sent: str
    finished_at: float | None
    outcome: str | None
    received: str | None
    status_code: int | None
    error: str | None
    maybe_spent: bool | None

    @property
    def duration(self) -> float | None:
        """How long it took, in seconds; None while it runs, or if nobody saw it end."""
        if self.finished_at is None or self.outcome == "interrupted":
            return None
        return self.finished_at - self.started_at


def backoff(count: int) -> float | None:
    """Return the seconds to leave a provider alone after *count* calls in a row have failed.

    The first failures cost nothing: whoever asks again may be luckier. Then it doubles.
    """
    if count <= _FREE_FAILURES:
        return None
    return min(_FIRST_WAIT * 2.0 ** min(count - _FREE_FAILURES - 1, 10), _LONGEST_WAIT)


_FREE_FAILURES = 3
_FIRST_WAIT = 5.0  # seconds
_LONGEST_WAIT = 300.0  # seconds


def _count_after(previous: Failure | None, client: str) -> int:
    if previous is None or previous.verdict != "transient" or previous.client != client:
        return 1
    return previous.count + 1


def max_of(*moments: float | None) -> float | None:
    """Return the latest moment that is known."""
    return max((moment for moment in moments if moment is not None), default=None)


def min_of(*moments: float | None) -> float | None:
    """Return the earliest moment that is known."""
    return min((moment for moment in moments if moment is not None), default=None)


def due_at(expires_at: float | None, refreshed_at: float | None, buffer: float) -> float:
    """Return when a token is due, in UTC epoch seconds; one of unknown expiry always was.

    A token that a refresh gave is due after half its lifetime at the earliest: a buffer longer
    than the lifetime would refresh at every use.
    """
    if expires_at is None:
        return float("-inf")
    if refreshed_at is not None:
        buffer = min(buffer, max(0.0, expires_at - refreshed_at) / 2)
    return expires_at - buffer


def went_back(refreshed_at: float | None, now: float) -> bool:
    """Tell whether the clock was set back since a token was refreshed, so that it tells nothing.

    Going by it, a token would live longer than its provider said.
    """
    return refreshed_at is not None and now < refreshed_at - _SLACK


_SLACK = 60.0  # seconds that clocks are put right by, or differ between machines


def state_of(*, due: bool, refreshable: bool, failure: Failure | None, now: float) -> State:
    """Return how an account is, going by what is stored."""
    if failure is not None and failure.verdict == "reauthorization":
        return "sign_in"
    if not due:
        return "valid"
    if not refreshable:
        return "sign_in"
    if failure is not None and failure.speaks_against_asking(now):
        return "retry_later"
    return "due"
