"""How a client authenticates without a shared secret, and what keeps its keys safe."""

from __future__ import annotations

import hmac
import os
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from tests.helpers.keys import certificate, key_file, private_pem, public_pem
from tests.helpers.providers import ENDPOINT, ISSUER, SECRET, configuration_error, provider
from tokenstore import InsecureStorageError
from tokenstore.oauth.client import authenticated_request

if TYPE_CHECKING:
    from pathlib import Path

TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def signing(directory: Path, kind: str = "P-256", **changes: Any) -> Any:
    """Return a provider whose client signs with a key of this kind."""
    file = key_file(directory, kind)
    settings = {"token_endpoint_auth_method": "private_key_jwt", "private_key_file": file}
    return provider(**{**settings, **changes})


def claims_of(form: Any, key: str, algorithm: str, audience: str = ENDPOINT) -> dict[str, Any]:
    assertion = str(form["client_assertion"])
    claims: dict[str, Any] = jwt.decode(assertion, key, algorithms=[algorithm], audience=audience)
    return claims


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        ("RSA", "RS256"),
        ("P-256", "ES256"),
        ("P-384", "ES384"),
        ("P-521", "ES512"),
        ("Ed25519", "EdDSA"),
    ],
)
def test_the_kind_of_the_key_decides_the_algorithm(
    kind: str, algorithm: str, tmp_path: Path
) -> None:
    request = authenticated_request(signing(tmp_path, kind), {"grant_type": "refresh_token"})

    assert claims_of(request.form, public_pem(kind), algorithm)
    assert request.form["grant_type"] == "refresh_token"
    assert request.form["client_assertion_type"] == TYPE
    assert request.form["client_id"] == "app"
    assert "client_secret" not in request.form
    assert request.headers == {"Authorization": None}


def test_an_assertion_is_for_one_client_one_audience_five_minutes_and_one_use(
    tmp_path: Path,
) -> None:
    ours, before = signing(tmp_path, key_id="k1", client_secret=SECRET), int(time.time())

    forms = [authenticated_request(ours, {}).form for _ in range(2)]

    first, second = (claims_of(form, public_pem(), "ES256") for form in forms)
    assert first.keys() == {"iss", "sub", "aud", "jti", "iat", "exp"}
    assert first["iss"] == first["sub"] == "app"
    assert first["aud"] == ENDPOINT
    assert first["jti"] != second["jti"]
    assert before <= first["iat"] <= time.time()
    assert first["exp"] - first["iat"] == 300
    assert jwt.get_unverified_header(str(forms[0]["client_assertion"]))["kid"] == "k1"
    assert SECRET not in str(forms)


@pytest.mark.parametrize(
    ("setting", "audience"),
    [(None, ENDPOINT), ("issuer", ISSUER), ("https://aud.example", "https://aud.example")],
)
def test_the_audience_is_configurable(setting: str | None, audience: str, tmp_path: Path) -> None:
    ours = signing(tmp_path, assertion_audience=setting, issuer=ISSUER)

    assert claims_of(authenticated_request(ours, {}).form, public_pem(), "ES256", audience)


@pytest.mark.parametrize("algorithm", ["RS512", "PS256"])
def test_an_rsa_key_signs_with_any_of_its_algorithms(algorithm: str, tmp_path: Path) -> None:
    request = authenticated_request(signing(tmp_path, "RSA", signing_alg=algorithm), {})

    assert claims_of(request.form, public_pem("RSA"), algorithm)


@pytest.mark.parametrize(("setting", "algorithm"), [(None, "HS256"), ("HS512", "HS512")])
@pytest.mark.parametrize("secret", ["short", "s" * 64, "-----BEGIN PUBLIC KEY-----"])
def test_a_client_secret_signs_instead_of_being_sent(
    setting: str | None, algorithm: str, secret: str
) -> None:
    """Whatever secret the provider chose, and without a warning."""
    ours = provider(
        client_secret=secret, token_endpoint_auth_method="client_secret_jwt", signing_alg=setting
    )

    form = authenticated_request(ours, {}).form

    assertion = str(form["client_assertion"])
    signed, _, signature = assertion.rpartition(".")
    digest = hmac.digest(secret.encode(), signed.encode(), algorithm.replace("HS", "SHA"))
    assert urlsafe_b64encode(digest).rstrip(b"=").decode() == signature
    assert jwt.get_unverified_header(assertion)["alg"] == algorithm
    assert jwt.decode(assertion, options={"verify_signature": False})["sub"] == "app"
    assert secret not in str(dict(form))


