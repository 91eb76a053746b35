from __future__ import annotations

import errno
import gzip
import inspect
import ssl
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from socket import SHUT_RDWR, create_server
from typing import TYPE_CHECKING, Any, Self

import pytest
import requests
import responses
import urllib3
from requests.adapters import BaseAdapter, HTTPAdapter
from responses import matchers
from urllib3 import Retry

import tokenstore.oauth.http
from tests.helpers.refreshes import SOON, Raw
from tests.helpers.stores import python
from tokenstore.oauth.addresses import host_of
from tokenstore.oauth.http import MAX_BODY, HTTPResponse, TransportFailure, exchange
from tokenstore.testing import Answer as Scripted
from tokenstore.testing import AuthorizationServer, Drip, Drop, Hold

if TYPE_CHECKING:
    from collections.abc import Iterator
    from socket import socket

URL = "https://provider.example/token"
FORM = b"access_token=new&refresh_token=newer"
HEAD = b"HTTP/1.1 200 OK\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
TWO_MEMBERS = gzip.compress(FORM[:9]) + gzip.compress(FORM[9:])
TWICE = gzip.compress(gzip.compress(FORM))


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


def is_incomplete(received: HTTPResponse | TransportFailure) -> bool:
    """Tell that there was no usable response to a request that was sent."""
    return received.body is None if isinstance(received, HTTPResponse) else received.sent


class _Listening:
    """A server with a thread for each connection."""

    def __init__(self) -> None:
        self._socket = create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/token"
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._answer, args=[connection], daemon=True)
            self._threads.append(thread)
            thread.start()

    def _answer(self, connection: socket) -> None:
        with connection, suppress(OSError):
            self.answer(connection)

    def answer(self, connection: socket) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(SHUT_RDWR)
        for thread in self._threads:
            thread.join(SOON)
        self._socket.close()


class KeepAlive(_Listening):
    """A server that keeps its connections open, and counts the requests on each."""

    def __init__(self) -> None:
        self.requests: list[int] = []
        super().__init__()

    def answer(self, connection: socket) -> None:
        number = len(self.requests)
        self.requests.append(0)
        received = b""
        while chunk := connection.recv(1 << 16):
            received += chunk
            if received.endswith(b"\r\n\r\na=b"):
                received = b""
                self.requests[number] += 1
                connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")


