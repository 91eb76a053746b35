from __future__ import annotations

import codecs
import gzip
import json
import math
import re
import time
from base64 import b64decode
from dataclasses import replace
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, quote, quote_plus

import pytest
import responses
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.refreshes import SOON, Raw, World, denied
from tokenstore import (
    ClientRejectedError,
    Provider,
    ProviderConfigurationError,
    ReauthorizationRequired,
    TokenRefreshError,
    TransientRefreshError,
)
from tokenstore.models.failures import MAX_RETRY_AFTER
from tokenstore.models.timestamps import NEVER
from tokenstore.oauth.client import refresh_grant
from tokenstore.oauth.http import HTTPResponse as Received
from tokenstore.oauth.responses import TokenResponseParser
from tokenstore.testing import Answer, Drop, Step, Transform, Truncate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

URL = "https://provider.example/token"
NEW = {"access_token": "new", "refresh_token": "newer", "expires_in": 1000}
JSON = json.dumps(NEW).encode()
FORM = b"access_token=new&refresh_token=newer&expires_in=1000&scope="


# -- a good answer, in whatever dress -------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, JSON),
        Answer(201, JSON),
        Answer(200, b" \n" + JSON + b"\n"),
        Answer(200, codecs.BOM_UTF8 + JSON),
        Answer(200, JSON, content_type="application/json; charset=utf-8"),
        Answer(200, JSON, content_type="application/json; charset=made-up"),
        Answer(200, JSON, content_type='application/json; charset="utf-16"'),
        Answer(200, JSON.decode().encode("utf-16"), content_type="application/json"),
        Answer(200, JSON, content_type="text/html"),
        Answer(200, JSON, content_type="application/x-www-form-urlencoded"),
        Answer(200, JSON, content_type=None),
        Answer(200, gzip.compress(JSON), {"Content-Encoding": "gzip"}),
        Answer(200, FORM, content_type="application/x-www-form-urlencoded"),
        Answer(200, FORM, content_type="application/json"),
        Answer(200, FORM, content_type=None),
        Answer(200, codecs.BOM_UTF8 + FORM + b"\r\n"),
        Answer(400, JSON),
        Answer(500, JSON),
        Answer(200, json.dumps({**NEW, "error": "", "ok": True})),
        Answer(200, json.dumps(NEW, indent=4)),
    ],
    ids=[
        "JSON",
        "Created",
        "white space around it",
        "BOM",
        "charset",
        "unknown charset",
        "wrong charset",
        "UTF-16",
        "JSON as HTML",
        "JSON as a form",
        "no Content-Type",
        "compressed",
        "form",
        "form as JSON",
        "form without a Content-Type",
        "form with BOM",
        "status 400",
        "status 500",
        "empty error",
        "indented",
    ],
)
def test_an_answer_with_an_access_token_is_a_success(world: World, answer: Answer) -> None:
    world.sign_in()
    world.server.script(answer)
    tokens = world.manager().refresh_token("alice")
    assert tokens["access_token"] == "new"
    assert world.tokens() == ("new", "newer", world.clock.now + 1000)
    assert world.outcomes() == ["refreshed"]
    assert world.posts == 1


ABSENT: Any = object()


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (ABSENT, "old"),
        (None, "old"),
        ("", "old"),
        (5, "old"),
        (["newer"], "old"),
        ("new\nline", "old"),
        ("\ud800", "old"),
        ("old", "old"),
        ("newer", "newer"),
    ],
    ids=["absent", "null", "empty", "number", "list", "line break", "surrogate", "same", "new"],
)
def test_only_a_usable_refresh_token_replaces_the_old_one(
    world: World, given: object, stored: str
) -> None:
    answer = {**NEW, "refresh_token": given}
    if given is ABSENT:
        del answer["refresh_token"]
    world.sign_in(refresh_token="old")
    world.server.script(*[Answer(200, answer)] * 2)
    manager = world.manager()
    for _ in range(2):
        assert manager.refresh_token("alice")["refresh_token"] == stored
        assert world.tokens()[:2] == ("new", stored)


