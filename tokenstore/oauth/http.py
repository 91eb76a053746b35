"""One HTTP request and its answer, within a total time, whatever the other side does."""

from __future__ import annotations

import ssl
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationValueError,
    NewConnectionError,
)

from tokenstore.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MAX_BODY = 1 << 20
"""Bytes of an answer that are read; a longer one counts as unreadable."""


@dataclass(frozen=True, slots=True)
class HTTPResponse:
    """What came back.

    Attributes:
        status: The HTTP status.
        headers: The headers, by case-insensitive name.
        body: The body, None if it did not come whole.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class TransportFailure:
    """Nothing came back.

    Attributes:
        sent: Whether the request may have reached the other side.
        reason: What happened, in a few words that quote nothing of the request.
    """

    sent: bool
    reason: str


class _Session(requests.Session):
    """Looks at no redirect: requests would read its whole body, and fail at a bad Location."""

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002
        return None


class _NoNetrc(AuthBase):
    """Stands where requests would put a password from ~/.netrc (which a proxy setting may need)."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


def exchange(
    method: str,
    url: str,
    *,
    timeout: float,
    session: requests.Session | None = None,
    headers: Mapping[str, str | None] | None = None,
    data: Mapping[str, str] | None = None,
    as_json: bool = False,
    abandoned: Callable[[], Callable[[HTTPResponse | TransportFailure], None]] | None = None,
) -> HTTPResponse | TransportFailure:
    """Send one request and wait for the last byte of the answer, at most *timeout* seconds.

    requests bounds each read, not the whole: headers or a body that drip are not outwaited by it.
    So the request runs in a thread of its own. Redirects are not followed and ~/.netrc is not
    looked at; proxies and certificate settings of the environment are.

    Args:
        method: The HTTP method.
        url: Where to.
        timeout: Seconds for all of it.
        session: A session to use; without one, each request has a connection of its own, since
            one that died while idle could not be told from one that died after the request.
        headers: Further headers; None removes one of the session's.
        data: The form to send.
        as_json: Whether to send it as a JSON object.
        abandoned: Is called when nobody waits any more, after the timeout or an interrupt
            (Ctrl-C), while the request is still under way; what it returns is called with what
            comes of it, in another thread.
    """

    def run() -> HTTPResponse | TransportFailure:
        if session is not None:
            return _run(session)
        with _Session() as own:
            return _run(own)

    def _run(used: requests.Session) -> HTTPResponse | TransportFailure:
        try:
            with used.request(
                method,
                url,
                data=None if as_json else data,
                json=data if as_json else None,
                headers={**_HEADERS, **(headers or {})},
                auth=_NoNetrc(),
                allow_redirects=False,
                stream=True,
                # A connection that was never made is to be told from an answer that never came;
                # an answer that is late is listened for.
                timeout=(0.9 * timeout, 2 * timeout),
            ) as response:
                body = _read(response, deadline=time.monotonic() + 2 * timeout)
                return HTTPResponse(response.status_code, response.headers, body)
        except (HTTPError, OSError, ValueError) as error:  # requests' own are OSErrors
            return TransportFailure(not _never_sent(error), _describe(error))

    future: Future[HTTPResponse | TransportFailure] = Future()
    thread = threading.Thread(target=_fulfil, args=(future, run), daemon=True)
    try:
        try:
            thread.start()
        except RuntimeError:
            return TransportFailure(sent=False, reason="the system has no thread to spare")
        return future.result(timeout)
    except BaseException as error:
        if abandoned is not None:
            ended = abandoned()
            future.add_done_callback(lambda done: ended(done.result()))
        if not isinstance(error, TimeoutError):
            raise
    return TransportFailure(sent=True, reason=f"no complete answer within {timeout:g} s")


def host_of(url: str | None) -> str:
    """Return the host of *url*, for messages; a user name or password in it is left out."""
    try:
        return urlsplit(url or "").netloc.rpartition("@")[2] or "?"
    except ValueError:
        return "?"


_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # nothing to gain; who compresses all the same is understood
    "User-Agent": f"tokenstore/{__version__}",
}


def _fulfil(
    future: Future[HTTPResponse | TransportFailure],
    run: Callable[[], HTTPResponse | TransportFailure],
) -> None:
    try:
        future.set_result(run())
    except BaseException as error:  # noqa: BLE001 - a session of the caller's may raise anything
        future.set_result(
            TransportFailure(sent=True, reason=f"the session raised {type(error).__name__}")
        )


def _read(response: requests.Response, *, deadline: float) -> bytes | None:
    body = b""
    try:
        for chunk in _chunks(response):
            body += chunk
            if len(body) > MAX_BODY or time.monotonic() > deadline:
                return None
    except (requests.RequestException, HTTPError, OSError):
        return None
    return body


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield the body as it arrives; `iter_content` would wait for a chunk to be full."""
    read1 = getattr(response.raw, "read1", None)
    if read1 is None:
        yield from response.iter_content(1)
        return
    while chunk := read1(1 << 16, decode_content=True):
        yield chunk


# What can only happen before there is a connection that a request could go over.
_UNCONNECTED = (
    requests.exceptions.ConnectTimeout,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    ConnectTimeoutError,
    LocationValueError,
    NewConnectionError,
    ConnectionRefusedError,
    ssl.SSLCertVerificationError,
)
_HANDSHAKE = {
    "SSLV3_ALERT_HANDSHAKE_FAILURE",
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "UNSUPPORTED_PROTOCOL",
    "WRONG_VERSION_NUMBER",
}


def _never_sent(error: BaseException) -> bool:
    """Tell whether *error* means that no connection was ever made."""
    if type(error) is OSError:  # requests: there is no such file of certificates
        return True
    seen: set[int] = set()
    pending: list[object] = [error]
    while pending:
        cause = pending.pop()
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        if isinstance(cause, _UNCONNECTED) or _is_refusal(cause):
            return True
        pending += [getattr(cause, "reason", None), cause.__cause__, cause.__context__, *cause.args]
    return False


def _is_refusal(cause: BaseException) -> bool:
    """Tell a failed handshake from a TLS error that may come later, and a proxy's refusal."""
    if isinstance(cause, ssl.SSLError):
        return getattr(cause, "reason", None) in _HANDSHAKE
    return isinstance(cause, OSError) and str(cause).startswith("Tunnel connection failed")


def _describe(error: BaseException) -> str:
    if isinstance(error, requests.exceptions.SSLError):
        return "the TLS connection failed; check the certificates"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy could not be used"
    if isinstance(error, (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL)):
        return "the URL of the endpoint or of the proxy cannot be used"
    if type(error) is OSError:
        return "the file of certificates cannot be read; check REQUESTS_CA_BUNDLE"
    if _never_sent(error):
        return "no connection could be made"
    return f"the connection broke ({type(error).__name__})"
