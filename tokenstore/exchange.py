"""One HTTP request and its answer, within a total time, whatever the other side does."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

from tokenstore import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MAX_BODY = 1 << 20
"""Bytes of an answer that are read; a longer one counts as unreadable."""


@dataclass(frozen=True, slots=True)
class Answer:
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
class NoAnswer:
    """Nothing came back.

    Attributes:
        sent: Whether the request may have reached the other side.
        reason: What happened, in a few words that quote nothing of the request.
    """

    sent: bool
    reason: str


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
    late: Callable[[Answer], None] | None = None,
) -> Answer | NoAnswer:
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
        late: Is given an answer that comes after the timeout, in another thread.
    """

    def run() -> Answer | NoAnswer:
        if session is not None:
            return _run(session)
        with requests.Session() as own:
            return _run(own)

    def _run(used: requests.Session) -> Answer | NoAnswer:
        try:
            with used.request(
                method,
                url,
                data=data,
                headers={**_HEADERS, **(headers or {})},
                auth=_NoNetrc(),
                allow_redirects=False,
                stream=True,
                timeout=timeout,
            ) as response:
                body = _read(response, deadline=time.monotonic() + 2 * timeout)
                return Answer(response.status_code, response.headers, body)
        except requests.RequestException as error:
            return NoAnswer(not _never_sent(error), _describe(error))

    future: Future[Answer | NoAnswer] = Future()
    threading.Thread(target=_fulfil, args=(future, run), daemon=True).start()
    try:
        return future.result(timeout)
    except TimeoutError:
        if late is not None:
            future.add_done_callback(lambda done: _hand_over(done, late))
    return NoAnswer(sent=True, reason=f"no complete answer within {timeout:g} s")


def host_of(url: str | None) -> str:
    """Return the host of *url*, for messages."""
    return urlsplit(url or "").netloc or "?"


_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # a compressed answer could unpack to any size
    "User-Agent": f"tokenstore/{__version__}",
}


def _fulfil(future: Future[Answer | NoAnswer], run: Callable[[], Answer | NoAnswer]) -> None:
    try:
        future.set_result(run())
    except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
        future.set_exception(error)


def _hand_over(done: Future[Answer | NoAnswer], late: Callable[[Answer], None]) -> None:
    if done.exception() is None and isinstance(answer := done.result(), Answer):
        late(answer)


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
    while chunk := read1(1 << 16):
        yield chunk


def _never_sent(error: BaseException) -> bool:
    """Tell whether *error* means that no connection was ever made."""
    seen: set[int] = set()
    pending: list[object] = [error]
    while pending:
        cause = pending.pop()
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        if isinstance(
            cause,
            (
                requests.exceptions.ConnectTimeout,
                requests.exceptions.SSLError,
                ConnectTimeoutError,
                NewConnectionError,
                ConnectionRefusedError,
            ),
        ):
            return True
        pending += [getattr(cause, "reason", None), cause.__cause__, cause.__context__, *cause.args]
    return False


def _describe(error: requests.RequestException) -> str:
    if isinstance(error, requests.exceptions.SSLError):
        return "the TLS connection failed; check the certificates"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy could not be used"
    if _never_sent(error):
        return "no connection could be made"
    return f"the connection broke ({type(error).__name__})"
