from __future__ import annotations

import pytest

from tokenstore import InvalidTokenError
from tokenstore.errors import TokenRefreshError
from tokenstore.models.targets import Target, is_refused_target

API, FILES = "https://api.example.com", "urn:files"


def test_without_scope_and_resource_there_is_no_target() -> None:
    assert Target.of(None, None) is None


@pytest.mark.parametrize(
    "scope", ["mail read", "read mail", " read  mail read", ["read", "mail"], iter(["mail read"])]
)
def test_the_order_and_the_kind_of_a_scope_do_not_matter(scope: object) -> None:
    target = Target.of(scope, None)  # type: ignore[arg-type]
    assert target == Target(("mail", "read"))
    assert target.text == target.scope == "mail read"


def test_a_resource_is_a_uri_or_several() -> None:
    assert Target.of(None, API) == Target((), (API,))
    assert Target.of("mail", [FILES, API, FILES]) == Target(("mail",), (API, FILES))


@pytest.mark.parametrize(
    "target",
    [Target(("mail", "read")), Target((), (API, FILES)), Target(("mail", "resource=x"), (API,))],
)
def test_the_text_has_all_of_a_target(target: Target) -> None:
    assert Target.parse(target.text) == target


def test_different_targets_have_different_digests() -> None:
    targets = [Target((API,)), Target((), (API,)), Target(("a", "b")), Target(("a",), ("b",))]
    assert len({target.digest for target in targets}) == len(targets)
    assert {len(target.digest) for target in targets} == {32}


@pytest.mark.parametrize(
    ("scope", "resource", "field"),
    [
        ("", None, "scope"),
        ("  ", None, "scope"),
        ([], None, "scope"),
        (["mail", ""], None, "scope"),
        (5, None, "scope"),
        (["mail", 5], None, "scope"),
        (b"mail", None, "scope"),
        ('ma"il', None, "scope"),
        ("mail\nread", None, "scope"),
        ("maïl", None, "scope"),
        (None, "", "resource"),
        (None, [], "resource"),
        (None, "two words", "resource"),
        (None, 'https://a"', "resource"),
        ("mail" * 2000, None, "scope"),
    ],
)
def test_an_argument_that_names_nothing_is_refused(
    scope: object, resource: object, field: str
) -> None:
    with pytest.raises(InvalidTokenError) as caught:
        Target.of(scope, resource)  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("error", "description", "expected"),
    [
        ("invalid_scope", None, True),
        ("invalid_target", None, True),
        ("invalid_grant", "AADSTS65001: The user has not consented to use the application", True),
        ("invalid_grant", "AADSTS70008: The refresh token has expired", False),
        ("invalid_client", None, False),
        (None, None, False),
    ],
)
def test_some_refusals_are_about_the_target_alone(
    error: str | None, description: str | None, *, expected: bool
) -> None:
    refusal = TokenRefreshError("refused", error=error, error_description=description)
    assert is_refused_target(Target(("mail",)), refusal) is expected
    assert not is_refused_target(None, refusal)
