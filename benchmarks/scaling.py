"""The same operations in stores of 10 to 1,000,000 accounts."""

from __future__ import annotations

import time
from collections import deque
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any

from benchmarks.large_store import DUE, HOUR, fill, fill_raw
from benchmarks.measure import Contender, Row, Target, interleaved
from benchmarks.references import FileManager, Memory, RawSQLite, read_json
from benchmarks.sample_data import names, reads, tokens, writes
from tokenstore import TokenManager, TokenRepository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

LARGEST = 1_000_000  # accounts
_SMALL = (10, 1000, 100_000)
_PAGE = 500
_OURS = "tokenstore"
_FEWER = "the smallest store has only 10"


def rows(directory: Path, largest: int = LARGEST) -> Iterator[Row]:
    """Measure in an empty directory, with stores of up to *largest* accounts."""
    now = time.time()
    stores: dict[int, Path] = {}
    for size in (*(size for size in _SMALL if size < largest), largest):
        stores[size] = directory / f"{size}.db"
        fill(stores[size], size, now=now)
    yield from _by_size(stores, now)
    yield from _against_raw(directory, stores[largest], largest, now)


def _by_size(stores: dict[int, Path], now: float) -> Iterator[Row]:
    def compared(work: str, batch: int, make: Callable[[Any], Any], **more: Any) -> Row:
        contenders = []
        for size, repository in repositories.items():
            arguments = more.get("arguments", reads)(names(size))
            contenders.append(Contender(f"{size:,}", make(repository), arguments, batch))
        smallest, *_, largest = (contender.name for contender in contenders)
        targets = [Target(largest, smallest, 1.2)] if more.get("has_target") else []
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
        yield compared("due scan, nothing due, by store size", 50, due_candidates(now))
        yield compared(
            f"due scan, {DUE} due, by store size", 5, due_candidates(now + HOUR), note=_FEWER
        )
        yield compared(
            f"first {_PAGE} accounts, by store size",
            2,
            lambda repository: lambda _: _exhaust(islice(repository.accounts(), _PAGE)),
            note=_FEWER,
        )
        yield compared(
            "status of one account, by store size",
            100,
            lambda repository: lambda name: _exhaust(repository.accounts(names=[name])),
        )
        yield compared(
            "`get_valid_token`, not cached, by store size",
            200,
            lambda repository: managers[repository].get_valid_token,
            has_target=True,
        )
        yield compared(
            "`load_tokens`, by store size",
            200,
            lambda repository: managers[repository].load_tokens,
            has_target=True,
        )
        yield compared(
            "`save_tokens`, by store size",
            20,
            lambda repository: managers[repository].save_tokens,
            arguments=writes,
            has_target=True,
        )


def _against_raw(directory: Path, store: Path, accounts: int, now: float) -> Iterator[Row]:
    """Read and write 1,000 accounts, spread over the whole store."""
    chosen = names(accounts, 1000)
    memory, raw, files = Memory(), RawSQLite(directory / "raw.db"), FileManager(directory)
    fill_raw(raw, accounts, now=now)
    for account in chosen:
        memory.save(account, tokens())
        files.save(account, tokens())
    read, write = reads(chosen), writes(chosen)
    size = f"{accounts:,} accounts"
    with (
        TokenManager(store) as manager,
        TokenManager(store, cache_ttl=0) as uncached,
    ):
        _exhaust(map(manager.get_valid_token, chosen))
        yield Row(
            f"`get_valid_token`, cached, {size}",
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
            f"`get_valid_token`, not cached, fresh token, {size}",
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
            f"`load_tokens`, {size}",
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
            f"`save_tokens`, durable, {size}",
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