@pytest.mark.parametrize(
    ("text", "lifetime"),
    [
        ("3600", 3600),
        ('"3600"', 3600),
        ("3600.0", 3600),
        ('"3600.5"', 3600.5),
        ("0", 0),
        ("-1", -1),
        ("null", 500),
        ('""', 500),
        ('"abc"', 500),
        ("true", 500),
        ("[]", 500),
        ("{}", 500),
        ("NaN", 500),
        ("Infinity", 500),
        ("1e999", 500),
        ("1e308", 500),
        ("9" * 400, 500),
        ("9" * 5000, 500),
        ("253402300799", 500),
    ],
    ids=lambda value: value[:8] if isinstance(value, str) else None,
)
def test_no_expires_in_can_cost_the_new_tokens(world: World, text: str, lifetime: float) -> None:
    world.sign_in()
    world.server.script(
        Answer(200, f'{{"access_token": "new", "refresh_token": "newer", "expires_in": {text}}}')
    )
    provider = world.server.provider(default_expires_in=500.0)
    world.manager(providers={"test": provider}).refresh_token("alice")
    assert world.tokens() == ("new", "newer", world.clock.now + lifetime)


def test_an_unknown_lifetime_may_be_for_ever(world: World) -> None:
    world.sign_in()
    world.server.script(Answer(200, {"access_token": "new"}))
    provider = world.server.provider(default_expires_in=math.inf)
    manager = world.manager(providers={"test": provider})
    assert manager.refresh_token("alice")["expires_at"] == NEVER
    world.clock.now += 1e10
    assert manager.get_valid_token("alice") == "new"
    assert world.posts == 1


def test_other_fields_are_merged(world: World) -> None:
    world.sign_in(instance_url="https://a", nested={"a": [1, None]}, scope="a", token_type="x")
    world.server.script(
        Answer(200, b'{"access_token": "new", "id_token": "id", "scope": "b a", "bad": NaN, "big": '
            + b"9" * 400 + b', "token_type": null, "half": "\\ud800", "expires_at": "tomorrow"}')
    )  # fmt: skip
    tokens = world.manager().refresh_token("alice")
    assert tokens == world.manager().load_tokens("alice")
    assert {k: v for k, v in tokens.items() if k not in {"refresh_token", "expires_at"}} == {
        "access_token": "new",
        "instance_url": "https://a",
        "nested": {"a": [1, None]},
        "id_token": "id",
        "scope": "b a",
        "bad": None,
        "big": int("9" * 400),
        "token_type": None,
        "half": "\ud800",
    }
    assert tokens["expires_at"] == world.clock.now + 3600


@pytest.mark.parametrize(
    ("value", "content_type", "name"),
    [
        ("é".encode(), "application/json", "é"),
        ("é".encode("latin-1"), "application/json; charset=iso-8859-1", "é"),
        ("é".encode("latin-1"), "application/json", "é"),
        ("я".encode("cp1251"), "application/json; charset=windows-1251", "я"),
        ("é".encode("latin-1"), "application/json; charset=ascii", "é"),
    ],
    ids=["UTF-8", "as declared", "not declared", "another", "declared wrongly"],
)
def test_a_letter_of_another_field_does_not_cost_the_tokens(
    world: World, value: bytes, content_type: str, name: str
) -> None:
    world.sign_in()
    body = b'{"access_token": "new", "name": "' + value + b'"}'
    world.server.script(Answer(200, body, content_type=content_type))
    assert world.manager().refresh_token("alice")["name"] == name


# -- every other answer, and the row afterwards ---------------------------------------------------


class Case(NamedTuple):
    """What comes back, what is made of it, and what the next reader of the row finds."""

    step: Step
    raised: type[TokenRefreshError]
    state: str
    again: bool = False  # whether get_valid_token asks once more
    more: dict[str, Any] = {}  # noqa: RUF012 - attributes of the error


