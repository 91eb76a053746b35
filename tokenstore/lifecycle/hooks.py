"""What an application may want to be told of, after it is stored and outside every lock."""

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
    """Functions of the application, each None if it does not want to know.

    A hook may call the manager. One that raises is logged and changes nothing.

    Attributes:
        on_refreshed: Called with the account's name and its tokens, after a refresh.
        on_reauthorization_required: Called with the name and the error, once when a login turns
            out to be dead.
        on_recovered: Called with the name, once when a dead login works again.
    """

    on_refreshed: Callable[[str, dict[str, Any]], object] | None = None
    on_reauthorization_required: Callable[[str, ReauthorizationRequired], object] | None = None
    on_recovered: Callable[[str], object] | None = None

    def refreshed(self, account_name: str, tokens: dict[str, Any]) -> None:
        """Tell of new tokens."""
        _call(self.on_refreshed, account_name, tokens)

    def reauthorization_required(self, account_name: str, error: ReauthorizationRequired) -> None:
        """Tell of a login that has died."""
        _call(self.on_reauthorization_required, account_name, error)

    def recovered(self, account_name: str) -> None:
        """Tell of a login that was dead and works again."""
        _call(self.on_recovered, account_name)


def _call(hook: Callable[..., object] | None, account_name: str, *arguments: object) -> None:
    if hook is None:
        return
    try:
        hook(account_name, *arguments)
    except Exception:  # noqa: BLE001 - what an application does must not cost it a login
        # Without the traceback, which may show what the hook was given.
        _log.error("%s: a hook raised; its tokens are stored all the same", account_name)
