"""The authorization code grant with PKCE, by browser and loopback (RFC 6749, 7636, 8252, 9207)."""

from __future__ import annotations

import secrets
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from tokenstore.errors import TokenStoreError
from tokenstore.oauth.addresses import is_loopback
from tokenstore.oauth.flows import callback_page
from tokenstore.oauth.flows.attempt import SignInContext, TokenGrant
from tokenstore.oauth.flows.loopback import RedirectServer
from tokenstore.oauth.flows.prompt import Prompt
from tokenstore.oauth.provider import origin
from tokenstore.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenstore.oauth.provider import Provider

_T = TypeVar("_T")

_RESERVED_PARAMS = {
    "client_id",
    "code_challenge",
    "code_challenge_method",
    "nonce",
    "redirect_uri",
    "response_type",
    "scope",
    "state",
}
_MAX_QUOTED = 200  # characters of a text from the redirect


def sign_in_by_browser(
    context: SignInContext,
    finish: Callable[[TokenGrant], tuple[_T, str | None]],
    *,
    prompt: Callable[[Prompt], object],
    port: int,
) -> _T:
    """Sign in by browser, and show the outcome there.

    Args:
        context: The sign-in.
        finish: Checks and stores the granted tokens; returns the result of this function, and a
            name of the user to show.
        prompt: Sends the user to the sign-in page.
        port: The port to listen on; 0 uses the redirect URI's port, or a free one.

    Raises:
        SignInError: The sign-in was refused, abandoned, or is not trustworthy.
        TokenRefreshError: The provider gave no tokens; the subclass says why.
    """
    provider = context.provider
    provider.endpoint("authorization_endpoint")
    _require_loopback(provider)
    state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
    nonce = secrets.token_urlsafe(32) if "openid" in context.scope.split() else None
    with _listen(context, port, state) as server:
        instructions = Prompt(
            context.account_name,
            provider.name,
            _authorization_url(context, server.redirect_uri, state, verifier, nonce),
            context.clock() + context.patience,
            redirect_uri=server.redirect_uri,
            has_device_grant=provider.device_authorization_endpoint is not None,
        )
        try:
            with closing(instructions):
                response = server.wait(lambda: prompt(instructions), context.patience)
        except TimeoutError:
            raise context.sign_in_error(
                f"no sign-in within {context.patience:.0f} s; start again. If the provider refused "
                f"the redirect URI, register {context.provider.callback_uri}, or set redirect_uri"
            ) from None
        page = callback_page.INTERRUPTED
        try:
            code = _authorization_code(context, response.params)
            grant = _redeem(context, code, verifier, server.redirect_uri, nonce)
            result, signed_in_as = finish(grant)
            page = callback_page.success(context.account_name, provider.name, signed_in_as)
        except TokenStoreError as error:
            page = callback_page.failure(context.account_name, provider.name, error)
            raise
        finally:
            response.show(page)
    return result


def _require_loopback(provider: Provider) -> None:
    try:
        parts = urlsplit(provider.callback_uri)
        port = parts.port
    except ValueError:
        raise provider.configuration_error("has an invalid redirect_uri: it is not a URL") from None
    is_plain_http = parts.scheme == "http" and port != 0 and not (parts.query or parts.fragment)
    if not is_plain_http or "@" in parts.netloc or not is_loopback(parts.hostname or ""):
        raise provider.configuration_error(
            "has an invalid redirect_uri: it is not on loopback; use one such as "
            "http://127.0.0.1/callback"
        )


def _listen(context: SignInContext, port: int, state: str) -> RedirectServer:
    try:
        return RedirectServer(context.provider.callback_uri, port, state)
    except OSError as error:
        where = "on loopback" if port == 0 else f"on port {port} of loopback"
        raise context.sign_in_error(
            f"cannot listen {where}: {error.strerror}; choose another port or omit it"
        ) from None


def _authorization_url(
    context: SignInContext, redirect_uri: str, state: str, verifier: str, nonce: str | None
) -> str:
    """Return the URL of the sign-in page (RFC 6749 section 4.1.1)."""
    from authlib.oauth2 import OAuth2Client

    provider = context.provider
    params = {k: v for k, v in provider.authorization_params.items() if k not in _RESERVED_PARAMS}
    if "@" in context.account_name:
        params.setdefault("login_hint", context.account_name)
    if provider.client_id_parameter != "client_id":
        params[provider.client_id_parameter] = provider.client_id or ""
    client = OAuth2Client(
        None,
        client_id=provider.client_id,
        redirect_uri=redirect_uri,
        scope=provider.joined(context.scope) or None,
        code_challenge_method="S256",
    )
    url, _ = client.create_authorization_url(
        provider.authorization_endpoint, state=state, code_verifier=verifier, nonce=nonce, **params
    )
    return str(url)


def _authorization_code(context: SignInContext, params: Mapping[str, str]) -> str:
    """Return the code from an authorization response.

    Raises:
        SignInError: The response is an error, comes from another provider, or has no code.
    """
    provider = context.provider
    issuer = params.get("iss")
    if issuer is None and provider.authorization_response_iss_parameter_supported:
        raise context.sign_in_error(
            "the authorization response has no 'iss', which this provider always sends "
            "(RFC 9207); nothing was stored"
        )
    if issuer is not None and not _is_issuer(issuer, provider):
        quoted = _redactor(provider).redact(issuer, _MAX_QUOTED)
        raise context.sign_in_error(
            f"the authorization response comes from another provider than {provider.name!r} "
            f"('iss' is {quoted!r}, RFC 9207); nothing was stored; if the provider's "
            "documentation names that issuer, set it as the provider's issuer"
        )
    if "error" in params:
        raise _refusal(context, params["error"], params.get("error_description", ""))
    code = params.get("code")
    if not code:
        raise context.sign_in_error("the authorization response has no code; start again")
    return code


def _is_issuer(issuer: str, provider: Provider) -> bool:
    """Return whether ``iss`` is this provider's (RFC 9207 section 2.4).

    Without a configured issuer, its origin must be that of the sign-in page: a provider that sends
    the browser on to another one must not get the code of that one (RFC 9700 section 4.4).
    """
    if provider.issuer is not None:
        return issuer == provider.issuer
    return origin(issuer) == origin(provider.endpoint("authorization_endpoint"))


def _refusal(context: SignInContext, error: str, description: str) -> TokenStoreError:
    """Return the error for an error response (RFC 6749 section 4.1.2.1)."""
    if error == "access_denied":
        return context.denied_error()
    redactor = _redactor(context.provider)
    code = redactor.redact(error, _MAX_QUOTED) or ""
    details = ": ".join(filter(None, (code, redactor.redact(description, _MAX_QUOTED))))
    return context.sign_in_error(f"the provider returned {details}; nothing was stored", code)


def _redactor(provider: Provider) -> Redactor:
    return Redactor([provider.client_secret or ""])


def _redeem(
    context: SignInContext, code: str, verifier: str, redirect_uri: str, nonce: str | None
) -> TokenGrant:
    requested_at = context.clock()
    response = context.request(
        "token_endpoint",
        {
            **context.provider.extra_params,
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        },
        secrets=(code, verifier),
    )
    if not isinstance(response, dict):
        raise context.as_sign_in_error(response)
    return TokenGrant(response, requested_at, nonce)
