from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.refreshes import World, denied
from tests.helpers.sign_in import Visitor, claims_of, nobody, with_claims
from tokenstore import (
    ClientRejectedError,
    Prompt,
    ProviderConfigurationError,
    SignInError,
    TransientRefreshError,
    WrongAccountError,
)
from tokenstore.testing import Answer, Drop, Transform

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PENDING = denied("authorization_pending")


class Sleeper:
    """Sleeps by setting the clock, and calls functions after chosen waits.

    Args:
        world: The world with the clock.
        acts: Functions to call in the first, second … wait, or None.
        early: The number of first waits that end too early.
    """

    def __init__(self, world: World, *acts: Callable[[], object] | None, early: int = 0) -> None:
        self._clock = world.clock
        self._acts = list(acts)
        self._early = early
        self.slept: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._clock.now += seconds * (0.9 if len(self.slept) <= self._early else 1.0)
        if self._acts and (act := self._acts.pop(0)):
            act()


class Later(Visitor):
    """A user who reads the instructions and follows them later."""

    def __call__(self, prompt: Prompt) -> None:
        self.prompts.append(prompt)

    def go(self) -> None:
        super().__call__(self.prompts[-1])

    @property
    def prompt(self) -> Prompt:
        return self.prompts[-1]


def login(world: World, visitor: Callable[[Prompt], object], wait: Sleeper, **more: Any) -> Any:
    return world.manager().login("alice", "test", device=True, prompt=visitor, sleep=wait, **more)


def refused(world: World, visitor: Callable[[Prompt], object], wait: Sleeper, **more: Any) -> Any:
    with pytest.raises(SignInError) as caught:
        login(world, visitor, wait, **more)
    assert world.manager().load_tokens("alice") is None
    return caught.value


def test_a_device_polls_until_the_code_is_entered(world: World) -> None:
    visitor = Later(world)
    sleeper = Sleeper(world, None, None, visitor.go)
    tokens = login(world, visitor, sleeper, scope="mail")

    assert world.manager().load_tokens("alice") == tokens
    assert world.server.is_live(tokens["access_token"])
    assert sleeper.slept == [5, 5, 5]
    assert [request.error for request in world.server.requests] == [
        "authorization_pending",
        "authorization_pending",
        None,
    ]
    [begun] = world.server.requests_at("/device_authorization")
    assert begun.params["scope"] == tokens["scope"] == "openid mail"
    prompt = visitor.prompt
    assert prompt.url == f"{world.server.issuer}/device"
    assert prompt.url_complete == f"{prompt.url}?user_code={prompt.user_code}"
    assert prompt.redirect_uri is None
    assert str(prompt.user_code) not in repr(prompt)
    assert world.row()["provider"] == "test"
    assert world.manager().refresh_token("alice")


def test_the_code_can_be_typed(world: World) -> None:
    def enter(prompt: Prompt) -> None:
        code = str(prompt.user_code).lower().replace("-", "")
        assert "Done" in world.server.visit(prompt.url, user_code=code).text

    assert login(world, enter, Sleeper(world))


@pytest.mark.parametrize("method", ["client_secret_basic", "none"])
def test_every_kind_of_client_signs_in(tmp_path: Path, method: str) -> None:
    secret = None if method == "none" else "p+a/b=:%é€"
    with World(tmp_path, client_secret=secret, token_endpoint_auth_method=method) as world:
        tokens = login(world, Visitor(world), Sleeper(world))
        assert claims_of(tokens["id_token"])["sub"] == "alice"


def test_polling_too_often_slows_down(world: World) -> None:
    visitor = Later(world)
    sleeper = Sleeper(world, None, None, None, visitor.go, early=2)
    login(world, visitor, sleeper)
    errors = [request.error for request in world.server.requests]
    assert errors == ["authorization_pending", "slow_down", "authorization_pending", None]
    assert sleeper.slept == [5, 5, 10, 10]


def test_slow_down_adds_up(world: World) -> None:
    world.server.script(denied("slow_down"), denied("slow_down", 403), PENDING)
    sleeper = Sleeper(world)
    login(world, Visitor(world), sleeper)
    assert sleeper.slept == [5, 10, 15, 15]


def test_polling_continues_after_a_lost_connection(world: World) -> None:
    world.server.script(Drop(spent=False), Answer(503), PENDING)
    sleeper = Sleeper(world)
    login(world, Visitor(world), sleeper)
    assert sleeper.slept == [5, 10, 20, 20]


def test_retry_after_is_respected(world: World) -> None:
    world.server.script(denied("too_many_requests", 429, Retry_After="60"))
    sleeper = Sleeper(world)
    login(world, Visitor(world), sleeper)
    assert sleeper.slept == [5, 60]


@pytest.mark.parametrize("error", ["access_denied", "authorization_declined"])
def test_a_refusal_ends_the_sign_in(world: World, error: str) -> None:
    world.server.script(PENDING, denied(error))
    caught = refused(world, Visitor(world), Sleeper(world))
    assert caught.error == "access_denied"
    assert world.posts == 2


def test_a_user_who_refuses_ends_the_sign_in(world: World) -> None:
    assert refused(world, Visitor(world, allow=False), Sleeper(world)).error == "access_denied"


def test_an_expired_code_ends_the_sign_in(tmp_path: Path) -> None:
    with World(tmp_path, device_expires_in=17) as world:
        sleeper = Sleeper(world)
        error = refused(world, lambda _: None, sleeper)
        assert error.error == "expired_token"
        assert "expired before it was entered" in str(error)
        assert sleeper.slept == [5, 5, 5, 2]


