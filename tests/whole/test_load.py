"""Many processes use one file: no operation fails, and nothing is lost."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, get_args

import pytest

from tests.helpers.stores import SOON, is_sound, journal_mode_of, python, tokens, unmeasured
from tokenstore import TokenRepository
from tokenstore.storage.base import JournalMode

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

JOURNAL_MODES = get_args(JournalMode)
PROCESSES = 64
OPERATIONS = 50

# A process that mixes the operations of applications at random. It counts in two ways, in one
# transaction and through refreshes, and checks the accounts that only it writes.
MIXED = """
import json, random
from collections import Counter
from tokenstore.models.tokens import TokenSet

path, journal_mode, processes, operations = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])

def work(number):
    rng = random.Random(number)
    repository = TokenRepository(path, journal_mode=journal_mode)
    mine, done = {}, Counter()

    def save(name, step):
        repository.save(name, tokens(step))
        mine[name] = step

    def load(name, step):
        assert repository.load(name) == (tokens(mine[name]) if name in mine else None)

    def delete(name, step):
        assert repository.delete(name) == (mine.pop(name, None) is not None)

    def count(name, step):
        with repository.transaction():
            found = repository.load("counter")
            repository.save("counter", found | {"count": found["count"] + 1})

    def accounts(name, step):
        names = [account.name for account in repository.accounts()]
        assert names == sorted(set(names))
        assert {each for each in names if each.startswith(f"{number}-")} == mine.keys()

    def refresh(name, step):
        name = f"refreshed-{rng.randrange(4)}"
        with repository.refresh_lock(name, timeout=60):
            record = repository.record(name)
            refresh = repository.journal.begin(
                record, provider="test", reason="forced", longest=60
            )
            before = refresh.record.tokens
            count = before.extra["count"] + 1
            own = {"refresh_token": f"{name}-{count}", "count": count}
            after = TokenSet.from_mapping(tokens(count) | own, now=0)
            stored = repository.journal.finish(refresh, lambda _: after, provider="test")
            assert stored.tokens.extra["count"] == count

    def reopen(name, step):
        repository.close()

    for step in range(operations):
        operation = rng.choices(
            [save, load, delete, count, accounts, refresh, reopen], [5, 8, 2, 5, 4, 2, 1]
        )[0]
        operation(f"{number}-{rng.randrange(5)}", step)
        done[operation.__name__] += 1
    repository.close()
    tell(json.dumps({"mine": mine, "done": done}))

assert forked(processes, work) == [0] * processes
"""


@pytest.mark.parametrize("journal_mode", JOURNAL_MODES)
def test_sixty_four_concurrent_processes_lose_nothing(
    tmp_path: Path, journal_mode: JournalMode
) -> None:
    path = tmp_path / "tokens.db"
    with TokenRepository(path, journal_mode=journal_mode) as repository:
        for name in ("counter", *(f"refreshed-{which}" for which in range(4))):
            repository.save(name, tokens(count=0, refresh_token=f"{name}-0"))

    printed = python(
        MIXED,
        path,
        journal_mode,
        PROCESSES,
        OPERATIONS,
        env=unmeasured(dict(os.environ)),
        timeout=4 * SOON,  # thousands of commits, each of which waits for the disk
    )

    told = [json.loads(line) for line in printed.splitlines()]
    assert sum(sum(each["done"].values()) for each in told) == PROCESSES * OPERATIONS
    with TokenRepository(path) as repository:
        mine = {name: step for each in told for name, step in each["mine"].items()}
        assert {name: repository.load(name) for name in mine} == {
            name: tokens(step) for name, step in mine.items()
        }
        stored = [account.name for account in repository.accounts()]
        assert {name for name in stored if name[0].isdigit()} == mine.keys()
        counts = {name: (repository.load(name) or {}).get("count") for name in stored}
        refreshes = sum(counts[f"refreshed-{which}"] or 0 for which in range(4))
        assert counts["counter"] == sum(each["done"].get("count", 0) for each in told)
        assert refreshes == sum(each["done"].get("refresh", 0) for each in told)
        assert {entry.outcome for entry in repository.journal.history()} == {"refreshed"}
    assert is_sound(path)
    assert journal_mode_of(path) == journal_mode
