"""The built-in providers, which environment variables configure."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tokenstore.errors import ProviderConfigurationError
from tokenstore.oauth.provider import Provider

if TYPE_CHECKING:
    from collections.abc import Callable


def from_environment(name: str) -> Provider:
    """Return the built-in provider of that name, as the environment configures it now.

    Raises:
        ProviderConfigurationError: A variable that it requires is not set.
    """
    missing = [variable for variable in _REQUIRED_VARIABLES[name] if not os.environ.get(variable)]
    if missing:
        raise ProviderConfigurationError(
            f"provider {name!r} requires the environment variables {' and '.join(missing)}",
            provider=name,
        )
    return BUILT_IN[name]()


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
        sign_in_scope="openid email",
        # Without these parameters, a second sign-in returns no refresh token.
        authorization_params={"access_type": "offline", "prompt": "consent"},
    )


def _microsoft() -> Provider:
    # It has no revocation endpoint, and its issuer differs between tenants.
    tenant = os.environ.get("MS_TENANT_ID") or "common"
    base = f"https://login.microsoftonline.com/{tenant}/oauth2/v2.0"
    return Provider(
        "microsoft",
        f"{base}/token",
        os.environ.get("MS_CLIENT_ID", ""),
        client_secret=os.environ.get("MS_CLIENT_SECRET") or None,
        authorization_endpoint=f"{base}/authorize",
        device_authorization_endpoint=f"{base}/devicecode",
        # The redirect URI that Microsoft registers for desktop programs; any port matches it.
        redirect_uri="http://localhost",
        sign_in_scope="openid profile email offline_access",
    )


BUILT_IN: dict[str, Callable[[], Provider]] = {"google": _google, "microsoft": _microsoft}
"""Functions by name that return a built-in provider, even if required variables are not set."""

_REQUIRED_VARIABLES = {
    "google": ("GOOGLE_CLIENT_ID", "GOOGLE_CLIENT_SECRET"),
    "microsoft": ("MS_CLIENT_ID",),
}
