"""The application's hooks: called after the commit and outside every lock."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenstore.errors import ReauthorizationRequired

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hooks:
    """Functions of the application, or None.

    A hook may call the manager. A hook that raises is logged and changes nothing.

    Attributes:
        on_refreshed: Called with the account's name and its tokens, after a refresh.
        on_reauthorization_required: Called with the name and the error, once when an account
            needs a new sign-in.
        on_recovered: Called with the name, once when such an account works again.
    """

    on_refreshed: Callable[[str, dict[str, Any]], object] | None = None
    on_reauthorization_required: Callable[[str, ReauthorizationRequired], object] | None = None
    on_recovered: Callable[[str], object] | None = None

    def refreshed(self, account_name: str, tokens: dict[str, Any]) -> None:
        """Report new tokens."""
        _call(self.on_refreshed, account_name, tokens)

    def reauthorization_required(self, account_name: str, error: ReauthorizationRequired) -> None:
        """Report that an account needs a new sign-in."""
        _call(self.on_reauthorization_required, account_name, error)

    def recovered(self, account_name: str) -> None:
        """Report that an account which needed a sign-in works again."""
        _call(self.on_recovered, account_name)


def _call(hook: Callable[..., object] | None, account_name: str, *arguments: object) -> None:
    if hook is None:
        return
    try:
        hook(account_name, *arguments)
    except Exception:  # noqa: BLE001 - an error of the application must not affect the refresh
        # Without the traceback, which may show what the hook was given.
        _log.error("%s: a hook raised; the tokens are stored nevertheless", account_name)
