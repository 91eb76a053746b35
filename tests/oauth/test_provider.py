from __future__ import annotations

import dataclasses
import math
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from tokenstore.errors import ProviderConfigurationError
from tokenstore.oauth.provider import AUTH_METHODS, Provider
from tokenstore.oauth.registry import ProviderRegistry

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "cs-canary-6e02"
ENDPOINT = "https://auth.example/token"
ISSUER = "https://auth.example"
VARIABLES = (
    "GOOGLE_CLIENT_ID",
    "GOOGLE_CLIENT_SECRET",
    "MS_CLIENT_ID",
    "MS_CLIENT_SECRET",
    "MS_TENANT_ID",
    "OURS",
)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "providers.toml"


def from_file(file: Path, content: str, name: str = "ours") -> Provider:
    file.write_text(content, "utf-8")
    return ProviderRegistry(None, file).get(name)


def refusal(providers: ProviderRegistry, name: str | Provider = "ours") -> str:
    with pytest.raises(ProviderConfigurationError) as caught:
        providers.get(name)
    error: BaseException | None = caught.value
    assert not caught.value.retryable
    while error is not None:
        assert SECRET not in f"{error} {error!r} {vars(error)}"
        error = error.__cause__ or error.__context__
    return str(caught.value)


def refused(file: Path, content: str, name: str = "ours") -> str:
    file.write_text(content, "utf-8")
    return refusal(ProviderRegistry(None, file), name)


def provider(**changes: Any) -> Provider:
    return Provider(**{"name": "ours", "token_endpoint": ENDPOINT, "client_id": "app", **changes})


# -- a provider of one's own ----------------------------------------------------------------------


def test_a_provider_needs_a_name_an_endpoint_and_a_client_id() -> None:
    minimal = Provider("ours", ENDPOINT, "app")

    minimal.require_usable()
    assert dataclasses.asdict(minimal) == {
        "name": "ours",
        "token_endpoint": ENDPOINT,
        "client_id": "app",
        "client_secret": None,
        "token_endpoint_auth_method": None,
        "scope": None,
        "authorization_endpoint": None,
        "device_authorization_endpoint": None,
        "revocation_endpoint": None,
        "redirect_uri": "http://127.0.0.1/callback",
        "sign_in_scope": None,
        "authorization_params": {},
        "authorization_response_iss_parameter_supported": False,
        "extra_params": {},
        "default_expires_in": 3600.0,
        "body_format": "form",
        "basic_form_encode": True,
        "refresh_token_lifetime": None,
        "refresh_token_idle": None,
        "max_concurrency": None,
        "issuer": None,
    }


def test_everything_else_is_keyword_only() -> None:
    with pytest.raises(TypeError):
        Provider("ours", ENDPOINT, "app", SECRET)  # type: ignore[call-arg]


def test_a_provider_does_not_show_its_secret() -> None:
    secretive = provider(client_secret=SECRET, extra_params={"assertion": SECRET})

    assert SECRET not in f"{secretive} {secretive!r}"
    assert pickle.loads(pickle.dumps(secretive)) == secretive


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({}, "none"),
        ({"client_secret": SECRET}, "client_secret_post"),
        (
            {"client_secret": SECRET, "token_endpoint_auth_method": "client_secret_basic"},
            "client_secret_basic",
        ),
        ({"client_secret": SECRET, "token_endpoint_auth_method": "none"}, "none"),
    ],
    ids=["public", "secret", "basic", "secret that is not used"],
)
def test_the_client_authenticates_as_it_was_told_or_as_it_can(
    settings: dict[str, str], method: str
) -> None:
    chosen = provider(**settings)

    chosen.require_usable()
    assert chosen.auth_method == method


def test_a_verdict_is_about_one_client_at_one_endpoint() -> None:
    clients = {
        provider(**changes).client
        for changes in (
            {},
            {"client_id": "other"},
            {"token_endpoint": "https://other.example/token"},
            {"token_endpoint": None, "issuer": ISSUER},
        )
    }

    assert len(clients) == 4
    assert provider(client_secret="new", scope="other").client == provider().client