def _reauthorize(code: str, status: int = 400) -> Case:
    more = {"status_code": status, "error": code}
    return Case(denied(code, status), ReauthorizationRequired, "sign_in", more=more)


def _rejected(step: Answer, error: str | None = None) -> Case:
    more = {"status_code": step.status, "error": error}
    return Case(step, ClientRejectedError, "misconfigured", more=more)


def _unexplained(step: Answer, error: str | None = None) -> Case:
    more = {"status_code": step.status, "error": error, "maybe_spent": False, "retry_after": 60}
    return Case(step, TransientRefreshError, "retry_later", more=more)


def _transient(step: Answer, error: str | None = None, *, again: bool = False) -> Case:
    more = {"status_code": step.status, "error": error, "maybe_spent": False}
    return Case(step, TransientRefreshError, "due", again, more)


def _spent(step: Step, status: int | None = 200, error: str | None = None) -> Case:
    more = {"status_code": status, "error": error, "maybe_spent": True, "retry_after": None}
    return Case(step, TransientRefreshError, "due", more=more)


UNUSABLE = {
    "empty token": "",
    "null token": None,
    "token is a number": 5,
    "token is an object": {"a": "new"},
    "token with a line break": "new\r\nX: y",
    "token with a surrogate": "\ud800",
}
NESTED = {"code": 400, "status": "invalid_grant", "message": "gone"}
CASES = {
    # only a new sign-in helps
    **{
        code: _reauthorize(code)
        for code in (
            "invalid_grant",
            "bad_refresh_token",
            "invalid_refresh_token",
            "refresh_token_expired",
            "refresh_token_reused",
            "token_expired",
            "token_revoked",
            "consent_required",
            "interaction_required",
            "login_required",
        )
    },
    "invalid_grant as 200": _reauthorize("invalid_grant", 200),
    "invalid_grant as 401": _reauthorize("invalid_grant", 401),
    "invalid_grant as 500": _reauthorize("invalid_grant", 500),
    "invalid_grant as a form": _reauthorize("invalid_grant")._replace(
        step=Answer(400, "error=invalid_grant&error_description=so+what")
    ),
    "invalid_grant with BOM": _reauthorize("invalid_grant")._replace(
        step=Answer(400, codecs.BOM_UTF8 + b'{"error": "invalid_grant"}', content_type=None)
    ),
    "ok: false": _reauthorize("invalid_refresh_token", 200)._replace(
        step=Answer(200, {"ok": False, "error": "invalid_refresh_token"})
    ),
    "nested status": _reauthorize("invalid_grant")._replace(step=Answer(400, {"error": NESTED})),
    "nested code": _reauthorize("invalid_grant")._replace(
        step=Answer(400, {"error": {"code": "invalid_grant", "status": 400}})
    ),
    "nested type": _reauthorize("invalid_grant")._replace(
        step=Answer(400, {"error": {"code": 190, "type": "invalid_grant"}})
    ),
    "a list": _reauthorize("invalid_grant")._replace(
        step=Answer(400, {"error": ["invalid_grant"]}), more={"status_code": 400, "error": None}
    ),
    # fix the configuration
    **{
        code: _rejected(denied(code), code)
        for code in (
            "invalid_client",
            "unauthorized_client",
            "unsupported_grant_type",
            "invalid_request",
            "invalid_scope",
            "incorrect_client_credentials",
        )
    },
    "invalid_client as 401": _rejected(denied("invalid_client", 401), "invalid_client"),
    "invalid_client as 200": _rejected(denied("invalid_client", 200), "invalid_client"),
    "redirect": _rejected(Answer.redirect("https://other.example/login", 302)),
    "redirect with tokens": _rejected(replace(Answer(307, JSON), headers={"Location": "/x"})),
    "not modified": _rejected(Answer(304, content_type=None)),
    # try later
    **{str(code): _transient(Answer(code)) for code in (408, 425, 429)},
    **{str(code): _transient(Answer(code), again=True) for code in (500, 502, 503, 504, 599)},
    "HTML as 502": _transient(Answer(502, "<html>", content_type="text/html"), again=True),
    **{
        code: _transient(denied(code), code)
        for code in ("temporarily_unavailable", "server_error", "slow_down", "rate_limited")
    },
    "rate_limited as 200": _transient(denied("rate_limited", 200), "rate_limited"),
    "503 with Retry-After": _transient(Answer(503, headers={"Retry-After": "60"}))._replace(
        state="retry_later", more={"status_code": 503, "retry_after": 60, "maybe_spent": False}
    ),
    "429 with Retry-After": _transient(Answer(429, headers={"Retry-After": "60"}))._replace(
        state="retry_later", more={"status_code": 429, "retry_after": 60, "maybe_spent": False}
    ),
    # try later, or fix the configuration: nobody can tell
    "never_heard_of": _unexplained(denied("never_heard_of"), "never_heard_of"),
    "HTML as 404": _unexplained(Answer(404, "<html>", content_type="text/html")),
    "empty 403": _unexplained(Answer(403)),
    "error is a number": _unexplained(Answer(400, {"error": 5})),
    # try later, and the token may be gone
    "no answer": _spent(Drop(spent=False), None),
    "answer lost": _spent(Drop(spent=True), None),
    "cut short": _spent(Truncate()),
    "empty": _spent(Answer()),
    "No Content": _spent(Answer(204, content_type=None), 204),
    "HTML": _spent(Answer(200, "<html>Sign in to the hotel</html>", content_type="text/html")),
    "no object but a list": _spent(Answer(200, b"[" + JSON + b"," + JSON + b"]")),
    "no object but a string": _spent(Answer(200, b'"new"')),
    "no object but null": _spent(Answer(200, b"null")),
    "no object but NaN": _spent(Answer(200, b"NaN")),
    "no object but a number": _spent(Answer(200, b"9" * 5000)),
    "half an object": _spent(Answer(200, JSON[:-1])),
    "no token": _spent(Answer(200, b"{}")),
    **{name: _spent(Answer(200, {"access_token": value})) for name, value in UNUSABLE.items()},
    "unknown error as 200": _spent(denied("never_heard_of", 200), error="never_heard_of"),
    "not UTF-8": _spent(Answer(200, b"\xff\xfe\xfd")),
    "100000 brackets": _spent(Answer(200, b"[" * 100_000)),
    "100000 nested objects": _spent(Answer(200, b'{"a":' * 100_000)),
    "over the limit": _spent(Answer(200, JSON[:-1] + b', "a": "' + b"x" * (1 << 20) + b'"}')),
    "too many fields": _spent(Answer(200, FORM + b"&a=b" * 200)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_refused_refresh_raises_one_of_three_and_keeps_the_tokens(
    world: World, case: Case
) -> None:
    world.sign_in()
    before = world.row()
    world.server.script(case.step)
    manager = world.manager()
    with pytest.raises(TokenRefreshError) as caught:
        manager.refresh_token("alice")
    assert type(caught.value) is case.raised
    assert {name: getattr(caught.value, name) for name in case.more} == case.more
    assert (caught.value.account_name, caught.value.provider) == ("alice", "test")
    assert str(caught.value).startswith("alice: provider 'test' ")
    after = world.row()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"refresh_id", "failure"}
    (account,) = manager.accounts()
    assert account.state == case.state
    assert account.last_error
    assert world.posts == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_get_valid_token_asks_again_only_where_that_is_safe_and_may_help(
    world: World, case: Case
) -> None:
    world.sign_in()
    world.server.script(case.step, case.step, case.step)
    assert world.manager().get_valid_token("alice") is None
    assert world.posts == 1 + case.again


@pytest.mark.parametrize("value", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_new_refresh_token_is_kept_even_without_an_access_token(
    world: World, value: object
) -> None:
    """R17: the old one may be spent; the access token that is stored is due."""
    old = world.sign_in()
    world.server.script(Answer(200, {**NEW, "access_token": value}))
    manager = world.manager()
    with pytest.raises(TransientRefreshError, match="no usable access token; try again"):
        manager.refresh_token("alice")
    assert world.tokens() == (old["access_token"], "newer", world.clock.now)
    assert world.outcomes() == ["refreshed"]
    world.server.script(Answer(200, {**NEW, "refresh_token": "newest"}))
    assert manager.get_valid_token("alice") == "new"
    assert world.server.requests[-1].params["refresh_token"] == "newer"


@pytest.mark.parametrize("case", ["500", "server_error", "no answer"])
def test_after_a_failure_that_is_no_verdict_the_next_call_succeeds(world: World, case: str) -> None:
    world.sign_in()
    world.server.script(*[CASES[case].step] * (1 + CASES[case].again))
    manager = world.manager()
    assert manager.get_valid_token("alice") is None
    token = manager.get_valid_token("alice")
    assert token is not None
    assert world.server.is_live(token)
    (account,) = manager.accounts()
    assert (account.state, account.last_error) == ("valid", None)


@pytest.mark.parametrize("case", ["invalid_client", "empty 403"])
def test_what_a_person_must_look_at_is_asked_again_after_a_minute_then_two(
    world: World, case: str
) -> None:
    """P3: a refused client, and what nobody understands, is not asked at every use."""
    world.sign_in()
    world.server.script(*[CASES[case].step] * 2)
    manager = world.manager()
    for posts, wait in ((1, 60), (2, 120)):
        assert manager.get_valid_token("alice") is None
        assert world.posts == posts
        world.clock.now += wait - 1
        assert manager.get_valid_token("alice") is None
        assert world.posts == posts
        world.clock.now += 1
    assert manager.get_valid_token("alice") is not None
    (account,) = manager.accounts()
    assert (account.state, account.last_error) == ("valid", None)


@given(
    body=st.one_of(st.binary(), st.text().map(str.encode), st.from_regex(rb"\A[{\[\"&=a-z]*\Z")),
    status=st.integers(200, 599),
    content_type=st.text(st.characters(max_codepoint=255, exclude_categories=["Cc"])),
    retry_after=st.text(st.characters(max_codepoint=255, exclude_categories=["Cc"])),
)
def test_whatever_comes_back_is_judged(
    body: bytes, status: int, content_type: str, retry_after: str
) -> None:
    headers = {"Content-Type": content_type, "Retry-After": retry_after, "Location": content_type}
    judge = TokenResponseParser(Provider("test", URL, "id"), ["refresh"], "alice")
    verdict = judge.parse(Received(status, headers, body), refresh_token="refresh")
    assert isinstance(verdict, (dict, TokenRefreshError))


# -- Retry-After ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "120"}, 120),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After": "-5"}, 0),
        ({"Retry-After": "1e9"}, MAX_RETRY_AFTER),
        ({"Retry-After": formatdate(1e9 + 90, usegmt=True), "Date": formatdate(1e9)}, 90),
        ({"Retry-After": formatdate(0.0, usegmt=True)}, 0),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, MAX_RETRY_AFTER),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": ""}, None),
        ({}, None),
    ],
    ids=[
        "seconds",
        "zero",
        "negative",
        "capped",
        "date, by the clock of the server",
        "date in the past",
        "date, capped",
        "words",
        "NaN",
        "empty",
        "absent",
    ],
)
def test_retry_after_is_read_in_both_forms_and_capped(
    world: World, headers: dict[str, str], seconds: float | None
) -> None:
    world.sign_in()
    world.server.script(Answer(429, headers=headers))
    with pytest.raises(TransientRefreshError) as caught:
        world.manager().refresh_token("alice")
    assert caught.value.retry_after == seconds


