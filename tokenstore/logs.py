"""One log record for every operation, with its details as fields."""

from __future__ import annotations

import logging
import os
from typing import Protocol

from tokenstore.errors import TokenStoreError
from tokenstore.messages import printable

LOGGER = logging.getLogger("tokenstore")
LOGGER.addHandler(logging.NullHandler())  # without configuration, nothing is printed
is_enabled = LOGGER.isEnabledFor  # bound once: it is called for every token from memory


class Named(Protocol):
    """An object with a name, such as a `Provider`."""

    @property
    def name(self) -> str:
        """The name."""


class Operation:
    """Writes the log record of an operation when it ends.

    Attributes:
        provider: The name of the provider that the caller named or the account has, or None.
        outcome: The outcome, unless the operation raises an error.
        failure: An error that the caller does not see, because a fallback succeeded.
    """

    __slots__ = ("_account_name", "_name", "failure", "outcome", "provider")

    def __init__(
        self, name: str, account_name: object, provider: str | Named | None = None
    ) -> None:
        self._name, self._account_name = name, account_name
        self.provider = provider_name(provider)
        self.outcome = "done"
        self.failure: TokenStoreError | None = None

    def __enter__(self) -> Operation:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None:
            if isinstance(error, TokenStoreError):
                self._warn(type(error).__name__, error)
        elif self.failure is not None:
            self._warn(self.outcome, self.failure)
        else:
            level = logging.INFO if self.outcome in _CHANGES else logging.DEBUG
            if is_enabled(level):
                log_operation(level, self._name, self._account_name, self.provider, self.outcome)

    def _warn(self, outcome: str, error: TokenStoreError) -> None:
        provider = self.provider or getattr(error, "provider", None)
        details = f" ({error})"
        log_operation(logging.WARNING, self._name, self._account_name, provider, outcome, details)


_CHANGES = {"saved", "deleted", "refreshed", "signed_in", "signed_out"}


def log_operation(
    level: int,
    operation: str,
    account_name: object,
    provider: str | Named | None,
    outcome: str,
    details: str = "",
) -> None:
    """Write the log record of an operation."""
    name = _printable_name(account_name)
    fields = {
        "account_name": name,
        "provider": provider_name(provider),
        "operation": operation,
        "outcome": outcome,
    }
    subject = operation if name is None else f"{operation} {name}"
    LOGGER.log(level, "%s: %s%s", subject, outcome, printable(details), extra=fields)


def place_of(error: BaseException) -> str:
    """Return the file and the line that raised *error*, whose text may contain a secret."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "?"
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"  # noqa: PTH119


def provider_name(provider: str | Named | None) -> str | None:
    """Return the name of a provider that is given by name or as an object.

    Raises:
        TypeError: It is neither.
    """
    name: object = provider
    if provider is not None and not isinstance(provider, str):
        name = getattr(provider, "name", provider)
    if name is not None and not isinstance(name, str):
        raise TypeError(f"provider: expected a name or a Provider, got {type(provider).__name__}")
    return name


def _printable_name(account_name: object) -> str | None:
    """Return the account name as one line, or only its type if it is not a string.

    A caller may have passed a token set by mistake.
    """
    if account_name is None:
        return None
    if isinstance(account_name, str):
        return printable(account_name)
    return f"<{type(account_name).__name__}>"
