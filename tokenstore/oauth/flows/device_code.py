"""The device grant (RFC 8628): the user enters a code on any device with a browser."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from tokenstore.errors import TransientRefreshError
from tokenstore.models.timestamps import parse_seconds
from tokenstore.models.tokens import is_token
from tokenstore.oauth.flows.attempt import SignInContext, TokenGrant
from tokenstore.oauth.flows.prompt import Prompt

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenstore.errors import SignInError, TokenRefreshError

_GRANT_TYPE = "urn:ietf:params:oauth:grant-type:device_code"
_DEFAULT_INTERVAL = 5.0  # seconds, if the provider sends none (section 3.2)
_SLOW_DOWN = 5.0  # seconds that a slow_down adds to the interval (section 3.5)
_MIN_INTERVAL = 1.0  # seconds, whatever the provider sends
_DEFAULT_LIFETIME = 600.0  # seconds, if the provider omits the required expires_in


def sign_in_by_device(
    context: SignInContext,
    *,
    prompt: Callable[[Prompt], object],
    sleep: Callable[[float], object],
) -> TokenGrant:
    """Sign in with a code that the user enters on another device.

    Args:
        context: The sign-in.
        prompt: Shows the code and where to enter it.
        sleep: Waits; called with seconds.

    Raises:
        SignInError: The sign-in was refused, or the code was not entered in time.
        TokenRefreshError: The provider gave no tokens; the subclass says why.
    """
    authorization = _request_code(context)
    interval = max(_MIN_INTERVAL, parse_seconds(authorization.get("interval")) or _DEFAULT_INTERVAL)
    lifetime = parse_seconds(authorization.get("expires_in")) or _DEFAULT_LIFETIME
    deadline = context.clock() + min(lifetime, context.patience)
    with closing(_prompt(context, authorization, deadline)) as instructions:
        prompt(instructions)
        return _poll_until(context, authorization["device_code"], deadline, interval, sleep)


def _poll_until(
    context: SignInContext,
    device_code: str,
    deadline: float,
    interval: float,
    sleep: Callable[[float], object],
) -> TokenGrant:
    while True:
        remaining = deadline - context.clock()
        if remaining <= 0:
            raise _expired(context)
        sleep(min(interval, remaining))
        requested_at = context.clock()
        response = _poll(context, device_code)
        if isinstance(response, dict):
            return TokenGrant(response, requested_at)
        if response.error == "slow_down":
            interval += _SLOW_DOWN
        elif response.error != "authorization_pending":
            interval = _interval_after(context, response, interval)


def _request_code(context: SignInContext) -> dict[str, Any]:
    params = {"scope": context.provider.joined(context.scope)} if context.scope else {}
    response = context.request("device_authorization_endpoint", params, needed="device_code")
    if not isinstance(response, dict):
        raise context.as_sign_in_error(response)
    return response


def _prompt(context: SignInContext, authorization: dict[str, Any], deadline: float) -> Prompt:
    """Return the instructions for the user. Google's name of the URL is not the standard one."""
    url = authorization.get("verification_uri") or authorization.get("verification_url")
    user_code = authorization.get("user_code")
    complete = authorization.get("verification_uri_complete")
    if not _is_url(url) or not _is_printable(user_code):
        raise context.sign_in_error("the provider sent no usable code or no URL to enter it at")
    return Prompt(
        context.account_name,
        context.provider.name,
        str(url),
        deadline,
        user_code=str(user_code),
        url_complete=str(complete) if _is_url(complete) else None,
        has_device_grant=True,
    )


def _poll(context: SignInContext, device_code: str) -> dict[str, Any] | TokenRefreshError:
    return context.request(
        "token_endpoint",
        {
            **context.provider.extra_params,
            "grant_type": _GRANT_TYPE,
            "device_code": device_code,
        },
        secrets=(device_code,),
    )


def _interval_after(context: SignInContext, error: TokenRefreshError, interval: float) -> float:
    """Return the polling interval after a temporary failure.

    Raises:
        TokenRefreshError: The failure ends the sign-in.
    """
    if error.error in {"access_denied", "authorization_declined"}:
        raise context.denied_error()
    if error.error == "expired_token":
        raise _expired(context)
    if isinstance(error, TransientRefreshError):
        return max(2 * interval, error.retry_after or 0.0)  # section 3.5
    raise context.as_sign_in_error(error)


def _expired(context: SignInContext) -> SignInError:
    return context.sign_in_error(
        "the code expired before it was entered; start again", "expired_token"
    )


def _is_url(value: object) -> bool:
    return _is_printable(value) and str(value).startswith(("https://", "http://"))


def _is_printable(value: object) -> bool:
    return is_token(value) and str(value).isprintable()
