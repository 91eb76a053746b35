"""Which provider a name stands for: given, from the file, or built in."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tokenstore.errors import ProviderConfigurationError
from tokenstore.oauth.provider import Provider
from tokenstore.oauth.providers_toml import provider_of, read_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


class ProviderRegistry:
    """The providers that a manager knows by name.

    Looked up in this order: those given to the manager, those of the file, the built-in ones. A
    file's table may override single keys of a built-in provider. The file and the environment
    are read when a provider is asked for.

    Args:
        given: Name to provider.
        file: The ``providers.toml``; it may be missing unless *required*.
        required: Whether a missing file is an error.
    """

    def __init__(
        self, given: Mapping[str, Provider] | None, file: Path | None, *, required: bool = False
    ) -> None:
        self._given = dict(given or {})
        self._file = file
        self._required = required

    def get(self, provider: str | Provider) -> Provider:
        """Return the usable provider of that name, or the one that was given.

        Raises:
            ProviderConfigurationError: There is none of that name, or it is not usable.
        """
        found = provider if isinstance(provider, Provider) else self._find(provider)
        found.require_usable()
        return found

    def names(self) -> list[str]:
        """Return every name that `get` knows, in order."""
        return sorted({*self._given, *self._tables(), *_BUILT_IN})

    def _find(self, name: str) -> Provider:
        given = self._given.get(name)
        if given is not None:
            return given if given.name == name else replace(given, name=name)
        table = self._tables().get(name)
        if table is None and name in _BUILT_IN:
            return _from_environment(name)
        if table is None:
            raise self._unknown(name)
        base = _BUILT_IN[name]() if name in _BUILT_IN else None
        return provider_of(name, table, self._file, base=base)

    def _unknown(self, name: str) -> ProviderConfigurationError:
        import difflib

        names = self.names()
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
        if not near and self._file is not None:
            hint += f"; any other is described in {self._file}"
        return ProviderConfigurationError(f"unknown provider {name!r}; {hint}", provider=name)

    def _tables(self) -> dict[str, Any]:
        return read_tables(self._file, required=self._required)


def _google() -> Provider:
    return Provider(
        "google",
        "https://oauth2.googleapis.com/token",
        os.environ.get("GOOGLE_CLIENT_ID", ""),
        client_secret=os.environ.get("GOOGLE_CLIENT_SECRET", ""),
        authorization_endpoint="https://accounts.google.com/o/oauth2/v2/auth",
        device_authorization_endpoint="https://oauth2.googleapis.com/device/code",
        revocation_endpoint="https://oauth2.googleapis.com/revoke",
        issuer="https://accounts.google.com",
        sign_in_scope="openid",
        # Without these, a second sign-in gives no refresh token.
        authorization_params={"access_type": "offline", "prompt": "consent"},
    )


def _microsoft() -> Provider:
    # It has no revocation endpoint, and its issuer differs from tenant to tenant.
    tenant = os.environ.get("MS_TENANT_ID") or "common"
    base = f"https://login.microsoftonline.com/{tenant}/oauth2/v2.0"
    return Provider(
        "microsoft",
        f"{base}/token",
        os.environ.get("MS_CLIENT_ID", ""),
        client_secret=os.environ.get("MS_CLIENT_SECRET") or None,
        authorization_endpoint=f"{base}/authorize",
        device_authorization_endpoint=f"{base}/devicecode",
        # The one redirect that Microsoft registers for programs, with whichever port.
        redirect_uri="http://localhost",
        sign_in_scope="openid offline_access",
    )


_BUILT_IN: dict[str, Callable[[], Provider]] = {"google": _google, "microsoft": _microsoft}
_NEEDED = {
    "google": ("GOOGLE_CLIENT_ID", "GOOGLE_CLIENT_SECRET"),
    "microsoft": ("MS_CLIENT_ID",),
}


def _from_environment(name: str) -> Provider:
    missing = [variable for variable in _NEEDED[name] if not os.environ.get(variable)]
    if missing:
        raise ProviderConfigurationError(
            f"provider {name!r} needs {' and '.join(missing)} in the environment", provider=name
        )
    return _BUILT_IN[name]()
