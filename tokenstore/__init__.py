"""Keep many OAuth accounts signed in: one local SQLite file, one refresh per token.

    from tokenstore import TokenManager

    with TokenManager("tokens.db") as manager:
        token = manager.get_valid_token("alice@example.com", "google")

Names are imported when they are first used: importing the package costs next to nothing.
"""

from tokenstore.version import __version__ as __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tokenstore.aio import AsyncTokenManager as AsyncTokenManager
    from tokenstore.errors import ClientRejectedError as ClientRejectedError
    from tokenstore.errors import InsecureStorageError as InsecureStorageError
    from tokenstore.errors import InvalidTokenError as InvalidTokenError
    from tokenstore.errors import ProviderConfigurationError as ProviderConfigurationError
    from tokenstore.errors import ReauthorizationRequired as ReauthorizationRequired
    from tokenstore.errors import SchemaOutdatedError as SchemaOutdatedError
    from tokenstore.errors import SchemaTooNewError as SchemaTooNewError
    from tokenstore.errors import SignInError as SignInError
    from tokenstore.errors import StorageError as StorageError
    from tokenstore.errors import SupersededTokenError as SupersededTokenError
    from tokenstore.errors import TokenPersistError as TokenPersistError
    from tokenstore.errors import TokenRefreshError as TokenRefreshError
    from tokenstore.errors import TokenStoreError as TokenStoreError
    from tokenstore.errors import TransientRefreshError as TransientRefreshError
    from tokenstore.errors import WrongAccountError as WrongAccountError
    from tokenstore.lifecycle.bulk import RefreshResult as RefreshResult
    from tokenstore.manager import TokenManager as TokenManager
    from tokenstore.models.access_tokens import AccessToken as AccessToken
    from tokenstore.models.accounts import Account as Account
    from tokenstore.models.accounts import HistoryEntry as HistoryEntry
    from tokenstore.oauth.flows.prompt import Prompt as Prompt
    from tokenstore.oauth.provider import Provider as Provider
    from tokenstore.storage.repository import TokenRepository as TokenRepository

_HOMES = {
    "AccessToken": "models.access_tokens",
    "Account": "models.accounts",
    "AsyncTokenManager": "aio",
    "ClientRejectedError": "errors",
    "HistoryEntry": "models.accounts",
    "InsecureStorageError": "errors",
    "InvalidTokenError": "errors",
    "Prompt": "oauth.flows.prompt",
    "Provider": "oauth.provider",
    "ProviderConfigurationError": "errors",
    "ReauthorizationRequired": "errors",
    "RefreshResult": "lifecycle.bulk",
    "SchemaOutdatedError": "errors",
    "SchemaTooNewError": "errors",
    "SignInError": "errors",
    "StorageError": "errors",
    "SupersededTokenError": "errors",
    "TokenManager": "manager",
    "TokenPersistError": "errors",
    "TokenRefreshError": "errors",
    "TokenRepository": "storage.repository",
    "TokenStoreError": "errors",
    "TransientRefreshError": "errors",
    "WrongAccountError": "errors",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - a test holds the two lists together


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"tokenstore.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
