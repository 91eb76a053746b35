"""The errors of tokenstore, one tree.

- ``TokenStoreError``
    - ``InvalidTokenError`` (a ``ValueError``): the value is not a valid token set
        - ``SupersededTokenError``: the refresh token was exchanged for another one before
    - ``StorageError`` (an ``OSError``): the database operation failed
        - ``InsecureStorageError``: another user could read or change the file or its directory
        - ``SchemaOutdatedError``: the database is older than this code
        - ``SchemaTooNewError``: the database is newer than this code
        - ``TokenPersistError``: a provider sent new tokens and they could not be saved
    - ``TokenRefreshError``
        - ``ProviderConfigurationError``: no request was sent; fix the configuration
        - ``ReauthorizationRequired``: the account needs a new sign-in
        - ``TransientRefreshError``: try again later
        - ``ClientRejectedError``: the provider rejects this client; fix the configuration
        - ``SignInError``: a sign-in failed, and nothing was stored
            - ``WrongAccountError``: a different user signed in

Every error can be pickled, and none has a secret in its message or its repr.
"""

from __future__ import annotations

from typing import Any, TypeVar

_E = TypeVar("_E", bound="TokenStoreError")


def _rebuild(cls: type[_E], message: str) -> _E:
    """Return the error that a pickle describes; its attributes follow as state."""
    error = cls.__new__(cls)
    error.args = (message,)
    return error


class TokenStoreError(Exception):
    """The base class of all errors of tokenstore."""

    def __init__(self, message: str) -> None:
        super().__init__(message)

    def __str__(self) -> str:
        return str(self.args[0])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self)), self.__dict__.copy()


class InvalidTokenError(TokenStoreError, ValueError):
    """The value is not a valid token set or account name; nothing was written.

    Attributes:
        field: The name of the invalid field.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


class SupersededTokenError(InvalidTokenError):
    """The refresh token was exchanged for another one before; nothing was written.

    An old copy of the tokens was to be saved: read them from the database before changing them.

    Attributes:
        spent_at: When it was exchanged, in UTC epoch seconds.
    """

    def __init__(self, field: str, reason: str, *, spent_at: float) -> None:
        super().__init__(field, reason)
        self.spent_at = spent_at


class StorageError(TokenStoreError, OSError):
    """The database operation failed; the stored data is unchanged.

    Attributes:
        path: The file or directory that caused the error, or None.
        errno: The operating system's error number, or None.
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
    """Another user could read or change a file or directory; nothing was read or written.

    It is a symlink, not a regular file, belongs to another user, has several names, is mounted
    without its directory, or is in a directory in which another user could replace it; or it is not
    a tokenstore database. The message says which, and what to do.
    """


class SchemaOutdatedError(StorageError):
    """The database is older than this code; the message names the command to upgrade it."""


class SchemaTooNewError(StorageError):
    """The database is newer than this code: upgrade tokenstore."""


class TokenPersistError(StorageError):
    """A provider sent new tokens and they could not be saved.

    The manager that raised this goes on trying to store them, as long as the process lives, and
    nothing else is sent for the account meanwhile. A pickled copy of the error does not contain
    them.

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
    """The provider gave no valid token.

    Attributes:
        account_name: The account.
        provider: The provider's name, or None if the account has none.
        status_code: The HTTP status of the response, or None if there was no response.
        error: The error code of the response (RFC 6749 section 5.2), or None.
        error_description: The provider's explanation, without any secret that was sent, or None.
        retryable: Whether the same call may succeed later without any change.
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
    """The provider is unknown or its configuration is invalid; no request was sent."""


class ReauthorizationRequired(TokenRefreshError):  # noqa: N818 - the contract's name
    """The account needs a new sign-in: its grant has ended, or there is no refresh token."""


class TransientRefreshError(TokenRefreshError):
    """The refresh failed for now: try again later.

    Attributes:
        retry_after: Seconds to wait, because the provider said so or has failed repeatedly; None
            if no wait is needed.
        maybe_spent: Whether the request was sent and no usable response arrived, so that a
            single-use refresh token may have been used.
        unexplained: Whether the provider refused in a way that is not understood.
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
        self.unexplained = False


class ClientRejectedError(TokenRefreshError):
    """The provider rejects the client or the request: fix the configuration, then try again."""


class SignInError(TokenRefreshError):
    """A sign-in was refused, abandoned or not trustworthy. Nothing was stored."""


class WrongAccountError(SignInError):
    """A different user signed in than the account belongs to; their tokens were discarded."""
