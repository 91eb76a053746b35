from __future__ import annotations

import gzip
import signal
import ssl
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest
import requests
import responses
import urllib3
from requests.adapters import BaseAdapter
from responses import matchers

import tokenstore.oauth.http
from tests.helpers.refreshes import SOON, Call, Raw
from tokenstore.oauth.http import MAX_BODY, HTTPResponse, TransportFailure, exchange, host_of
from tokenstore.testing import Answer as Scripted
from tokenstore.testing import AuthorizationServer, Drip, Drop, Hold

if TYPE_CHECKING:
    from pathlib import Path

URL = "https://provider.example/token"
FORM = b"access_token=new&refresh_token=newer"
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)


def post(url: str, **options: Any) -> HTTPResponse | TransportFailure:
    return exchange("POST", url, **{"timeout": SOON, "data": {"a": "b"}, **options})


def answered(url: str, **options: Any) -> HTTPResponse:
    answer = post(url, **options)
    assert isinstance(answer, HTTPResponse)
    return answer


def unanswered(url: str, **options: Any) -> TransportFailure:
    nothing = post(url, **options)
    assert isinstance(nothing, TransportFailure)
    return nothing


def body_of(sent: bytes) -> bytes | None:
    with Raw(sent) as raw:
        return answered(raw.url).body


# The request


@responses.activate
def test_the_form_is_sent_with_our_headers() -> None:
    expected = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": f"tokenstore/{tokenstore.__version__}",
        "Content-Type": "application/x-www-form-urlencoded",
        "X-More": "1",
    }
    responses.post(
        URL,
        body=b"{}",
        match=[
            matchers.header_matcher(expected),
            matchers.urlencoded_params_matcher({"a": "p+a/b=:%é€", "c": ""}, allow_blank=True),
        ],
    )
    answer = answered(URL, data={"a": "p+a/b=:%é€", "c": ""}, headers={"X-More": "1"})
    assert (answer.status, answer.body) == (200, b"{}")


@responses.activate
def test_a_header_of_the_session_can_be_left_out() -> None:
    responses.post(URL)
    with requests.Session() as session:
        session.headers.update({"Authorization": "Bearer other", "X-Session": "1"})
        session.auth = ("user", "password")
        answered(URL, session=session, headers={"Authorization": None})
    headers = responses.calls[0].request.headers
    assert "Authorization" not in headers
    assert headers["X-Session"] == "1"


@pytest.mark.parametrize("ours", [None, "Basic b3VyOm93bg=="], ids=["without", "with"])
def test_a_netrc_file_does_not_touch_the_authorization(
    server: AuthorizationServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ours: str | None,
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    requests.post(server.token_endpoint, timeout=SOON)
    answered(server.token_endpoint, headers={"Authorization": ours})
    without, with_ours = server.requests
    assert without.headers["authorization"].startswith("Basic ")  # the file is in force
    assert with_ours.headers.get("authorization") == ours


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Raw(HEAD + b"Content-Length: 2\r\n\r\n{}") as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
        assert answered("http://127.0.0.1:9/token").body == b"{}"
    assert proxy.received[0].startswith(b"POST http://127.0.0.1:9/token HTTP/1.1\r\n")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer_and_not_followed(server: AuthorizationServer, status: int) -> None:
    with Raw(HEAD + b"Content-Length: 0\r\n\r\n") as other:
        server.script(Scripted.redirect(other.url, status))
        answer = answered(server.token_endpoint)
    assert answer.status == status
    assert answer.headers["location"] == other.url
    assert other.received == []


def test_a_given_session_is_used_and_stays_open(server: AuthorizationServer) -> None:
    used: list[str | None] = []

    class Adapter(requests.adapters.HTTPAdapter):
        def send(self, request: requests.PreparedRequest, **more: Any) -> requests.Response:  # type: ignore[override]
            used.append(request.url)
            return super().send(request, **more)

        def close(self) -> None:
            used.append("closed")
            super().close()

    with requests.Session() as session:
        session.mount("http://", Adapter())
        for _ in range(2):
            assert answered(server.token_endpoint, session=session).status == 401
        assert used == [server.token_endpoint] * 2


# The answer


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (HEAD + b"Content-Length: 36\r\n\r\n" + FORM, FORM),
        (HEAD + b"\r\n" + FORM, FORM),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n24\r\n" + FORM + b"\r\n0\r\n\r\n", FORM),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: 0\r\n\r\n", b""),
        (HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(FORM), FORM),
        (HEAD + b"Content-Length: 37\r\n\r\n" + FORM, None),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n24\r\n" + FORM + b"\r\n", None),
        (HEAD + b"Content-Encoding: gzip\r\n\r\n" + FORM, None),
    ],
    ids=[
        "with a length",
        "until the connection closes",
        "in chunks",
        "after 100 Continue",
        "compressed, though nobody asked",
        "cut short of its length",
        "cut in a chunk",
        "not compressed, though it says so",
    ],
)
def test_a_body_is_read_whole_or_not_at_all(sent: bytes, body: bytes | None) -> None:
    assert body_of(sent) == body


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"\r\n" + b"x" * (MAX_BODY + 1),
        HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"x" * (64 * MAX_BODY)),
    ],
    ids=["plain", "compressed"],
)
def test_a_body_over_the_limit_is_not_read(sent: bytes) -> None:
    assert body_of(sent) is None


