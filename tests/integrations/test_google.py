from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from google.auth.credentials import with_scopes_if_required
from google.auth.exceptions import RefreshError
from google.auth.transport.requests import AuthorizedSession

from tests.helpers.refreshes import SOON, Call, World, denied, until
from tests.helpers.resource_server import Resource, refused, stored
from tokenstore import InvalidTokenError, ReauthorizationRequired, TransientRefreshError
from tokenstore.integrations.google import Credentials
from tokenstore.testing import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        world.clock.now = time.time()  # google-auth uses the system clock
        yield world


@pytest.fixture
def credentials(world: World) -> Credentials:
    return Credentials(world.manager(), "alice")


@pytest.fixture
def session(credentials: Credentials) -> Iterator[AuthorizedSession]:
    with AuthorizedSession(credentials) as session:  # type: ignore[no-untyped-call]
        yield session


def test_every_request_carries_the_valid_token(
    world: World, resource: Resource, session: AuthorizedSession
) -> None:
    world.sign_in()
    for _ in range(2):
        assert session.get(resource.url, timeout=SOON).status_code == 200
    assert resource.tokens == [stored(world)] * 2
    assert world.posts == 1  # it had expired


def test_a_refused_token_is_refreshed_and_the_request_is_retried(
    world: World, resource: Resource, session: AuthorizedSession, credentials: Credentials
) -> None:
    old = refused(world)
    answer = session.post(resource.url, data=b"body", timeout=SOON)
    assert answer.json() == {"status": 200, "body": "body"}
    assert resource.tokens == [old, stored(world)]
    assert credentials.token == world.tokens()[0]
    assert world.posts == 1


def test_a_token_that_was_replaced_needs_no_request(
    world: World, resource: Resource, session: AuthorizedSession, credentials: Credentials
) -> None:
    old = refused(world)
    credentials.refresh(None)
    world.sign_in(expires_in=3600)
    assert session.get(resource.url, timeout=SOON).status_code == 200
    assert resource.tokens == [old, stored(world)]
    assert world.posts == 0


def test_a_refused_token_that_is_about_to_expire_is_refreshed(
    world: World, resource: Resource
) -> None:
    old = refused(world, expires_in=100)
    credentials = Credentials(world.manager(expiry_buffer=0), "alice")
    with AuthorizedSession(credentials) as session:  # type: ignore[no-untyped-call]
        assert session.get(resource.url, timeout=SOON).status_code == 200
    assert resource.tokens == [old, stored(world)]
    assert world.posts == 1


def test_tokens_with_a_short_lifetime_are_not_refreshed_each_time(
    resource: Resource, tmp_path: Path
) -> None:
    with World(tmp_path / "short", expires_in=120) as world:
        world.path.parent.mkdir()
        world.clock.now = time.time()
        world.sign_in()
        resource.accepts = world.server.is_live
        credentials = Credentials(world.manager(), "alice")
        with AuthorizedSession(credentials) as session:  # type: ignore[no-untyped-call]
            for _ in range(3):
                assert session.get(resource.url, timeout=SOON).status_code == 200
        assert not credentials.valid
        assert world.posts == 1


def test_twenty_threads_with_a_refused_token_cause_one_refresh(
    world: World, resource: Resource, credentials: Credentials
) -> None:
    old = refused(world)
    resource.together = threading.Barrier(20, timeout=SOON)

    def fetch() -> int:
        with AuthorizedSession(credentials) as session:  # type: ignore[no-untyped-call]
            return int(session.get(resource.url, timeout=SOON).status_code)

    calls = [Call(fetch) for _ in range(20)]
    assert {call.result() for call in calls} == {200}
    assert sorted(map(str, resource.tokens)) == sorted([old] * 20 + [stored(world)] * 20)
    assert (world.posts, world.server.reuses) == (1, 0)


def test_a_late_thread_gets_the_token_of_another(world: World, credentials: Credentials) -> None:
    refused(world)
    sent, reported = threading.Event(), threading.Event()

    def late() -> str | None:
        credentials.before_request(None, "GET", "https://resource.example", headers)
        sent.set()
        assert reported.wait(SOON)
        credentials.refresh(None)
        return credentials.token

    headers: dict[str, str] = {}
    call = Call(late)
    assert sent.wait(SOON)
    credentials.refresh(None)
    reported.set()
    assert call.result() == world.tokens()[0] != headers["authorization"]
    assert world.posts == 1


def test_there_is_no_token_before_the_first_request(world: World, credentials: Credentials) -> None:
    world.sign_in()
    assert (credentials.token, credentials.expiry, credentials.valid) == (None, None, False)
    assert world.posts == 0


def test_an_explicit_refresh_takes_the_stored_token_then_a_new_one(
    world: World, credentials: Credentials
) -> None:
    first = world.sign_in(expires_in=3600)
    credentials.refresh(None)
    assert (credentials.token, world.posts) == (first["access_token"], 0)
    for posts in (1, 2):
        credentials.refresh(None)  # as a client does after a 401
        assert (credentials.token, world.posts) == (world.tokens()[0], posts)
        world.clock.now += 60  # a new one that is refused at once is not at fault


