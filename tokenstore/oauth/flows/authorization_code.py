"""The authorization code grant with PKCE, by browser and loopback (RFC 6749, 7636, 8252, 9207)."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from tokenstore.errors import TokenStoreError
from tokenstore.oauth.flows import callback_page as page
from tokenstore.oauth.flows.attempt import SignInContext, TokenGrant
from tokenstore.oauth.flows.loopback import RedirectServer
from tokenstore.oauth.flows.prompt import Prompt
from tokenstore.oauth.provider import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenstore.oauth.provider import Provider

_T = TypeVar("_T")

_OURS = {
    "client_id",
    "code_challenge",
    "code_challenge_method",
    "nonce",
    "redirect_uri",
    "response_type",
    "scope",
    "state",
}


def sign_in_by_browser(
    attempt: SignInContext,
    finish: Callable[[TokenGrant], tuple[_T, str | None]],
    *,
    prompt: Callable[[Prompt], object],
    port: int,
) -> _T:
    """Sign in by browser; show there how it ended.

    Args:
        attempt: Who and where.
        finish: Looks at what was granted and stores it; returns what to return, and a name to
            show of the person who signed in.
        prompt: Sends the person to the sign-in page.
        port: The port to come back to; 0: any that is free.

    Raises:
        SignInError: It was refused, given up, or is not to be trusted.
        TokenRefreshError: The provider did not give tokens; the subclass says why.
    """
    provider = attempt.provider
    provider.endpoint("authorization_endpoint")
    _require_loopback(provider)
    state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
    nonce = secrets.token_urlsafe(32) if "openid" in attempt.scope.split() else None
    with _listen(attempt, port, state) as loopback:
        told = Prompt(
            attempt.account_name,
            provider.name,
            _address(attempt, loopback.redirect_uri, state, verifier, nonce),
            attempt.clock() + attempt.patience,
            redirect_uri=loopback.redirect_uri,
            has_device_grant=provider.device_authorization_endpoint is not None,
        )
        try:
            callback = loopback.wait(lambda: prompt(told), attempt.patience)
        except TimeoutError:
            raise attempt.failed(
                f"nobody signed in within {attempt.patience:.0f} s; start again"
            ) from None
        last = page.INTERRUPTED
        try:
            code = _code_of(attempt, callback.params)
            granted = _redeem(attempt, code, verifier, loopback.redirect_uri, nonce)
            result, signed_in_as = finish(granted)
            last = page.success(attempt.account_name, provider.name, signed_in_as)
        except TokenStoreError as error:
            last = page.failure(attempt.account_name, provider.name, error)
            raise
        finally:
            callback.answer(last)
    return result


def _require_loopback(provider: Provider) -> None:
    try:
        parts = urlsplit(provider.redirect_uri)
        port = parts.port
    except ValueError:
        raise provider.misconfigured("has a redirect_uri that is no URL") from None
    plain = parts.scheme == "http" and port != 0 and not (parts.query or parts.fragment)
    if not plain or "@" in parts.netloc or not is_loopback(parts.hostname or ""):
        raise provider.misconfigured(
            "has a redirect_uri that is not on loopback; use one such as http://127.0.0.1/callback"
        )


def _listen(attempt: SignInContext, port: int, state: str) -> RedirectServer:
    try:
        return RedirectServer(attempt.provider.redirect_uri, port, state)
    except OSError as error:
        raise attempt.failed(
            f"the browser has nowhere to return to: port {port or 'any'} on loopback cannot be "
            f"had ({error.strerror}); choose another port, or none"
        ) from None


def _address(
    attempt: SignInContext, redirect_uri: str, state: str, verifier: str, nonce: str | None
) -> str:
    """Return the address of the sign-in page (RFC 6749 section 4.1.1)."""
    from authlib.oauth2 import OAuth2Client

    provider = attempt.provider
    params = {k: v for k, v in provider.authorization_params.items() if k not in _OURS}
    if "@" in attempt.account_name:
        params.setdefault("login_hint", attempt.account_name)
    client = OAuth2Client(
        None,
        client_id=provider.client_id,
        redirect_uri=redirect_uri,
        scope=attempt.scope or None,
        code_challenge_method="S256",
    )
    address, _ = client.create_authorization_url(
        provider.authorization_endpoint, state=state, code_verifier=verifier, nonce=nonce, **params
    )
    return str(address)


def _code_of(attempt: SignInContext, params: Mapping[str, str]) -> str:
    """Return the code that the browser brought, unless somebody else sent it or it is an error."""
    provider = attempt.provider
    issuer = params.get("iss")
    if issuer is None and provider.authorization_response_iss_parameter_supported:
        raise attempt.failed(
            "the browser came back without 'iss', which this provider always sends (RFC 9207); "
            "nothing was stored"
        )
    # Section 2.4. Without a known issuer there is nothing to compare with; who comes here is told
    # by port and state, which are of one attempt at one provider.
    if issuer is not None and provider.issuer is not None and issuer != provider.issuer:
        raise attempt.failed(
            f"the browser came back from another provider than {provider.name!r} (its 'iss' is "
            "not the issuer, RFC 9207); nothing was stored"
        )
    error = params.get("error")
    if error is not None:
        raise _refused(attempt, error, params.get("error_description", ""))
    code = params.get("code")
    if not code:
        raise attempt.failed("the browser came back without a code; start again")
    return code


def _refused(attempt: SignInContext, error: str, description: str) -> TokenStoreError:
    """Return the error for an error that the browser brought (RFC 6749 section 4.1.2.1)."""
    if error == "access_denied":
        what = "the sign-in was refused at the provider, by you or by its rules; start again"
        return attempt.failed(what, error)
    told = ": ".join(part for part in (_shown(error), _shown(description)) if part)
    return attempt.failed(f"the provider answered {told}; nothing was stored", _shown(error))


def _shown(text: str) -> str:
    """Return what is shown of words that came in an address: one line, not too long."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]


def _redeem(
    attempt: SignInContext, code: str, verifier: str, redirect_uri: str, nonce: str | None
) -> TokenGrant:
    asked_at = attempt.clock()
    answer = attempt.ask(
        "token_endpoint",
        {
            **attempt.provider.extra_params,
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        },
        secrets=(code, verifier),
    )
    if not isinstance(answer, dict):
        raise attempt.verdict(answer)
    return TokenGrant(answer, asked_at, nonce)
