"""One HTTP request and its response. No other module opens a connection to a provider."""

from __future__ import annotations

import http.client
import logging
import ssl
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.auth import AuthBase
from urllib3 import PoolManager, Retry
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationValueError,
    NewConnectionError,
)
from urllib3.util.ssl_ import create_urllib3_context

from tokenstore.logs import place_of
from tokenstore.oauth.addresses import is_loopback
from tokenstore.oauth.deadline import Exchange, current
from tokenstore.version import __version__

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator, Mapping

MAX_BODY = 1 << 20
"""Bytes of a body that are read; a longer one counts as unreadable."""

_log = logging.getLogger(__name__)

_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # nothing to gain; a compressed response is understood as well
    "User-Agent": f"tokenstore/{__version__}",
}


@dataclass(frozen=True, slots=True)
class HTTPResponse:
    """A response.

    Attributes:
        status: The HTTP status.
        headers: The headers, by case-insensitive name.
        body: The body, None if it did not arrive completely.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class TransportFailure:
    """No response.

    Attributes:
        sent: Whether the request may have reached the other side.
        reason: What happened, in a few words that quote nothing of the request.
        refuses_client: Whether the other side did not accept the client's certificate.
    """

    sent: bool
    reason: str
    refuses_client: bool = False


def client_context(certificate: str, key: str | None) -> ssl.SSLContext:
    """Return a TLS context that presents a client certificate (RFC 8705), for one request.

    Args:
        certificate: The PEM file of the certificate, with its chain.
        key: The PEM file of its private key. Defaults to the same file.

    Raises:
        OSError: The files cannot be used (`ssl.SSLError`), or not be read.
    """
    context = create_urllib3_context()
    # With a password, OpenSSL does not ask for one on the terminal.
    context.load_cert_chain(certificate, key, password="")
    return context


def exchange(
    method: str,
    url: str,
    *,
    timeout: float,
    connect_timeout: float | None = None,
    session: requests.Session | None = None,
    headers: Mapping[str, str | None] | None = None,
    data: Mapping[str, str | list[str]] | None = None,
    as_json: bool = False,
    tls: ssl.SSLContext | None = None,
) -> HTTPResponse | TransportFailure:
    """Send one request, once, on a connection of its own; return the response.

    Redirects are not followed, nothing is sent again, and ``~/.netrc`` is not read. Proxies and
    certificates of the environment are used, except for loopback.

    Args:
        method: The HTTP method.
        url: The URL.
        timeout: Seconds to the last byte of the response; then the connection is closed.
        connect_timeout: Seconds to establish the connection. Defaults to nine tenths of *timeout*.
        session: A session whose proxies, ``verify``, ``cert`` and adapters are used, and nothing
            else of it.
        headers: Further headers.
        data: The form to send.
        as_json: Send it as a JSON object instead.
        tls: A TLS context with the client's certificate (`client_context`). The adapters and the
            ``cert`` of *session* are not used then, and never get to see the certificate.
    """
    connect_timeout = 0.9 * timeout if connect_timeout is None else connect_timeout
    received: HTTPResponse | None = None
    with Exchange(timeout) as under_way:
        try:
            with (
                _Session(session, tls) as own,
                own.request(
                    method,
                    url,
                    data=None if as_json else data,
                    json=data if as_json else None,
                    headers={**_HEADERS, **(headers or {})},
                    auth=_NoNetrc(),
                    allow_redirects=False,
                    stream=True,
                    timeout=(connect_timeout, timeout),
                ) as response,
            ):
                body = _read(response)
                complete = None if under_way.is_over else body
                received = HTTPResponse(response.status_code, response.headers, complete)
        except (HTTPError, OSError, ValueError) as error:  # those of requests are OSErrors
            # An error while the connection is closed changes nothing of what was received.
            if received is not None:
                return received
            if tls is not None and _has_reason(error, _CERTIFICATE_REFUSED):
                return TransportFailure(
                    sent=False, reason="it refused the client certificate", refuses_client=True
                )
            return TransportFailure(_may_have_sent(under_way, error), _reason(under_way, error))
        except Exception as error:  # noqa: BLE001 - an adapter of the application may raise any
            return received or TransportFailure(sent=True, reason=_describe_bug(error))
    return received


# -- the session of one request --------------------------------------------------------------------


class _NoNetrc(AuthBase):
    """Takes the place of the password that requests would read from ``~/.netrc``."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class _Session(requests.Session):
    """A session for one request, with the network settings of the application's session.

    Args:
        given: The application's session, or None.
        tls: A TLS context with the client's certificate, or None.
    """

    def __init__(self, given: requests.Session | None, tls: ssl.SSLContext | None) -> None:
        super().__init__()
        self.adapters.clear()
        if given is not None:
            self.trust_env, self.proxies, self.verify = given.trust_env, given.proxies, given.verify
        if given is None or tls is not None:
            self.mount("", _observed(HTTPAdapter() if tls is None else _ClientAdapter(tls)))
            return
        self.cert = given.cert
        for prefix, adapter in given.adapters.items():
            self.mount(prefix, _of_one_request(adapter))

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002
        """Ignore redirects: requests would read the whole body, and fail at a bad Location."""
        return

    def merge_environment_settings(self, url: Any, *args: Any, **kwargs: Any) -> Any:
        """Use no proxy for loopback: the request would travel to it in clear text."""
        settings = super().merge_environment_settings(url, *args, **kwargs)
        if is_loopback(urlsplit(url).hostname or ""):
            settings["proxies"] = {}
        return settings


