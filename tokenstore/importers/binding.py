"""What an import and an export know of providers and of the database: whose files are whose."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tokenstore.importers.formats import obtained_at_of
from tokenstore.importers.sqlite_reader import SIDECARS
from tokenstore.oauth.addresses import host_of
from tokenstore.oauth.issuers import foreign_host
from tokenstore.oauth.registry import ProviderRegistry
from tokenstore.storage.location import providers_file

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from tokenstore.models.tokens import TokenSet
    from tokenstore.oauth.provider import Provider


class KnownProviders:
    """The providers that are configured for a database, as far as they can be found.

    An application may know others, so that an unknown name is not an error here.

    Args:
        location: The database.
    """

    def __init__(self, location: Path | URL) -> None:
        file, required = providers_file(location)
        self._registry = ProviderRegistry(None, file, required=required)
        self._found: dict[str, Provider | None] = {}

    def contradiction(self, provider: str, tokens: TokenSet) -> str | None:
        """Return why tokens cannot be bound to a provider, None if they can.

        Args:
            provider: The name of the provider.
            tokens: The tokens, of which ``token_uri`` says who issued them.
        """
        found = self._find(provider)
        if found is None:
            return None
        host = foreign_host(_issued_at(tokens), found)
        if host is None:
            return None
        return (
            f"its tokens are from {host}, but the token endpoint of provider {provider!r} is "
            f"at {host_of(found.token_endpoint or '')}; import it with its own provider"
        )

    def with_expiry(self, provider: str, tokens: TokenSet) -> TokenSet:
        """Return the tokens, with the provider's default lifetime if they have no expiry.

        The age of a file is unknown, unless it has the time when the token was obtained.
        """
        found = self._find(provider) if tokens.expires_at is None else None
        if found is None:
            return tokens
        since = obtained_at_of(tokens.extra)
        return tokens.with_default_lifetime(found.default_expires_in, since=since)

    def _find(self, name: str) -> Provider | None:
        if name not in self._found:
            self._found[name] = self._registry.find(name)
        return self._found[name]


class DatabaseFiles:
    """The files of a database, which an export must not touch. None of them is opened.

    Args:
        location: The database.
    """

    def __init__(self, location: Path | URL) -> None:
        self._paths: list[str] = []
        if isinstance(location, Path):
            self._paths = [f"{location}{suffix}" for suffix in ("", *SIDECARS)]
            providers, _ = providers_file(location)
            if providers is not None:
                self._paths.append(str(providers))

    def include(self, path: Path) -> bool:
        """Return whether a file is one of them, under whatever name."""
        if str(path) in self._paths:
            return True
        try:
            found = path.lstat()
        except OSError:
            return False
        return any(_is_at(found, part) for part in self._paths)


def _is_at(found: os.stat_result, path: str) -> bool:
    try:
        return os.path.samestat(found, os.lstat(path))
    except OSError:
        return False


def _issued_at(tokens: TokenSet) -> object:
    """Return the URL that the tokens come from, as far as they tell."""
    token_uri, environment = tokens.extra.get("token_uri"), tokens.extra.get("environment")
    if token_uri is None and "home_account_id" in tokens.extra and isinstance(environment, str):
        return f"https://{environment}"  # MSAL's accounts
    return token_uri
