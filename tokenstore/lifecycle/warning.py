"""What a person should know of a sign-in that succeeded, and what to change about it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tokenstore.models.tokens import is_token
from tokenstore.oauth.flows.id_token import who_it_was

if TYPE_CHECKING:
    from tokenstore.models.accounts import Record
    from tokenstore.oauth.flows.attempt import Attempt, Granted
    from tokenstore.oauth.flows.id_token import Identity

_log = logging.getLogger(__name__)


def warn(
    attempt: Attempt,
    granted: Granted,
    who: Identity | None,
    stored: Record,
    before: Record | None,
) -> None:
    """Log what is missing.

    Args:
        attempt: Who and where.
        granted: What the provider gave.
        who: Who signed in, None if that is not known.
        stored: What is stored now.
        before: What was stored before, or None.
    """
    name = attempt.account_name
    if before is not None and (who is None or who_it_was(before.tokens.extra) is None):
        _log.warning(
            "%s: whether the same person signed in as before cannot be told: there is no "
            "id_token to compare; ask for the scope openid",
            name,
        )
    if not is_token(granted.answer.get("refresh_token")):
        kept = stored.tokens.refresh_token is not None
        _log.warning(
            "%s: the provider gave no refresh token%s; %s",
            name,
            ", so the one before stays" if kept else ", so this ends with the access token",
            _remedy(attempt),
        )


def _remedy(attempt: Attempt) -> str:
    if "offline_access" in (attempt.provider.sign_in_scope or "").split():
        return "allow offline access when you sign in"
    if "offline_access" in attempt.scope.split():
        return (
            "it was asked for offline_access, which many allow only with prompt = consent in "
            "authorization_params"
        )
    return (
        "ask for the scope offline_access, or set what this provider wants for that in "
        "authorization_params (access_type = offline, prompt = consent)"
    )