def test_a_date_counts_from_now_where_the_server_tells_no_time(world: World) -> None:
    world.sign_in()
    date = formatdate(time.time() + 600, usegmt=True)
    world.server.script(Answer(503, headers={"Retry-After": date}))
    with pytest.raises(TransientRefreshError) as caught:
        world.manager().refresh_token("alice")
    assert caught.value.retry_after == pytest.approx(600, abs=SOON)


# -- the request ----------------------------------------------------------------------------------


def sent_by(provider: Provider, refresh_token: str = "r+/=&é") -> tuple[dict[str, str], str | None]:
    """Return the form and the Authorization header of a refresh."""
    with responses.RequestsMock() as mock:
        mock.post(URL, json=NEW)
        answer = refresh_grant(provider, refresh_token, account_name="alice", timeout=SOON)
        request = mock.calls[0].request
    assert answer.fields == NEW
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert request.headers["Accept"] == "application/json"
    pairs = parse_qsl(str(request.body), keep_blank_values=True, strict_parsing=True)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs), request.headers.get("Authorization")


GRANT = {"grant_type": "refresh_token", "refresh_token": "r+/=&é"}
SECRET = "p+a/b=:%é€"


def test_a_public_client_sends_its_id_and_nothing_more() -> None:
    assert sent_by(Provider("p", URL, "me")) == ({**GRANT, "client_id": "me"}, None)


