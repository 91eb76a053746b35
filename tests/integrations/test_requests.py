from __future__ import annotations

import io
import os
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from tests.helpers.refreshes import SOON, Call, Told, World, denied
from tests.helpers.resource_server import REFUSED, Resource, refused, stored
from tokenstore import InvalidTokenError, ReauthorizationRequired, TransientRefreshError
from tokenstore.integrations.requests import TokenAuth
from tokenstore.testing import Answer, Transform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def session(world: World) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.auth = TokenAuth(world.manager(), "alice")
        yield session


def test_every_request_carries_the_valid_token(
    world: World, resource: Resource, session: requests.Session
) -> None:
    world.sign_in()
    for _ in range(2):
        answer = session.get(resource.url, timeout=SOON)
        assert (answer.status_code, answer.history) == (200, [])
    assert resource.tokens == [stored(world)] * 2
    assert world.posts == 1  # it had expired


def test_the_type_of_a_token_is_checked_once(
    world: World, resource: Resource, session: requests.Session
) -> None:
    world.sign_in(expires_in=3600)
    with Told() as told:
        for _ in range(3):
            session.get(resource.url, timeout=SOON)
    operations = [vars(record)["operation"] for record in told.records]
    assert operations == ["ensure_valid_token", "get_access_token", *["ensure_valid_token"] * 2]


def test_a_refused_token_is_refreshed_and_the_request_is_retried(
    world: World, resource: Resource, session: requests.Session
) -> None:
    old = refused(world)
    answer = session.post(f"{resource.url}/things?a=1", data=b"body", timeout=SOON)
    assert answer.json() == {"status": 200, "body": "body"}
    assert resource.tokens == [old, stored(world)]
    assert [(seen.method, seen.path, seen.body) for seen in resource.seen] == [
        ("POST", "/things?a=1", b"body")
    ] * 2
    assert [past.status_code for past in answer.history] == [401]
    assert answer.request.headers["Authorization"] == stored(world)
    assert world.posts == 1


def test_a_second_refusal_is_returned(
    world: World, resource: Resource, session: requests.Session
) -> None:
    old = refused(world)
    resource.accepts = lambda _: False
    assert session.get(resource.url, timeout=SOON).status_code == 401
    assert resource.tokens == [old, stored(world)]
    assert world.posts == 1


def test_twenty_threads_with_a_refused_token_cause_one_refresh(
    world: World, resource: Resource
) -> None:
    old = refused(world)
    resource.together = threading.Barrier(20, timeout=SOON)
    auth = TokenAuth(world.manager(), "alice")
    calls = [Call(requests.get, resource.url, auth=auth, timeout=SOON) for _ in range(20)]
    assert {call.result().status_code for call in calls} == {200}
    assert sorted(map(str, resource.tokens)) == sorted([old] * 20 + [stored(world)] * 20)
    assert (world.posts, world.server.reuses) == (1, 0)


def test_only_a_401_is_handled(world: World, session: requests.Session) -> None:
    world.sign_in(expires_in=3600)
    with Resource(lambda _: True) as resource:
        resource.script = [(403, {})]
        assert session.get(resource.url, timeout=SOON).status_code == 403
    assert (len(resource.seen), world.posts) == (1, 0)


def test_a_retry_uses_the_same_settings(
    world: World, resource: Resource, session: requests.Session
) -> None:
    refused(world)
    sent = []

    class Adapter(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, **more: Any) -> requests.Response:  # type: ignore[override]
            sent.append(more)
            return super().send(request, **more)

    session.mount("http://", Adapter())
    with session.get(resource.url, timeout=(SOON, SOON), stream=True, verify=False) as answer:
        assert answer.status_code == 200
    assert sent[0] == sent[1]
    assert sent[1]["timeout"] == (SOON, SOON)
    assert (sent[1]["stream"], sent[1]["verify"]) == (True, False)


# -- bodies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        ({"data": "text"}, b"text"),
        ({"data": {"a": "1"}}, b"a=1"),
        ({"json": {"a": 1}}, b'{"a": 1}'),
        ({"data": io.BytesIO(b"a file")}, b"a file"),
        ({}, b""),
    ],
    ids=["text", "form", "json", "file", "none"],
)
def test_a_whole_body_is_sent_again(
    arguments: dict[str, Any],
    body: bytes,
    world: World,
    resource: Resource,
    session: requests.Session,
) -> None:
    refused(world)
    assert session.put(resource.url, timeout=SOON, **arguments).status_code == 200
    assert [seen.body for seen in resource.seen] == [body, body]