def test_the_key_may_be_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_KEY", private_pem())
    ours = provider(token_endpoint_auth_method="private_key_jwt", private_key_env="OUR_KEY")

    assert claims_of(authenticated_request(ours, {}).form, public_pem(), "ES256")

    monkeypatch.delenv("OUR_KEY")
    message = configuration_error(authenticated_request, ours, {})
    assert message == "provider 'ours' requires the environment variable OUR_KEY"


def test_a_replaced_key_is_used_at_once(tmp_path: Path) -> None:
    ours = signing(tmp_path)
    authenticated_request(ours, {})
    ours.private_key_file.write_text(private_pem(number=1))

    assert claims_of(authenticated_request(ours, {}).form, public_pem(number=1), "ES256")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(mode: int, tmp_path: Path) -> None:
    ours = signing(tmp_path)
    ours.private_key_file.chmod(mode)

    with pytest.raises(InsecureStorageError, match="accessible to other users") as caught:
        authenticated_request(ours, {})

    assert "chmod go-rwx" in str(caught.value)


def test_a_symlink_to_a_key_is_refused(tmp_path: Path) -> None:
    ours = signing(tmp_path)
    link = tmp_path / "link.pem"
    link.symlink_to(ours.private_key_file)

    with pytest.raises(InsecureStorageError, match="symlink"):
        authenticated_request(signing(tmp_path, private_key_file=link), {})


BAD_KEYS = {
    "encrypted": (private_pem(passphrase=b"secret"), "it is encrypted"),
    "no key": (f"{SECRET}\n", "it is not a private key in PEM format"),
    "empty": ("", "it is not a private key in PEM format"),
    "public": (public_pem(), "it is not a private key in PEM format"),
    "short": (private_pem("short RSA"), "it has 1024 bits"),
    "other curve": (private_pem("secp256k1"), "use an RSA, P-256, P-384, P-521 or Ed25519 key"),
}


@pytest.mark.parametrize(("content", "problem"), BAD_KEYS.values(), ids=BAD_KEYS)
def test_an_unusable_key_is_described_and_not_quoted(
    content: str, problem: str, tmp_path: Path
) -> None:
    ours = signing(tmp_path)
    ours.private_key_file.write_text(content)

    message = configuration_error(authenticated_request, ours, {})

    assert message.startswith(
        f"provider 'ours' cannot use the key of its private_key_file: {problem}"
    )
    assert all(line not in message for line in content.split())


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    message = configuration_error(
        authenticated_request, signing(tmp_path, private_key_file=tmp_path / "gone.pem"), {}
    )

    assert message == (
        f"provider 'ours' cannot read its private_key_file {tmp_path / 'gone.pem'}: "
        "No such file or directory"
    )


def test_an_algorithm_that_does_not_fit_the_key_is_refused(tmp_path: Path) -> None:
    ours = signing(tmp_path, "P-384", signing_alg="ES256")

    assert configuration_error(authenticated_request, ours, {}).endswith("; use ES384")


PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "no key": (
        {"token_endpoint_auth_method": "private_key_jwt"},
        "has no private_key_file or private_key_env",
    ),
    "two keys": (
        {"private_key_file": "k", "private_key_env": "K"},
        "has both private_key_file and",
    ),
    "no secret": ({"token_endpoint_auth_method": "client_secret_jwt"}, "has no client_secret"),
    "no certificate": (
        {"token_endpoint_auth_method": "tls_client_auth"},
        "has no certificate_file",
    ),
    "key without certificate": ({"certificate_key_file": "k"}, "without a certificate_file"),
    "nothing is signed": ({"signing_alg": "RS256"}, "unknown signing_alg"),
    "algorithm of a secret": (
        {"private_key_file": "k", "signing_alg": "HS256"},
        "unknown signing_alg; use one of RS256, RS384",
    ),
    "algorithm none": ({"private_key_file": "k", "signing_alg": "none"}, "unknown signing_alg"),
    "audience without issuer": (
        {"assertion_audience": "issuer"},
        "has no issuer, which its assertion_audience names",
    ),
}


