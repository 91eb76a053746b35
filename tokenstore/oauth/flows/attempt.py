"""One attempt to sign in: who, where, and how its requests are sent and judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenstore.errors import ReauthorizationRequired, SignInError, TokenRefreshError
from tokenstore.oauth.client import authenticated_request
from tokenstore.oauth.http import TransportFailure, exchange
from tokenstore.oauth.responses import TokenResponseParser

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import requests

    from tokenstore.oauth.provider import Provider


@dataclass(frozen=True, slots=True)
class TokenGrant:
    """What the token endpoint gave for a code.

    Attributes:
        response: Its response (secret!).
        requested_at: When the request was sent, in UTC epoch seconds.
        nonce: What an id_token has to repeat, or None.
    """

    response: dict[str, Any] = field(repr=False)
    requested_at: float
    nonce: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInContext:
    """One attempt to sign in.

    Attributes:
        account_name: The account.
        provider: Where, with every endpoint that is needed.
        scope: The scopes to ask for, with single spaces between them; may be empty.
        force: Whether it may be another user than before, or another provider.
        patience: Seconds to wait for the person.
        timeout: Seconds for one request.
        session: A session to use in place of new connections, or None.
        clock: The time, in UTC epoch seconds.
    """

    account_name: str
    provider: Provider
    scope: str
    force: bool
    patience: float
    timeout: float
    session: requests.Session | None
    clock: Callable[[], float]

    def ask(
        self,
        endpoint: str,
        params: Mapping[str, str],
        *,
        secrets: tuple[str, ...] = (),
        needed: str = "access_token",
    ) -> dict[str, Any] | TokenRefreshError:
        """Send one request; return a good answer, or the error that a bad one means.

        Args:
            endpoint: Which endpoint, by its name in RFC 8414.
            params: What to send, besides what authenticates the client.
            secrets: Which of that is secret.
            needed: The field that makes an answer a good one.
        """
        url = self.provider.endpoint(endpoint)
        headers, form = authenticated_request(self.provider, params)
        judge = TokenResponseParser(
            self.provider,
            secrets,
            self.account_name,
            endpoint=endpoint,
            unsure="start the sign-in again",
        )
        received = exchange(
            "POST",
            url,
            timeout=self.timeout,
            session=self.session,
            headers=headers,
            data=form,
            as_json=self.provider.body_format == "json",
        )
        if isinstance(received, TransportFailure):
            return judge.silence(received)
        return judge.answer(received, needed=needed)

    def failed(self, what: str, error: str | None = None) -> SignInError:
        """Return the error that ends the attempt.

        Args:
            what: What happened, and what to do next.
            error: The error code of the provider, or None.
        """
        return SignInError(
            f"{self.account_name}: {what}",
            account_name=self.account_name,
            provider=self.provider.name,
            error=error,
        )

    def verdict(self, error: TokenRefreshError) -> TokenRefreshError:
        """Return *error* as that of a sign-in: a code that is refused is no dead login."""
        if not isinstance(error, ReauthorizationRequired):
            return error
        return SignInError(
            str(error),
            account_name=error.account_name,
            provider=error.provider,
            status_code=error.status_code,
            error=error.error,
            error_description=error.error_description,
        )


def requested_scope(provider: Provider, scope: str | None) -> str:
    """Return the scopes to request at a sign-in, each once; an issuer's include ``openid``."""
    wanted = provider.scope if scope is None else scope
    always = provider.sign_in_scope
    if always is None and provider.issuer is not None:
        always = "openid"
    return " ".join(dict.fromkeys(f"{always or ''} {wanted or ''}".split()))
