"""Providers by name: passed by the caller, from ``providers.toml``, or built in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tokenstore.errors import ProviderConfigurationError
from tokenstore.oauth.builtin import BUILT_IN, from_environment
from tokenstore.oauth.provider import Provider
from tokenstore.oauth.providers_toml import ProvidersFile, provider_from_table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class ProviderRegistry:
    """Looks providers up by name.

    A provider that was passed takes precedence over the file, and the file over a built-in
    provider; a table of the file may override single keys of a built-in one. Every lookup reads
    environment variables, and the file if it has changed.

    Args:
        given: Name to provider.
        file: The ``providers.toml``; it may be missing unless *required*.
        required: Whether a missing file is an error.

    Attributes:
        file: The ``providers.toml``.
    """

    def __init__(
        self, given: Mapping[str, Provider] | None, file: Path | None, *, required: bool = False
    ) -> None:
        self._given = dict(given or {})
        self.file = ProvidersFile(file, required=required)

    def get(self, provider: str | Provider) -> Provider:
        """Return the provider of that name, or the provider itself, if it is usable.

        Raises:
            ProviderConfigurationError: There is no such provider, or it is not usable.
        """
        found = provider if isinstance(provider, Provider) else self._find(provider)
        found.require_usable()
        return found

    def find(self, provider: str | Provider) -> Provider | None:
        """Return what is known of a provider, even if it is not usable; None if nothing is."""
        if isinstance(provider, Provider):
            return provider
        try:
            return self._find(provider)
        except ProviderConfigurationError:  # a built-in one may only lack a client
            return BUILT_IN[provider]() if provider in BUILT_IN else None

    def names(self) -> list[str]:
        """Return the names of all providers, sorted."""
        return sorted({*self._given, *self.file.tables(), *BUILT_IN})

    def _find(self, name: str) -> Provider:
        given = self._given.get(name)
        if given is not None:
            return given if given.name == name else replace(given, name=name)
        table = self.file.tables().get(name)
        if table is not None:
            base = BUILT_IN[name]() if name in BUILT_IN else None
            return provider_from_table(name, table, self.file.path, base=base)
        if name in BUILT_IN:
            return from_environment(name)
        raise self._unknown(name)

    def _unknown(self, name: str) -> ProviderConfigurationError:
        import difflib

        names = self.names()
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"configured: {', '.join(names)}"
        if not close and self.file.path is not None:
            hint += f"; add others to {self.file.path}"
        return ProviderConfigurationError(f"unknown provider {name!r}; {hint}", provider=name)