def test_each_refusal_concerns_the_newest_token(world: World, credentials: Credentials) -> None:
    refused(world)
    credentials.before_request(None, "GET", "https://resource.example", {})
    for posts in (1, 2):
        credentials.refresh(None)
        assert (credentials.token, world.posts) == (world.tokens()[0], posts)
        world.clock.now += 60


def test_the_expiry_is_a_naive_datetime_in_utc(world: World, credentials: Credentials) -> None:
    world.sign_in(expires_in=3600)
    credentials.refresh(None)
    moment = datetime.fromtimestamp(world.clock.now, UTC) + timedelta(hours=1)
    assert credentials.expiry == moment.replace(tzinfo=None)
    assert credentials.valid
    assert not credentials.expired


def test_a_token_that_never_expires_is_valid(world: World, credentials: Credentials) -> None:
    world.sign_in(expires_at=253402300799, expires_in=None)
    credentials.refresh(None)
    assert credentials.expiry == datetime(9999, 12, 31, 23, 59, 59)  # noqa: DTZ001
    assert credentials.valid


def test_they_support_refresh_in_the_background(
    world: World, resource: Resource, session: AuthorizedSession, credentials: Credentials
) -> None:
    credentials.with_non_blocking_refresh()  # type: ignore[no-untyped-call]
    tokens = world.sign_in(expires_in=100)
    credentials.token, credentials.expiry = tokens["access_token"], _in(100)
    assert session.get(resource.url, timeout=SOON).status_code == 200
    until(lambda: credentials.token != tokens["access_token"])
    assert credentials.token == world.tokens()[0]
    assert resource.tokens == [f"Bearer {tokens['access_token']}"]
    assert world.posts == 1


def _in(seconds: float) -> datetime:
    return datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=seconds)


def test_a_quota_project_is_named_in_each_request(
    world: World, resource: Resource, credentials: Credentials
) -> None:
    world.sign_in()
    counted = credentials.with_quota_project("project-1")
    headers: dict[str, str] = {}
    counted.before_request(None, "GET", resource.url, headers)
    assert headers["x-goog-user-project"] == "project-1"
    assert headers["authorization"] == stored(world)
    assert (counted.quota_project_id, credentials.quota_project_id) == ("project-1", None)


def test_google_clients_do_not_replace_the_credentials(
    credentials: Credentials,
) -> None:
    assert with_scopes_if_required(credentials, ["a"]) is credentials  # type: ignore[no-untyped-call]


def test_they_do_not_hold_the_refresh_token(
    world: World, resource: Resource, session: AuthorizedSession, credentials: Credentials
) -> None:
    old = refused(world, refresh_token=world.server.sign_in("alice")["refresh_token"])
    before = world.tokens()[1]
    with _all_logs() as logged:
        session.get(resource.url, timeout=SOON)
    assert old != stored(world)
    for refresh_token in (before, world.tokens()[1]):
        assert refresh_token is not None
        assert refresh_token not in repr(vars(credentials))
        assert not any(refresh_token in text for text in logged.messages)


class _all_logs(logging.Handler):  # noqa: N801 - used like a function
    """What the root logger is told, at any level."""

    def __enter__(self) -> _all_logs:
        super().__init__()
        self.messages: list[str] = []
        self._level = logging.root.level
        logging.root.setLevel(logging.DEBUG)
        logging.root.addHandler(self)
        return self

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __exit__(self, *_: object) -> None:
        logging.root.removeHandler(self)
        logging.root.setLevel(self._level)


@pytest.mark.parametrize(
    ("answers", "cause", "retryable"),
    [
        ([denied()], ReauthorizationRequired, False),
        ([Answer(503)] * 2, TransientRefreshError, True),
    ],
    ids=["dead", "transient"],
)
@pytest.mark.parametrize("when", ["due", "refused"])
def test_a_failed_refresh_raises_the_error_of_google_auth(
    when: str,
    answers: list[Answer],
    cause: type[Exception],
    retryable: bool,
    world: World,
    resource: Resource,
    session: AuthorizedSession,
) -> None:
    world.sign_in() if when == "due" else refused(world)
    world.server.script(*answers)
    with pytest.raises(RefreshError, match="alice") as caught:
        session.get(resource.url, timeout=SOON)
    assert type(caught.value.__cause__) is cause
    assert caught.value.retryable is retryable


@pytest.mark.parametrize("kind", ["mac", "DPoP"])
def test_a_token_that_is_not_bearer_is_refused_and_not_sent(
    kind: Any, world: World, resource: Resource, session: AuthorizedSession
) -> None:
    world.sign_in(expires_in=3600, token_type=kind)
    with pytest.raises(InvalidTokenError, match=f"'{kind}', which cannot be sent as Bearer"):
        session.get(resource.url, timeout=SOON)
    assert resource.seen == []


def test_a_provider_can_be_given(world: World, resource: Resource) -> None:
    world.sign_in(provider=None)
    credentials = Credentials(world.manager(), "alice", "test").with_quota_project(None)
    with AuthorizedSession(credentials) as session:  # type: ignore[no-untyped-call]
        assert session.get(resource.url, timeout=SOON).status_code == 200
    assert world.row()["provider"] == "test"
