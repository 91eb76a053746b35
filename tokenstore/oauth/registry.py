"""Providers by name: passed by the caller, from ``providers.toml``, or built in."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tokenstore.errors import ProviderConfigurationError
from tokenstore.messages import did_you_mean
from tokenstore.oauth.builtin import built_in, from_environment
from tokenstore.oauth.provider import Provider
from tokenstore.oauth.providers_toml import ProvidersFile, provider_from_table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tokenstore.oauth.builtin import BuiltIn


Source = Literal["application", "providers.toml", "built-in"]


@dataclass(frozen=True, slots=True)
class ProviderDescription:
    """How a provider is configured, without secrets.

    Attributes:
        name: Its name.
        source: ``application``, ``providers.toml`` or ``built-in``.
        needs: What is missing: environment variables of a built-in provider, else keys of the file.
        problem: Why it cannot be used, or None if it can.
        provider: What is known of it, or None if its table is invalid.
        built_in: The built-in provider whose facts it has, or None.
    """

    name: str
    source: Source
    needs: tuple[str, ...]
    problem: str | None
    provider: Provider | None
    built_in: BuiltIn | None


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
        except ProviderConfigurationError:  # one with known facts may only lack a client
            return self._incomplete(provider)

    def names(self) -> list[str]:
        """Return the names of all providers, sorted."""
        return sorted({*self._given, *self.file.tables(), *built_in()})

    def describe(self, name: str) -> ProviderDescription:
        """Return how a provider is configured, and what it lacks.

        Raises:
            ProviderConfigurationError: There is no such provider, or the file is not usable.
        """
        table = self.file.tables().get(name)
        preset = None if name in self._given else _preset(name, table)
        try:
            found: Provider | None = self.get(name)
            problem = None
        except ProviderConfigurationError as error:
            found, problem = self.find(name), str(error)
        source: Source = "built-in" if table is None else "providers.toml"
        needs = () if problem is None else _needs(name, table, preset)
        if name in self._given:
            source, needs = "application", ()
        elif table is None and preset is None:
            raise self._unknown(name)
        return ProviderDescription(name, source, needs, problem, found, preset)

    def _incomplete(self, name: str) -> Provider | None:
        with suppress(ProviderConfigurationError):
            table = self.file.tables().get(name)
            preset = _preset(name, table)
            if preset is not None:
                path, table = self.file.path, table or {}
                return provider_from_table(name, table, path, base=preset, complete=False)
        return None

    def _find(self, name: str) -> Provider:
        given = self._given.get(name)
        if given is not None:
            return given if given.name == name else replace(given, name=name)
        table = self.file.tables().get(name)
        if table is not None:
            return provider_from_table(name, table, self.file.path, base=_preset(name, table))
        if name in built_in():
            return from_environment(name)
        raise self._unknown(name)

    def _unknown(self, name: str) -> ProviderConfigurationError:
        hint = did_you_mean(name, self.names())
        if hint is None:
            more = "" if self.file.path is None else f"; add others to {self.file.path}"
            hint = f"see: tokenstore providers{more}"
        return ProviderConfigurationError(f"unknown provider {name!r}; {hint}", provider=name)


def _preset(name: str, table: Any) -> BuiltIn | None:
    """Return the built-in provider whose facts a table has, or that has the name."""
    preset = table.get("preset", name) if isinstance(table, dict) else name
    return built_in().get(preset) if isinstance(preset, str) else None


def _needs(name: str, table: Any, preset: BuiltIn | None) -> tuple[str, ...]:
    """Return the environment variables or the keys that are missing."""
    given = table if isinstance(table, dict) else {}
    if preset is None:
        endpoint = ("token_endpoint", "issuer")
        missing = [] if any(map(given.get, endpoint)) else [endpoint[0]]
        missing += [] if given.get("client_id") else ["client_id"]
    else:
        missing = preset.missing(name, given)
        if table is None:
            return tuple(preset.variable(name, key) for key in missing)
    variable = given.get("client_secret_env")
    if isinstance(variable, str):
        missing = [key for key in missing if key != "client_secret"]
        missing += [] if os.environ.get(variable) else [variable]
    return tuple(missing)
