"""`AsyncTokenManager`: the methods of `TokenManager` as coroutines, for asyncio."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Future
from contextlib import suppress
from copy import deepcopy
from functools import partial
from itertools import islice
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tokenstore.errors import TokenStoreError
from tokenstore.logs import LOGGER, log_operation
from tokenstore.manager import TokenManager
from tokenstore.workers import Workers

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
    from tokenstore.models.accounts import Account, HistoryEntry
    from tokenstore.oauth.flows.prompt import Prompt
    from tokenstore.oauth.provider import Provider

T = TypeVar("T")

_STORE_THREADS = 4
_PAGE = 500  # accounts or refreshes that are fetched from a thread at once


class AsyncTokenManager:
    """A `TokenManager` for asyncio: the same methods, as coroutines and async iterators.

    The work is done in threads and never blocks the event loop; a token in memory costs no thread.
    Calls that only need the database have threads of their own and do not wait for a provider.
    Those that do wait for one share a thread for each account, so that *jobs* accounts can be
    waited for at a time; more wait for their turn.

    A caller that is cancelled stops waiting, and its work goes on: tokens that a provider has
    given are stored all the same. It may be used by several event loops. The manager's hooks run
    in the threads: they may call `manager`, and must not wait there for a coroutine of this.

    Args:
        database: What `TokenManager` takes, or a `TokenManager` to use; `close` closes it.
        jobs: How many accounts may wait for a provider at the same time.
        **options: What else `TokenManager` takes, to make one.

    Attributes:
        manager: The manager that does the work; it may be used beside this one.
    """

    def __init__(
        self,
        database: TokenManager | str | os.PathLike[str] | URL | None = None,
        *,
        jobs: int = 32,
        **options: Any,
    ) -> None:
        if jobs < 1:
            raise ValueError("jobs: a whole number, 1 or more, is needed")
        if not isinstance(database, TokenManager):
            database = TokenManager(database, **options)
        elif options:
            raise TypeError(f"{', '.join(options)}: for making a manager, and one was given")
        self.manager = database
        self._store = Workers(_STORE_THREADS, "tokenstore-store")
        self._waiting = Workers(jobs, "tokenstore-wait")

    async def __aenter__(self) -> AsyncTokenManager:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Wait for what is under way, then close the database; a later call opens it again.

        Raises:
            TokenPersistError: There are tokens that it still would not take.
        """
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Do what `aclose` does, where no event loop runs."""
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
        await _outcome(self._store.run(save))

    async def load_tokens(self, account_name: str) -> dict[str, Any] | None:
        """Return every field that was saved: see `TokenManager.load_tokens`."""
        return await _outcome(self._store.run(partial(self.manager.load_tokens, account_name)))

    async def delete_tokens(self, account_name: str) -> bool:
        """Remove an account, tell whether there was one: see `TokenManager.delete_tokens`."""
        return await _outcome(self._store.run(partial(self.manager.delete_tokens, account_name)))

    async def backup(self, target: str | os.PathLike[str], *, replace: bool = False) -> Path:
        """Copy the database, return the path of the copy: see `TokenManager.backup`."""
        return await _outcome(
            self._store.run(partial(self.manager.backup, target, replace=replace))
        )

    async def login(
        self,
        account_name: str,
        provider: str | Provider | None = None,
        *,
        scope: str | None = None,
        device: bool = False,
        force: bool = False,
        timeout: float = 300.0,  # noqa: ASYNC109 - of the person, not of this coroutine
        port: int = 0,
        prompt: Callable[[Prompt], object] | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> dict[str, Any]:
        """Let a person sign an account in, return its tokens: see `TokenManager.login`.

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
        Thread(target=_fulfil, args=(work, login), daemon=True).start()
        return await _outcome(work)

    async def logout(self, account_name: str, *, keep_account: bool = False) -> bool:
        """Revoke an account's tokens and remove it: see `TokenManager.logout`."""
        logout = partial(self.manager.logout, account_name, keep_account=keep_account)
        return await _outcome(self._waiting.run(logout))

    def accounts(self, *, names: Iterable[str] | None = None) -> AsyncGenerator[Account, None]:
        """Yield every account, without any secret: see `TokenManager.accounts`."""
        return _iterate(self._store, self.manager.accounts(names=names), _PAGE)

    def history(self, account_name: str | None = None) -> AsyncGenerator[HistoryEntry, None]:
        """Yield the remembered refreshes: see `TokenManager.history`."""
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

        Whoever stops iterating stops what has not begun; refreshes under way end in the background.
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
    ) -> dict[str, Any]:
        """Refresh an account now, return its tokens: see `TokenManager.refresh_token`."""
        refresh = partial(self.manager.refresh_token, account_name, provider, rejected=rejected)
        call = _call("refresh_token", account_name, provider, rejected)
        if rejected is None:
            began_before = self._waiting.shared(call)
            if began_before is not None:
                await _ended(began_before)
        return deepcopy(await _outcome(self._waiting.share(call, refresh)))

    async def get_valid_token(
        self, account_name: str, provider: str | Provider | None = None
    ) -> str | None:
        """Return a live access token or None: see `TokenManager.get_valid_token`."""
        token = self._remembered("get_valid_token", account_name, provider)
        if token is not None:
            return token
        get = partial(self.manager.get_valid_token, account_name, provider)
        token = await self._stored(get, account_name, None)
        if token is not None:
            return token
        call = _call("get_valid_token", account_name, provider)
        return await _outcome(self._waiting.share(call, get))

    async def ensure_valid_token(
        self,
        account_name: str,
        provider: str | Provider | None = None,
        *,
        min_ttl: float | None = None,
    ) -> str:
        """Return a live access token or raise why not: see `TokenManager.ensure_valid_token`."""
        if min_ttl is None:
            token = self._remembered("ensure_valid_token", account_name, provider)
            if token is not None:
                return token
        ensure = partial(self.manager.ensure_valid_token, account_name, provider, min_ttl=min_ttl)
        token = await self._stored(ensure, account_name, min_ttl)
        if token is not None:
            return token
        call = _call("ensure_valid_token", account_name, provider, min_ttl)
        return await _outcome(self._waiting.share(call, ensure))

    def _remembered(
        self, operation: str, account_name: str, provider: str | Provider | None
    ) -> str | None:
        """Return a token from memory, which takes no thread."""
        token = self.manager._cached(account_name)  # noqa: SLF001 - made for this
        if token is not None and LOGGER.isEnabledFor(logging.DEBUG):
            log_operation(logging.DEBUG, operation, account_name, provider, "cached")
        return token

    async def _stored(
        self, call: Callable[[], str | None], account_name: str, min_ttl: float | None
    ) -> str | None:
        """Make the *call* if the store can answer it; None if a provider is to be asked.

        Looked up for each caller before any share a call, so that nobody is given a token that is
        older than what was saved before.
        """

        def look() -> str | None:
            fresh = False
            with suppress(TokenStoreError):  # the call itself will say it, and log it
                fresh = self.manager._is_fresh(account_name, min_ttl)  # noqa: SLF001 - likewise
            return call() if fresh else None

        return await _outcome(self._store.run(look))