def test_the_server_may_report_the_expiry_first(world: World) -> None:
    world.server.script(denied("expired_token"))
    assert refused(world, Visitor(world), Sleeper(world)).error == "expired_token"


def test_the_timeout_may_be_shorter_than_the_code_is_valid(world: World) -> None:
    sleeper = Sleeper(world)
    visitor = Later(world)
    refused(world, visitor, sleeper, timeout=12)
    assert sum(sleeper.slept) == 12
    assert visitor.prompt.expires_at == world.clock.now


def test_a_different_user_is_refused(world: World) -> None:
    login(world, Visitor(world), Sleeper(world))
    row = world.row()
    with pytest.raises(WrongAccountError):
        login(world, Visitor(world, "bob"), Sleeper(world))
    assert world.row() == row
    assert len(world.server.requests_at("/revoke")) == 2
    assert login(world, Visitor(world, "bob"), Sleeper(world), force=True)


def test_the_user_of_another_address_is_refused(world: World) -> None:
    """RFC 8628 section 5.4: anybody who sees the code can enter it."""
    manager = world.manager()
    for force in (False, True):
        with suppress(WrongAccountError):
            manager.login(
                "alice@example.com",
                "test",
                device=True,
                force=force,
                prompt=Visitor(world, "bob"),
                sleep=Sleeper(world),
            )
        assert (manager.load_tokens("alice@example.com") is not None) is force


def test_the_id_token_is_checked(world: World) -> None:
    world.server.script(with_claims(aud="another-client"))
    assert "'aud'" in str(refused(world, Visitor(world), Sleeper(world)))


# -- the device authorization response ------------------------------------------------------------


def authorization(**changes: object) -> Transform:
    """Change fields of the device authorization response; None removes one."""
    return Transform(lambda answer: {k: v for k, v in (answer | changes).items() if v is not None})


def test_the_url_may_have_its_other_name(world: World) -> None:
    """Google calls it verification_url."""
    url = f"{world.server.issuer}/device"
    step = authorization(
        verification_uri=None, verification_uri_complete=None, verification_url=url
    )
    world.server.script(step, path="/device_authorization")
    shown: list[Prompt] = []

    def enter(prompt: Prompt) -> None:
        shown.append(prompt)
        world.server.visit(prompt.url, user_code=str(prompt.user_code))

    assert login(world, enter, Sleeper(world))
    assert (shown[0].url, shown[0].url_complete) == (url, None)


@pytest.mark.parametrize(
    ("interval", "waits"), [(None, 5), (0, 5), (-3, 1), ("7", 7), ("soon", 5), (0.1, 1)], ids=str
)
def test_an_invalid_interval_is_replaced(world: World, interval: object, waits: float) -> None:
    world.server.script(authorization(interval=interval), path="/device_authorization")
    sleeper = Sleeper(world)
    login(world, Visitor(world), sleeper)
    assert sleeper.slept == [waits]


def test_without_an_expiry_of_the_code_the_timeout_applies(world: World) -> None:
    world.server.script(authorization(expires_in=None), path="/device_authorization")
    sleeper = Sleeper(world)
    refused(world, lambda _: None, sleeper)
    assert sum(sleeper.slept) == 300


@pytest.mark.parametrize(
    "changes",
    [
        {"user_code": None},
        {"user_code": 7},
        {"user_code": "A\x1b[31m"},
        {"verification_uri": None},
        {"verification_uri": "javascript:alert(1)"},
        {"verification_uri": "https://x.example/\n"},
        {"verification_uri": ["https://x.example/"]},
    ],
    ids=str,
)
def test_a_response_that_cannot_be_shown_ends_the_sign_in(
    world: World, changes: dict[str, Any]
) -> None:
    world.server.script(authorization(**changes), path="/device_authorization")
    assert "no URL" in str(refused(world, nobody, Sleeper(world)))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (Answer(503), TransientRefreshError),
        (Drop(spent=True), TransientRefreshError),
        (denied("invalid_client", 401), ClientRejectedError),
        (denied("unauthorized_client"), ClientRejectedError),
        (Answer(200, "<html>"), TransientRefreshError),
        (Answer.redirect("http://elsewhere.example/"), ClientRejectedError),
        (authorization(device_code=None), TransientRefreshError),
    ],
    ids=lambda case: repr(case).partition(" at 0x")[0],
)
def test_a_failed_device_authorization_raises_like_any_other_response(
    world: World, step: Any, expected: type[Exception]
) -> None:
    world.server.script(step, path="/device_authorization")
    with pytest.raises(expected):
        login(world, nobody, Sleeper(world))
    assert world.posts == 0


@pytest.mark.parametrize("endpoint", [None, "http://login.example/device"])
def test_a_provider_without_a_usable_endpoint_is_an_error(
    world: World, endpoint: str | None
) -> None:
    provider = world.server.provider(device_authorization_endpoint=endpoint, issuer=None)
    manager = world.manager(providers={"test": provider})
    with pytest.raises(ProviderConfigurationError, match="device_authorization_endpoint"):
        manager.login("alice", "test", device=True, prompt=nobody)


def test_a_device_code_that_is_echoed_is_not_quoted(world: World) -> None:
    codes: list[str] = []

    def echo(answer: dict[str, Any]) -> dict[str, Any]:
        codes.append(answer["device_code"])
        said = {"error": "invalid_grant", "error_description": f"no {codes[0]}"}
        world.server.script(Answer(400, said))
        return answer

    world.server.script(Transform(echo), path="/device_authorization")
    error = refused(world, lambda _: None, Sleeper(world))
    assert "[redacted]" in str(error)
    assert codes[0] not in str(error) + repr(vars(error))