def test_a_secret_is_posted_by_default() -> None:
    form, authorization = sent_by(Provider("p", URL, "me", client_secret=SECRET))
    assert form == {**GRANT, "client_id": "me", "client_secret": SECRET}
    assert authorization is None


def test_basic_credentials_are_form_encoded() -> None:
    method = "client_secret_basic"
    provider = Provider("p", URL, "m e:", client_secret=SECRET, token_endpoint_auth_method=method)
    form, authorization = sent_by(provider)
    assert form == GRANT
    scheme, _, encoded = (authorization or "").partition(" ")
    assert scheme == "Basic"
    assert b64decode(encoded) == b"m+e%3A:p%2Ba%2Fb%3D%3A%25%C3%A9%E2%82%AC"


def test_none_keeps_a_secret_to_itself() -> None:
    provider = Provider("p", URL, "me", client_secret=SECRET, token_endpoint_auth_method="none")
    assert sent_by(provider) == ({**GRANT, "client_id": "me"}, None)


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post", "none"])
def test_a_strict_server_takes_every_method(tmp_path: Path, method: str) -> None:
    secret = None if method == "none" else SECRET
    settings = {"client_secret": secret, "token_endpoint_auth_method": method, "client_id": "m é:"}
    with World(tmp_path, **settings) as world:
        world.sign_in()
        assert world.manager().get_valid_token("alice") is not None


