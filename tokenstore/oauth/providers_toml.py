"""``providers.toml``: one table a provider."""

from __future__ import annotations

import os
import re
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from tokenstore.errors import ProviderConfigurationError
from tokenstore.oauth.provider import Provider

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


# What a table of providers.toml may have, and what a value has to be.
_A_NUMBER = "a number of seconds", lambda value: type(value) in {int, float}
_A_SWITCH = "true or false", lambda value: isinstance(value, bool)
_STRINGS = (
    "a table of strings",
    lambda value: isinstance(value, dict) and all(isinstance(v, str) for v in value.values()),
)
_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        (f.name for f in fields(Provider)), ("a string", lambda value: isinstance(value, str))
    ),
    "client_secret_env": ("a string", lambda value: isinstance(value, str)),
    "extra_params": _STRINGS,
    "authorization_params": _STRINGS,
    "default_expires_in": _A_NUMBER,
    "refresh_token_lifetime": _A_NUMBER,
    "refresh_token_idle": _A_NUMBER,
    "basic_form_encode": _A_SWITCH,
    "authorization_response_iss_parameter_supported": _A_SWITCH,
    "max_concurrency": ("a whole number", lambda value: type(value) is int),
}
del _KEYS["name"]


def read_tables(file: Path | None, *, required: bool) -> dict[str, Any]:
    """Return the tables of a ``providers.toml``, none if it is missing.

    Raises:
        ProviderConfigurationError: It cannot be read, or it is missing and *required*.
    """
    if file is None:
        return {}
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        if not required:
            return {}
        raise ProviderConfigurationError(f"{file}: no such file") from None
    except OSError as error:
        raise ProviderConfigurationError(f"{file}: {error.strerror}") from None
    import tomllib

    try:
        return tomllib.loads(content.decode())
    except ValueError as error:
        # The place alone: the text of a TOML error may quote the file, which may hold a secret.
        place = " ".join(["not valid TOML", *re.findall(r"at line \d+", str(error))])
        raise ProviderConfigurationError(f"{file}: {place}") from None


def provider_of(name: str, table: Any, file: Path | None, *, base: Provider | None) -> Provider:
    """Return the provider that a table describes, or *base* with what the table overrides.

    Raises:
        ProviderConfigurationError: The table is wrong; the error names the key.
    """
    settings = _checked(name, table, file)
    variable = settings.pop("client_secret_env", None)
    if variable is not None:
        settings["client_secret"] = os.environ.get(variable)
        if not settings["client_secret"]:
            raise ProviderConfigurationError(
                f"provider {name!r} in {file} needs {variable} in the environment", provider=name
            )
    if base is not None:
        return replace(base, **settings)
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
            import difflib

            near = difflib.get_close_matches(key, _KEYS, 1)
            raise wrong(f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        kind, fits = _KEYS[key]
        if not fits(value):
            raise wrong(f"{key} has to be {kind}")
    if "client_secret" in table and "client_secret_env" in table:
        raise wrong("client_secret and client_secret_env exclude each other")
    return dict(table)
