"""An account besides its tokens: provider, state and refresh history."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tokenstore.models.targets import is_refused_target
from tokenstore.models.timestamps import has_end, latest

if TYPE_CHECKING:
    from tokenstore.models.failures import Failure
    from tokenstore.models.further_tokens import FurtherToken
    from tokenstore.models.tokens import TokenSet

State = Literal["valid", "due", "retry_later", "sign_in", "misconfigured"]


_ADDRESS = re.compile(r"[\w.!#$%&'*+=?^`{|}~-]+@[\w-]+(\.[\w-]+)+")


def is_address(name: str) -> bool:
    """Return whether a name is an e-mail address."""
    return _ADDRESS.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Account:
    """One account without secrets.

    Attributes:
        name: The account's name.
        provider: The name of its provider, or None.
        state: ``valid``; ``due``: the next use refreshes the token; ``retry_later``: the provider
            must not be contacted yet; ``sign_in``: the account needs a new sign-in;
            ``misconfigured``: the provider refuses the client.
        expires_at: When the access token expires, in UTC epoch seconds, or None if unknown.
        refreshed_at: When a refresh produced the stored tokens, in UTC epoch seconds, or None if
            they were saved or imported.
        last_error: Why the last refresh failed, or None if it succeeded.
        refresh_token_obtained_at: When the refresh token was obtained, in UTC epoch seconds, or
            None if unknown.
        refresh_token_expires_at: When the refresh token expires because of its age or of disuse,
            in UTC epoch seconds, according to the provider's response or its configuration; None
            if unknown.
        refreshable: Whether a refresh may be tried: there is a refresh token, or the account
            belongs to no user; the provider has not refused it, and no wait is in force.
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
    """Everything that is stored for an account. The repr contains no secrets.

    Attributes:
        version: A number that differs after every change of the tokens, also after a delete.
        refreshed_at: When a refresh produced the tokens, in UTC epoch seconds, or None.
        refresh_id: The journal's id of the refresh that produced these tokens or this failure.
        failure: Why the last refresh failed, or None if it succeeded.
        further: The further access token that the record shows instead of the account's own
            (`showing`), or None.
        own: The account's own record then, or None.
    """

    account_name: str
    provider: str | None
    tokens: TokenSet
    version: int
    refreshed_at: float | None
    refresh_id: int | None
    failure: Failure | None
    further: FurtherToken | None = None
    own: Record | None = None

    def showing(self, further: FurtherToken) -> Record:
        """Return this record with a further access token instead of the account's own.

        The login is the same: its refresh token, and a failure of the account. A failure of the
        target counts where the account has none.
        """
        # One about the scope of the account's own token says nothing about this one.
        about_scope = self.failure is not None and is_refused_target(further.target, self.failure)
        failure = None if about_scope else self.failure
        ids = (further.refresh_id, self.refresh_id if failure is not None else None)
        return replace(
            self,
            tokens=replace(
                self.tokens, access_token=further.access_token, expires_at=further.expires_at
            ),
            refreshed_at=further.refreshed_at,
            refresh_id=max((each for each in ids if each is not None), default=None),
            failure=failure or further.failure,
            further=further,
            own=self,
        )

    @property
    def is_endless(self) -> bool:
        """Whether the access token has no known end, and there is no refresh token.

        Nothing else can be done with it than to use it until it is reported as rejected.
        """
        tokens = self.tokens
        usable, refreshable = tokens.access_token is not None, tokens.refresh_token is not None
        return usable and not refreshable and not has_end(tokens.expires_at)

    @property
    def is_permanent(self) -> bool:
        """Whether the access token `is_endless` and has not been rejected."""
        return self.is_endless and not self.needs_sign_in

    @property
    def needs_sign_in(self) -> bool:
        """Whether the provider has refused the refresh token."""
        return self.failure is not None and self.failure.kind == "reauthorization"


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One refresh from the journal, without secrets.

    Attributes:
        id: The refresh's id; later refreshes have higher ids.
        account_name: The account.
        provider: The name of the provider that received the request.
        reason: ``due``, ``forced`` or ``rejected``.
        host: The machine that ran the refresh.
        pid: The process that ran it.
        started_at: When it began, in UTC epoch seconds.
        sent: Fingerprint of the refresh token that was sent; empty if the account belongs to no
            user, so that none was.
        finished_at: When it ended, in UTC epoch seconds, or None if it has not.
        outcome: ``refreshed``, ``reauthorization``, ``transient`` or ``client_rejected``;
            ``superseded`` if the account was changed in the meantime; ``interrupted`` if the
            process died; None while it runs.
        received: Fingerprint of the refresh token that was stored afterwards; empty likewise.
        status_code: The HTTP status of a response that reported a failure.
        error: The error code of that response.
        maybe_spent: Whether the refresh token may have been used although no response arrived.
        target: Which further access token it was for: its scopes, and ``resource="URI"``; None for
            the account's own.
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
    target: str | None = None

    @property
    def duration(self) -> float | None:
        """How long the refresh took, in seconds; None while it runs or if it was interrupted."""
        if self.finished_at is None or self.outcome == "interrupted":
            return None
        return self.finished_at - self.started_at