def _call(operation: str, *arguments: object) -> Hashable:
    """Return what is equal for calls that may share their outcome."""
    plain = (str, float, int, type(None))
    return operation, *(a if isinstance(a, plain) else id(a) for a in arguments)


async def _ended(work: Future[Any]) -> None:
    """Wait for the end of *work*. A caller that is cancelled meanwhile does not touch it."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def tell_loop(_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(ended.set)

    work.add_done_callback(tell_loop)
    await ended.wait()


def _fulfil(work: Future[T], call: Callable[[], T]) -> None:
    try:
        work.set_result(call())
    except BaseException as error:  # noqa: BLE001 - it is raised where the outcome is awaited
        work.set_exception(error)


async def _outcome(work: Future[T]) -> T:
    await _ended(work)
    return work.result()


async def _iterate(workers: Workers, items: Iterator[T], size: int) -> AsyncGenerator[T, None]:
    """Yield *items*, of which so many at a time are made in a thread."""
    generator = cast("Generator[T, None, None]", items)
    turn = Lock()  # whoever is cancelled leaves a thread behind in the generator

    def page() -> list[T]:
        with turn:
            return list(islice(generator, size))

    def close() -> None:
        with turn:
            generator.close()

    try:
        while some := await _outcome(workers.run(page)):
            for item in some:
                yield item
    finally:
        workers.run(close)
