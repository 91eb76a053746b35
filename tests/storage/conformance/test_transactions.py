"""D9, D18, D20: what belongs to a transaction, and what does not."""

# ruff: noqa: PT012, SIM117 - what is tested is how transactions nest
from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.helpers.postgresql import connect
from tests.helpers.stores import python, token_set, tokens
from tokenstore import StorageError, TokenRepository

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def repository(database: Path | str) -> Iterator[TokenRepository]:
    with TokenRepository(database) as repository:
        repository.save("before", tokens())
        yield repository


def accounts(repository: TokenRepository) -> list[str]:
    return [account.name for account in repository.accounts()]


# -- D9: an inner failure ------------------------------------------------------------------------


def test_an_inner_failure_that_is_caught_undoes_the_whole(repository: TokenRepository) -> None:
    with pytest.raises(StorageError, match="nothing of it was stored"), repository.transaction():
        repository.save("outer", tokens(1))
        with suppress(KeyError), repository.transaction():
            repository.save("inner", tokens(2))
            raise KeyError

    assert accounts(repository) == ["before"]
    repository.save("after", tokens(3))
    assert accounts(repository) == ["after", "before"]


def test_after_an_inner_failure_nothing_is_read_or_written(repository: TokenRepository) -> None:
    with pytest.raises(StorageError), repository.transaction():
        with suppress(KeyError), repository.transaction():
            raise KeyError
        with pytest.raises(StorageError, match="Repeat all of it"):
            repository.save("late", tokens())
        with pytest.raises(StorageError, match="Repeat all of it"):
            repository.load("before")

    assert accounts(repository) == ["before"]


def test_a_refused_save_inside_undoes_nothing(repository: TokenRepository) -> None:
    with repository.transaction():
        repository.save("outer", tokens(1))
        with pytest.raises(ValueError, match="access_token"):
            repository.save("inner", {"access_token": ""})

    assert accounts(repository) == ["before", "outer"]


def test_nested_transactions_are_stored_with_the_outer_one(repository: TokenRepository) -> None:
    with repository.transaction(), repository.transaction():
        repository.save("inner", tokens(1))

    assert accounts(repository) == ["before", "inner"]


# -- D9: generators and coroutines ---------------------------------------------------------------


def test_a_suspended_generator_takes_no_other_save_with_it(repository: TokenRepository) -> None:
    def generator() -> Iterator[None]:
        with repository.transaction():
            repository.save("inside", tokens(1))
            yield
            repository.save("inside too", tokens(2))

    suspended = generator()
    next(suspended)
    with pytest.raises(StorageError, match="generator"):
        repository.save("outside", tokens(3))
    assert repository.load("inside") is None  # it is not committed
    assert accounts(repository) == ["before"]
    list(suspended)

    assert accounts(repository) == ["before", "inside", "inside too"]
    repository.save("outside", tokens(3))


def test_a_generator_that_is_closed_stores_nothing(repository: TokenRepository) -> None:
    def generator() -> Iterator[None]:
        with repository.transaction():
            repository.save("inside", tokens(1))
            yield

    suspended = generator()
    next(suspended)
    suspended.close()  # type: ignore[attr-defined]

    repository.save("outside", tokens(2))
    assert accounts(repository) == ["before", "outside"]


def test_a_transaction_may_be_opened_by_a_helper(repository: TokenRepository) -> None:
    class Unit:
        def __enter__(self) -> None:
            self.transaction = repository.transaction()
            self.transaction.__enter__()

        def __exit__(self, *error: object) -> None:
            self.transaction.__exit__(*error)  # type: ignore[arg-type]

    @contextmanager
    def manager() -> Iterator[None]:
        with repository.transaction():
            yield

    with manager():
        repository.save("a", tokens(1))
        assert repository.load("a") == tokens(1)
    with Unit():
        repository.save("b", tokens(2))
    for _ in [0]:
        with repository.transaction():
            for number in (n for n in (1, 2)):
                repository.save(f"c{number}", tokens(3))

    assert accounts(repository) == ["a", "b", "before", "c1", "c2"]