UNUSABLE = {
    "no client_id": ({"client_id": ""}, "client_id"),
    "client_id is a number": ({"client_id": 5}, "client_id"),
    "client_id is None": ({"client_id": None}, "client_id"),
    "unknown auth method": (
        {"token_endpoint_auth_method": SECRET, "client_secret": SECRET},
        "client_secret_basic, client_secret_post, none",
    ),
    "basic without secret": (
        {"token_endpoint_auth_method": "client_secret_basic"},
        "client_secret_basic",
    ),
    "post without secret": (
        {"token_endpoint_auth_method": "client_secret_post"},
        "client_secret_post",
    ),
    "empty secret": ({"client_secret": ""}, "client_secret"),
    "no endpoint": ({"token_endpoint": None}, "token_endpoint"),
    "empty endpoint": ({"token_endpoint": ""}, "token_endpoint"),
    "no lifetime": ({"default_expires_in": 0}, "default_expires_in"),
    "negative lifetime": ({"default_expires_in": -1}, "default_expires_in"),
    "NaN lifetime": ({"default_expires_in": math.nan}, "default_expires_in"),
    "unknown body format": ({"body_format": "xml"}, "body_format"),
    "no life of the refresh token": ({"refresh_token_lifetime": 0}, "refresh_token_lifetime"),
    "negative idle life": ({"refresh_token_idle": -1.5}, "refresh_token_idle"),
    "no concurrency": ({"max_concurrency": 0}, "max_concurrency"),
}


