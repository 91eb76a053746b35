"""What an import and an export know of providers and of the database: whose files are whose."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tokenstore.errors import ProviderConfigurationError
from tokenstore.importers.sqlite_reader import SIDECARS
from tokenstore.models.timestamps import NEVER, clamp_to_calendar, parse_timestamp
from tokenstore.oauth.builtin import BUILT_IN
from tokenstore.oauth.registry import ProviderRegistry
from tokenstore.storage.location import providers_file

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from tokenstore.models.tokens import TokenSet
    from tokenstore.oauth.provider import Provider

# The origins of one provider's token endpoint, old and new.
_ALIASES = (
    {"oauth2.googleapis.com", "www.googleapis.com", "accounts.google.com"},
    {
        "login.microsoftonline.com",
        "login.windows.net",
        "login.microsoft.com",
        "sts.windows.net",
        "login.live.com",
    },
)


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

    def contradiction(self, provider: str | None, tokens: TokenSet) -> str | None:
        """Return why tokens cannot be bound to a provider, None if they can.

        Args:
            provider: The name of the provider, or None.
            tokens: The tokens, of which ``token_uri`` says who issued them.
        """
        found = self._find(provider)
        endpoint = None if found is None else _origin(found.token_endpoint)
        issuer = _origin(tokens.extra.get("token_uri")) or _msal_origin(tokens)
        if endpoint is None or issuer is None or endpoint == issuer:
            return None
        if any({endpoint[1], issuer[1]} <= hosts for hosts in _ALIASES):
            return None
        return (
            f"its tokens are from {issuer[1]}, but the token endpoint of provider {provider!r} is "
            f"at {endpoint[1]}; import it with its own provider"
        )

    def with_expiry(self, provider: str | None, tokens: TokenSet) -> TokenSet:
        """Return the tokens, with the provider's default lifetime if they have no expiry."""
        found = self._find(provider) if tokens.expires_at is None else None
        if found is None:
            return tokens
        obtained_at = next(
            (
                timestamp
                for name in ("obtained_at", "created_at")
                if (timestamp := parse_timestamp(tokens.extra.get(name))) is not None
            ),
            None,
        )
        if math.isinf(found.default_expires_in):
            expires_at = NEVER
        elif obtained_at is not None:
            expires_at = clamp_to_calendar(obtained_at + found.default_expires_in)
        else:
            return tokens  # the age of a file is unknown
        extra = {k: v for k, v in tokens.extra.items() if k != "expires_at"}
        return dataclasses.replace(tokens, expires_at=expires_at, extra=extra)

    def _find(self, name: str | None) -> Provider | None:
        if name is None:
            return None
        if name not in self._found:
            try:
                self._found[name] = self._registry.get(name)
            except ProviderConfigurationError:  # a built-in one, that lacks a client, has its facts
                self._found[name] = BUILT_IN[name]() if name in BUILT_IN else None
        return self._found[name]


def is_part_of_database(path: Path, location: Path | URL) -> bool:
    """Return whether a file is the database or belongs to it. No file is opened."""
    if not isinstance(location, Path):
        return False
    parts = [location, *(location.with_name(location.name + suffix) for suffix in SIDECARS)]
    providers, _ = providers_file(location)
    parts += [] if providers is None else [providers]
    try:
        found = path.lstat()
    except OSError:
        return path in parts
    for part in parts:
        try:
            if os.path.samestat(found, part.lstat()):
                return True
        except OSError:
            continue
    return path in parts


def _origin(url: object) -> tuple[str, str, int | None] | None:
    """Return scheme, host and port of a URL, or None if it has none."""
    if not isinstance(url, str):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname else None


def _msal_origin(tokens: TokenSet) -> tuple[str, str, int | None] | None:
    """Return the origin of the tokens in a cache of MSAL."""
    environment = tokens.extra.get("environment")
    if "home_account_id" not in tokens.extra or not isinstance(environment, str):
        return None
    return _origin(f"https://{environment}")