def test_a_file_is_sent_again_from_its_start_position(
    world: World, resource: Resource, session: requests.Session, tmp_path: Path
) -> None:
    refused(world)
    (tmp_path / "file").write_bytes(b"not this but this")
    with (tmp_path / "file").open("rb") as file:
        file.seek(9)
        assert session.post(resource.url, data=file, timeout=SOON).status_code == 200
    assert [seen.body for seen in resource.seen] == [b"but this", b"but this"]


def test_an_upload_is_sent_again(
    world: World, resource: Resource, session: requests.Session
) -> None:
    refused(world)
    files = {"file": ("name", io.BytesIO(b"content"))}
    assert session.post(resource.url, files=files, timeout=SOON).status_code == 200
    first, second = (seen.body for seen in resource.seen)
    assert first == second
    assert b"content" in first


def of_a_generator() -> Any:
    return (part for part in [b"a ", b"stream"])


def of_a_pipe() -> Any:
    read, write = os.pipe()
    os.write(write, b"a stream")
    os.close(write)
    return os.fdopen(read, "rb")


class OneWay(io.BytesIO):
    """A stream that can tell its position but cannot seek."""

    def seek(self, *_: int) -> int:
        raise io.UnsupportedOperation


@pytest.mark.parametrize("make", [of_a_generator, of_a_pipe, lambda: OneWay(b"a stream")])
def test_a_stream_that_cannot_be_rewound_is_sent_once(
    make: Callable[[], Any], world: World, resource: Resource, session: requests.Session
) -> None:
    old = refused(world)
    with closing(make()) as stream:
        answer = session.post(resource.url, data=stream, timeout=SOON)
    assert answer.status_code == 401
    assert [seen.body for seen in resource.seen] == [b"a stream"]
    assert session.get(resource.url, timeout=SOON).status_code == 200  # with the new token
    assert resource.tokens == [old, stored(world)]
    assert world.posts == 1


# -- redirects --------------------------------------------------------------------------------


def test_another_origin_gets_no_token_and_its_401_refreshes_nothing(
    world: World, resource: Resource, session: requests.Session
) -> None:
    world.sign_in(expires_in=3600)
    with Resource(lambda _: False) as elsewhere:
        resource.moved["/away"] = (307, f"{elsewhere.url}/there")
        answer = session.post(f"{resource.url}/away", data=b"body", timeout=SOON)
    assert (answer.status_code, answer.url) == (401, f"{elsewhere.url}/there")
    assert resource.tokens == [stored(world)]
    assert elsewhere.tokens == [None]
    assert world.posts == 0