class Dripping(_Listening):
    """A server that sends a byte more now and then, until the other side hangs up."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self.ended = threading.Event()
        super().__init__()

    def answer(self, connection: socket) -> None:
        connection.recv(1 << 16)
        connection.settimeout(0.02)
        connection.sendall(self._head)
        with suppress(ConnectionError):
            while True:
                connection.sendall(b"x")
                with suppress(TimeoutError):
                    if not connection.recv(1):
                        break
        self.ended.set()


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
        assert answered("http://provider.example/token").body == b"{}"
    assert proxy.received[0].startswith(b"POST http://provider.example/token HTTP/1.1\r\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("where", ["environment", "session"])
def test_a_request_to_loopback_goes_through_no_proxy(
    monkeypatch: pytest.MonkeyPatch, host: str, where: str
) -> None:
    """R22: a proxy would get the refresh token and the client secret in clear text."""
    answer = HEAD + b"Content-Length: 2\r\n\r\n{}"
    with Raw(answer) as proxy, Raw(answer) as provider, requests.Session() as session:
        if where == "environment":
            monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
            monkeypatch.setenv("all_proxy", f"http://{proxy.host}")
        else:
            session.proxies = {"http": f"http://{proxy.host}", "all": f"http://{proxy.host}"}
        url = provider.url.replace("127.0.0.1", host)
        given = session if where == "session" else None
        assert answered(url, session=given).body == b"{}"
    assert proxy.received == []
    assert provider.received[0].startswith(b"POST /token HTTP/1.1\r\n")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer_and_not_followed(server: AuthorizationServer, status: int) -> None:
    with Raw(HEAD + b"Content-Length: 0\r\n\r\n") as other:
        server.script(Scripted.redirect(other.url, status))
        answer = answered(server.token_endpoint)
    assert answer.status == status
    assert answer.headers["location"] == other.url
    assert other.received == []


# The application's session


class Recording(HTTPAdapter):
    """An adapter of an application: it notes what goes through it, and whether it is closed."""

    def __init__(self, **options: Any) -> None:
        self.used: list[str | None] = []
        super().__init__(**options)

    def send(self, request: requests.PreparedRequest, **more: Any) -> requests.Response:  # type: ignore[override]
        self.used.append(request.url)
        return super().send(request, **more)


def test_the_adapters_of_a_session_are_used_and_the_session_stays_open(
    server: AuthorizationServer,
) -> None:
    with requests.Session() as session:
        adapter = Recording()
        session.mount("http://", adapter)
        for _ in range(2):
            assert answered(server.token_endpoint, session=session).status == 401
        assert adapter.used == [server.token_endpoint] * 2
        assert session.post(server.token_endpoint, timeout=SOON).status_code == 400


def test_an_adapter_of_any_kind_is_used_and_stays_open() -> None:
    class Canned(BaseAdapter):
        is_open = True

        def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:  # type: ignore[override]
            response = requests.Response()
            response.status_code, response.url = 418, str(request.url)
            response.raw = BytesIO(b"short and stout")
            return response

        def close(self) -> None:
            self.is_open = False

    with requests.Session() as session:
        adapter = Canned()
        session.mount("https://", adapter)
        answer = answered(URL, session=session)
        assert (answer.status, answer.body) == (418, b"short and stout")
        assert adapter.is_open


def test_of_a_session_nothing_else_gets_into_the_request(server: AuthorizationServer) -> None:
    """R8: its headers, parameters, cookies, login and hooks belong to other requests."""
    hooked: list[str] = []

    def hook(response: requests.Response, **_: Any) -> None:
        hooked.append(response.text)

    with requests.Session() as session:
        session.headers.update({"Authorization": "Bearer other", "X-Session": "1"})
        session.params = {"leak": "1"}
        session.auth = ("user", "password")
        session.cookies.set("id", "1")
        session.hooks["response"].append(hook)
        answer = answered(server.token_endpoint, session=session, headers={"Authorization": None})
    (request,) = server.requests
    assert answer.body
    assert hooked == []
    assert request.path == "/token"
    assert request.params == {"a": "b"}
    assert not {"authorization", "x-session", "cookie"} & set(request.headers)


def test_a_session_takes_its_login_neither_from_netrc_nor_from_itself(
    server: AuthorizationServer,
) -> None:
    """R8: the credentials of the client are the only ones."""
    with requests.Session() as session:
        session.auth = ("user", "password")
        ours = {"Authorization": "Basic b3VyOm93bg=="}
        answered(server.token_endpoint, session=session, headers=ours)
    (request,) = server.requests
    assert request.headers["authorization"] == ours["Authorization"]


@pytest.mark.parametrize("kind", [HTTPAdapter, Recording])
def test_retries_of_a_session_do_not_repeat_a_request(
    server: AuthorizationServer, kind: type[HTTPAdapter]
) -> None:
    """R8: a refresh token is sent once, whatever the session is used for otherwise."""
    server.script(*[Scripted(503)] * 3)
    retry = Retry(3, status_forcelist=[503], allowed_methods=None, backoff_factor=0)
    with requests.Session() as session:
        session.mount("http://", kind(max_retries=retry))
        assert answered(server.token_endpoint, session=session).status == 503
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", [HTTPAdapter, Recording])
def test_a_request_after_a_lost_answer_is_not_repeated(
    server: AuthorizationServer, kind: type[HTTPAdapter]
) -> None:
    """R8: nor is one whose connection breaks."""
    server.script(*[Drop(spent=False)] * 3)
    with requests.Session() as session:
        session.mount("http://", kind(max_retries=Retry(3, allowed_methods=None)))
        assert unanswered(server.token_endpoint, session=session).sent
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", [HTTPAdapter, Recording])
def test_a_request_shares_no_connection_with_the_session(kind: type[HTTPAdapter]) -> None:
    """R8: a connection that another process has as well would mix up their answers."""
    with KeepAlive() as provider, requests.Session() as session:
        session.mount("http://", kind())
        for _ in range(2):
            session.post(provider.url, data={"a": "b"}, timeout=SOON)
        assert provider.requests == [2]
        assert answered(provider.url, session=session).status == 200
        session.post(provider.url, data={"a": "b"}, timeout=SOON)
        assert answered(provider.url, session=session).status == 200
    assert provider.requests == [3, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["HTTPAdapter", "Sub"])
def test_parent_and_child_get_their_own_answers_through_one_session(
    server: AuthorizationServer, kind: str
) -> None:
    """R8: a session that was used before a fork shares its connections, and not with us."""
    printed = python(
        """
