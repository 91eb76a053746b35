"""Work that belongs to no caller: a thread owns it, callers wait for it, and nothing ends it.

A caller that is interrupted (Ctrl-C, a cancelled coroutine, a signal handler that raises) or whose
deadline passes stops waiting; the work goes on. A signal is handled in the main thread, between any
two instructions. So what the main thread does here changes shared state in single steps only, each
of which leaves the work either not begun, for the next caller to begin, or begun.
"""

from __future__ import annotations

import _thread
import atexit
import copy
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tokenstore import fork
from tokenstore.errors import TokenPersistError, TokenStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

_SOON = 0.05  # seconds after which a caller starts work that another one was about to start
_IDLE = 5.0  # seconds after which a thread without work ends
LONGEST_WAIT = 0.5
"""Seconds of one wait: a signal that arrives just before it does not end it."""


class NoThreadError(Exception):
    """The system has no thread to spare; nothing was begun."""


class Job(Generic[T]):
    """One piece of work, done at most once, in a thread of its own.

    The interpreter waits for the thread before it exits.

    Args:
        work: What to do. It is given this job, and returns the outcome.

    Attributes:
        must_finish: Whether something may be lost if the work ends now; set by the work itself.
    """

    def __init__(self, work: Callable[[Job[T]], T]) -> None:
        self._work = work
        self._claim = threading.Lock()  # locked for good when a thread begins the work
        self._outcome: T | None = None
        self._error: BaseException | None = None
        self._is_done = False
        self._due_at = float("inf")
        self._overdue: Callable[[], BaseException] = TimeoutError
        self.must_finish = False
        self._waiters: list[SimpleQueue[None]] = []
        self._listeners: list[Callable[[], object]] = []

    @property
    def is_at_work(self) -> bool:
        """Whether a thread has begun the work and not ended it."""
        return self._claim.locked() and not self._is_done

    def expect(self, seconds: float, overdue: Callable[[], BaseException]) -> None:
        """Set the deadline of the current step; for the work itself.

        Args:
            seconds: How long callers wait for the step, from now.
            overdue: Returns the error for a caller that stops waiting then.
        """
        self._overdue = overdue
        self._due_at = time.monotonic() + seconds
        self._wake()

    def expect_as_before(self, overdue: Callable[[], BaseException]) -> None:
        """Replace the error of the current step, whose deadline stays; for the work itself."""
        self._overdue = overdue

    def overdue(self) -> BaseException:
        """Return the error for a caller that stops waiting now."""
        return self._overdue()

    def report_overdue(self) -> None:
        """Let listeners stop waiting, too, if the current step is overdue; for the work itself."""
        if time.monotonic() >= self._due_at:
            self._notify()

    def start(self) -> None:
        """Start the work, unless that was done."""
        if self._claim.locked():
            return
        try:
            _workers.do(self.run, self.refuse)
        except RuntimeError:  # no thread to spare, or the interpreter is ending
            self.refuse()

    def wait(self, *, patience: float = 0.0) -> T:
        """Return the outcome, or raise the error that ended the work.

        Args:
            patience: Seconds to wait at least, even if the current step is due earlier.

        Raises:
            NoThreadError: The work could not be started.
            BaseException: What the work raised, or the error of the step that is overdue.
        """
        with self._waiter() as waiter:
            self.start()
            now = time.monotonic()
            earliest, restart = now + patience, now + _SOON
            while not self._is_done:
                due_at = max(self._due_at, earliest)
                if now >= due_at:
                    raise self._overdue()
                if now >= restart:
                    self.start()  # the caller that was about to was interrupted
                    restart = float("inf")
                with suppress(Empty):
                    waiter.get(timeout=min(due_at, restart, now + LONGEST_WAIT) - now)
                now = time.monotonic()
        return self._result()

    def wait_until(self, deadline: float) -> None:
        """Wait for the end of the work, until *deadline* (`time.monotonic`) at most."""
        with self._waiter() as waiter:
            while not self._is_done and (left := deadline - time.monotonic()) > 0:
                with suppress(Empty):
                    waiter.get(timeout=min(left, LONGEST_WAIT))

    @contextmanager
    def _waiter(self) -> Iterator[SimpleQueue[None]]:
        waiter: SimpleQueue[None] = SimpleQueue()
        self._waiters.append(waiter)
        try:
            yield waiter
        finally:
            self._waiters.remove(waiter)

    def when_done(self, listener: Callable[[], object]) -> None:
        """Call *listener* once: when the work has ended, or reports that it is overdue."""
        self._listeners.append(listener)
        if self._is_done:
            self._notify()

    def _result(self) -> T:
        if self._error is not None:
            raise copy_of(self._error)
        return self._outcome  # type: ignore[return-value] # there is an outcome, or an error

    def refuse(self) -> None:
        """End the job without having begun the work."""
        if self._claim.acquire(blocking=False):
            self._end(error=NoThreadError())

    def run(self) -> None:
        """Do the work, unless another thread has begun it; for the thread that shall own it."""
        if not self._claim.acquire(blocking=False):
            return  # another thread was faster
        try:
            self._end(outcome=self._work(self))
        except BaseException as error:  # noqa: BLE001 - it is raised to every caller
            self._end(error=error)

    def _end(self, *, outcome: T | None = None, error: BaseException | None = None) -> None:
        self._outcome, self._error = outcome, error
        self._is_done = True
        self._wake()
        self._notify()

    def _wake(self) -> None:
        for waiter in list(self._waiters):
            waiter.put(None)

    def _notify(self) -> None:
        while self._listeners:
            try:
                listener = self._listeners.pop()
            except IndexError:  # another thread was faster
                return
            listener()


