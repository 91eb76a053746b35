"""What is known of an account besides its tokens: its provider, its state, its refreshes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tokenstore.models.timestamps import latest

if TYPE_CHECKING:
    from tokenstore.models.failures import Failure
    from tokenstore.models.tokens import TokenSet

State = Literal["valid", "due", "retry_later", "sign_in"]


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
        return latest(self.refresh_token_obtained_at, self.refreshed_at)


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
    def needs_sign_in(self) -> bool:
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