import requests
from requests.adapters import HTTPAdapter
from tokenstore.oauth.http import exchange

class Sub(HTTPAdapter):
    pass

url, kind = sys.argv[1:]
session = requests.Session()
session.mount("http://", Sub() if kind == "Sub" else HTTPAdapter())
session.post(url, timeout=20)

def work(number):
    for _ in range(20):
        form = {"grant_type": f"of {number}"}
        answer = exchange("POST", url, timeout=20, session=session, data=form)
        assert answer.status == 401, answer
tell(forked(4, work))
        """,
        server.token_endpoint,
        kind,
    )
    assert printed == "[0, 0, 0, 0]\n"
    kinds = Counter(request.params.get("grant_type") for request in server.requests)
    assert kinds == {None: 1, "of 0": 20, "of 1": 20, "of 2": 20, "of 3": 20}


# The answer


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (HEAD + b"Content-Length: 36\r\n\r\n" + FORM, FORM),
        (HEAD + b"\r\n" + FORM, FORM),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n24\r\n" + FORM + b"\r\n0\r\n\r\n", FORM),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: 0\r\n\r\n", b""),
        (EARLY + b"\r\n" + HEAD + b"Content-Length: 36\r\n\r\n" + FORM, FORM),
        (EARLY + b"\r\n" + PROCESSING * 3 + HEAD + b"\r\n" + FORM, FORM),
        (HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(FORM), FORM),
        (HEAD + b"Content-Length: 37\r\n\r\n" + FORM, None),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n24\r\n" + FORM + b"\r\n", None),
        (HEAD + b"Content-Encoding: gzip\r\n\r\n" + FORM, None),
        (HEAD + b"Content-Encoding: deflate\r\n\r\n" + zlib.compress(FORM), FORM),
        (HEAD + b"Content-Encoding: deflate\r\n\r\n" + zlib.compress(FORM)[2:-4], FORM),
        (HEAD + b"Content-Encoding: GZIP\r\n\r\n" + TWO_MEMBERS + b"\0", FORM),
        (HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(FORM)[:-1], None),
        (HEAD + b"Content-Encoding: gzip, gzip\r\n\r\n" + TWICE, None),
        (HEAD + 2 * b"Content-Encoding: gzip\r\n" + b"\r\n" + TWICE, None),
        (HEAD + b"Content-Encoding: secret\r\n\r\n" + FORM, None),
    ],
    ids=[
        "with a length",
        "until the connection closes",
        "in chunks",
        "after 100 Continue",
        "P5: after 103 Early Hints",
        "P5: after several interim responses",
        "compressed, though nobody asked",
        "cut short of its length",
        "cut in a chunk",
        "not compressed, though it says so",
        "deflated",
        "deflated without a header",
        "compressed in parts",
        "cut while compressed",
        "S16: compressed twice",
        "S16: compressed twice, by two headers",
        "in an unknown way",
    ],
)
def test_a_body_is_read_whole_or_not_at_all(sent: bytes, body: bytes | None) -> None:
    assert body_of(sent) == body


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"\r\n" + b"x" * (MAX_BODY + 1),
        HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"x" * (64 * MAX_BODY)),
        HEAD + b"Content-Encoding: gzip\r\n\r\n" + 64 * gzip.compress(b"x" * (MAX_BODY // 32)),
    ],
    ids=["plain", "compressed", "compressed in parts"],
)
def test_a_body_over_the_limit_is_not_read(sent: bytes) -> None:
    assert body_of(sent) is None


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (HEAD + b"Content-Length: 36\r\n\r\n" + FORM, FORM),
        (HEAD + b"\r\n" + FORM, FORM),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n24\r\n" + FORM + b"\r\n0\r\n\r\n", FORM),
        (HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(FORM), FORM),
        (HEAD + b"Content-Length: 37\r\n\r\n" + FORM, None),
        (HEAD + b"Content-Encoding: gzip, gzip\r\n\r\n" + TWICE, None),
        (HEAD + b"\r\n" + b"x" * (MAX_BODY + 1), None),
    ],
    ids=["length", "no length", "chunks", "compressed", "cut", "compressed twice", "too long"],
)
def test_an_older_urllib3_reads_the_same_bodies(
    monkeypatch: pytest.MonkeyPatch, sent: bytes, body: bytes | None
) -> None:
    for kind in urllib3.HTTPResponse.__mro__:
        if "read1" in vars(kind):
            monkeypatch.delattr(kind, "read1")
    assert body_of(sent) == body


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "secret"])
def test_an_empty_body_is_empty_in_any_encoding(encoding: str) -> None:
    assert body_of(HEAD + f"Content-Encoding: {encoding}\r\n\r\n".encode()) == b""


def test_a_body_that_an_adapter_has_decoded_is_not_decoded_again() -> None:
    class Decoded:
        def stream(self, _: int, **__: Any) -> Iterator[bytes]:
            yield FORM

        def close(self) -> None: ...

    class Decoding(BaseAdapter):
        def send(self, *_: Any, **__: Any) -> requests.Response:
            response = requests.Response()
            response.status_code = 200
            response.headers["Content-Encoding"] = "gzip"
            response.headers["Content-Length"] = str(len(gzip.compress(FORM)))
            response.raw = Decoded()
            return response

        def close(self) -> None: ...

    with requests.Session() as session:
        session.mount("https://", Decoding())
        assert answered(URL, session=session).body == FORM


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


class Broken(BaseAdapter):
    """An adapter with a bug."""

    def send(self, *_: Any, **__: Any) -> requests.Response:
        raise LookupError("secret")

    def close(self) -> None: ...


class BrokenHTTP(HTTPAdapter):
    """Likewise, of the usual kind."""

    def send(self, *_: Any, **__: Any) -> requests.Response:
        raise LookupError("secret")


@pytest.mark.parametrize("kind", [Broken, BrokenHTTP])
def test_a_bug_in_an_adapter_is_logged_with_its_place(
    caplog: pytest.LogCaptureFixture, kind: type[BaseAdapter]
) -> None:
    """R23: the type alone tells nobody where to look; what the error says may be secret."""
    with requests.Session() as session:
        session.mount("https://", kind())
        nothing = unanswered(URL, session=session)
    assert nothing == TransportFailure(sent=True, reason="the session raised LookupError")
    _, line = inspect.getsourcelines(kind.send)
    place = f"raised LookupError at {Path(__file__).name}:{line + 1}"
    assert caplog.messages == [f"an adapter of the session {place}"]


# Whether anything was sent


class Repeating(HTTPAdapter):
    """Sends a request again to another place where nobody listens, if no answer comes."""

    def send(self, request: requests.PreparedRequest, **more: Any) -> requests.Response:  # type: ignore[override]
        try:
            return super().send(request, **more)
        except requests.ConnectionError:
            request.url = "http://127.0.0.1:1/token"
            return super().send(request, **more)


def test_sent_then_reset_then_refused_counts_as_sent(server: AuthorizationServer) -> None:
    """R9: that the last connection was refused says nothing of an earlier one."""
    server.script(Drop(spent=False))
    with requests.Session() as session:
        session.mount("http://", Repeating())
        nothing = unanswered(server.token_endpoint, session=session)
    assert nothing.sent
    assert len(server.requests) == 1


def test_a_refused_connection_in_the_context_of_an_error_counts_for_nothing() -> None:
    """R9: an error that happened before this one may be of another connection."""

    class Chained(BaseAdapter):
        def send(self, *_: Any, **__: Any) -> requests.Response:
            try:
                raise ConnectionRefusedError("an earlier attempt")
            except ConnectionRefusedError as refused:
                raise requests.ConnectionError("reset after it was sent") from refused

        def close(self) -> None: ...

    with requests.Session() as session:
        session.mount("https://", Chained())
        assert unanswered(URL, session=session).sent


# The hard end


@pytest.mark.parametrize(
    "step",
    [Drip(0.05, headers=True), Hold()],
    ids=["dripping headers", "black hole"],
)
def test_a_request_ends_at_its_hard_end(server: AuthorizationServer, step: Drip | Hold) -> None:
    """R13: one byte of a header now and then, so that no single read times out."""
    server.script(step)
    grant = {"grant_type": "refresh_token", **server.sign_in()}
    began = time.monotonic()
    nothing = unanswered(server.token_endpoint, timeout=0.3, data=grant)
    assert time.monotonic() - began < SOON / 4
    assert nothing == TransportFailure(sent=True, reason="no complete response within 0.3 s")


@pytest.mark.parametrize("head", [HEAD + b"X-Slow: ", HEAD + b"\r\n"], ids=["header", "body"])
@pytest.mark.parametrize("through", ["nothing", "an adapter", "a subclass"])
def test_the_socket_is_shut_at_the_hard_end(head: bytes, through: str) -> None:
    """R13: the other side sees the end of the connection, so that nothing holds it."""
    with Dripping(head) as provider, requests.Session() as session:
        session.mount("http://", Recording() if through == "a subclass" else HTTPAdapter())
        given = None if through == "nothing" else session
        began = time.monotonic()
        assert is_incomplete(post(provider.url, timeout=0.2, session=given))
        assert time.monotonic() - began < SOON / 4
        assert provider.ended.wait(SOON)


@pytest.mark.slow
def test_many_requests_at_once_end_each_at_its_own_time() -> None:
    """R13: one thread watches all of them, the later ones that end earlier, too."""
    ends = [0.9, 0.3, 0.6, 0.1, 0.3]

    def timed(timeout: float) -> float:
        began = time.monotonic()
        assert is_incomplete(post(provider.url, timeout=timeout))
        return time.monotonic() - began

    with Dripping(HEAD + b"X-Slow: ") as provider, ThreadPoolExecutor(len(ends)) as threads:
        took = list(threads.map(timed, ends))
    assert all(end <= each for end, each in zip(ends, took, strict=True))
    assert took[3] < took[0]


@pytest.mark.slow
def test_a_child_of_a_fork_has_a_watchdog_of_its_own() -> None:
    """R13: the thread of the parent is not in it."""
    code = """
from tokenstore.oauth.http import TransportFailure, exchange
[url] = sys.argv[1:]
exchange("POST", url, timeout=0.1, data={"a": "b"})
def work(_):
    assert getattr(exchange("POST", url, timeout=0.1, data={"a": "b"}), "body", None) is None
tell(forked(2, work))
"""
    with Dripping(HEAD + b"X-Slow: ") as provider:
        printed = python("import warnings\nwarnings.simplefilter('ignore')\n" + code, provider.url)
    assert printed == "[0, 0]\n"


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


def test_an_error_while_the_connection_is_closed_costs_no_response() -> None:
    class Failing(HTTPAdapter):
        def close(self) -> None:
            super().close()
            raise OSError(errno.EIO, "close")

    session = requests.Session()
    session.mount("http://", Failing())
    with Raw(HEAD + b"Content-Length: 2\r\n\r\n{}") as server:
        received = exchange("POST", server.url, timeout=SOON, session=session)

    assert isinstance(received, HTTPResponse)
    assert received.body == b"{}"
