"""Runs the script: applies each step to its request, and records the requests."""

from __future__ import annotations

import json
from dataclasses import replace
from threading import Event, Lock
from typing import TYPE_CHECKING

from tokenstore.testing.http import POLL, ScriptedResponse
from tokenstore.testing.script import Answer, Drop, Hold, Step, TokenRequest, Transform

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenstore.testing.protocol import HTTPRequest


class StepRunner:
    """Handles requests as scripted.

    Args:
        handle: Returns the real response to a request.
        closing: Set when the server closes, so that no request is held any longer.

    Attributes:
        steps: The rest of the script: path, subject or None, and step.
    """

    def __init__(self, handle: Callable[[HTTPRequest], Answer], closing: Event) -> None:
        self._handle = handle
        self._closing = closing
        self._lock = Lock()  # guards steps and requests; not held while waiting
        self.steps: list[tuple[str, str | None, Step]] = []
        self._requests: list[TokenRequest] = []

    def script(self, steps: tuple[Step, ...], *, path: str, subject: str | None) -> None:
        """Add steps for the next requests to a path, of this subject or of any."""
        with self._lock:
            self.steps += [(path, subject, step) for step in steps]

    def requests(self, path: str) -> list[TokenRequest]:
        """Return every request to a path, in order of arrival."""
        with self._lock:
            return [request for request in self._requests if request.path == path]

    def run(self, request: HTTPRequest, subject: str | None) -> ScriptedResponse:
        """Record a request, and return the response to it."""
        index, step = self._record(request, subject)
        response = self._apply(step, request)
        if response is not None:
            with self._lock:
                self._requests[index] = replace(
                    self._requests[index], status=response.status, error=response.error
                )
        return response, step

    def _record(self, request: HTTPRequest, subject: str | None) -> tuple[int, Step | None]:
        """Record a request, and take its step from the script."""
        params = dict(request.form or ())
        with self._lock:
            self._requests.append(
                TokenRequest(request.method, request.path, request.headers, params, subject)
            )
            for position, (path, limit, step) in enumerate(self.steps):
                if path == request.path and limit in (None, subject):
                    del self.steps[position]
                    return len(self._requests) - 1, step
            return len(self._requests) - 1, None

    def _apply(self, step: Step | None, request: HTTPRequest) -> Answer | None:
        """Return the response, or None to drop the connection."""
        match step:
            case Answer():
                return step
            case Drop(spent=False):
                return None
            case Hold() if not self._wait(step):
                return None
        response = self._handle(request)
        match step:
            case Drop():
                return None
            case Transform(change=change, content_type=content_type):
                body = change(json.loads(response.encoded()))
                return replace(response, body=body, content_type=content_type)
        return response

    def _wait(self, hold: Hold) -> bool:
        """Return True when the request is released, or False when the server closes."""
        hold.arrived.set()
        while not hold.release.wait(POLL):
            if self._closing.is_set():
                return False
        return True
