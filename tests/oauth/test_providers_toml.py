from __future__ import annotations

import dataclasses
import math
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.providers import ENDPOINT, ISSUER, SECRET, configuration_error
from tokenstore.oauth.provider import Provider
from tokenstore.oauth.providers_toml import ProvidersFile
from tokenstore.oauth.registry import ProviderRegistry

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("bare_environment")


def from_file(file: Path, content: str, name: str = "ours") -> Provider:
    file.write_text(content, "utf-8")
    return ProviderRegistry(None, file).get(name)


def refused(file: Path, content: str) -> str:
    file.write_text(content, "utf-8")
    return configuration_error(ProviderRegistry(None, file).get, "ours")


EVERY_KEY = f"""
[ours]
token_endpoint = "{ENDPOINT}"
client_id = "app"
client_secret = "{SECRET}"
token_endpoint_auth_method = "client_secret_basic"
scope = "a b"
authorization_endpoint = "https://auth.example/authorize"
device_authorization_endpoint = "https://auth.example/device"
revocation_endpoint = "https://auth.example/revoke"
redirect_uri = "http://127.0.0.1:8765/back"
sign_in_scope = "openid"
authorization_params = {{ prompt = "consent" }}
authorization_response_iss_parameter_supported = true
default_expires_in = 7200
body_format = "json"
basic_form_encode = false
refresh_token_lifetime = 7776000
refresh_token_idle = 604800.5
max_concurrency = 4
issuer = "{ISSUER}"
extra_params = {{ resource = "https://graph.example", "audience" = "x" }}
response_path = "data.tokens"
replay_window = 30
refresh_token_rotates = true
scope_separator = ","
client_id_parameter = "client_key"
token_origins = ["https://old.example"]
resource_parameter = "audience"
failures = [{{ status = 400, contains = "gone", means = "reauthorization" }}]
private_key_file = "keys/ours.pem"
private_key_env = ""
key_id = "k1"
signing_alg = "PS256"
assertion_audience = "issuer"
certificate_file = "/etc/ours.crt"
certificate_key_file = "~/ours.key"
grant_type = "urn:ietf:params:oauth:grant-type:jwt-bearer"
assertion_subject = "bob@example.com"
assertion_claims = {{ box_sub_type = "enterprise", level = 5 }}
service_account_file = ""
"""


def test_the_file_can_set_everything(file: Path) -> None:
    assert from_file(file, EVERY_KEY) == Provider(
        "ours",
        ENDPOINT,
        "app",
        client_secret=SECRET,
        token_endpoint_auth_method="client_secret_basic",
        scope="a b",
        authorization_endpoint="https://auth.example/authorize",
        device_authorization_endpoint="https://auth.example/device",
        revocation_endpoint="https://auth.example/revoke",
        redirect_uri="http://127.0.0.1:8765/back",
        sign_in_scope="openid",
        authorization_params={"prompt": "consent"},
        authorization_response_iss_parameter_supported=True,
        default_expires_in=7200,
        body_format="json",
        basic_form_encode=False,
        refresh_token_lifetime=7776000,
        refresh_token_idle=604800.5,
        max_concurrency=4,
        issuer=ISSUER,
        extra_params={"resource": "https://graph.example", "audience": "x"},
        response_path="data.tokens",
        replay_window=30,
        refresh_token_rotates=True,
        scope_separator=",",
        client_id_parameter="client_key",
        token_origins=["https://old.example"],
        resource_parameter="audience",
        failures=[{"status": 400, "contains": "gone", "means": "reauthorization"}],
        private_key_file=str(file.parent / "keys" / "ours.pem"),
        private_key_env="",
        key_id="k1",
        signing_alg="PS256",
        assertion_audience="issuer",
        certificate_file="/etc/ours.crt",
        certificate_key_file=str(Path.home() / "ours.key"),
        grant_type="urn:ietf:params:oauth:grant-type:jwt-bearer",
        assertion_subject="bob@example.com",
        assertion_claims={"box_sub_type": "enterprise", "level": 5},
        service_account_file="",
    )


def test_every_setting_of_a_provider_is_a_key_of_the_file() -> None:
    settings = {field.name for field in dataclasses.fields(Provider)} - {"name"}

    assert {key for key in settings if f"\n{key} = " in EVERY_KEY} == settings


