"""Access tokens in memory, for a short time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from tokenstore import fork
from tokenstore.models.targets import MAX_FURTHER_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenstore.models.targets import Target

_Entry = tuple[str, float, float, str | None]  # the token, since and until when, its provider


class TokenCache(fork.ForkParticipant):
    """The access tokens that a manager has just handed out.

    A token that was read before another was stored must not get in after it: `epoch` changes
    with every change, and `put` refuses what was read in an earlier one.
    """

    _LIMIT = 16384  # accounts

    def __init__(self, ttl: float, clock: Callable[[], float]) -> None:
        self._ttl = ttl
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._further: dict[str, dict[Target, _Entry]] = {}  # of targets, by account
        self._lock = threading.Lock()
        self.epoch = 0
        fork.register(fork.Stage.CACHES, self)

    def get(self, name: str, provider: object = None) -> str | None:
        """Return the token of an account, if it is bound to *provider*, or that is None.

        A clock that was set back finds none.
        """
        now = self._clock()  # first: if it raises, no token is in this frame
        try:
            token, since, until, bound = self._entries[name]
        except (KeyError, TypeError):  # the latter is not a name, which the slow path reports
            return None
        if provider is not None and provider != bound and getattr(provider, "name", 0) != bound:
            return None
        return token if since <= now < until else None

    def get_further(self, name: str, target: Target, provider: object = None) -> str | None:
        """Return the further access token of an account for a target, as `get` does its own."""
        now = self._clock()
        try:
            token, since, until, bound = self._further[name][target]
        except (KeyError, TypeError):
            return None
        if provider is not None and provider != bound and getattr(provider, "name", 0) != bound:
            return None
        return token if since <= now < until else None

    def put(
        self,
        name: str,
        token: str,
        provider: str | None,
        *,
        until: float,
        epoch: int,
        target: Target | None = None,
    ) -> None:
        """Remember a token that was read in *epoch*, until it is due."""
        if not self._ttl:
            return
        now = self._clock()
        entry = token, now, min(now + self._ttl, until), provider
        with self._lock:
            if epoch != self.epoch:
                return
            if len(self._entries) + len(self._further) >= self._LIMIT:
                self._entries.clear()
                self._further.clear()
            if target is None:
                self._entries[name] = entry
                return
            further = self._further.setdefault(name, {})
            if len(further) >= MAX_FURTHER_TOKENS:
                further.clear()
            further[target] = entry

    def after_fork_in_child(self) -> None:
        """Start with the lock free: the thread that held it is not in the child."""
        self._lock = threading.Lock()

    def forget(self, name: str) -> None:
        """Forget the tokens of an account that was changed."""
        with self._lock:
            self.epoch += 1
            self._entries.pop(name, None)
            self._further.pop(name, None)
