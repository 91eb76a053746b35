"""The steps of a script, and the record of a request. Public through `tokenstore.testing`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Event
from typing import Any, TypeAlias

Body: TypeAlias = bytes | str | Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """Send this response; the request is not handled and no token is used.

    Attributes:
        status: The HTTP status.
        body: Bytes are sent unchanged, text as UTF-8, a mapping as JSON.
        headers: Additional headers; Content-Length is always sent.
        content_type: The Content-Type, or None to omit it.
    """

    status: int = 200
    body: Body = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str | None = "application/json"

    @classmethod
    def redirect(cls, location: str, status: int = 307) -> Answer:
        """Return a redirect to *location*; with 307 and 308 the client repeats the request."""
        return cls(status, headers={"Location": location}, content_type=None)

    @property
    def error(self) -> str | None:
        """The error code (RFC 6749 section 5.2) in a body that is a mapping, or None."""
        code = self.body.get("error") if isinstance(self.body, Mapping) else None
        return code if isinstance(code, str) else None

    def encoded(self) -> bytes:
        """Return the body as it is sent."""
        if isinstance(self.body, Mapping):
            return json.dumps(dict(self.body)).encode()
        return self.body.encode() if isinstance(self.body, str) else self.body


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Close the connection without sending a response.

    Attributes:
        spent: Whether the request is handled first, so that the refresh token is used and its
            replacement is lost.
    """

    spent: bool


@dataclass(frozen=True)
class Drip:
    """Send the real response byte by byte, until the client disconnects or the server closes.

    Attributes:
        interval: Seconds between two bytes.
        headers: Whether the status line and the headers are sent byte by byte, too.
    """

    interval: float = 0.05
    headers: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Truncate:
    """Send the real response with its full Content-Length but without its end, and close.

    Attributes:
        missing: Number of bytes of the body that are not sent.
    """

    missing: int = 1


@dataclass(frozen=True, eq=False)
class Hold:
    """Hold the request until it is released, then handle it.

    If the server closes first, the connection is closed and the request is not handled.

    Attributes:
        release: Set by the test; the server waits for it.
        arrived: Set by the server when it has read the request.
    """

    release: Event = field(default_factory=Event)
    arrived: Event = field(default_factory=Event)


@dataclass(frozen=True)
class Transform:
    """Handle the request, and change the body of the response; its status stays the same.

    Attributes:
        change: Called with the decoded body of the real response; returns the body to send.
        content_type: The Content-Type, or None to omit it.
    """

    change: Callable[[dict[str, Any]], Body]
    content_type: str | None = "application/json"


Step: TypeAlias = Answer | Drop | Drip | Truncate | Hold | Transform


@dataclass(frozen=True)
class TokenRequest:
    """A request that reached an endpoint. Its repr contains no headers or parameters.

    Attributes:
        method: The HTTP method.
        path: The path, without a query.
        headers: The headers by lower-case names.
        params: The decoded parameters of the form; empty if the body is not form-encoded.
        subject: The subject of the refresh token in the request, or None if it is unknown.
        status: The HTTP status of the response, or None if none has been sent.
        error: The error code of the response, or None.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    params: dict[str, str] = field(repr=False)
    subject: str | None = None
    status: int | None = None
    error: str | None = None
