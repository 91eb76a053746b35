"""Named locks among the threads of one process, so that only one of them asks for more."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Turn:
    """Whose turn it is."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Hold:
    """A lock that is held. It ends with its block, unless what it protects goes on after that.

    Args:
        release: Lets other processes have it.
        is_lost: Tells whether they may have it already.
    """

    def __init__(
        self, turn: Turn, release: Callable[[], object], is_lost: Callable[[], bool]
    ) -> None:
        self._turn = turn
        self._release = release
        self.is_lost = is_lost
        self.kept = False

    def keep(self) -> None:
        """Go on holding after the block; whoever says so has to `release`, in any thread."""
        self.kept = True

    def release(self) -> None:
        """Let the next one have it."""
        try:
            self._release()
        finally:
            self._turn.lock.release()


@contextmanager
def turn(name: str, *, timeout: float) -> Iterator[Turn]:
    """Wait for the turn of this thread. It ends with the block only if that raises.

    Raises:
        TimeoutError: It did not come within *timeout* seconds.
    """
    with _lock:
        mine = _turns.setdefault(name, Turn())
    if not mine.lock.acquire(timeout=timeout):
        raise TimeoutError
    try:
        yield mine
    except BaseException:
        mine.lock.release()
        raise


_turns: WeakValueDictionary[str, Turn] = WeakValueDictionary()
_lock = threading.Lock()


def _forget() -> None:
    """A child of fork starts with no lock held: the threads that held them are not in it."""
    global _turns, _lock  # noqa: PLW0603
    _turns = WeakValueDictionary()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)
