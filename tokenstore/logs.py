"""One log record for every operation, with its facts as fields."""

from __future__ import annotations

import logging
import re
from typing import Protocol

from tokenstore.errors import TokenStoreError

LOGGER = logging.getLogger("tokenstore")
LOGGER.addHandler(logging.NullHandler())  # an application that wants no log gets none
is_told = LOGGER.isEnabledFor  # looked up once: it is asked for every token from memory


class Named(Protocol):
    """What has a name, such as a `Provider`."""

    @property
    def name(self) -> str:
        """The name."""


class Operation:
    """Writes the one log record of an operation when it ends.

    Attributes:
        provider: Whom the caller named, or whom the account turned out to be bound to.
        outcome: What came of it, unless an error did.
        failure: An error that the caller does not get, as something else served.
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
            if is_told(level):
                tell(level, self._name, self._account_name, self.provider, self.outcome)

    def _warn(self, outcome: str, error: TokenStoreError) -> None:
        provider = self.provider or getattr(error, "provider", None)
        tell(logging.WARNING, self._name, self._account_name, provider, outcome, f" ({error})")


_CHANGES = {"saved", "deleted", "refreshed", "signed_in", "signed_out"}


def tell(
    level: int,
    operation: str,
    account_name: object,
    provider: str | Named | None,
    outcome: str,
    details: str = "",
) -> None:
    """Write the record of an operation."""
    name = _shown(account_name)
    fields = {
        "account_name": name,
        "provider": provider_name(provider),
        "operation": operation,
        "outcome": outcome,
    }
    subject = operation if name is None else f"{operation} {name}"
    LOGGER.log(level, "%s: %s%s", subject, outcome, details, extra=fields)


def provider_name(provider: str | Named | None) -> str | None:
    """Return the name of a provider that may be given by name or as an object.

    Raises:
        TypeError: It is neither.
    """
    name = provider if provider is None or isinstance(provider, str) else _name_of(provider)
    if name is not None and not isinstance(name, str):
        raise TypeError(f"provider: expected a name or a Provider, got {_kind(provider)}")
    return name


def _name_of(provider: object) -> object:
    return getattr(provider, "name", provider)


def _shown(account_name: object) -> str | None:
    """Return what may be logged of an account name: one line, and no token set given for it."""
    if account_name is None:
        return None
    if isinstance(account_name, str):
        line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", "?", account_name)
        return line.encode("utf-8", "backslashreplace").decode()  # a damaged one is no text
    return f"<{_kind(account_name)}>"


def _kind(value: object) -> str:
    return type(value).__name__