def test_a_body_at_the_limit_is_read() -> None:
    assert body_of(HEAD + b"\r\n" + b"x" * MAX_BODY) == b"x" * MAX_BODY


def test_an_answer_shows_neither_headers_nor_body() -> None:
    assert (
        repr(HTTPResponse(200, {"Set-Cookie": "secret"}, b"secret")) == "HTTPResponse(status=200)"
    )


# No answer


def test_a_request_that_was_read_and_not_answered_was_sent(server: AuthorizationServer) -> None:
    server.script(Drop(spent=False))
    nothing = unanswered(server.token_endpoint)
    assert nothing.sent
    assert nothing.reason == "the connection broke (ConnectionError)"


@pytest.mark.parametrize(
    "answer",
    [b"nonsense\r\n\r\n", HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx"],
    ids=["no HTTP", "two lengths"],
)
def test_an_answer_that_is_no_http_counts_as_sent(answer: bytes) -> None:
    with Raw(answer) as raw:
        assert unanswered(raw.url).sent


@responses.activate
@pytest.mark.parametrize(
    ("cause", "sent"),
    [
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), True),
        (ssl.SSLError(1, "[SSL: BAD_RECORD_MAC]"), True),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), False),
    ],
    ids=["closed", "damaged", "certificate"],
)
def test_a_tls_error_counts_as_unsent_only_if_it_precedes_the_request(
    cause: ssl.SSLError, *, sent: bool
) -> None:
    error = urllib3.exceptions.SSLError(cause)
    responses.post(URL, body=requests.exceptions.SSLError(error))
    nothing = unanswered(URL)
    assert nothing.sent is sent
    assert "TLS" in nothing.reason


