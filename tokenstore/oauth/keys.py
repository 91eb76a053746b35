"""The client's private keys and certificates: read when they are needed, and never shown."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenstore.errors import InsecureStorageError
from tokenstore.oauth.http import client_context
from tokenstore.redaction import protect
from tokenstore.trust import read_trusted

if TYPE_CHECKING:
    import ssl

    from tokenstore.oauth.provider import Provider

_MAX_SIZE = 1 << 16  # bytes
_MIN_RSA = 2048  # bits; RFC 7518 section 3.3
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


class SigningKey(NamedTuple):
    """A private key, and the algorithm that it signs with unless another one is configured."""

    key: Any
    algorithm: str


def signing_key(provider: Provider) -> SigningKey:
    """Return the private key that signs the client's assertions.

    Raises:
        ProviderConfigurationError: There is no such key, or it cannot be used.
        InsecureStorageError: Other users can read or replace its file.
    """
    if provider.service_account_file:
        source, pem = "service_account_file", _key_file(provider)["private_key"].encode()
    elif provider.private_key_file:
        source, pem = "private_key_file", read_key_file(provider, "private_key_file")
    else:
        source = "private_key_env"
        value = os.environ.get(provider.private_key_env or "", "")
        pem = value.replace("\\n", "\n").encode()  # as some files of variables have it
    if not pem and source == "private_key_env":
        raise provider.configuration_error(
            f"requires the environment variable {provider.private_key_env}"
        )
    found: SigningKey | str
    try:
        found = _parsed(pem)
    except ModuleNotFoundError:
        raise missing_library(provider) from None
    if isinstance(found, str):
        raise provider.configuration_error(f"cannot use the key of its {source}: {found}")
    return found


def with_service_account(provider: Provider) -> Provider:
    """Return the provider with what the key file of its service account supplies, if it has one.

    What is configured takes precedence.

    Raises:
        ProviderConfigurationError: The file cannot be used.
        InsecureStorageError: Other users can read or replace it.
    """
    if not provider.service_account_file:
        return provider
    fields = _key_file(provider)
    complete = replace(
        provider,
        client_id=provider.client_id or fields["client_email"],
        token_endpoint=provider.token_endpoint or fields["token_uri"],
        key_id=provider.key_id or fields["private_key_id"],
    )
    complete.require_usable()
    return complete


def _key_file(provider: Provider) -> dict[str, str]:
    """Return what is needed of the key file of a Google service account (secret!)."""
    content = read_key_file(provider, "service_account_file")
    try:
        stored = json.loads(content)
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict) or stored.get("type") != "service_account":
        raise provider.configuration_error(
            "cannot use its service_account_file: it is not the JSON key file of a service account"
        )
    names = ("client_email", "private_key", "private_key_id", "token_uri")
    fields = {name: stored[name] for name in names if isinstance(stored.get(name), str)}
    if missing := [name for name in names if not fields.get(name)]:
        raise provider.configuration_error(
            f"cannot use its service_account_file: it has no {missing[0]}; download the key again"
        )
    return fields


def missing_library(provider: Provider) -> Exception:
    """Return the error that the library which signs is not installed."""
    return provider.configuration_error(
        "signs assertions, which needs an extra; run: pip install 'tokenstore[jwt]'"
    )


def client_tls(provider: Provider) -> ssl.SSLContext | None:
    """Return a TLS context with the client's certificate, None if it has none.

    Raises:
        ProviderConfigurationError: The certificate or its key cannot be used.
        InsecureStorageError: Other users can replace them, or read the key.
    """
    certificate, key = provider.certificate_file, provider.certificate_key_file
    if not certificate:
        return None
    read_key_file(provider, "certificate_file", private=not key)
    if key:
        read_key_file(provider, "certificate_key_file")
    try:
        return client_context(os.fspath(certificate), os.fspath(key) if key else None)
    except (OSError, ValueError):
        raise provider.configuration_error(
            "cannot use its client certificate: certificate_file and certificate_key_file must be "
            "PEM files of a certificate and of its private key, without a passphrase"
        ) from None


def read_key_file(provider: Provider, setting: str, *, private: bool = True) -> bytes:
    """Return the content of a file that a provider names.

    Args:
        provider: The provider.
        setting: The setting that names the file.
        private: Whether no other user may read it.

    Raises:
        ProviderConfigurationError: It cannot be read.
        InsecureStorageError: Other users can replace it, or read it.
    """
    path = Path(os.path.abspath(getattr(provider, setting)))  # noqa: PTH100 - a symlink must be seen
    try:
        return read_trusted(path, limit=_MAX_SIZE, private=private)[0]
    except InsecureStorageError:
        raise
    except OSError as error:
        raise provider.configuration_error(
            f"cannot read its {setting} {path}: {error.strerror}"
        ) from None


@lru_cache(maxsize=64)
def _parsed(pem: bytes) -> SigningKey | str:
    """Return a key, or why it cannot be used. Parsing one takes longer than signing with it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return _described(load_pem_private_key(pem, password=None))
    except TypeError:
        return "it is encrypted; store it without a passphrase, in a file that only you can read"
    except (ValueError, UnsupportedAlgorithm):
        return "it is not a private key in PEM format"


def _described(key: object) -> SigningKey | str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < _MIN_RSA:
            return f"it has {key.key_size} bits; make an RSA key of at least {_MIN_RSA} bits"
        return SigningKey(key, "RS256")
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return SigningKey(key, _CURVES[key.curve.name])
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return SigningKey(key, "EdDSA")
    return "use an RSA, P-256, P-384, P-521 or Ed25519 key"


protect(__name__)
