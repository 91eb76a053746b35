from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.providers import ENDPOINT, SECRET, configuration_error, provider
from tokenstore.errors import ProviderConfigurationError
from tokenstore.oauth.builtin import built_in
from tokenstore.oauth.provider import Provider
from tokenstore.oauth.registry import ProviderRegistry

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("bare_environment")


# -- lookup by name -------------------------------------------------------------------------------


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


def test_later_changes_of_the_mapping_are_not_seen() -> None:
    given = {"ours": provider()}
    providers = ProviderRegistry(given, None)
    given.clear()

    assert providers.get("ours") == provider()


def test_all_names_are_listed_in_order(file: Path) -> None:
    file.write_text('[beta]\n[google]\nclient_id = "x"\n')

    names = ProviderRegistry({"zeta": provider(), "alpha": provider()}, file).names()

    assert names == sorted({"alpha", "beta", "zeta", *built_in()})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("googel", "did you mean 'google'?"),
        ("Microsoft", "did you mean 'microsoft'?"),
        ("our", "did you mean 'ours'?"),
        ("zzz", "see: tokenstore providers; add others to {file}"),
        ("", "see: tokenstore providers; add others to {file}"),
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


def test_given_providers_do_not_need_the_file(file: Path) -> None:
    file.write_text("broken")

    assert ProviderRegistry({"ours": provider()}, file).get("ours") == provider()


# -- built-in providers ---------------------------------------------------------------------------


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
        ("google", {}, "variables GOOGLE_CLIENT_ID and GOOGLE_CLIENT_SECRET"),
        ("google", {"GOOGLE_CLIENT_ID": "x"}, "variable GOOGLE_CLIENT_SECRET"),
        ("google", {"GOOGLE_CLIENT_SECRET": SECRET}, "variable GOOGLE_CLIENT_ID"),
        (
            "google",
            {"GOOGLE_CLIENT_ID": "", "GOOGLE_CLIENT_SECRET": SECRET},
            "variable GOOGLE_CLIENT_ID",
        ),
        ("microsoft", {"MS_CLIENT_SECRET": SECRET}, "variable MS_CLIENT_ID"),
    ],
    ids=["none of google", "google secret", "google id", "google id empty", "microsoft id"],
)
def test_a_missing_variable_is_named(
    name: str, present: dict[str, str], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in present.items():
        monkeypatch.setenv(variable, value)

    message = configuration_error(ProviderRegistry(None, None).get, name)

    assert message == f"provider {name!r} requires the environment {missing}"


def test_the_environment_is_read_when_a_provider_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    providers = ProviderRegistry(None, None)
    configuration_error(providers.get, "microsoft")

    monkeypatch.setenv("MS_CLIENT_ID", "first")
    assert providers.get("microsoft").client_id == "first"
    monkeypatch.setenv("MS_CLIENT_ID", "second")
    assert providers.get("microsoft").client_id == "second"


def test_the_file_overrides_single_keys_of_a_built_in_provider(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_CLIENT_ID", "g-app")
    monkeypatch.setenv("GOOGLE_CLIENT_SECRET", SECRET)

    file.write_text('[google]\nscope = "x"\ndefault_expires_in = 60.5')
    google = ProviderRegistry(None, file).get("google")

    assert (google.scope, google.default_expires_in) == ("x", 60.5)
    assert (google.client_id, google.client_secret) == ("g-app", SECRET)
    assert google.token_endpoint == "https://oauth2.googleapis.com/token"


def test_the_file_can_configure_a_built_in_provider_without_the_environment(file: Path) -> None:
    file.write_text(f'[google]\nclient_id = "g-app"\nclient_secret = "{SECRET}"')
    assert ProviderRegistry(None, file).get("google").client_secret == SECRET

    file.write_text('[google]\nclient_id = "g-app"')
    assert "client_secret" in configuration_error(ProviderRegistry(None, file).get, "google")
