"""Import of a directory of JSON files."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

from benchmarks.measure import Contender, Row, Target, interleaved
from benchmarks.references import FileManager, RawSQLite, read_json
from benchmarks.sample_data import name, tokens
from tokenstore import TokenRepository
from tokenstore.jsonfiles import import_accounts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FILES = 10_000
_OURS = "tokenstore"


def rows(directory: Path) -> Iterator[Row]:
    """Measure in an empty directory."""
    numbers = itertools.count()
    source = directory / "files"
    source.mkdir()
    files = FileManager(source)
    for number in range(_FILES):
        files.save(name(number), tokens(number))

    def empty_stores(count: int) -> Iterator[tuple[TokenRepository]]:
        for _ in range(count):
            repository = TokenRepository(directory / f"{next(numbers)}.db")
            repository.save("first", tokens())
            yield (repository,)

    def empty_tables(count: int) -> Iterator[tuple[RawSQLite]]:
        for _ in range(count):
            yield (RawSQLite(directory / f"{next(numbers)}.db"),)

    def import_all(repository: TokenRepository) -> None:
        with repository:
            outcomes = {result.outcome for result in import_accounts(repository, source)}
        if outcomes != {"imported"}:
            raise AssertionError(outcomes)

    def raw_import(raw: RawSQLite) -> None:
        raw.save_all((path.stem, read_json(path)) for path in source.iterdir())
        raw.close()

    contenders = [
        Contender(_OURS, import_all, empty_stores),
        Contender("json.load and executemany", raw_import, empty_tables),
    ]
    yield Row(
        f"import of {_FILES:,} JSON files",
        interleaved(contenders, rounds=5),
        [Target(_OURS, "json.load and executemany", 2.0)],
        note=f"{len(json.dumps(tokens())):,} bytes per file",
    )
