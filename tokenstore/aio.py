"""`AsyncTokenManager`: the methods of `TokenManager` as coroutines, for asyncio."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from copy import deepcopy
from functools import partial
from itertools import islice
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tokenstore import fork
from tokenstore.errors import TokenStoreError
from tokenstore.logs import LOGGER, log_operation
from tokenstore.manager import TokenManager
from tokenstore.models.targets import Target, arguments_of
from tokenstore.redaction import protect
from tokenstore.storage.repository import refuse_pickling

if TYPE_CHECKING:
    import os
    from collections.abc import (
        AsyncGenerator,
        Callable,
        Generator,
        Hashable,
        Iterable,
        Iterator,
        Mapping,
    )
    from pathlib import Path

    from sqlalchemy.engine import URL

    from tokenstore.lifecycle.bulk import RefreshResult
    from tokenstore.models.access_tokens import AccessToken
    from tokenstore.models.accounts import Account, HistoryEntry
    from tokenstore.oauth.flows.prompt import Prompt
    from tokenstore.oauth.provider import Provider

T = TypeVar("T")

_STORE_THREADS = 4
_PAGE = 500  # accounts or history entries that a thread fetches at once


class AsyncTokenManager:
    """A `TokenManager` for asyncio: the same methods, as coroutines and async iterators.

    The work is done in threads and never blocks the event loop. A cached token needs no thread.
    Calls that only need the database have their own threads and do not wait for a provider. Calls
    that wait for a provider share one thread per account: *jobs* accounts can wait at the same
    time, and further ones are queued.

    Cancelling a caller stops its waiting, not the work: tokens that a provider has issued are
    stored all the same. Several event loops may use one manager. The manager's hooks run in the
    threads; they may call `manager`, but must not wait there for a coroutine of this class.

    Args:
        database: The same as for `TokenManager`, or a `TokenManager` to use; `close` closes it.
        jobs: How many accounts may wait for a provider at the same time.
        **options: Further arguments of `TokenManager`, if this creates one.

    Attributes:
        manager: The manager that does the work; it may also be used directly.
    """

    def __init__(
        self,
        database: TokenManager | str | os.PathLike[str] | URL | None = None,
        *,
        jobs: int = 32,
        **options: Any,
    ) -> None:
        if jobs < 1:
            raise ValueError("jobs: expected a whole number, 1 or more")
        if not isinstance(database, TokenManager):
            database = TokenManager(database, **options)
        elif options:
            raise TypeError(f"{', '.join(options)}: not accepted with an existing TokenManager")
        self.manager = database
        self._store = WorkerPool(_STORE_THREADS, "tokenstore-store")
        self._waiting = WorkerPool(jobs, "tokenstore-wait")

    async def __aenter__(self) -> AsyncTokenManager:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    __reduce__ = refuse_pickling

    async def aclose(self) -> None:
        """Wait for the running work, then close the database; a later call opens it again.

        Raises:
            TokenPersistError: New tokens could still not be stored.
        """
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Close without an event loop; otherwise the same as `aclose`."""
        self._waiting.close()
        self._store.close()
        self.manager.close()

    async def save_tokens(
        self,
        account_name: str,
        tokens: Mapping[str, Any],
        *,
        provider: str | Provider | None = None,
    ) -> None:
        """Store *tokens*: see `TokenManager.save_tokens`."""
        save = partial(self.manager.save_tokens, account_name, tokens, provider=provider)
        await _result(self._store.submit(save))

    async def load_tokens(self, account_name: str) -> dict[str, Any] | None:
        """Return every stored field: see `TokenManager.load_tokens`."""
        return await _result(self._store.submit(partial(self.manager.load_tokens, account_name)))

    async def delete_tokens(self, account_name: str) -> bool:
        """Remove an account, return whether it existed: see `TokenManager.delete_tokens`."""
        return await _result(self._store.submit(partial(self.manager.delete_tokens, account_name)))

    async def backup(self, target: str | os.PathLike[str], *, replace: bool = False) -> Path:
        """Copy the database, return the path of the copy: see `TokenManager.backup`."""
        return await _result(
            self._store.submit(partial(self.manager.backup, target, replace=replace))
        )

    async def login(
        self,
        account_name: str,
        provider: str | Provider | None = None,
        *,
        scope: str | Iterable[str] | None = None,
        device: bool = False,
        force: bool = False,
        timeout: float = 300.0,  # noqa: ASYNC109 - the user's, not the coroutine's
        port: int = 0,
        prompt: Callable[[Prompt], object] | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> dict[str, Any]:
        """Sign an account in, return its tokens: see `TokenManager.login`.

        *prompt* and *sleep* are called in a thread. A sign-in has a thread of its own, which
        `close` does not wait for.
        """
        login = partial(
            self.manager.login,
            account_name,
            provider,
            scope=scope,
            device=device,
            force=force,
            timeout=timeout,
            port=port,
            prompt=prompt,
            sleep=sleep,
        )
        work: Future[dict[str, Any]] = Future()
        Thread(target=_run_into, args=(work, login), daemon=True).start()
        return await _result(work)

    async def logout(self, account_name: str, *, keep_account: bool = False) -> bool:
        """Revoke an account's tokens and remove it: see `TokenManager.logout`."""
        logout = partial(self.manager.logout, account_name, keep_account=keep_account)
        return await _result(self._waiting.submit(logout))

    def accounts(self, *, names: Iterable[str] | None = None) -> AsyncGenerator[Account, None]:
        """Yield every account, without secrets: see `TokenManager.accounts`."""
        return _iterate(self._store, self.manager.accounts(names=names), _PAGE)

    def history(self, account_name: str | None = None) -> AsyncGenerator[HistoryEntry, None]:
        """Yield the recorded refreshes: see `TokenManager.history`."""
        return _iterate(self._store, self.manager.history(account_name), _PAGE)

    def refresh_all(
        self,
        *,
        within: float = 0.0,
        idle_for: float | None = None,
        provider: str | None = None,
        jobs: int = 16,
        dry_run: bool = False,
        stop: Callable[[], bool] | None = None,
    ) -> AsyncGenerator[RefreshResult, None]:
        """Refresh every account that is due: see `TokenManager.refresh_all`.

        Leaving the loop starts no further refresh; those that are running end in the background.
        """
        results = self.manager.refresh_all(
            within=within,
            idle_for=idle_for,
            provider=provider,
            jobs=jobs,
            dry_run=dry_run,
            stop=stop,
        )
        return _iterate(self._waiting, results, 1)

    async def refresh_token(
        self,
        account_name: str,
        provider: str | Provider | None = None,
        *,
        rejected: str | None = None,
        scope: str | Iterable[str] | None = None,
        resource: str | Iterable[str] | None = None,
    ) -> dict[str, Any]:
        """Refresh an account now, return its tokens: see `TokenManager.refresh_token`."""
        method, target = self.manager.refresh_token, Target.of(scope, resource)
        refresh = partial(
            method,
            account_name,
            provider,
            rejected=rejected,
            **arguments_of(target),
        )
        key = _key("refresh_token", account_name, provider, rejected, target=target)
        if rejected is None:
            earlier = self._waiting.running(key)
            if earlier is not None:
                await _done(earlier)
        return deepcopy(await _result(self._waiting.share(key, refresh)))

    async def get_valid_token(
        self,
        account_name: str,
        provider: str | Provider | None = None,
        *,
        scope: str | Iterable[str] | None = None,
        resource: str | Iterable[str] | None = None,
    ) -> str | None:
        """Return a valid access token or None: see `TokenManager.get_valid_token`."""
        method, target = self.manager.get_valid_token, Target.of(scope, resource)
        token = self._cached("get_valid_token", account_name, provider, target)
        if token is not None:
            return token
        get = partial(method, account_name, provider, **arguments_of(target))
        token = await self._from_store(get, account_name, None, target)
        if token is not None:
            return token
        key = _key("get_valid_token", account_name, provider, target=target)
        return await _result(self._waiting.share(key, get))

    async def ensure_valid_token(
        self,
        account_name: str,
        provider: str | Provider | None = None,
        *,
        min_ttl: float | None = None,
        scope: str | Iterable[str] | None = None,
        resource: str | Iterable[str] | None = None,
    ) -> str:
        """Return a valid access token or raise an error: see `TokenManager.ensure_valid_token`."""
        method, target = self.manager.ensure_valid_token, Target.of(scope, resource)
        if min_ttl is None:
            token = self._cached("ensure_valid_token", account_name, provider, target)
            if token is not None:
                return token
        return await self._ensure(method, account_name, provider, min_ttl, target)

    async def get_access_token(
        self,
        account_name: str,
        provider: str | Provider | None = None,
        *,
        min_ttl: float | None = None,
        scope: str | Iterable[str] | None = None,
        resource: str | Iterable[str] | None = None,
    ) -> AccessToken:
        """Return a valid access token and what is known of it: see `TokenManager`."""
        method, target = self.manager.get_access_token, Target.of(scope, resource)
        return await self._ensure(method, account_name, provider, min_ttl, target)

    async def _ensure(
        self,
        method: Callable[..., T],
        account_name: str,
        provider: str | Provider | None,
        min_ttl: float | None,
        target: Target | None,
    ) -> T:
        """Call a method of the manager that raises why there is no valid token."""
        call = partial(method, account_name, provider, min_ttl=min_ttl, **arguments_of(target))
        found = await self._from_store(call, account_name, min_ttl, target)
        if found is not None:
            return found
        key = _key(method.__name__, account_name, provider, min_ttl, target=target)
        return await _result(self._waiting.share(key, call))

    def _cached(
        self,
        operation: str,
        account_name: str,
        provider: str | Provider | None,
        target: Target | None,
    ) -> str | None:
        """Return a token from memory, which takes no thread."""
        token = self.manager._cached(account_name, provider, target)  # noqa: SLF001 - made for this
        if token is not None and LOGGER.isEnabledFor(logging.DEBUG):
            log_operation(logging.DEBUG, operation, account_name, provider, "cached")
        return token

    async def _from_store(
        self,
        call: Callable[[], T],
        account_name: str,
        min_ttl: float | None,
        target: Target | None,
    ) -> T | None:
        """Make the *call* if the stored token is valid; return None if a refresh is needed.

        Each caller looks before it shares a call, so that none gets a token that is older than
        one saved before.
        """

        def look() -> T | None:
            fresh = False
            with suppress(TokenStoreError):  # the call itself raises and logs it
                fresh = self.manager._is_fresh(account_name, min_ttl, target)  # noqa: SLF001 - as above
            return call() if fresh else None

        return await _result(self._store.submit(look))


class WorkerPool(fork.ForkParticipant):
    """Threads that are started when needed, up to a number; further work is queued.

    Work runs in the context (`contextvars`) of the caller that submitted it.

    Args:
        threads: The maximum number of threads.
        name: The prefix of their names.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._threads = threads
        self._name = name
        self.after_fork_in_child()
        fork.register(fork.Stage.THREADS, self)

    def after_fork_in_child(self) -> None:
        """Start without threads and work: those of the parent are not in the child."""
        self._lock = Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._shared: dict[Hashable, Future[Any]] = {}

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Submit work."""
        with self._lock:
            return self._submit(work)

    def share(self, key: Hashable, work: Callable[[], T]) -> Future[T]:
        """Submit work, or return the future already running under the key."""

        def run() -> T:
            try:
                return work()
            finally:
                with self._lock:  # before any caller gets the result
                    self._shared.pop(key, None)

        with self._lock:
            if key not in self._shared:
                self._shared[key] = self._submit(run)
            return self._shared[key]

    def running(self, key: Hashable) -> Future[Any] | None:
        """Return the future running under the key, or None."""
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


def _key(operation: str, *arguments: object, target: Target | None = None) -> Hashable:
    """Return the key of a call; calls with equal keys may share their result."""
    plain = (str, float, int, type(None))
    of_target = () if target is None else (target,)
    return operation, *(a if isinstance(a, plain) else id(a) for a in arguments), *of_target


async def _done(work: Future[Any]) -> None:
    """Wait until *work* is done; cancelling the caller does not cancel the work."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def notify(_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: the caller no longer waits
            loop.call_soon_threadsafe(done.set)

    work.add_done_callback(notify)
    await done.wait()


def _run_into(work: Future[T], call: Callable[[], T]) -> None:
    """Make the *call* and put its result or error into *work*."""
    try:
        work.set_result(call())
    except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
        work.set_exception(error)


async def _result(work: Future[T]) -> T:
    await _done(work)
    return work.result()


async def _iterate(pool: WorkerPool, items: Iterator[T], size: int) -> AsyncGenerator[T, None]:
    """Yield *items*; a thread fetches *size* of them at a time."""
    generator = cast("Generator[T, None, None]", items)
    lock = Lock()  # a cancelled caller leaves a thread running in the generator

    def page() -> list[T]:
        with lock:
            return list(islice(generator, size))

    def close() -> None:
        with lock:
            generator.close()

    try:
        while some := await _result(pool.submit(page)):
            for item in some:
                yield item
    finally:
        pool.submit(close)


protect(__name__)