@pytest.mark.parametrize("scope", [None, ""])
def test_no_scope_is_sent_unless_configured(scope: str | None) -> None:
    assert "scope" not in sent_by(Provider("p", URL, "me", scope=scope))[0]


def test_a_configured_scope_is_sent() -> None:
    assert sent_by(Provider("p", URL, "me", scope="b a"))[0]["scope"] == "b a"


@pytest.mark.parametrize("method", ["client_secret_post", "client_secret_basic"])
def test_extra_parameters_are_sent_and_override_nothing(method: str) -> None:
    ours = {"grant_type": "x", "refresh_token": "x", "scope": "x", "audience": "api"}
    if method == "client_secret_post":
        ours |= {"client_id": "x", "client_secret": "x"}
    plain = Provider(
        "p", URL, "me", client_secret=SECRET, token_endpoint_auth_method=method, scope="a"
    )
    form, authorization = sent_by(plain)
    assert sent_by(replace(plain, extra_params=ours)) == (
        {**form, "audience": "api"},
        authorization,
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://provider.example/token",
        "http://127.0.0.1.provider.example/token",
        "http://localhost.provider.example/token",
        "https://user:hunter2@provider.example/token",
        "https://provider.example/token#here",
        "ftp://provider.example/token",
        "provider.example/token",
        "https://",
    ],
)
def test_a_url_that_must_not_be_sent_a_secret_is_refused(world: World, url: str) -> None:
    world.sign_in()
    before = world.row()
    provider = replace(world.server.provider(), token_endpoint=url)
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        with pytest.raises(ProviderConfigurationError) as caught:
            world.manager().refresh_token("alice", provider)
        assert len(mock.calls) == 0
    assert caught.value.account_name == "alice"
    assert "hunter2" not in str(caught.value)
    assert world.row() == before


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"])
def test_http_is_for_loopback(world: World, host: str) -> None:
    world.sign_in()
    with responses.RequestsMock() as mock:
        mock.post(f"http://{host}/token", json=NEW)
        provider = Provider("test", f"http://{host}/token", "tokenstore")
        assert world.manager().get_valid_token("alice", provider) == "new"


