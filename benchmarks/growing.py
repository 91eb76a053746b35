"""The same work in stores of ten accounts and of a million."""

from __future__ import annotations

import time
from collections import deque
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any

from benchmarks.big import DUE, HOUR, fill, fill_raw
from benchmarks.material import names, reads, tokens, writes
from benchmarks.measure import Contender, Row, Target, interleaved
from benchmarks.references import FileManager, Memory, RawSQLite, read_json
from tokenstore import TokenManager, TokenRepository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

_SMALL = (10, 1000, 100_000)
_PAGE = 500
_OURS = "tokenstore"


def rows(directory: Path, most: int) -> Iterator[Row]:
    """Measure in an empty directory, with stores of up to so many accounts."""
    now = time.time()
    stores: dict[int, Path] = {}
    for size in (*(size for size in _SMALL if size < most), most):
        stores[size] = directory / f"{size}.db"
        fill(stores[size], size, now=now)
    yield from _growth(stores, now)
    yield from _beside_raw(directory, stores[most], most, now)


def _growth(stores: dict[int, Path], now: float) -> Iterator[Row]:
    def beside_each_other(work: str, batch: int, make: Callable[[Any], Any], **more: Any) -> Row:
        contenders = []
        for size, repository in repositories.items():
            arguments = more.get("arguments", reads)(names(size))
            contenders.append(Contender(f"{size:,}", make(repository), arguments, batch))
        least, *_, most = (contender.name for contender in contenders)
        targets = [Target(most, least, 1.2)] if more.get("of_one") else []
        return Row(work, interleaved(contenders, rounds=20), targets, note=more.get("note", ""))

    def due_candidates(before: float) -> Callable[[TokenRepository], Callable[[str], object]]:
        return lambda repository: (
            lambda _: _exhaust(
                repository.listing.due_candidates(
                    before=before, expiry_buffer=300.0, client_of=lambda _: None
                )
            )
        )

    with ExitStack() as stack:
        repositories = {
            size: stack.enter_context(TokenRepository(path)) for size, path in stores.items()
        }
        managers = {
            repository: stack.enter_context(TokenManager(stores[size], cache_ttl=0))
            for size, repository in repositories.items()
        }
        yield beside_each_other("due scan, nothing due, by accounts", 50, due_candidates(now))
        yield beside_each_other(
            f"due scan, {DUE} due, by accounts", 5, due_candidates(now + HOUR), note="10 of 10"
        )
        yield beside_each_other(
            f"first {_PAGE} of all accounts, by accounts",
            2,
            lambda repository: lambda _: _exhaust(islice(repository.accounts(), _PAGE)),
            note="10 of 10",
        )
        yield beside_each_other(
            "status of one account, by accounts",
            100,
            lambda repository: lambda name: _exhaust(repository.accounts(names=[name])),
        )
        yield beside_each_other(
            "`get_valid_token`, not cached, by accounts",
            200,
            lambda repository: managers[repository].get_valid_token,
            of_one=True,
        )
        yield beside_each_other(
            "`load_tokens`, by accounts",
            200,
            lambda repository: managers[repository].load_tokens,
            of_one=True,
        )
        yield beside_each_other(
            "`save_tokens`, by accounts",
            20,
            lambda repository: managers[repository].save_tokens,
            arguments=writes,
            of_one=True,
        )


def _beside_raw(directory: Path, store: Path, accounts: int, now: float) -> Iterator[Row]:
    """Read and write a thousand accounts, spread over the whole store."""
    chosen = names(accounts, 1000)
    memory, raw, files = Memory(), RawSQLite(directory / "raw.db"), FileManager(directory)
    fill_raw(raw, accounts, now=now)
    for account in chosen:
        memory.save(account, tokens())
        files.save(account, tokens())
    read, write = reads(chosen), writes(chosen)
    many = f"among {accounts:,}"
    with (
        TokenManager(store) as manager,
        TokenManager(store, cache_ttl=0) as uncached,
    ):
        _exhaust(map(manager.get_valid_token, chosen))
        yield Row(
            f"`get_valid_token`, cached, {many}",
            interleaved(
                [
                    Contender(_OURS, manager.get_valid_token, read, 5000),
                    Contender("dict and clock", memory.get_valid_token, read, 5000),
                ],
                rounds=20,
            ),
            [Target(_OURS, "dict and clock", 2.0)],
        )
        yield Row(
            f"`get_valid_token`, not cached, fresh token, {many}",
            interleaved(
                [
                    Contender(_OURS, uncached.get_valid_token, read, 1000),
                    Contender("raw select", raw.token, read, 1000),
                ],
                rounds=20,
            ),
            [Target(_OURS, "raw select", 1.5)],
        )
        yield Row(
            f"`load_tokens`, {many}",
            interleaved(
                [
                    Contender(_OURS, manager.load_tokens, read, 1000),
                    Contender("json.load", lambda name: read_json(files.path(name)), read, 1000),
                    Contender("raw select", raw.load, read, 1000),
                ],
                rounds=20,
            ),
            [Target(_OURS, "json.load", 1.1)],
        )
        yield Row(
            f"`save_tokens`, durable, {many}",
            interleaved(
                [
                    Contender(_OURS, manager.save_tokens, write, 50),
                    Contender("raw transaction", raw.save, write, 50),
                ],
                rounds=40,
            ),
            [Target(_OURS, "raw transaction", 1.4)],
        )
    raw.close()


def _exhaust(items: Iterable[object]) -> None:
    deque(items, maxlen=0)
