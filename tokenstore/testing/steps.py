"""The script: what happens to which request, and what requests there were."""

from __future__ import annotations

import json
from dataclasses import replace
from threading import Event, Lock
from typing import TYPE_CHECKING

from tokenstore.testing.http import POLL, Reply
from tokenstore.testing.script import Answer, Drop, Hold, Step, TokenRequest, Transform

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenstore.testing.protocol import Received


class Stage:
    """Where requests are handled the way the script says.

    Args:
        handle: Answers a request by the rules.
        closing: Is set when nothing is waited for any more.

    Attributes:
        steps: What is left of the script: path, subject or None, and what to do.
    """

    def __init__(self, handle: Callable[[Received], Answer], closing: Event) -> None:
        self._handle = handle
        self._closing = closing
        self._lock = Lock()  # around script and requests; never while waiting
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

    def perform(self, received: Received, subject: str | None) -> Reply:
        """Return what to send, None for nothing, and the scripted step that says how."""
        index, step = self._arrive(received, subject)
        answer = self._play(step, received)
        if answer is not None:
            with self._lock:
                self._requests[index] = replace(
                    self._requests[index], status=answer.status, error=answer.error
                )
        return answer, step

    def _arrive(self, received: Received, subject: str | None) -> tuple[int, Step | None]:
        """Record a request and take the step that is scripted for it."""
        params = dict(received.form or ())
        with self._lock:
            self._requests.append(
                TokenRequest(received.method, received.path, received.headers, params, subject)
            )
            for position, (path, limit, step) in enumerate(self.steps):
                if path == received.path and limit in (None, subject):
                    del self.steps[position]
                    return len(self._requests) - 1, step
            return len(self._requests) - 1, None

    def _play(self, step: Step | None, received: Received) -> Answer | None:
        """Do what the step says; return the answer, or None to drop the connection."""
        match step:
            case Answer():
                return step
            case Drop(spent=False):
                return None
            case Hold() if not self._wait(step):
                return None
        answer = self._handle(received)
        match step:
            case Drop():
                return None
            case Transform(change=change, content_type=content_type):
                body = change(json.loads(answer.encoded()))
                return replace(answer, body=body, content_type=content_type)
        return answer

    def _wait(self, hold: Hold) -> bool:
        """Return whether the request was released, rather than the server closed."""
        hold.arrived.set()
        while not hold.release.wait(POLL):
            if self._closing.is_set():
                return False
        return True
