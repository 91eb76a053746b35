"""Providers: where tokens are refreshed and as whom. Built in, from a file, or discovered."""

from __future__ import annotations

import difflib
import os
import tomllib
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tokenstore.errors import ProviderConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

AUTH_METHODS = ("client_secret_basic", "client_secret_post", "none")


@dataclass(frozen=True)
class Provider:
    """An authorization server and this application's registration with it.

    The names are those of RFC 8414 (the server) and RFC 7591 (the client). What is wrong with a
    provider shows when it is used, as a `ProviderConfigurationError`, before anything is sent.

    Attributes:
        name: What accounts are bound to.
        token_endpoint: URL that refreshes tokens: https, or http on loopback. None if the
            issuer's metadata is to tell.
        client_id: This application's id at the provider.
        client_secret: Its secret, or None for a public client.
        token_endpoint_auth_method: ``client_secret_basic``, ``client_secret_post`` or ``none``.
            None means post if there is a secret, else none.
        scope: Space-separated scopes to ask for when refreshing; None sends no ``scope``.
        authorization_endpoint: URL of the sign-in page.
        device_authorization_endpoint: URL of the device grant (RFC 8628).
        revocation_endpoint: URL that revokes tokens (RFC 7009).
        extra_params: Further parameters of the token request.
        default_expires_in: Seconds to assume for an answer without a usable ``expires_in``;
            ``math.inf`` for tokens that do not expire.
        issuer: URL whose ``.well-known/openid-configuration`` fills the endpoints that are None.
    """

    name: str
    token_endpoint: str | None
    client_id: str
    _: KW_ONLY
    client_secret: str | None = field(default=None, repr=False)
    token_endpoint_auth_method: str | None = None
    scope: str | None = None
    authorization_endpoint: str | None = None
    device_authorization_endpoint: str | None = None
    revocation_endpoint: str | None = None
    extra_params: Mapping[str, str] = field(default_factory=dict, repr=False)
    default_expires_in: float = 3600.0
    issuer: str | None = None

    @property
    def auth_method(self) -> str:
        """How the client authenticates: the method that was chosen, or the one that fits."""
        if self.token_endpoint_auth_method is not None:
            return self.token_endpoint_auth_method
        return "none" if self.client_secret is None else "client_secret_post"

    @property
    def client(self) -> str:
        """Whom a verdict about a refresh token was given to: this client at this endpoint."""
        return f"{self.client_id} {self.token_endpoint or self.issuer}"

    def require_usable(self) -> None:
        """Raise a `ProviderConfigurationError` unless a request could be sent."""
        if not self.client_id or not isinstance(self.client_id, str):
            raise self.misconfigured("has no client_id")
        if self.auth_method not in AUTH_METHODS:
            raise self.misconfigured(
                f"has an unknown token_endpoint_auth_method; use one of {', '.join(AUTH_METHODS)}"
            )
        if self.auth_method != "none" and not self.client_secret:
            raise self.misconfigured(f"needs a client_secret for {self.auth_method}")
        if not self.token_endpoint and not self.issuer:
            raise self.misconfigured("has neither a token_endpoint nor an issuer")
        for kind, url in (("token_endpoint", self.token_endpoint), ("issuer", self.issuer)):
            if url and (reason := _refusal(url)):
                raise self.misconfigured(f"has a {kind} that {reason}")
        if not self.default_expires_in > 0:
            raise self.misconfigured("needs a positive default_expires_in")

    def with_metadata(self, metadata: Mapping[str, Any]) -> Provider:
        """Return this provider with its missing endpoints taken from *metadata* (RFC 8414)."""
        if metadata.get("issuer") != self.issuer:
            raise self.misconfigured("has an issuer that calls itself by another name")
        missing = {
            name: metadata[name]
            for name in _ENDPOINTS
            if getattr(self, name) is None and isinstance(metadata.get(name), str)
        }
        found = replace(self, **missing)
        if not found.token_endpoint:
            raise self.misconfigured("has an issuer whose metadata names no token_endpoint")
        found.require_usable()
        return found

    def misconfigured(self, what: str) -> ProviderConfigurationError:
        """Return the error that says what is wrong with this provider."""
        return ProviderConfigurationError(f"provider {self.name!r} {what}", provider=self.name)


_ENDPOINTS = tuple(f.name for f in fields(Provider) if f.name.endswith("_endpoint"))
_TEXT = {f.name for f in fields(Provider)} - {"name", "extra_params", "default_expires_in"}
_KEYS = _TEXT | {"extra_params", "default_expires_in", "client_secret_env"}


