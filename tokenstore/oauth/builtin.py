"""The built-in providers: what their vendors document, for the client that the environment names.

The facts are in ``catalog.toml``, one table for each provider, with the keys of `Provider` and
those of `BuiltIn`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from tokenstore.errors import ProviderConfigurationError
from tokenstore.oauth.provider import Provider, origin

if TYPE_CHECKING:
    from collections.abc import Mapping

_INSTEAD_OF_SECRET = (
    "token_endpoint_auth_method",
    *("service_account_file", "private_key_file", "private_key_env", "certificate_file"),
)
_SEGMENT = re.compile(r"[\w.~%-]+(:\d+)?")
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class BuiltIn:
    """What is known of a provider, or of a kind of server (a template), except the client.

    Attributes:
        name: Its name.
        documentation: The address of the vendor's page that the facts are from.
        settings: Attributes of `Provider`; ``{variable}`` in a URL stands for a variable.
        variables: Variables by name, each with its default, or an empty string if it has none.
        environment: The beginning of the environment variables' names, for the name of the
            provider itself. Defaults to the name in capitals.
        secret_required: Whether the provider requires a client secret.
        loopback: Whether a sign-in may return to this machine over http (RFC 8252 section 7.3).
        registration: What to register there.
        registration_url: Where to register a client.
    """

    name: str
    documentation: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    environment: str | None = None
    secret_required: bool = False
    loopback: bool = True
    registration: str | None = None
    registration_url: str | None = None

    def provider(self, name: str, given: Mapping[str, Any]) -> Provider:
        """Return a provider with these facts; it may lack a client.

        Args:
            name: The provider's name. The environment variables are named after it.
            given: Attributes of `Provider` that differ, and variables.
        """
        given = dict(given)
        values = {
            v: self._checked(name, v, given.pop(v, "") or self._value(name, v))
            for v in self.variables
        }
        settings: dict[str, Any] = {
            key: _inserted(value, values) if isinstance(value, str) else value
            for key, value in self.settings.items()
        }
        is_elsewhere = _is_elsewhere(given, settings)
        if is_elsewhere:  # a server of the user's own
            settings = {key: settings[key] for key in settings if not _is_place(key)}
        for key in ("client_id", "client_secret"):
            value = _environ(self.variable(name, key))
            # A key file names the client. The vendor's secret is not for another server's client.
            is_other = given.get("service_account_file") or (
                is_elsewhere and given.get("client_id")
            )
            if value and not is_other:
                settings[key] = value
        settings |= given
        if settings.get("client_secret") is None and "token_endpoint_auth_method" not in given:
            settings.pop("token_endpoint_auth_method", None)  # that of a client with a secret
        endpoint = settings.pop("token_endpoint", None)
        return Provider(name, endpoint, settings.pop("client_id", None), **settings)

    def missing(self, name: str, given: Mapping[str, Any]) -> list[str]:
        """Return the keys that are neither given nor set in the environment.

        Args:
            name: The provider's name.
            given: What is set elsewhere.
        """
        needed = [v for v, default in self.variables.items() if not default]
        if given.get("token_endpoint") or given.get("issuer"):
            needed = []
        if self.secret_required and not any(map(given.get, _INSTEAD_OF_SECRET)):
            needed.insert(0, "client_secret")
        if not given.get("service_account_file"):
            needed.insert(0, "client_id")
        return [k for k in needed if not (given.get(k) or _environ(self.variable(name, k)))]

    def variable(self, name: str, key: str) -> str:
        """Return the environment variable that sets a key of the provider of that name."""
        prefix = self.environment if name == self.name and self.environment else name
        return re.sub(r"\W", "_", f"{prefix}_{key}", flags=re.ASCII).upper()

    def _checked(self, name: str, variable: str, value: str) -> str:
        """Return a variable's value as its URLs have it.

        Raises:
            ProviderConfigurationError: It is a URL, or more, where a host is expected.
        """
        value = value.rstrip("/")
        url = next(u for u in self.settings.values() if f"{{{variable}}}" in str(u))
        before, _, after = url.partition(f"{{{variable}}}")
        value = value.removesuffix(after.partition("/")[0] or "/")
        is_url = not before  # it is checked with the whole URL
        if value and not is_url and not _SEGMENT.fullmatch(value):
            expected = "a host name" if before.endswith("://") else "a name without slashes"
            raise ProviderConfigurationError(
                f"provider {name!r} has an invalid {variable}: expected {expected}, without https://",
                provider=name,
            )
        return value

    def _value(self, name: str, variable: str) -> str:
        return _environ(self.variable(name, variable)) or self.variables[variable]


@cache
def built_in() -> Mapping[str, BuiltIn]:
    """Return the built-in providers and templates by name."""
    import tomllib

    text = files("tokenstore.oauth").joinpath("catalog.toml").read_text("utf-8")
    return {name: _from_table(name, table) for name, table in tomllib.loads(text).items()}


def from_environment(name: str) -> Provider:
    """Return the built-in provider of that name, as the environment configures it now.

    Raises:
        ProviderConfigurationError: A variable that it requires is not set.
    """
    found = built_in()[name]
    missing = found.missing(name, {})
    if missing:
        variables = " and ".join(found.variable(name, key) for key in missing)
        are = "variables" if len(missing) > 1 else "variable"
        raise ProviderConfigurationError(
            f"provider {name!r} requires the environment {are} {variables}", provider=name
        )
    return found.provider(name, {})


def _from_table(name: str, table: dict[str, Any]) -> BuiltIn:
    own = {f.name for f in fields(BuiltIn)}
    facts = {key: value for key, value in table.items() if key in own}
    settings = {key: value for key, value in table.items() if key not in own}
    return BuiltIn(name, settings=settings, **facts)


def _is_place(key: str) -> bool:
    """Return whether a setting says where requests go."""
    return key.endswith("_endpoint") or key in {"issuer", "token_origins"}


def _is_elsewhere(given: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Return whether a token endpoint or issuer is given that is not the provider's.

    Then none of its other endpoints is used: they would be sent what the given one issued.
    """
    known = {settings.get("token_endpoint"), settings.get("issuer")}
    own = {origin(url) for url in known if url}
    urls = (given.get("token_endpoint"), given.get("issuer"))
    return any(isinstance(url, str) and url and origin(url) not in own for url in urls)


def _environ(variable: str) -> str:
    return os.environ.get(variable, "")


def _inserted(text: str, values: Mapping[str, str]) -> str | None:
    """Return a text with the values of its variables, or None if one has none."""
    if not all(values.get(name, "x") for name in _PLACE.findall(text)):
        return None
    return _PLACE.sub(lambda place: values.get(place[1], place[0]), text)
