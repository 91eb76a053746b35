"""One log record for every operation, with its facts as fields."""

from __future__ import annotations

import logging

from tokenstore.errors import TokenStoreError
from tokenstore.providers import Provider

LOGGER = logging.getLogger("tokenstore")
LOGGER.addHandler(logging.NullHandler())  # an application that wants no log gets none


class Operation:
    """Writes the one log record of an operation when it ends."""

    __slots__ = ("_account_name", "_name", "_provider", "outcome")

    def __init__(
        self, name: str, account_name: object, provider: str | Provider | None = None
    ) -> None:
        self._name, self._account_name, self._provider = name, account_name, provider
        self.outcome = "done"

    def __enter__(self) -> Operation:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            level = logging.INFO if self.outcome in _CHANGES else logging.DEBUG
            self._tell(level, self.outcome)
        elif isinstance(error, TokenStoreError):
            self._tell(logging.WARNING, type(error).__name__, f" ({error})")

    def _tell(self, level: int, outcome: str, details: str = "") -> None:
        if LOGGER.isEnabledFor(level):
            tell(level, self._name, self._account_name, self._provider, outcome, details)


_CHANGES = {"saved", "deleted", "refreshed"}


def tell(
    level: int,
    operation: str,
    account_name: object,
    provider: str | Provider | None,
    outcome: str,
    details: str = "",
) -> None:
    """Write the record of an operation."""
    fields = {
        "account_name": account_name,
        "provider": name_of(provider),
        "operation": operation,
        "outcome": outcome,
    }
    LOGGER.log(level, "%s %s: %s%s", operation, account_name, outcome, details, extra=fields)


def name_of(provider: str | Provider | None) -> str | None:
    """Return the name that an account is bound to."""
    return provider.name if isinstance(provider, Provider) else provider