def _google() -> Provider:
    return Provider(
        "google",
        "https://oauth2.googleapis.com/token",
        os.environ.get("GOOGLE_CLIENT_ID", ""),
        client_secret=os.environ.get("GOOGLE_CLIENT_SECRET", ""),
        authorization_endpoint="https://accounts.google.com/o/oauth2/v2/auth",
        device_authorization_endpoint="https://oauth2.googleapis.com/device/code",
        revocation_endpoint="https://oauth2.googleapis.com/revoke",
    )


def _microsoft() -> Provider:
    tenant = os.environ.get("MS_TENANT_ID") or "common"
    base = f"https://login.microsoftonline.com/{tenant}/oauth2/v2.0"
    return Provider(
        "microsoft",
        f"{base}/token",
        os.environ.get("MS_CLIENT_ID", ""),
        client_secret=os.environ.get("MS_CLIENT_SECRET") or None,
        authorization_endpoint=f"{base}/authorize",
        device_authorization_endpoint=f"{base}/devicecode",
    )


_BUILT_IN: dict[str, Callable[[], Provider]] = {"google": _google, "microsoft": _microsoft}
_NEEDED = {
    "google": ("GOOGLE_CLIENT_ID", "GOOGLE_CLIENT_SECRET"),
    "microsoft": ("MS_CLIENT_ID",),
}


class Providers:
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
        if name in self._given:
            return self._given[name]
        table = self._tables().get(name)
        if table is None and name in _BUILT_IN:
            return _from_environment(name)
        if table is None:
            raise self._unknown(name)
        return _from_table(name, table, self._file)

    def _unknown(self, name: str) -> ProviderConfigurationError:
        names = self.names()
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
        return ProviderConfigurationError(f"unknown provider {name!r}; {hint}", provider=name)

    def _tables(self) -> dict[str, Any]:
        if self._file is None:
            return {}
        try:
            return tomllib.loads(self._file.read_text("utf-8"))
        except FileNotFoundError:
            if not self._required:
                return {}
            raise ProviderConfigurationError(f"{self._file}: no such file") from None
        except (OSError, ValueError) as error:
            # The text of a TOML error may quote the file, which may hold a secret.
            reason = error.strerror if isinstance(error, OSError) else "not valid TOML"
            raise ProviderConfigurationError(f"{self._file}: {reason}") from None


def _from_environment(name: str) -> Provider:
    missing = [variable for variable in _NEEDED[name] if not os.environ.get(variable)]
    if missing:
        raise ProviderConfigurationError(
            f"provider {name!r} needs {' and '.join(missing)} in the environment", provider=name
        )
    return _BUILT_IN[name]()


def _from_table(name: str, table: Any, file: Path | None) -> Provider:
    settings = _checked(name, table, file)
    variable = settings.pop("client_secret_env", None)
    if variable is not None:
        settings["client_secret"] = os.environ.get(variable)
        if not settings["client_secret"]:
            raise ProviderConfigurationError(
                f"provider {name!r} in {file} needs {variable} in the environment", provider=name
            )
    if name in _BUILT_IN:
        return replace(_BUILT_IN[name](), **settings)
    return Provider(
        name, settings.pop("token_endpoint", None), settings.pop("client_id", ""), **settings
    )


def _checked(name: str, table: Any, file: Path | None) -> dict[str, Any]:
    def wrong(what: str) -> ProviderConfigurationError:
        return ProviderConfigurationError(f"provider {name!r} in {file}: {what}", provider=name)

    if not isinstance(table, dict):
        raise wrong("a table is needed")
    for key, value in table.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            raise wrong(f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if key in _TEXT | {"client_secret_env"} and not isinstance(value, str):
            raise wrong(f"{key} has to be a string")
        if key == "default_expires_in" and not _is_number(value):
            raise wrong(f"{key} has to be a number of seconds")
        if key == "extra_params" and not (
            isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
        ):
            raise wrong(f"{key} has to be a table of strings")
    if "client_secret" in table and "client_secret_env" in table:
        raise wrong("client_secret and client_secret_env exclude each other")
    return dict(table)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refusal(url: str) -> str | None:
    """Say why *url* must not be sent a secret, None if it may be."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        return "is no URL"
    if not host or parts.scheme not in {"https", "http"}:
        return "is no https URL"
    if parts.scheme == "http" and not _is_loopback(host):
        return "is not https; http is for loopback only"
    if parts.username is not None or parts.password is not None:
        return "has a user name or password in it"
    if parts.fragment:
        return "has a fragment (#…)"
    return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