@pytest.mark.parametrize(("changes", "named"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_provider_is_refused_by_name_and_setting(
    changes: dict[str, Any], named: str
) -> None:
    message = refusal(ProviderRegistry(None, None), provider(**changes))

    assert message.startswith("provider 'ours' ")
    assert named in message


ALLOWED_URLS = [
    "https://auth.example/token",
    "HTTPS://auth.example/token",
    "https://auth.example:8443/token?v=2",
    "https://auth.example",
    "https://[2001:db8::1]/token",
    "http://localhost/token",
    "http://localhost:8080/token",
    "http://127.0.0.1:1/token",
    "http://127.9.8.7/token",
    "http://[::1]:8080/token",
]
REFUSED_URLS = {
    "http": "http://auth.example/token",
    "http to a local network": "http://192.168.1.1/token",
    "http to all addresses": "http://0.0.0.0/token",
    "http to a name like localhost": "http://localhost.example/token",
    "http to a name like 127.0.0.1": "http://127.0.0.1.example/token",
    "http to a short address": "http://127.1/token",
    "user": "https://user@auth.example/token",
    "user and password": f"https://user:{SECRET}@auth.example/token",
    "empty user": "https://@auth.example/token",
    "localhost as user": "http://localhost@auth.example/token",
    "fragment": f"https://auth.example/token#{SECRET}",
    "no host": "https:///token",
    "no scheme": "auth.example/token",
    "ftp": "ftp://auth.example/token",
    "file": "file:///etc/passwd",
    "javascript": "javascript:alert(1)",
    "bad port": "https://auth.example:port/token",
    "port too high": "https://auth.example:65536/token",
    "bad IPv6": "https://[::1/token",
    "blank": "https://auth.example/ token",
    "leading blank": " https://auth.example/token",
    "newline": "https://auth.example/token\n",
    "newline in the host": "https://auth.\nexample/token",
}


@pytest.mark.parametrize("kind", ["token_endpoint", "issuer"])
@pytest.mark.parametrize("url", ALLOWED_URLS)
def test_secrets_are_sent_over_https_or_on_loopback(kind: str, url: str) -> None:
    provider(**{kind: url}).require_usable()


@pytest.mark.parametrize("kind", ["token_endpoint", "issuer"])
@pytest.mark.parametrize("url", REFUSED_URLS.values(), ids=REFUSED_URLS)
def test_any_other_url_is_refused_and_not_quoted(kind: str, url: str) -> None:
    message = refusal(ProviderRegistry(None, None), provider(**{kind: url}))

    assert f"provider 'ours' has an invalid {kind}: it " in message
    assert url not in message


# -- the built-in ones ----------------------------------------------------------------------------


def test_google_is_configured_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_CLIENT_ID", "g-app")
    monkeypatch.setenv("GOOGLE_CLIENT_SECRET", SECRET)

    google = ProviderRegistry(None, None).get("google")

    assert (google.name, google.client_id, google.client_secret) == ("google", "g-app", SECRET)
    assert google.token_endpoint == "https://oauth2.googleapis.com/token"
    assert google.auth_method == "client_secret_post"


@pytest.mark.parametrize(
    ("secret", "method"), [(None, "none"), ("", "none"), (SECRET, "client_secret_post")]
)
def test_microsoft_is_configured_by_the_environment_with_or_without_a_secret(
    secret: str | None, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MS_CLIENT_ID", "m-app")
    if secret is not None:
        monkeypatch.setenv("MS_CLIENT_SECRET", secret)

    microsoft = ProviderRegistry(None, None).get("microsoft")

    assert (microsoft.client_id, microsoft.auth_method) == ("m-app", method)


@pytest.mark.parametrize(
    ("tenant", "used"), [(None, "common"), ("", "common"), ("contoso.example", "contoso.example")]
)
def test_microsoft_signs_in_with_the_tenant_of_the_environment(
    tenant: str | None, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MS_CLIENT_ID", "m-app")
    if tenant is not None:
        monkeypatch.setenv("MS_TENANT_ID", tenant)

    microsoft = ProviderRegistry(None, None).get("microsoft")

    base = f"https://login.microsoftonline.com/{used}/oauth2/v2.0"
    assert microsoft.token_endpoint == f"{base}/token"
    assert microsoft.authorization_endpoint == f"{base}/authorize"
    assert microsoft.device_authorization_endpoint == f"{base}/devicecode"


@pytest.mark.parametrize(
    ("name", "present", "missing"),
    [
        ("google", {}, "GOOGLE_CLIENT_ID and GOOGLE_CLIENT_SECRET"),
        ("google", {"GOOGLE_CLIENT_ID": "x"}, "GOOGLE_CLIENT_SECRET"),
        ("google", {"GOOGLE_CLIENT_SECRET": SECRET}, "GOOGLE_CLIENT_ID"),
        ("google", {"GOOGLE_CLIENT_ID": "", "GOOGLE_CLIENT_SECRET": SECRET}, "GOOGLE_CLIENT_ID"),
        ("microsoft", {"MS_CLIENT_SECRET": SECRET}, "MS_CLIENT_ID"),
    ],
    ids=["none of google", "google secret", "google id", "google id empty", "microsoft id"],
)
def test_a_missing_variable_is_named(
    name: str, present: dict[str, str], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in present.items():
        monkeypatch.setenv(variable, value)

    message = refusal(ProviderRegistry(None, None), name)

    assert message == f"provider {name!r} requires the environment variables {missing}"


def test_the_environment_is_read_when_a_provider_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    providers = ProviderRegistry(None, None)
    refusal(providers, "microsoft")

    monkeypatch.setenv("MS_CLIENT_ID", "first")
    assert providers.get("microsoft").client_id == "first"
    monkeypatch.setenv("MS_CLIENT_ID", "second")
    assert providers.get("microsoft").client_id == "second"


# -- which provider a name means ------------------------------------------------------------------


def test_a_provider_that_is_given_itself_is_used_as_it_is() -> None:
    ours = provider()

    assert ProviderRegistry(None, None).get(ours) is ours


def test_given_providers_come_before_the_file_and_the_file_before_the_built_in(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MS_CLIENT_ID", "built in")
    file.write_text('[microsoft]\nclient_id = "file"\n')
    given = Provider("microsoft", ENDPOINT, "given")

    assert ProviderRegistry({"microsoft": given}, file).get("microsoft") is given
    assert ProviderRegistry({}, file).get("microsoft").client_id == "file"
    file.unlink()
    assert ProviderRegistry({}, file).get("microsoft").client_id == "built in"


def test_a_given_provider_is_bound_to_by_the_name_it_is_given_under() -> None:
    work = ProviderRegistry({"work": provider()}, None).get("work")

    assert work == provider(name="work")


def test_what_is_given_later_is_not_seen() -> None:
    given = {"ours": provider()}
    providers = ProviderRegistry(given, None)
    given.clear()

    assert providers.get("ours") == provider()


def test_all_names_are_listed_in_order(file: Path) -> None:
    file.write_text('[beta]\n[google]\nclient_id = "x"\n')

    names = ProviderRegistry({"zeta": provider(), "alpha": provider()}, file).names()

    assert names == ["alpha", "beta", "google", "microsoft", "zeta"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("googel", "did you mean 'google'?"),
        ("Microsoft", "did you mean 'microsoft'?"),
        ("our", "did you mean 'ours'?"),
        ("zzz", "configured: google, microsoft, ours; add others to {file}"),
        ("", "configured: google, microsoft, ours; add others to {file}"),
    ],
)
def test_an_unknown_name_suggests_a_close_one_or_lists_all(
    name: str, hint: str, file: Path
) -> None:
    file.write_text("[ours]\n")

    with pytest.raises(ProviderConfigurationError) as caught:
        ProviderRegistry(None, file).get(name)

    assert str(caught.value) == f"unknown provider {name!r}; {hint.format(file=file)}"
    assert caught.value.provider == name


# -- providers.toml -------------------------------------------------------------------------------

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


def test_names_need_not_be_plain(file: Path) -> None:
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


def test_the_file_overrides_single_keys_of_a_built_in_provider(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_CLIENT_ID", "g-app")
    monkeypatch.setenv("GOOGLE_CLIENT_SECRET", SECRET)

    google = from_file(file, '[google]\nscope = "x"\ndefault_expires_in = 60.5', "google")

    assert (google.scope, google.default_expires_in) == ("x", 60.5)
    assert (google.client_id, google.client_secret) == ("g-app", SECRET)
    assert google.token_endpoint == "https://oauth2.googleapis.com/token"


def test_the_file_can_configure_a_built_in_provider_without_the_environment(file: Path) -> None:
    content = f'[google]\nclient_id = "g-app"\nclient_secret = "{SECRET}"'

    assert from_file(file, content, "google").client_secret == SECRET
    assert "client_secret" in refused(file, '[google]\nclient_id = "g-app"', "google")


def test_a_changed_file_is_seen_at_the_next_use(file: Path) -> None:
    providers = ProviderRegistry(None, file)
    content = f'[ours]\ntoken_endpoint = "{ENDPOINT}"\nclient_id = '

    file.write_text(f'{content}"first"')
    assert providers.get("ours").client_id == "first"
    file.write_text(f'{content}"second"')
    assert providers.get("ours").client_id == "second"


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
@pytest.mark.parametrize("name", ["ours", "google"])
def test_a_broken_file_is_an_error_that_says_where(
    content: str, what: str, name: str, file: Path
) -> None:
    assert refused(file, content, name) == f"{file}: {what}"


def test_a_file_that_is_not_text_is_an_error(file: Path) -> None:
    file.write_bytes(b"\xff\xfe[ours]")

    assert refusal(ProviderRegistry(None, file)) == f"{file}: not valid TOML"


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    assert refusal(ProviderRegistry(None, tmp_path)) == f"{tmp_path}: Is a directory"


def test_a_missing_file_is_an_error_only_if_it_was_named(file: Path) -> None:
    assert "unknown provider" in refusal(ProviderRegistry(None, file))
    assert refusal(ProviderRegistry(None, file, required=True)) == f"{file}: no such file"


def test_given_providers_do_not_need_the_file(file: Path) -> None:
    file.write_text("broken")

    assert ProviderRegistry({"ours": provider()}, file).get("ours") == provider()


# -- metadata of an issuer ------------------------------------------------------------------------

METADATA = {
    "issuer": ISSUER,
    "token_endpoint": ENDPOINT,
    "authorization_endpoint": "https://auth.example/authorize",
    "device_authorization_endpoint": "https://auth.example/device",
    "revocation_endpoint": "https://auth.example/revoke",
    "scopes_supported": ["openid"],
}


def of_issuer(**changes: Any) -> Provider:
    return provider(**{"token_endpoint": None, "issuer": ISSUER, **changes})


def test_metadata_fill_the_endpoints_that_are_missing() -> None:
    assert of_issuer().with_metadata(METADATA) == provider(
        issuer=ISSUER,
        authorization_endpoint="https://auth.example/authorize",
        device_authorization_endpoint="https://auth.example/device",
        revocation_endpoint="https://auth.example/revoke",
    )


def test_metadata_replace_nothing_that_was_configured() -> None:
    configured = of_issuer(revocation_endpoint="https://auth.example/other")

    found = configured.with_metadata(METADATA)

    assert found.revocation_endpoint == "https://auth.example/other"
    assert found.token_endpoint == ENDPOINT


def test_metadata_may_be_sparse_and_odd() -> None:
    sparse = {**METADATA, "revocation_endpoint": None, "authorization_endpoint": ["x"]}

    found = of_issuer().with_metadata(sparse)

    assert (found.revocation_endpoint, found.authorization_endpoint) == (None, None)


BAD_METADATA = {
    "another issuer": ({**METADATA, "issuer": "https://evil.example"}, "issuer"),
    "issuer with a slash": ({**METADATA, "issuer": f"{ISSUER}/"}, "issuer"),
    "no issuer": ({**METADATA, "issuer": None}, "issuer"),
    "empty": ({}, "issuer"),
    "no token endpoint": ({"issuer": ISSUER}, "token_endpoint"),
    "empty token endpoint": ({**METADATA, "token_endpoint": ""}, "token_endpoint"),
    "token endpoint is a list": ({**METADATA, "token_endpoint": [ENDPOINT]}, "token_endpoint"),
    "http": ({**METADATA, "token_endpoint": "http://auth.example/token"}, "https"),
    "password": ({**METADATA, "token_endpoint": "https://u:p@auth.example/"}, "password"),
}


@pytest.mark.parametrize(("metadata", "named"), BAD_METADATA.values(), ids=BAD_METADATA)
def test_metadata_that_cannot_be_trusted_are_refused(metadata: dict[str, Any], named: str) -> None:
    with pytest.raises(ProviderConfigurationError) as caught:
        of_issuer().with_metadata(metadata)

    assert named in str(caught.value)
    assert caught.value.provider == "ours"


def test_the_auth_methods_are_those_of_the_contract() -> None:
    assert AUTH_METHODS == ("client_secret_basic", "client_secret_post", "none")