class _Worker(threading.Thread):
    """A thread for jobs; not a daemon, although the one that starts it may be one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(name="tokenstore-refresh", daemon=False, **kwargs)


class _Workers(fork.ForkParticipant):
    """Threads that do jobs, as many as are needed at a time; an idle one is used again.

    They are not daemons, so that the interpreter waits for work that has begun. Idle threads end
    when it exits.
    """

    def __init__(self) -> None:
        self._wakes_at_exit = False
        self.after_fork_in_child()
        fork.register(fork.Stage.THREADS, self)

    def after_fork_in_child(self) -> None:
        """Start without threads: those of the parent are not in the child."""
        self._idle: deque[SimpleQueue[Callable[[], None] | None]] = deque()

    def do(self, work: Callable[[], None], refuse: Callable[[], None]) -> None:
        """Have a thread call *work*, which is safe to call twice.

        Args:
            work: What to do.
            refuse: Called if it turns out later that there is no thread to spare.

        Raises:
            RuntimeError: There is no thread to spare.
        """
        try:
            mailbox = self._idle.pop()
        except IndexError:
            self._start(work, refuse)
        else:
            mailbox.put(work)

    def _start(self, work: Callable[[], None], refuse: Callable[[], None]) -> None:
        if threading.current_thread() is threading.main_thread():
            # Thread.start() takes many steps, and an interrupt between two of them breaks it.
            _thread.start_new_thread(self._start_or, (work, refuse))
        else:
            self._start_thread(work)

    def _start_or(self, work: Callable[[], None], refuse: Callable[[], None]) -> None:
        try:
            self._start_thread(work)
        except RuntimeError:
            refuse()

    def _start_thread(self, work: Callable[[], None]) -> None:
        if not self._wakes_at_exit:
            self._wakes_at_exit = True
            # As concurrent.futures does. Without it, idle threads would delay the exit.
            with suppress(RuntimeError):  # the exit has begun
                getattr(threading, "_register_atexit", atexit.register)(self._wake_all)
        _Worker(target=self._run, args=(work,)).start()

    def _run(self, work: Callable[[], None] | None) -> None:
        mailbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        while work is not None:
            work()
            if process_is_ending():
                return
            self._idle.append(mailbox)
            work = self._next(mailbox)

    def _next(self, mailbox: SimpleQueue[Callable[[], None] | None]) -> Callable[[], None] | None:
        for _ in range(2):  # once more for a caller that was about to put something into it
            with suppress(Empty):
                return mailbox.get(timeout=_IDLE)
            with suppress(ValueError):
                self._idle.remove(mailbox)
                return None
        return None

    def _wake_all(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().put(None)


_workers = _Workers()


class Jobs(fork.ForkParticipant, Generic[T]):
    """The jobs that are at work, by key: whoever asks for one of them joins it."""

    def __init__(self) -> None:
        self.after_fork_in_child()
        fork.register(fork.Stage.THREADS, self)

    def after_fork_in_child(self) -> None:
        """Start with no job: those of the parent are at work there."""
        self._jobs: dict[Hashable, Job[T]] = {}

    def join(self, key: Hashable, work: Callable[[Job[T]], T]) -> tuple[Job[T], bool]:
        """Return the job of a key, and whether it is a new one, which does *work*."""
        new = Job(work)
        job = self._jobs.setdefault(key, new)
        return job, job is new

    def forget(self, key: Hashable, job: Job[T]) -> None:
        """Let the next caller begin a new job, though this one has not ended."""
        if self._jobs.get(key) is job:
            self._jobs.pop(key, None)

    def at_work(self) -> list[Job[T]]:
        """Return the jobs that are at work."""
        return [job for job in list(self._jobs.values()) if job.is_at_work]

    def drain(self, seconds: float) -> list[Job[T]]:
        """Wait for the jobs that are at work; return those that still are after *seconds*."""
        deadline = time.monotonic() + seconds
        for job in self.at_work():
            job.wait_until(deadline)
        return self.at_work()


def process_is_ending() -> bool:
    """Return whether the application has ended, and the interpreter waits for refreshes alone.

    Its own threads may go on for long after the main thread has ended.
    """
    if threading.main_thread().is_alive():
        return False
    threads = threading.enumerate()
    return not any(t.is_alive() and not t.daemon and not isinstance(t, _Worker) for t in threads)


def copy_of(error: E) -> E:
    """Return a copy for one caller: a traceback belongs to one thread, and shows its variables."""
    if not isinstance(error, TokenStoreError):
        return error
    copied = copy.copy(error)
    if isinstance(error, TokenPersistError):
        copied.tokens = error.tokens  # type: ignore[attr-defined] # a pickle leaves them out
    return copied