def test_a_provider_of_the_file_needs_no_more_than_an_issuer_and_a_client_id(file: Path) -> None:
    found = from_file(file, f'[ours]\nissuer = "{ISSUER}"\nclient_id = "app"')

    assert found == Provider("ours", None, "app", issuer=ISSUER)


def test_tokens_of_a_provider_of_the_file_may_never_expire(file: Path) -> None:
    content = f'[ours]\ntoken_endpoint = "{ENDPOINT}"\nclient_id = "a"\ndefault_expires_in = inf'

    assert from_file(file, content).default_expires_in == math.inf


def test_a_name_may_be_any_text(file: Path) -> None:
    content = f'["Ünser Anbieter"]\ntoken_endpoint = "{ENDPOINT}"\nclient_id = "app"'

    assert from_file(file, content, "Ünser Anbieter").name == "Ünser Anbieter"


def test_the_secret_may_be_in_a_variable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", SECRET)
    content = (
        f'[ours]\ntoken_endpoint = "{ENDPOINT}"\nclient_id = "app"\nclient_secret_env = "OURS"'
    )

    assert from_file(file, content).client_secret == SECRET


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set_is_named(
    value: str | None, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv("OURS", value)

    message = refused(file, '[ours]\nclient_id = "app"\nclient_secret_env = "OURS"')

    assert message == f"provider 'ours' in {file} requires the environment variable OURS"


WRONG = {
    "no table": ('ours = "x"', "expected a table"),
    "an array of tables": ("[[ours]]\n[[ours]]", "expected a table"),
    "unknown key": (f'[ours]\nbanana = "{SECRET}"', "unknown key 'banana'"),
    "misspelt key": (
        f'[ours]\nclient_secrte = "{SECRET}"',
        "unknown key 'client_secrte'; did you mean 'client_secret'?",
    ),
    "name is the table's": ('[ours]\nname = "other"', "unknown key 'name'"),
    "number for text": ("[ours]\nclient_id = 5", "client_id must be a string"),
    "list of scopes": ('[ours]\nscope = ["a", "b"]', "scope must be a string"),
    "list for a secret": (
        f'[ours]\nclient_secret = ["{SECRET}"]',
        "client_secret must be a string",
    ),
    "number for a variable": (
        "[ours]\nclient_secret_env = 1",
        "client_secret_env must be a string",
    ),
    "text for a number": (
        '[ours]\ndefault_expires_in = "3600"',
        "default_expires_in must be a number of seconds",
    ),
    "truth for a number": (
        "[ours]\ndefault_expires_in = true",
        "default_expires_in must be a number of seconds",
    ),
    "text for the life of the refresh token": (
        '[ours]\nrefresh_token_lifetime = "90 days"',
        "refresh_token_lifetime must be a number of seconds",
    ),
    "truth for the idle life": (
        "[ours]\nrefresh_token_idle = true",
        "refresh_token_idle must be a number of seconds",
    ),
    "fraction for a whole number": (
        "[ours]\nmax_concurrency = 1.5",
        "max_concurrency must be a whole number",
    ),
    "truth for a whole number": (
        "[ours]\nmax_concurrency = true",
        "max_concurrency must be a whole number",
    ),
    "text for true": (
        '[ours]\nbasic_form_encode = "yes"',
        "basic_form_encode must be true or false",
    ),
    "truth for text": ("[ours]\nbody_format = true", "body_format must be a string"),
    "text for a table": (
        f'[ours]\nextra_params = "{SECRET}"',
        "extra_params must be a table of strings",
    ),
    "numbers in a table": (
        "[ours]\nextra_params = { max_age = 5 }",
        "extra_params must be a table of strings",
    ),
    "two secrets": (
        f'[ours]\nclient_secret = "{SECRET}"\nclient_secret_env = "OURS"',
        "client_secret and client_secret_env are mutually exclusive",
    ),
}


@pytest.mark.parametrize(("content", "what"), WRONG.values(), ids=WRONG)
def test_an_error_names_file_table_and_key_and_never_a_value(
    content: str, what: str, file: Path
) -> None:
    assert refused(file, content) == f"provider 'ours' in {file}: {what}"


BROKEN = {
    "open string": (f'[ours]\nclient_secret = "{SECRET}\n', "not valid TOML at line 2"),
    "open string at the end": (f'[ours]\nclient_secret = "{SECRET}', "not valid TOML"),
    "secret without quotes": (f"[ours]\nclient_secret = {SECRET}", "not valid TOML at line 2"),
    "key twice": (
        f'[ours]\nclient_secret = "{SECRET}"\nclient_secret = "x"\n',
        "not valid TOML at line 3",
    ),
    "JSON": ('{"ours": {}}', "not valid TOML at line 1"),
}


@pytest.mark.parametrize(("content", "what"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_an_error_that_says_where(content: str, what: str, file: Path) -> None:
    assert refused(file, content) == f"{file}: {what}"


def test_a_file_that_is_not_text_is_an_error(file: Path) -> None:
    file.write_bytes(b"\xff\xfe[ours]")

    assert configuration_error(ProvidersFile(file, required=False).tables) == (
        f"{file}: not valid TOML"
    )


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert configuration_error(ProvidersFile(tmp_path / "file" / "x", required=False).tables) == (
        f"{tmp_path / 'file' / 'x'}: Not a directory"
    )


def test_a_missing_file_is_an_error_only_if_it_is_required(file: Path) -> None:
    assert ProvidersFile(file, required=False).tables() == {}
    assert configuration_error(ProvidersFile(file, required=True).tables) == (
        f"{file}: no such file"
    )


# -- changes of the file --------------------------------------------------------------------------


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that were parsed as TOML, in order."""
    texts: list[str] = []
    loads = tomllib.loads

    def count(text: str) -> Any:
        texts.append(text)
        return loads(text)

    monkeypatch.setattr(tomllib, "loads", count)
    return texts


def table(client_id: str) -> str:
    return f'[ours]\ntoken_endpoint = "{ENDPOINT}"\nclient_id = "{client_id}"\n'


def test_an_unchanged_file_is_parsed_once(file: Path, parses: list[str]) -> None:
    file.write_text(table("app"))
    providers = ProviderRegistry(None, file)

    for _ in range(5):
        assert providers.get("ours").client_id == "app"
        assert "ours" in providers.names()

    assert parses == [table("app")]


def rewrite(file: Path) -> None:
    """Write text of the same size, as an editor that keeps the file does."""
    before = file.stat()
    file.write_text(table("new"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # clocks may be coarse


def replace_file(file: Path) -> None:
    """Rename a file of the same size and time over it."""
    before = file.stat()
    other = file.with_name("other")
    other.write_text(table("new"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)


def extend(file: Path) -> None:
    """Change the size and not the time."""
    before = file.stat()
    file.write_text(table("new") + "# comment\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [rewrite, replace_file, extend])
def test_a_changed_file_is_seen_at_the_next_lookup(
    file: Path, parses: list[str], change: Callable[[Path], None]
) -> None:
    file.write_text(table("old"))
    providers = ProviderRegistry(None, file)
    assert providers.get("ours").client_id == "old"

    change(file)

    for _ in range(2):
        assert providers.get("ours").client_id == "new"
    assert len(parses) == 2


def test_a_file_that_appears_or_disappears_is_seen_at_the_next_lookup(file: Path) -> None:
    providers = ProviderRegistry(None, file)
    assert "ours" not in providers.names()
    file.write_text(table("app"))
    assert "ours" in providers.names()
    file.unlink()
    assert "ours" not in providers.names()


def test_a_broken_change_is_an_error_until_it_is_corrected(file: Path) -> None:
    file.write_text(table("old"))
    providers = ProviderRegistry(None, file)
    providers.get("ours")
    file.write_text("[ours")
    for _ in range(2):
        assert configuration_error(providers.get, "ours") == f"{file}: not valid TOML"
    file.write_text(table("corrected"))
    assert providers.get("ours").client_id == "corrected"


def test_the_environment_is_read_at_every_lookup(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(table("app") + 'client_secret_env = "OURS"\n')
    providers = ProviderRegistry(None, file)

    for secret in ("first", "second"):
        monkeypatch.setenv("OURS", secret)
        assert providers.get("ours").client_secret == secret
