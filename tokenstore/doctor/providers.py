"""Check the configuration of the accounts' providers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenstore.doctor.findings import Finding, ok
from tokenstore.errors import InsecureStorageError, ProviderConfigurationError
from tokenstore.messages import shell_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tokenstore.oauth.registry import ProviderRegistry


def check_providers(
    registry: ProviderRegistry, accounts: Mapping[str, list[str]]
) -> Iterator[Finding]:
    """Report the providers that cannot be used.

    Args:
        registry: The configured providers.
        accounts: The names of the accounts of each provider.
    """
    try:
        registry.names()
    except InsecureStorageError as error:
        message, _, hint = str(error).partition("; ")
        yield Finding("providers", "error", message, hint)
        return
    except ProviderConfigurationError as error:  # in the file: reported once, not per provider
        yield Finding("providers", "warning", str(error), "correct the file")
        return
    if registry.file.exposes_secret():
        path = registry.file.path
        yield Finding(
            "providers",
            "warning",
            f"{path} contains a client secret and is accessible to other users",
            f"run: {shell_command('chmod', 'go-rwx', str(path))}, or use client_secret_env",
        )
    usable = True
    for name in sorted(accounts):
        try:
            registry.get(name)
        except ProviderConfigurationError as error:
            usable = False
            yield Finding("providers", "warning", str(error), None, tuple(accounts[name]))
    if usable and accounts:
        yield ok("providers", f"usable: {', '.join(sorted(accounts))}")