def test_a_suspended_coroutine_takes_no_other_save_with_it(repository: TokenRepository) -> None:
    async def transaction(opened: asyncio.Event, go_on: asyncio.Event) -> None:
        with repository.transaction():
            repository.save("inside", tokens(1))
            child = asyncio.create_task(save("child"))  # starts with a copy of this context
            opened.set()
            await go_on.wait()
            await child
            await helper()
            raise KeyError

    async def save(name: str) -> str:
        try:
            repository.save(name, tokens(2))
        except StorageError as error:
            return str(error)
        return "saved"

    async def helper() -> None:
        assert repository.load("inside") == tokens(1)

    async def main() -> list[str]:
        opened, go_on = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(transaction(opened, go_on))
        await opened.wait()
        said = [await save("outside"), str(repository.load("inside"))]
        go_on.set()
        with pytest.raises(KeyError):
            await task
        return [*said, await save("after")]

    refused, committed, after = asyncio.run(main())

    assert "coroutine" in refused
    assert committed == "None"
    assert after == "saved"
    assert accounts(repository) == ["after", "before"]


def test_an_asynchronous_generator_is_a_generator(repository: TokenRepository) -> None:
    async def generator() -> AsyncIterator[None]:
        with repository.transaction():
            repository.save("inside", tokens(1))
            yield

    async def main() -> None:
        async for _ in generator():
            with pytest.raises(StorageError, match="generator"):
                repository.save("outside", tokens(2))

    asyncio.run(main())

    assert accounts(repository) == ["before", "inside"]


def test_another_thread_is_not_in_the_transaction(repository: TokenRepository) -> None:
    seen: list[object] = []
    with repository.transaction():
        repository.save("inside", tokens(1))
        thread = threading.Thread(target=lambda: seen.append(repository.load("inside")))
        thread.start()
        thread.join()

    assert seen == [None]


# -- D18: reading creates nothing ----------------------------------------------------------------


@pytest.fixture(params=["path", "schema"])
def nothing(request: pytest.FixtureRequest) -> Path | str:
    """Where there is neither a file nor a schema."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture
def missing(nothing: Path | str) -> Iterator[TokenRepository]:
    with TokenRepository(nothing) as repository:
        yield repository


def test_reading_inside_a_transaction_creates_nothing(
    missing: TokenRepository, nothing: Path | str, tmp_path: Path
) -> None:
    with missing.transaction():
        assert missing.load("alice") is None
        assert accounts(missing) == []
        assert not missing.delete("alice")
        assert missing.in_transaction()

    assert not missing.exists()
    assert not [*tmp_path.iterdir()]
    if isinstance(nothing, str):
        with connect(nothing) as connection:
            query = b"SELECT to_regnamespace('new') IS NULL"
            assert connection.execute(query).fetchone() == (True,)


def test_the_first_write_creates_the_database(missing: TokenRepository) -> None:
    with missing.transaction():
        assert missing.load("alice") is None
        missing.save("alice", tokens(1))
        assert missing.load("alice") == tokens(1)
        missing.put("bob", token_set(2))

    assert missing.exists()
    assert accounts(missing) == ["alice", "bob"]


def test_a_transaction_on_a_new_database_may_fail(missing: TokenRepository) -> None:
    with pytest.raises(KeyError), missing.transaction():
        missing.save("alice", tokens(1))
        raise KeyError
    with pytest.raises(StorageError), missing.transaction(), suppress(KeyError):
        with missing.transaction():
            raise KeyError

    assert accounts(missing) == []


def test_what_another_repository_creates_meanwhile_is_noticed(
    missing: TokenRepository, nothing: Path | str
) -> None:
    other = "TokenRepository(sys.argv[1]).save('alice', {'access_token': 'other'})"
    with pytest.raises(StorageError, match="repeat all of it"), missing.transaction():
        assert missing.load("alice") is None
        python(other, nothing)
        missing.save("alice", tokens(1))

    assert accounts(missing) == ["alice"]
    assert missing.load("alice") == {"access_token": "other"}


# -- D20: two paths to one store -----------------------------------------------------------------


def test_another_repository_in_the_same_transaction_is_refused_at_once(
    repository: TokenRepository, database: Path | str
) -> None:
    with TokenRepository(database) as other, repository.transaction():
        with pytest.raises(StorageError, match="this thread is inside a transaction"):
            other.save("alice", tokens())
        assert other.load("before") == tokens()
