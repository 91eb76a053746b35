"""``providers.toml``: one table per provider."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from tokenstore.errors import InsecureStorageError, ProviderConfigurationError
from tokenstore.messages import did_you_mean
from tokenstore.oauth.builtin import built_in
from tokenstore.oauth.provider import Provider
from tokenstore.trust import OTHERS, read_trusted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokenstore.oauth.builtin import BuiltIn

_MAX_SIZE = 1 << 20  # bytes

# The keys of a table, each with the type of its value and a check for it.
_STRING = "a string", lambda value: isinstance(value, str)
_NUMBER = "a number of seconds", lambda value: type(value) in {int, float}
_BOOLEAN = "true or false", lambda value: isinstance(value, bool)
_STRINGS = (
    "a table of strings",
    lambda value: isinstance(value, dict) and all(isinstance(v, str) for v in value.values()),
)
_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys((f.name for f in fields(Provider)), _STRING),
    "client_secret_env": _STRING,
    "preset": _STRING,
    "extra_params": _STRINGS,
    "authorization_params": _STRINGS,
    "default_expires_in": _NUMBER,
    "refresh_token_lifetime": _NUMBER,
    "refresh_token_idle": _NUMBER,
    "basic_form_encode": _BOOLEAN,
    "authorization_response_iss_parameter_supported": _BOOLEAN,
    "replay_window": _NUMBER,
    "refresh_token_rotates": _BOOLEAN,
    "token_origins": (
        "a list of strings",
        lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value),
    ),
    "failures": ("a list of tables", lambda value: isinstance(value, list)),
    "assertion_claims": ("a table", lambda value: isinstance(value, dict)),
    "max_concurrency": ("a whole number", lambda value: type(value) is int),
}
del _KEYS["name"]
_FILES = {"private_key_file", "certificate_file", "certificate_key_file", "service_account_file"}


class ProvidersFile:
    """A ``providers.toml``, which is parsed again only after it has changed.

    Args:
        path: The file, or None for no file.
        required: Whether a missing file is an error.
    """

    def __init__(self, path: Path | None, *, required: bool) -> None:
        self.path = path
        self._required = required
        self._parsed: tuple[_Version, dict[str, Any]] | None = None

    def tables(self) -> dict[str, Any]:
        """Return the tables of the file by name; none if it is missing.

        Raises:
            InsecureStorageError: Another user could have written it (`read_trusted`): it decides
                where tokens and client secrets are sent.
            ProviderConfigurationError: It cannot be read, or it is missing and required.
        """
        if self.path is None:
            return {}
        parsed = self._parsed  # another thread may replace it meanwhile
        try:
            if parsed is None or parsed[0] != _version(self.path.lstat()):
                content, found = read_trusted(self.path, limit=_MAX_SIZE)
                self._parsed = parsed = _version(found), _parse(content, self.path)
        except FileNotFoundError:
            if not self._required:
                return {}
            raise ProviderConfigurationError(f"{self.path}: no such file") from None
        except InsecureStorageError:
            raise
        except OSError as error:
            raise ProviderConfigurationError(f"{self.path}: {error.strerror}") from None
        return parsed[1]

    def exposes_secret(self) -> bool:
        """Return whether other users can read the file, and it contains a client secret."""
        tables = self.tables().values()
        if self.path is None or not any(
            isinstance(table, dict) and "client_secret" in table for table in tables
        ):
            return False
        return bool(self.path.stat().st_mode & OTHERS)


_Version = tuple[int, ...]


def _version(status: os.stat_result) -> _Version:
    """Return a value that differs after every change of a file, its owner or its mode."""
    times = status.st_mtime_ns, status.st_ctime_ns  # the latter changes with the mode, too
    return status.st_dev, status.st_ino, status.st_size, *times


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(content.decode())
    except ValueError as error:
        # Only the line: the text of the error may quote the file, which may contain a secret.
        line = " ".join(["not valid TOML", *re.findall(r"at line \d+", str(error))])
        raise ProviderConfigurationError(f"{path}: {line}") from None


def provider_from_table(
    name: str, table: Any, path: Path | None, *, base: BuiltIn | None, complete: bool = True
) -> Provider:
    """Return the provider that a table describes.

    Args:
        name: The provider's name.
        table: The table.
        path: The file, for errors.
        base: The built-in provider whose facts the table overrides, or None.
        complete: Whether it must have a client.

    Raises:
        ProviderConfigurationError: The table is invalid; the error names the key.
    """
    settings = _checked(name, table, path, base)
    for key in _FILES & settings.keys():
        settings[key] = _beside(path, settings[key])
    variable = settings.pop("client_secret_env", None)
    if variable is not None:
        settings["client_secret"] = os.environ.get(variable)
        if complete and not settings["client_secret"]:
            raise ProviderConfigurationError(
                f"provider {name!r} in {path} requires the environment variable {variable}",
                provider=name,
            )
    if base is None:
        return Provider(
            name, settings.pop("token_endpoint", None), settings.pop("client_id", ""), **settings
        )
    missing = base.missing(name, settings)
    if complete and missing:
        raise ProviderConfigurationError(
            f"provider {name!r} in {path} requires {' and '.join(missing)}, there or in the "
            f"environment as {' and '.join(base.variable(name, key) for key in missing)}",
            provider=name,
        )
    return base.provider(name, settings)


def _beside(path: Path | None, file: str) -> str:
    """Return the path of a file that a table names, relative to the directory of this one."""
    given = os.path.expanduser(file)  # noqa: PTH111 - as it is, if there is no such user
    return os.path.join("" if path is None else path.parent, given) if file else file  # noqa: PTH118


def _checked(name: str, table: Any, path: Path | None, base: BuiltIn | None) -> dict[str, Any]:
    def invalid(problem: str) -> ProviderConfigurationError:
        return ProviderConfigurationError(f"provider {name!r} in {path}: {problem}", provider=name)

    if not isinstance(table, dict):
        raise invalid("expected a table")
    keys = _KEYS | dict.fromkeys(base.variables if base else (), _STRING)
    for key, value in table.items():
        if key not in keys:
            hint = did_you_mean(key, keys)
            raise invalid(f"unknown key {key!r}" + (f"; {hint}" if hint else ""))
        expected, is_valid = keys[key]
        if not is_valid(value):
            raise invalid(f"{key} must be {expected}")
    if "client_secret" in table and "client_secret_env" in table:
        raise invalid("client_secret and client_secret_env are mutually exclusive")
    settings = dict(table)
    preset = settings.pop("preset", None)
    if preset is not None and base is None:
        hint = did_you_mean(preset, built_in()) or "see: tokenstore providers"
        raise invalid(f"unknown preset {preset!r}; {hint}")
    return settings