@pytest.mark.parametrize(("settings", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_settings_that_cannot_work_are_found_before_any_request(
    settings: dict[str, Any], problem: str
) -> None:
    assert problem in configuration_error(provider(**settings).require_usable)


# -- certificates ----------------------------------------------------------------------------------


def with_certificate(**files: Any) -> Any:
    return provider(token_endpoint_auth_method="tls_client_auth", **files)


def test_a_certificate_is_presented_and_the_client_named(tmp_path: Path) -> None:
    made = certificate(tmp_path, "client")
    ours = with_certificate(certificate_file=made.certificate, certificate_key_file=made.key)

    request = authenticated_request(ours, {})

    assert request.tls is not None
    assert request.form == {"client_id": "app"}


def test_one_file_may_contain_certificate_and_key(tmp_path: Path) -> None:
    made = certificate(tmp_path, "client")
    both = tmp_path / "both.pem"
    both.write_text(made.pem + made.key.read_text())
    ours = with_certificate(certificate_file=both)
    both.chmod(0o644)

    with pytest.raises(InsecureStorageError, match="accessible to other users"):
        authenticated_request(ours, {})

    both.chmod(0o600)
    assert authenticated_request(ours, {}).tls is not None


def test_a_certificate_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    made = certificate(tmp_path, "client")
    made.key.chmod(0o640)
    ours = with_certificate(certificate_file=made.certificate, certificate_key_file=made.key)

    with pytest.raises(InsecureStorageError, match="accessible to other users"):
        authenticated_request(ours, {})


@pytest.mark.parametrize(
    "key",
    [private_pem(number=2), private_pem(passphrase=b"secret"), SECRET, ""],
    ids=["of another certificate", "encrypted", "no key", "empty"],
)
def test_a_key_that_does_not_fit_its_certificate_is_refused(key: str, tmp_path: Path) -> None:
    """An encrypted one, too: OpenSSL would ask for the passphrase on the terminal."""
    made = certificate(tmp_path, "client")
    made.key.write_text(key)
    ours = with_certificate(certificate_file=made.certificate, certificate_key_file=made.key)

    message = configuration_error(authenticated_request, ours, {})

    assert "cannot use its client certificate" in message


# -- the library ----------------------------------------------------------------------------------


def test_a_missing_library_is_one_line_with_the_command(tmp_path: Path) -> None:
    """In a process of its own, in which neither PyJWT nor cryptography can be imported."""
    code = f"""
import sys
sys.modules["jwt"] = sys.modules["cryptography"] = None
from tokenstore import Provider, TokenManager
manager = TokenManager({str(tmp_path / "tokens.db")!r}, providers={{"ours": Provider(
    "ours", "{ENDPOINT}", "app", client_secret="s",
    token_endpoint_auth_method="client_secret_jwt")}})
tokens = {{"access_token": "a", "refresh_token": "r", "expires_in": 0}}
manager.save_tokens("a", tokens, provider="ours")
try:
    manager.ensure_valid_token("a")
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )

    assert done.stdout == (
        "ProviderConfigurationError provider 'ours' signs assertions, which needs an extra; "
        "run: pip install 'tokenstore[jwt]'\n"
    )


def test_nothing_is_imported_for_a_client_that_signs_nothing() -> None:
    code = (
        "import sys; from tokenstore import Provider\n"
        "from tokenstore.oauth.client import authenticated_request\n"
        f"authenticated_request(Provider('ours', '{ENDPOINT}', 'app', client_secret='s'), {{}})\n"
        "print([m for m in ('jwt', 'cryptography') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