def test_a_redirect_is_named_and_not_followed(world: World) -> None:
    world.sign_in()
    with Raw() as other:
        world.server.script(Answer.redirect(f"http://me:secret@{other.host}/x", 308))
        with pytest.raises(ClientRejectedError, match=f"redirects to {other.host}, ") as caught:
            world.manager().refresh_token("alice")
    assert "secret" not in str(caught.value)
    assert other.received == []


@pytest.mark.parametrize(
    ("location", "shown"),
    [("/login", "127.0.0.1"), ("http://[", r"\?"), ("", "127.0.0.1")],
    ids=["relative", "no URL", "empty"],
)
def test_a_redirect_to_nowhere_is_told_as_well(world: World, location: str, shown: str) -> None:
    world.sign_in()
    world.server.script(Answer.redirect(location))
    with pytest.raises(ClientRejectedError, match=f"redirects to {shown}"):
        world.manager().refresh_token("alice")


# -- what a provider echoes -----------------------------------------------------------------------

ECHOED = {
    "refresh token": lambda refresh, _: refresh,
    "refresh token, form-encoded": lambda refresh, _: quote_plus(refresh),
    "refresh token, URL-encoded": lambda refresh, _: quote(refresh),
    "secret": lambda _, secret: secret,
    "secret, form-encoded": lambda _, secret: quote_plus(secret),
    "assertion": lambda *_: "eyJhbGciOi.assertion",
}
ECHOING = {
    "error": lambda echo: Answer(400, {"error": f"no {echo}"}),
    "description": lambda echo: denied_because(f"{echo}{echo} is not known"),
    "nested": lambda echo: Answer(400, {"error": {"status": echo, "message": f"no {echo}"}}),
    "form": lambda echo: Answer(400, f"error={quote_plus(echo)}"),
    "200": lambda echo: Answer(200, {"error": echo, "error_description": echo}),
    "503": lambda echo: Answer(503, {"error": echo, "error_description": echo}),
    "long": lambda echo: denied_because("x" * 495 + echo),
    "content type": lambda echo: Answer(200, content_type=echo),
    "location": lambda echo: Answer.redirect(
        f"https://{echo if '%' in echo else quote_plus(echo)}.example/"
    ),
}


def encoded(echo: str) -> str:
    return echo if "%" in echo else quote_plus(echo)


def denied_because(why: str) -> Answer:
    return Answer(400, {"error": "invalid_grant", "error_description": why})


