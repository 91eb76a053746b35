"""What a server is told to answer, and what it tells of the requests it got."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Event
from typing import Any, TypeAlias

Body: TypeAlias = bytes | str | Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """An answer given in place of the real one; the request is not handled, nothing is spent.

    Attributes:
        status: The HTTP status.
        body: Bytes as they are, text as UTF-8, a mapping as JSON.
        headers: Further headers; Content-Length is added.
        content_type: The Content-Type, or None to send none.
    """

    status: int = 200
    body: Body = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str | None = "application/json"

    @classmethod
    def redirect(cls, location: str, status: int = 307) -> Answer:
        """Return an answer that sends the client to another URL; 307 and 308 keep the body."""
        return cls(status, headers={"Location": location}, content_type=None)

    @property
    def error(self) -> str | None:
        """The error code (RFC 6749 section 5.2) of a body that is a mapping, else None."""
        code = self.body.get("error") if isinstance(self.body, Mapping) else None
        return code if isinstance(code, str) else None

    def encoded(self) -> bytes:
        """Return the body as it is sent."""
        if isinstance(self.body, Mapping):
            return json.dumps(dict(self.body)).encode()
        return self.body.encode() if isinstance(self.body, str) else self.body


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Close the connection without a byte of an answer.

    Attributes:
        spent: True handles the request first, so that the tokens are rotated and their answer
            is lost; False leaves everything as it was.
    """

    spent: bool


@dataclass(frozen=True)
class Drip:
    """Send the real answer one byte at a time, until the client goes away or the server closes.

    Attributes:
        interval: Seconds between two bytes.
        headers: Whether the status line and the headers drip too, or come at once.
    """

    interval: float = 0.05
    headers: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Truncate:
    """Send the real answer without its end, under its full Content-Length, and close.

    Attributes:
        missing: How many bytes of the body are not sent.
    """

    missing: int = 1


@dataclass(frozen=True, eq=False)
class Hold:
    """Keep the request waiting, then handle it. A server that closes drops it unhandled.

    Attributes:
        release: The server waits for this event, which the test sets.
        arrived: The server sets this event when it has read the request.
    """

    release: Event = field(default_factory=Event)
    arrived: Event = field(default_factory=Event)


@dataclass(frozen=True)
class Transform:
    """Handle the request and change the answer: the token is spent, the status stays.

    Attributes:
        change: Called with the real answer, decoded; returns the body to send.
        content_type: The Content-Type to send, or None for none.
    """

    change: Callable[[dict[str, Any]], Body]
    content_type: str | None = "application/json"


Step: TypeAlias = Answer | Drop | Drip | Truncate | Hold | Transform


@dataclass(frozen=True)
class TokenRequest:
    """A request that reached the token endpoint. Its repr shows no header and no parameter.

    Attributes:
        method: The HTTP method.
        path: The path, without a query.
        headers: The headers, their names in lower case.
        params: The form's parameters, decoded; empty if the body is no form.
        subject: Whose refresh token was sent, or None if that is unknown.
        status: The HTTP status answered; None until then, and if the connection was dropped.
        error: The error code answered, or None.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    params: dict[str, str] = field(repr=False)
    subject: str | None = None
    status: int | None = None
    error: str | None = None