class _ClientAdapter(HTTPAdapter):
    """An adapter whose connections present a client certificate."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._tls, **kwargs)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, ssl_context=self._tls, **kwargs)


def _of_one_request(adapter: Any) -> Any:
    """Return an adapter like the given one that repeats nothing and shares no connection."""
    if not isinstance(adapter, HTTPAdapter):
        return _Borrowed(adapter)
    own = object.__new__(type(adapter))
    own.__dict__.update(adapter.__dict__)
    own.max_retries = Retry(0, read=False)
    own.proxy_manager = {}
    kwargs = getattr(adapter.poolmanager, "connection_pool_kw", {})
    known = {name: value for name, value in kwargs.items() if name not in _OWN_KWARGS}
    try:
        own.init_poolmanager(1, 1, block=False, **known)
    except TypeError:  # an adapter with a signature of its own sets these by itself
        own.init_poolmanager(1, 1, block=False)
    return _observed(own)


_OWN_KWARGS = {"num_pools", "maxsize", "block", "retries"}


class _Borrowed(BaseAdapter):
    """The application's own adapter, which stays open."""

    def __init__(self, adapter: BaseAdapter) -> None:
        super().__init__()
        self._adapter = adapter

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        if current.exchange is not None:
            current.exchange.unobserved()
        return self._adapter.send(request, **kwargs)

    def close(self) -> None:
        """Leave the adapter to the application."""


def _observed(adapter: Any) -> Any:
    """Let the connections of an adapter report to the exchange that they are for."""
    _track(adapter.poolmanager)
    find = adapter.proxy_manager_for
    adapter.__dict__["proxy_manager_for"] = lambda *args, **kwargs: _track(find(*args, **kwargs))
    return adapter


def _track(manager: Any) -> Any:
    """Let the connections of a manager report to their exchange, those of a SOCKS proxy, too."""
    if isinstance(manager, PoolManager):
        pools = manager.pool_classes_by_scheme
        manager.pool_classes_by_scheme = {name: _tracked(pool) for name, pool in pools.items()}
    return manager


_INTERIM = {*range(100, 200)} - {int(http.HTTPStatus.SWITCHING_PROTOCOLS)}


class _Response(http.client.HTTPResponse):
    """Skips every interim response (RFC 9110 section 15.2), not only 100."""

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status not in _INTERIM:
                return version, status, reason
            http.client.parse_headers(self.fp)


class _Tracked:
    """A connection that reports to the exchange that it is for."""

    response_class = _Response
    _is_tunnelling = False

    def _new_conn(self) -> socket.socket:
        connection: socket.socket = super()._new_conn()  # type: ignore[misc]
        if current.exchange is not None:
            current.exchange.connected(connection)
        return connection

    def _tunnel(self) -> None:
        self._is_tunnelling = True  # what is sent to the proxy now is not the request
        super()._tunnel()  # type: ignore[misc]
        self._is_tunnelling = False

    def send(self, data: Any) -> None:
        if self.sock is None:  # type: ignore[attr-defined]
            self.connect()  # type: ignore[attr-defined]
        if current.exchange is not None and not self._is_tunnelling:
            current.exchange.sending()
        super().send(data)  # type: ignore[misc]


@cache
def _tracked(pool: Any) -> Any:
    connection = pool.ConnectionCls
    if issubclass(connection, _Tracked):
        return pool
    tracked = type(connection.__name__, (_Tracked, connection), {})
    return type(pool.__name__, (pool,), {"ConnectionCls": tracked})


# -- reading, and what errors mean -----------------------------------------------------------------


