"""Private keys and certificates, made when a test needs them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tokenstore.testing import AuthorizationServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KINDS: dict[str, Callable[[], Any]] = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "short RSA": lambda: rsa.generate_private_key(65537, 1024),
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


def demanding(own: Certificate, ours: Certificate) -> AuthorizationServer:
    """Return a server with the certificate *own* that demands the client's, *ours*."""
    return AuthorizationServer(
        client_secret=None,
        token_endpoint_auth_method="tls_client_auth",
        certificate=ours.pem,
        tls=own,
    )


def private_key(kind: str = "P-256", number: int = 0) -> Any:
    """Return a private key; another one for another number."""
    return _made(kind, number)


@cache
def _made(kind: str, _: int) -> Any:
    return KINDS[kind]()


def private_pem(kind: str = "P-256", number: int = 0, *, passphrase: bytes | None = None) -> str:
    """Return a private key as PEM text."""
    protection = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    key = private_key(kind, number)
    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)
    return text.decode()


def public_pem(kind: str = "P-256", number: int = 0) -> str:
    """Return the public key that belongs to a private one, as PEM text."""
    key = private_key(kind, number).public_key()
    text: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


def key_file(directory: Path, kind: str = "P-256", number: int = 0, mode: int = 0o600) -> Path:
    """Write a private key to a file."""
    path = directory / f"{kind} {number}.pem"
    path.write_text(private_pem(kind, number))
    path.chmod(mode)
    return path


class Certificate(NamedTuple):
    """A self-signed certificate and its key, as files."""

    certificate: Path
    key: Path

    @property
    def pem(self) -> str:
        """The certificate as PEM text."""
        return self.certificate.read_text()


def certificate(directory: Path, name: str) -> Certificate:
    """Make a certificate for a server at 127.0.0.1, or for a client."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    files = Certificate(directory / f"{name}.crt", directory / f"{name}.key")
    files.certificate.write_bytes(made.public_bytes(Encoding.PEM))
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    files.key.chmod(0o600)
    return files
