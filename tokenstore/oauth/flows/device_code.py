"""The device grant (RFC 8628): the person enters a code on whatever has a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenstore.errors import TransientRefreshError
from tokenstore.models.timestamps import parse_seconds
from tokenstore.models.tokens import is_token
from tokenstore.oauth.flows.attempt import SignInContext, TokenGrant
from tokenstore.oauth.flows.prompt import Prompt

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenstore.errors import TokenRefreshError

_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_INTERVAL = 5.0  # seconds, where the provider names none (section 3.2)
_SLOWER = 5.0  # seconds more after a slow_down (section 3.5)
_SHORTEST = 1.0  # seconds, whatever the provider says
_LIFETIME = 600.0  # seconds, where the provider does not say what it has to


def sign_in_by_device(
    attempt: SignInContext,
    *,
    prompt: Callable[[Prompt], object],
    sleep: Callable[[float], object],
) -> TokenGrant:
    """Sign in with a code that the person enters elsewhere.

    Args:
        attempt: Who and where.
        prompt: Shows the code and where to enter it.
        sleep: Waits; called with seconds.

    Raises:
        SignInError: It was refused, or nobody entered the code in time.
        TokenRefreshError: The provider did not give tokens; the subclass says why.
    """
    answer = _begin(attempt)
    interval = max(_SHORTEST, parse_seconds(answer.get("interval")) or _INTERVAL)
    lifetime = parse_seconds(answer.get("expires_in")) or _LIFETIME
    deadline = attempt.clock() + min(lifetime, attempt.patience)
    prompt(_prompt(attempt, answer, deadline))
    while True:
        left = deadline - attempt.clock()
        if left <= 0:
            raise attempt.failed("nobody entered the code in time; start again", "expired_token")
        sleep(min(interval, left))
        asked_at = attempt.clock()
        told = _ask(attempt, answer["device_code"])
        if isinstance(told, dict):
            return TokenGrant(told, asked_at)
        if told.error == "slow_down":
            interval += _SLOWER
        elif told.error != "authorization_pending":
            interval = _patience_with(attempt, told, interval)


def _begin(attempt: SignInContext) -> dict[str, Any]:
    params = {"scope": attempt.scope} if attempt.scope else {}
    answer = attempt.ask("device_authorization_endpoint", params, needed="device_code")
    if not isinstance(answer, dict):
        raise attempt.verdict(answer)
    return answer


def _prompt(attempt: SignInContext, answer: dict[str, Any], deadline: float) -> Prompt:
    """Return what the person has to do; Google calls the address by another name."""
    url = answer.get("verification_uri") or answer.get("verification_url")
    user_code, complete = answer.get("user_code"), answer.get("verification_uri_complete")
    if not _is_address(url) or not _is_printable(user_code):
        raise attempt.failed("the provider gave no code, or no address to enter it; nothing to do")
    return Prompt(
        attempt.account_name,
        attempt.provider.name,
        str(url),
        deadline,
        user_code=str(user_code),
        url_complete=str(complete) if _is_address(complete) else None,
        has_device_grant=True,
    )


def _ask(attempt: SignInContext, device_code: str) -> dict[str, Any] | TokenRefreshError:
    return attempt.ask(
        "token_endpoint",
        {
            **attempt.provider.extra_params,
            "grant_type": _GRANT,
            "device_code": device_code,
        },
        secrets=(device_code,),
    )


def _patience_with(attempt: SignInContext, error: TokenRefreshError, interval: float) -> float:
    """Return the interval after a failure that may pass, or raise what ends the sign-in."""
    if error.error in {"access_denied", "authorization_declined"}:
        what = "the sign-in was refused at the provider, by you or by its rules; start again"
        raise attempt.failed(what, "access_denied")
    if error.error == "expired_token":
        raise attempt.failed("nobody entered the code in time; start again", "expired_token")
    if isinstance(error, TransientRefreshError):
        return max(2 * interval, error.retry_after or 0.0)  # as section 3.5 has it
    raise attempt.verdict(error)


def _is_address(url: object) -> bool:
    return _is_printable(url) and str(url).startswith(("https://", "http://"))


def _is_printable(text: object) -> bool:
    return is_token(text) and str(text).isprintable()
