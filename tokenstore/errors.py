"""The errors of tokenstore, one tree.

- ``TokenStoreError``
    - ``InvalidTokenError`` (a ``ValueError``): what was given is not a token set
    - ``StorageError`` (an ``OSError``): the database cannot do it
        - ``InsecureStorageError``: refused: a symlink, another owner, not a tokenstore database
        - ``SchemaOutdatedError``: the database is older than this code
        - ``SchemaTooNewError``: the database is newer than this code
        - ``TokenPersistError``: a provider answered and the store would not take it
    - ``TokenRefreshError``
        - ``ProviderConfigurationError``: no request was made; fix the configuration
        - ``ReauthorizationRequired``: only a new sign-in helps
        - ``TransientRefreshError``: try again later
        - ``ClientRejectedError``: the provider refuses this client; fix the configuration
        - ``SignInError``: a sign-in came to nothing, and nothing was stored
            - ``WrongAccountError``: it was somebody else than before

Every error can be pickled, and none shows a secret in its text or its repr.
"""

from __future__ import annotations

from typing import Any, TypeVar

_E = TypeVar("_E", bound="TokenStoreError")


def _rebuild(cls: type[_E], message: str) -> _E:
    """Make the error that a pickle describes; its attributes follow as state."""
    error = cls.__new__(cls)
    error.args = (message,)
    return error


class TokenStoreError(Exception):
    """Whatever tokenstore raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(message)

    def __str__(self) -> str:
        return str(self.args[0])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self)), self.__dict__.copy()


class InvalidTokenError(TokenStoreError, ValueError):
    """What was given is not a token set, or not an account name; nothing was written.

    Attributes:
        field: The name of the field that is wrong.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


class StorageError(TokenStoreError, OSError):
    """The database cannot do what was asked; what it held is still there.

    Attributes:
        path: The file or directory that the error is about.
        errno: The system's error number, where there is one.
    """

    path: str | None
    errno: int | None

    def __init__(self, message: str, path: object = None, *, errno: int | None = None) -> None:
        super().__init__(message)
        self.path = None if path is None else str(path)
        self.errno = errno

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, arguments, state = super().__reduce__()
        return rebuild, arguments, {**state, "errno": self.errno}


class InsecureStorageError(StorageError):
    """Refused: a symlink, another owner's file, or not a tokenstore database."""


class SchemaOutdatedError(StorageError):
    """The database is older than this code; the message names the command that upgrades it."""


class SchemaTooNewError(StorageError):
    """The database is newer than this code: upgrade tokenstore."""


class TokenPersistError(StorageError):
    """A provider answered with new tokens and the store would not take them.

    The manager that raised this keeps the tokens and stores them before it sends another request
    for the account. A pickled copy of the error does not carry them: pickles travel.

    Attributes:
        tokens: The new token set (secret!), or None in an unpickled copy.
    """

    tokens: dict[str, Any] | None

    def __init__(
        self,
        message: str,
        path: object = None,
        *,
        errno: int | None = None,
        tokens: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, path, errno=errno)
        self.tokens = tokens

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, arguments, state = super().__reduce__()
        return rebuild, arguments, {**state, "tokens": None}


class TokenRefreshError(TokenStoreError):
    """No live token could be had from the provider.

    Attributes:
        account_name: The account.
        provider: The provider's name, or None if the account has none.
        status_code: The HTTP status of the answer, or None if there was no answer.
        error: The error code of the answer (RFC 6749 section 5.2), or None.
        error_description: The provider's explanation, without anything that was sent, or None.
        retryable: Whether the same call may succeed later with nothing changed.
    """

    retryable = False

    def __init__(
        self,
        message: str,
        *,
        account_name: str | None = None,
        provider: str | None = None,
        status_code: int | None = None,
        error: str | None = None,
        error_description: str | None = None,
    ) -> None:
        super().__init__(message)
        self.account_name = account_name
        self.provider = provider
        self.status_code = status_code
        self.error = error
        self.error_description = error_description


class ProviderConfigurationError(TokenRefreshError):
    """The provider is unknown or not usable as configured; no request was made."""


class ReauthorizationRequired(TokenRefreshError):  # noqa: N818 - the contract's name
    """Only a new sign-in helps: the grant is dead, or there is no refresh token."""


class TransientRefreshError(TokenRefreshError):
    """Try again later; nothing was lost that is known of.

    Attributes:
        retry_after: Seconds to wait, because the provider asked for it or has failed time and
            again, or None.
        maybe_spent: Whether the request was sent without a usable answer, so that a single-use
            refresh token may have been spent.
    """

    retryable = True

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        maybe_spent: bool = False,
        **details: Any,
    ) -> None:
        super().__init__(message, **details)
        self.retry_after = retry_after
        self.maybe_spent = maybe_spent


class ClientRejectedError(TokenRefreshError):
    """The provider refuses the client or the request: fix the configuration, then try again."""


class SignInError(TokenRefreshError):
    """A sign-in came to nothing: refused, given up or not to be trusted. Nothing was stored."""


class WrongAccountError(SignInError):
    """Somebody else signed in than the account belonged to before; their tokens were dropped."""
