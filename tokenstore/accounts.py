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
    from tokenstore.tokens import TokenSet

State = Literal["valid", "due", "retry_later", "sign_in"]
Verdict = Literal["reauthorization", "transient", "client_rejected"]


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
    """

    name: str
    provider: str | None
    state: State
    expires_at: float | None
    refreshed_at: float | None
    last_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why the last refresh of an account failed, without any secret.

    Attributes:
        verdict: Which of the three kinds of failure it is.
        message: The text of the error.
        client: The client and endpoint that it was given to (`Provider.client`).
        retry_at: Until when the provider asked to wait, in UTC epoch seconds, or None.
    """

    verdict: Verdict
    message: str
    client: str
    status_code: int | None = None
    error: str | None = None
    error_description: str | None = None
    maybe_spent: bool = False
    retry_at: float | None = None

    @classmethod
    def of(cls, error: TokenRefreshError, client: str, *, now: float) -> Failure:
        """Return what is remembered of *error*."""
        details: dict[str, Any] = {}
        verdict: Verdict = "client_rejected"
        if isinstance(error, ReauthorizationRequired):
            verdict = "reauthorization"
        elif isinstance(error, TransientRefreshError):
            verdict = "transient"
            details["maybe_spent"] = error.maybe_spent
            if error.retry_after is not None:
                details["retry_at"] = now + error.retry_after
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
        if client != self.client:
            return False
        if self.verdict == "transient":
            return self.retry_at is not None and now < self.retry_at
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


def state_of(*, due: bool, refreshable: bool, failure: Failure | None, now: float) -> State:
    """Return how an account is, going by what is stored."""
    if failure is not None and failure.verdict == "reauthorization":
        return "sign_in"
    if not due:
        return "valid"
    if not refreshable:
        return "sign_in"
    if failure is not None and failure.retry_at is not None and now < failure.retry_at:
        return "retry_later"
    return "due"