def test_a_netrc_password_for_another_origin_is_not_mistaken_for_a_token(
    world: World,
    resource: Resource,
    session: requests.Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password pass\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    world.sign_in(expires_in=3600)
    with Resource(lambda _: False) as elsewhere:
        resource.moved["/away"] = (302, elsewhere.url)
        assert session.get(f"{resource.url}/away", timeout=SOON).status_code == 401
    assert resource.tokens == [stored(world)]  # not the netrc entry of this host
    assert [str(sent).partition(" ")[0] for sent in elsewhere.tokens] == ["Basic"]
    assert world.posts == 0


def test_a_redirect_on_the_same_origin_keeps_the_token_and_is_refreshed_there(
    world: World, resource: Resource, session: requests.Session
) -> None:
    old = refused(world)
    resource.moved["/old"] = (307, "/new")
    answer = session.post(f"{resource.url}/old", data=io.BytesIO(b"body"), timeout=SOON)
    assert answer.status_code == 200
    assert [(seen.path, seen.body) for seen in resource.seen] == [
        ("/old", b"body"),
        ("/new", b"body"),
        ("/new", b"body"),
    ]
    assert resource.tokens == [old, old, stored(world)]
    assert world.posts == 1


def test_after_a_refresh_another_origin_gets_no_token(
    world: World, resource: Resource, session: requests.Session
) -> None:
    old = refused(world)
    with Resource(lambda _: False) as elsewhere:
        resource.script = [(401, {}), (302, {"Location": elsewhere.url})]
        assert session.get(resource.url, timeout=SOON).status_code == 401
    assert resource.tokens == [old, stored(world)]
    assert elsewhere.tokens == [None]
    assert world.posts == 1


def test_a_redirect_loop_refreshes_once(
    world: World, resource: Resource, session: requests.Session
) -> None:
    refused(world)
    resource.script = [(401, {}), (307, {"Location": "/"})] * 6
    session.max_redirects = 5
    with pytest.raises(requests.TooManyRedirects):
        session.get(resource.url, timeout=SOON)
    assert resource.script == []
    assert world.posts == 1


# -- token types ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bearer", "Bearer", "BEARER", None, ""])
def test_the_type_bearer_is_case_insensitive(
    kind: str | None, world: World, resource: Resource, session: requests.Session
) -> None:
    world.sign_in(expires_in=3600, token_type=kind)
    assert session.get(resource.url, timeout=SOON).status_code == 200
    assert resource.tokens == [stored(world)]


@pytest.mark.parametrize("kind", ["mac", "DPoP", "bearer ", 1, ["bearer"]])
def test_a_token_that_is_not_bearer_is_refused_and_not_sent(
    kind: Any, world: World, resource: Resource, session: requests.Session
) -> None:
    world.sign_in(expires_in=3600, token_type=kind)
    for _ in range(2):
        with pytest.raises(
            InvalidTokenError, match=r"alice has tokens of .* cannot be sent as Bearer"
        ):
            session.get(resource.url, timeout=SOON)
    assert resource.seen == []


def test_a_refresh_that_changes_the_type_is_refused(
    world: World, resource: Resource, session: requests.Session
) -> None:
    old = refused(world)
    world.server.script(Transform(lambda answer: {**answer, "token_type": "DPoP"}))
    with pytest.raises(InvalidTokenError, match="'DPoP'") as caught:
        session.get(resource.url, timeout=SOON)
    assert caught.value.field == "token_type"
    with pytest.raises(InvalidTokenError, match="'DPoP'"):
        session.get(resource.url, timeout=SOON)
    assert resource.tokens == [old]
    assert world.posts == 1


def test_a_type_that_is_not_a_name_is_not_shown(world: World, session: requests.Session) -> None:
    world.sign_in(expires_in=3600, token_type="secret " * 20)
    with pytest.raises(InvalidTokenError) as caught:
        session.get("http://127.0.0.1:9/", timeout=SOON)
    assert "secret" not in str(caught.value)


def test_a_token_that_does_not_fit_a_header_is_refused_and_not_shown(
    world: World, resource: Resource, session: requests.Session
) -> None:
    world.sign_in(expires_in=3600, access_token="tökén€")
    with pytest.raises(InvalidTokenError, match="HTTP headers cannot hold") as caught:
        session.get(resource.url, timeout=SOON)
    assert "tök" not in str(caught.value)
    assert resource.seen == []


# -- failures ---------------------------------------------------------------------------------


def test_without_a_token_nothing_is_sent_and_the_reason_is_raised(
    resource: Resource, session: requests.Session
) -> None:
    with pytest.raises(ReauthorizationRequired, match="no tokens are stored"):
        session.get(resource.url, timeout=SOON)
    assert resource.seen == []


@pytest.mark.parametrize(
    ("answer", "error"),
    [(denied(), ReauthorizationRequired), (Answer(503), TransientRefreshError)],
    ids=["dead", "transient"],
)
def test_a_failed_refresh_is_raised_instead_of_the_401(
    answer: Answer,
    error: type[Exception],
    world: World,
    resource: Resource,
    session: requests.Session,
) -> None:
    old = refused(world)
    world.server.script(answer)
    closed: list[None] = []

    class Adapter(HTTPAdapter):
        def build_response(self, *arguments: Any) -> requests.Response:
            response = super().build_response(*arguments)
            close = response.close
            response.close = lambda: closed.append(close())  # type: ignore[method-assign]
            return response

    session.mount("http://", Adapter())
    with pytest.raises(error) as caught:
        session.get(resource.url, timeout=SOON, stream=True)
    assert REFUSED not in str(caught.value)
    assert resource.tokens == [old]
    assert closed == [None]


def test_a_provider_can_be_given(world: World, resource: Resource) -> None:
    world.sign_in(provider=None)
    auth = TokenAuth(world.manager(), "alice", "test")
    assert requests.get(resource.url, auth=auth, timeout=SOON).status_code == 200
    assert world.row()["provider"] == "test"
