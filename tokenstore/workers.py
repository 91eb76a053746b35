"""A bounded number of threads, and work that several callers share."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T")


class Workers:
    """Threads that are started when they are needed, up to a number; the rest waits in order.

    Work runs in the context (`contextvars`) of whoever began it.

    Args:
        threads: How many at the most.
        name: What they are called.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._threads = threads
        self._name = name
        self.start_anew()
        _all.add(self)

    def start_anew(self) -> None:
        """Start without any thread: in a child of fork there are none."""
        self._lock = Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._shared: dict[Hashable, Future[Any]] = {}

    def run(self, work: Callable[[], T]) -> Future[T]:
        """Have *work* done."""
        with self._lock:
            return self._submit(work)

    def share(self, key: Hashable, work: Callable[[], T]) -> Future[T]:
        """Have *work* done, unless what was given under the same key has not ended: then that."""

        def and_forget() -> T:
            try:
                return work()
            finally:
                with self._lock:  # before anybody learns the outcome
                    self._shared.pop(key, None)

        with self._lock:
            if key not in self._shared:
                self._shared[key] = self._submit(and_forget)
            return self._shared[key]

    def shared(self, key: Hashable) -> Future[Any] | None:
        """Return the work that was given under *key* and has not ended."""
        return self._shared.get(key)

    def close(self) -> None:
        """Wait for all work and end the threads; later work starts new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, self._name)
        return self._pool.submit(copy_context().run, work)


_all: WeakSet[Workers] = WeakSet()


def _after_in_child() -> None:
    for workers in list(_all):
        workers.start_anew()


os.register_at_fork(after_in_child=_after_in_child)
