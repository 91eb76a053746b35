"""One flipped bit anywhere in a database: every account is as it was saved, or a StorageError."""

from __future__ import annotations

import itertools
import logging
import math
import random
import re
import sqlite3
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.broken_stores import PAGE, seen
from tests.helpers.stores import LATER
from tokenstore import StorageError, TokenManager, TokenRepository
from tokenstore.storage.rows import CorruptRowError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tokenstore.models.accounts import Record

pytestmark = pytest.mark.slow

FLIPS = 400
SAVED: dict[str, dict[str, Any]] = {
    f"account-{number:02}@example.com": {
        "access_token": f"CANARY-access-{number:02}-" + 30 * "a",
        "refresh_token": f"CANARY-refresh-{number:02}-" + 30 * "r",
        "expires_at": LATER + number,
        "id_token": f"CANARY-id-{number:02}",
        "nested": {"scopes": ["a", "b"], "more": None},
    }
    for number in range(30)
}
ALL = list(SAVED)


@dataclass(frozen=True)
class Reading:
    """The result of a call on a database with a flipped bit.

    Attributes:
        offset: The byte that the bit is in.
        call: The call, and what it was about.
        right: Whether the answer is what was saved.
        missing: Whether it is that there is nothing.
        error: What was raised, None if nothing was.
        leaks: Whether a secret can be seen in the error or in the log.
    """

    offset: int
    call: str
    right: bool = False
    missing: bool = False
    error: type[Exception] | None = None
    leaks: bool = False


def read(offset: int, call: str, function: Callable[[], object], expected: object) -> Reading:
    try:
        found = function()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is looked at
        return Reading(offset, call, error=type(error), leaks="CANARY" in "".join(seen(error)))
    return Reading(offset, call, found == expected, found is None)


def read_all(path: Path, offset: int) -> Iterator[Reading]:
    """Open the database and read everything in it."""
    with TokenManager(path, cache_ttl=0) as manager:
        for name, tokens in SAVED.items():
            token = tokens["access_token"]
            yield read(offset, "load", partial(manager.load_tokens, name), tokens)
            yield read(offset, "get_valid_token", partial(manager.get_valid_token, name), token)
    with TokenRepository(path) as repository:
        yield read(offset, "accounts", lambda: [a.name for a in some(repository.accounts())], ALL)
        yield read(
            offset, "records", lambda: are_as_saved(repository.listing.records()), expected=True
        )
        yield read(offset, "history", lambda: [*some(repository.journal.history())], [])


def are_as_saved(records: Iterator[Record | CorruptRowError]) -> bool:
    """Return whether every record is either as saved or an error."""
    intact = [record for record in some(records) if not isinstance(record, CorruptRowError)]
    return all(SAVED.get(r.account_name) == r.tokens.to_dict() for r in intact)


def some(items: Iterator[Any]) -> Iterator[Any]:
    """Yield *items*, but no more than there can be: a list that does not end is a wrong one."""
    return itertools.islice(items, 2 * len(SAVED))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flipped") / "tokens.db"
    with TokenRepository(path) as repository:
        for name, tokens in SAVED.items():
            repository.save(name, tokens, provider="nobody")
    return path


@pytest.fixture(scope="module")
def whole(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture(scope="module")
def names(path: Path, whole: bytes) -> set[int]:
    """Return the bytes that hold the name of an account, or that find an account by its name.

    No checksum of a row can tell that the row is not found.
    """
    database = sqlite3.connect(f"file:{path}?immutable=1", uri=True)
    query = "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_accounts_1'"
    [(page,)] = database.execute(query)
    database.close()
    places = [m.span() for name in ALL for m in re.finditer(re.escape(name.encode()), whole)]
    index = ((page - 1) * PAGE, page * PAGE)
    assert sum(index[0] <= start < index[1] for start, _ in places) == len(ALL)  # it has one page
    return {offset for span in [index, *places] for offset in range(*span)}


@pytest.fixture(scope="module")
def readings(path: Path, whole: bytes) -> list[Reading]:
    """Flip one bit after the other, every second one in a byte that is used."""
    logger = logging.getLogger("tokenstore")
    logger.setLevel(logging.CRITICAL)  # there is much to complain of
    chosen = random.Random(1)
    used = [offset for offset, byte in enumerate(whole) if byte]
    found: list[Reading] = []
    for number in range(FLIPS):
        offset = chosen.choice(used) if number % 2 else chosen.randrange(len(whole))
        flip(path, whole, offset, chosen.randrange(8))
        found += read_all(path, offset)
    path.write_bytes(whole)
    assert all(reading.right for reading in read_all(path, 0))
    assert len({reading.offset for reading in found if not reading.right}) > FLIPS / 10
    logger.setLevel(logging.NOTSET)
    return found


def flip(path: Path, whole: bytes, offset: int, bit: int) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    flipped = bytearray(whole)
    flipped[offset] ^= 1 << bit
    path.write_bytes(flipped)


def test_a_flipped_bit_raises_only_storage_errors(readings: list[Reading]) -> None:
    raised = {reading.error for reading in readings if reading.error is not None}

    assert {error for error in raised if not issubclass(error, StorageError)} == set()


def test_a_flipped_bit_shows_no_secret(readings: list[Reading]) -> None:
    assert [reading for reading in readings if reading.leaks] == []


def test_a_flipped_bit_never_returns_a_wrong_token(readings: list[Reading]) -> None:
    tokens = [r for r in readings if r.call in {"load", "get_valid_token"}]

    assert [r for r in tokens if not (r.right or r.missing or r.error)] == []


def test_a_flipped_bit_never_lists_a_wrong_token(readings: list[Reading], names: set[int]) -> None:
    records = [r for r in readings if r.call == "records" and r.offset not in names]

    assert [r for r in records if not (r.right or r.error)] == []


def test_a_flipped_bit_hides_an_account_only_in_its_name(
    readings: list[Reading], names: set[int]
) -> None:
    assert [r for r in readings if r.missing and r.offset not in names] == []


def test_a_flipped_bit_in_a_name_does_not_make_a_list_endless(path: Path, whole: bytes) -> None:
    places = [match.start() for match in re.finditer(re.escape(ALL[-1].encode()), whole)]
    assert len(places) == 3  # in the row and in both indexes of names

    def is_endless(items: Iterator[Any]) -> bool:
        try:
            return len([*some(items)]) > len(ALL)
        except StorageError:
            return False

    endless = []
    for place, byte, bit in itertools.product(places, range(len(ALL[-1])), range(8)):
        flip(path, whole, place + byte, bit)
        with TokenRepository(path) as repository:
            due = repository.listing.due_candidates(
                before=math.inf, expiry_buffer=0.0, client_of=lambda _: None
            )
            lists = (repository.accounts(), repository.listing.records(), due)
            endless += [(place + byte, bit) for found in map(is_endless, lists) if found]
    path.write_bytes(whole)
    assert endless == []