@pytest.mark.parametrize("echo", ECHOED.values(), ids=ECHOED.keys())
@pytest.mark.parametrize("answer", ECHOING.values(), ids=ECHOING.keys())
def test_what_was_sent_is_not_shown_when_it_is_echoed(
    world: World, caplog: pytest.LogCaptureFixture, answer: Any, echo: Any
) -> None:
    refresh_token, secret = "1//refresh +é", "the/secret +é"
    world.server.register("tokenstore", secret)
    world.sign_in(refresh_token=refresh_token)
    provider = world.server.provider(
        client_secret=secret, extra_params={"client_assertion": "eyJhbGciOi.assertion"}
    )
    manager = world.manager(providers={"test": provider})
    world.server.script(answer(echo(refresh_token, secret)))
    with pytest.raises(TokenRefreshError) as caught:
        manager.refresh_token("alice")
    shown = [str(caught.value), repr(caught.value), repr(vars(caught.value)), caplog.text]
    shown += [repr(list(manager.accounts())), str(world.sql("SELECT failure FROM accounts"))]
    shown += [str(world.sql("SELECT * FROM refreshes"))]
    for text in shown:
        for leak in ("//refresh", "%2Frefresh", "refresh+", "secret", "assertion"):
            assert leak not in text.replace("client_secret", "")


def test_basic_credentials_are_not_shown_when_they_are_echoed(world: World) -> None:
    world.server.register("tokenstore", "the secret", "client_secret_basic")
    world.sign_in()
    provider = world.server.provider(
        client_secret="the secret", token_endpoint_auth_method="client_secret_basic"
    )
    world.server.script(denied_because("dG9rZW5zdG9yZTp0aGUrc2VjcmV0 is no user"))
    with pytest.raises(ReauthorizationRequired, match=r"\[redacted\] is no user"):
        world.manager().refresh_token("alice", provider)


@pytest.mark.parametrize("refresh_token", ["r", "grant", "refresh", "invalid_grant"])
@pytest.mark.parametrize("code", ["invalid_grant", "bad_refresh_token"])
def test_a_token_that_is_part_of_an_error_code_does_not_hide_it(
    world: World, refresh_token: str, code: str
) -> None:
    world.sign_in(refresh_token=refresh_token)
    world.server.script(denied(code))
    with pytest.raises(ReauthorizationRequired) as caught:
        world.manager().refresh_token("alice")
    assert caught.value.error == code


def test_short_parameters_do_not_spoil_the_message(world: World) -> None:
    world.sign_in()
    provider = world.server.provider(extra_params={"tenant": "e"})
    world.server.script(denied_because("expired yesterday"))
    with pytest.raises(ReauthorizationRequired, match="expired yesterday"):
        world.manager().refresh_token("alice", provider)


def test_a_providers_words_are_one_line_of_limited_length(world: World) -> None:
    world.sign_in()
    world.server.script(
        Answer(400, {"error": "e" * 999, "error_description": "a\r\n\x1b[31mb\u2028c" + "d" * 999})
    )
    with pytest.raises(TransientRefreshError) as caught:
        world.manager().refresh_token("alice")
    assert len(caught.value.error or "") == 100
    assert len(caught.value.error_description or "") == 500
    assert str(caught.value.error_description).startswith("a [31mb cddd")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("spell", [str.lower, str.upper])
def test_a_secret_is_scrubbed_however_its_escapes_are_spelled(
    world: World, spell: Callable[[str], str]
) -> None:
    tokens = world.sign_in(refresh_token="s/e+c:r/e?t-value")
    echoed = re.sub("%..", lambda escape: spell(escape[0]), quote(tokens["refresh_token"], safe=""))
    world.server.script(Answer(400, {"error": "odd", "error_description": f"bad {echoed}"}))
    with pytest.raises(TransientRefreshError) as caught:
        world.manager().refresh_token("alice")
    assert caught.value.error_description == "bad [redacted]"


def test_the_real_answer_changed_in_one_field_still_rotates(world: World) -> None:
    old = world.sign_in()
    world.server.script(Transform(lambda body: {**body, "expires_in": "soon"}))
    token = world.manager().get_valid_token("alice")
    assert token is not None
    assert world.server.is_live(token)
    assert world.tokens()[1] != old["refresh_token"]