def test_https_to_a_plain_server_was_not_sent() -> None:
    with Raw(HEAD + b"\r\n") as raw:
        nothing = unanswered(raw.url.replace("http:", "https:"))
    assert not nothing.sent
    assert "TLS" in nothing.reason


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1/token", "no connection could be made"),
        (f"https://{'a' * 70}.example/token", "no connection could be made"),
        ("http://exa mple/token", "the URL of the endpoint or of the proxy cannot be used"),
        ("gopher://provider.example", "the URL of the endpoint or of the proxy cannot be used"),
    ],
    ids=["refused", "no host name", "no URL", "no scheme"],
)
def test_without_a_connection_nothing_was_sent(url: str, reason: str) -> None:
    assert unanswered(url) == TransportFailure(sent=False, reason=reason)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("https_proxy", "http://127.0.0.1:1", "the proxy could not be used"),
        ("https_proxy", "gopher://x", "the URL of the endpoint or of the proxy cannot be used"),
        (
            "REQUESTS_CA_BUNDLE",
            "/nowhere",
            "the file of certificates cannot be read; check REQUESTS_CA_BUNDLE",
        ),
    ],
    ids=["proxy is down", "proxy is no URL", "no certificates"],
)
def test_an_unusable_setting_of_the_environment_sends_nothing(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert unanswered(URL) == TransportFailure(sent=False, reason=reason)


def test_a_proxy_that_refuses_the_tunnel_was_not_sent_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Raw(b"HTTP/1.1 407 No\r\n\r\n") as proxy:
        monkeypatch.setenv("https_proxy", f"http://{proxy.host}")
        nothing = unanswered(URL)
    assert nothing == TransportFailure(sent=False, reason="the proxy could not be used")
    assert proxy.received[0].startswith(b"CONNECT provider.example:443 ")


def test_whatever_a_session_raises_is_no_answer() -> None:
    class Broken(BaseAdapter):
        def send(self, *_: Any, **__: Any) -> requests.Response:
            raise LookupError("a bug in the adapter")

        def close(self) -> None: ...

    with requests.Session() as session:
        session.mount("https://", Broken())
        nothing = unanswered(URL, session=session)
    assert nothing == TransportFailure(sent=True, reason="the session raised LookupError")


# The deadline


@pytest.mark.parametrize(
    "step",
    [Drip(0.05, headers=True), Drip(0.05), Hold()],
    ids=["dripping headers", "dripping body", "black hole"],
)
def test_the_whole_answer_has_one_deadline(server: AuthorizationServer, step: Drip | Hold) -> None:
    # A drip sends something every 50 ms, so that no single read times out.
    server.script(step)
    grant = {"grant_type": "refresh_token", **server.sign_in()}
    began = time.monotonic()
    nothing = unanswered(server.token_endpoint, timeout=0.3, data=grant)
    assert time.monotonic() - began < SOON / 4
    assert nothing == TransportFailure(sent=True, reason="no complete answer within 0.3 s")


def test_an_answer_after_the_deadline_is_handed_over(server: AuthorizationServer) -> None:
    hold = Hold()
    server.script(hold)
    late: SimpleQueue[Any] = SimpleQueue()
    assert unanswered(server.token_endpoint, timeout=0.5, abandoned=lambda: late.put).sent
    assert late.empty()
    hold.release.set()
    assert late.get(timeout=SOON).status == 401


def test_an_answer_before_the_deadline_is_not_handed_over(server: AuthorizationServer) -> None:
    late: SimpleQueue[Any] = SimpleQueue()
    assert answered(server.token_endpoint, abandoned=lambda: late.put).status == 401
    assert late.empty()


def test_an_answer_after_an_interrupt_is_handed_over(server: AuthorizationServer) -> None:
    hold = Hold()
    server.script(hold)
    late: SimpleQueue[Any] = SimpleQueue()
    waiting = threading.main_thread().ident
    assert waiting is not None

    def interrupt() -> None:
        assert hold.arrived.wait(SOON)
        signal.pthread_kill(waiting, signal.SIGINT)

    interrupting = Call(interrupt)
    with pytest.raises(KeyboardInterrupt):
        post(server.token_endpoint, abandoned=lambda: late.put)
    interrupting.result()
    hold.release.set()
    assert late.get(timeout=SOON).status == 401


# Names for messages


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://provider.example:8443/token?x", "provider.example:8443"),
        ("https://user:password@provider.example/", "provider.example"),
        ("/relative", "?"),
        ("http://[", "?"),
        ("", "?"),
        (None, "?"),
    ],
)
def test_a_url_is_shown_by_its_host(url: str | None, host: str) -> None:
    assert host_of(url) == host