def _read(response: requests.Response) -> bytes | None:
    """Return the body, None if it is not complete, too long, or cannot be decoded."""
    raw = response.raw
    try:
        if not isinstance(raw, urllib3.HTTPResponse):  # then requests decodes it
            return _joined(response.iter_content(1))
        body = _joined(_raw_chunks(raw))
    except (requests.RequestException, HTTPError, OSError):
        return None
    if body is None or _is_cut(response, body):
        return None
    encoding = response.headers.get("Content-Encoding", "").strip().lower() or "identity"
    return body if not body or encoding == "identity" else _decompressed(body, encoding)


def _joined(chunks: Iterable[bytes]) -> bytes | None:
    """Return all of a body, or None if it is too long."""
    body = b""
    for chunk in chunks:
        body += chunk
        if len(body) > MAX_BODY:
            return None
    return body


def _raw_chunks(raw: urllib3.HTTPResponse) -> Iterator[bytes]:
    """Yield the body as it arrives and without decoding it."""
    if not hasattr(raw, "read1"):  # an older urllib3: waits until each chunk is full
        yield from raw.stream(1 << 16, decode_content=False)
        return
    while chunk := raw.read1(1 << 16, decode_content=False):
        yield chunk


def _is_cut(response: requests.Response, body: bytes) -> bool:
    """Return whether *body* is shorter than announced, which urllib3 before 2 does not report."""
    if "Transfer-Encoding" in response.headers:
        return False
    length = response.headers.get("Content-Length", "")
    return length.isdecimal() and len(body) < int(length)


_WINDOWS = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}  # zlib's wbits, to be tried


def _decompressed(body: bytes, encoding: str) -> bytes | None:
    """Return a body without its compression; None if it is incomplete or compressed twice.

    urllib3 would decode whatever a server stacks, which may grow a thousandfold with each layer.
    """
    for window in _WINDOWS.get(encoding, ()):
        with suppress(zlib.error):
            return _inflated(body, window)
    return None


def _inflated(body: bytes, window: int) -> bytes | None:
    content = b""
    while True:
        decoder = zlib.decompressobj(window)
        content += decoder.decompress(body, MAX_BODY + 1 - len(content))
        if not decoder.eof or len(content) > MAX_BODY:
            return None
        body = decoder.unused_data
        if not body.startswith(b"\x1f\x8b"):  # the next member of a gzip file
            return content


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


# How a server ends a handshake because of the client's certificate. With TLS 1.3 the client learns
# of it after it has sent its request, which the server then never reads.
_CERTIFICATE_REFUSED = {
    *("TLSV13_ALERT_CERTIFICATE_REQUIRED", "TLSV1_ALERT_UNKNOWN_CA", "TLSV1_ALERT_ACCESS_DENIED"),
    *("SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"),
    *("SSLV3_ALERT_CERTIFICATE_EXPIRED", "SSLV3_ALERT_CERTIFICATE_REVOKED"),
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
}


def _never_sent(error: BaseException) -> bool:
    """Return whether *error* means that no connection was ever established."""
    if type(error) is OSError:  # requests: there is no such file of certificates
        return True
    return any(isinstance(c, _UNCONNECTED) or _is_refusal(c) for c in _wrapped(error))


def _has_reason(error: BaseException, reasons: set[str]) -> bool:
    """Return whether *error* is a TLS error of one of these reasons."""
    return any(isinstance(c, ssl.SSLError) and c.reason in reasons for c in _wrapped(error))


def _wrapped(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and what it wraps.

    What happened before it is left out: that may be of another connection.
    """
    seen: set[int] = set()
    pending: list[object] = [error]
    while pending:
        cause = pending.pop()
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        pending += [getattr(cause, "reason", None), *cause.args]


def _is_refusal(cause: BaseException) -> bool:
    """Tell a failed handshake from a TLS error that may come later, and a proxy's refusal."""
    if isinstance(cause, ssl.SSLError):
        return getattr(cause, "reason", None) in _HANDSHAKE
    return isinstance(cause, OSError) and str(cause).startswith("Tunnel connection failed")


def _may_have_sent(exchange: Exchange, error: BaseException) -> bool:
    """Return whether the request may have reached the other side before *error*."""
    return exchange.has_sent if exchange.has_connection else not _never_sent(error)


def _reason(exchange: Exchange, error: BaseException) -> str:
    """Return what happened, in a few words that quote nothing of the request."""
    if exchange.is_over:
        return f"no complete response within {exchange.timeout:g} s"
    return _describe(error)


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


def _describe_bug(error: BaseException) -> str:
    """Return what an adapter of the application raised, and log where."""
    kind = type(error).__name__
    _log.warning("an adapter of the session raised %s at %s", kind, place_of(error))
    return f"the session raised {kind}"
