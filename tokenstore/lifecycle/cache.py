"""Access tokens in memory, for a short time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from tokenstore import fork

if TYPE_CHECKING:
    from collections.abc import Callable


class TokenCache(fork.ForkParticipant):
    """The access tokens that a manager has just handed out.

    A token that was read before another was stored must not get in after it: `epoch` changes
    with every change, and `put` refuses what was read in an earlier one.
    """

    _LIMIT = 16384  # accounts

    def __init__(self, ttl: float, clock: Callable[[], float]) -> None:
        self._ttl = ttl
        self._clock = clock
        self._entries: dict[str, tuple[str, float, float]] = {}
        self._lock = threading.Lock()
        self.epoch = 0
        fork.register(fork.Stage.CACHES, self)

    def get(self, name: str) -> str | None:
        """Return the token of *name*; a clock that was set back finds none."""
        now = self._clock()  # first: if it raises, no token is in this frame
        try:
            token, since, until = self._entries[name]
        except (KeyError, TypeError):  # the latter is no name: whoever looks it up says so
            return None
        return token if since <= now < until else None

    def put(self, name: str, token: str, *, until: float, epoch: int) -> None:
        """Remember what was read in *epoch*, until it is due."""
        if not self._ttl:
            return
        now = self._clock()
        with self._lock:
            if epoch != self.epoch:
                return
            if len(self._entries) >= self._LIMIT:
                self._entries.clear()
            self._entries[name] = token, now, min(now + self._ttl, until)

    def after_fork_in_child(self) -> None:
        """Start with the lock free: the thread that held it is not in the child."""
        self._lock = threading.Lock()

    def forget(self, name: str) -> None:
        """Forget the token of an account that was changed."""
        with self._lock:
            self.epoch += 1
            self._entries.pop(name, None)
