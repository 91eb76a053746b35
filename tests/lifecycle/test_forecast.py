from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.refreshes import World, of_sqlite, on_both_engines
from tests.helpers.stores import raw
from tokenstore import SchemaOutdatedError, TokenRepository, migrate
from tokenstore.jsonfiles import import_accounts
from tokenstore.storage.rows import CHECKSUMS
from tokenstore.testing import Transform

if TYPE_CHECKING:
    from pathlib import Path

    from tokenstore.models.accounts import Account

DAY = 86400.0
FIELDS = ["refresh_token_expires_in", "refresh_expires_in", "x_refresh_token_expires_in"]

pytestmark = on_both_engines


def account(world: World, **provider: Any) -> Account:
    """Return what is told of the only account."""
    providers = {"test": world.server.provider(**provider)}
    (found,) = world.manager(providers=providers).accounts()
    return found


def adding(**fields: Any) -> Transform:
    return Transform(lambda answer: {**answer, **fields})


# -- what providers say -----------------------------------------------------------------------


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [7 * DAY, str(7 * DAY)], ids=["number", "text"])
def test_a_lifetime_that_is_saved_counts_from_the_moment_of_saving(
    world: World, field: str, value: Any
) -> None:
    world.sign_in(**{field: value})
    found = account(world)
    assert found.refresh_token_obtained_at == world.clock.now
    assert found.refresh_token_expires_at == world.clock.now + 7 * DAY


@pytest.mark.parametrize("field", FIELDS)
def test_a_lifetime_in_an_answer_counts_from_its_request(world: World, field: str) -> None:
    world.sign_in()
    world.clock.now += DAY
    world.server.script(adding(**{field: 7 * DAY}))
    tokens = world.manager().refresh_token("alice")
    assert account(world).refresh_token_expires_at == world.clock.now + 7 * DAY
    assert tokens[field] == 7 * DAY  # what else an answer has is kept


@pytest.mark.parametrize("value", [0, -5, "soon", None, [], 1e300, "NaN"], ids=str)
def test_what_is_no_lifetime_or_has_no_end_is_none(world: World, value: object) -> None:
    world.sign_in(refresh_expires_in=value)
    assert account(world).refresh_token_expires_at is None
    world.server.script(adding(refresh_expires_in=value))
    world.manager().refresh_token("alice")
    assert account(world).refresh_token_expires_at is None


def test_the_lifetime_of_a_new_refresh_token_is_not_that_of_the_old_one(world: World) -> None:
    world.sign_in(refresh_expires_in=7 * DAY)
    world.manager().refresh_token("alice")
    assert account(world).refresh_token_expires_at is None


def test_without_a_refresh_token_there_is_nothing_to_tell(world: World) -> None:
    world.sign_in(refresh_token=None, refresh_expires_in=7 * DAY)
    found = account(world, refresh_token_lifetime=DAY)
    assert (found.refresh_token_obtained_at, found.refresh_token_expires_at) == (None, None)


# -- its age ----------------------------------------------------------------------------------


def test_a_refresh_token_that_is_rotated_is_young_again(world: World) -> None:
    world.sign_in()
    world.clock.now += 3 * DAY
    world.manager().refresh_token("alice")
    assert account(world).refresh_token_obtained_at == world.clock.now


def test_a_refresh_token_that_stays_grows_old(tmp_path: Path) -> None:
    with World(tmp_path, rotate=False) as world:
        began = world.clock.now
        world.sign_in(refresh_expires_in=7 * DAY)
        for _ in range(2):
            world.clock.now += 3 * DAY
            world.manager().refresh_token("alice")
        found = account(world)
        assert found.refresh_token_obtained_at == began
        assert found.refresh_token_expires_at == began + 7 * DAY
        assert found.refresh_token_used_at == world.clock.now


def test_an_answer_may_repeat_the_token_and_prolong_its_life(tmp_path: Path) -> None:
    with World(tmp_path, rotate=False) as world:
        began = world.clock.now
        saved = world.sign_in(refresh_expires_in=7 * DAY)
        world.clock.now += DAY
        again = adding(refresh_token=saved["refresh_token"], refresh_expires_in=7 * DAY)
        world.server.script(again)
        world.manager().refresh_token("alice")
        found = account(world)
        assert found.refresh_token_obtained_at == began
        assert found.refresh_token_expires_at == world.clock.now + 7 * DAY


def test_saving_the_same_refresh_token_again_makes_it_no_younger(world: World) -> None:
    began = world.clock.now
    world.sign_in(refresh_expires_in=7 * DAY)
    manager = world.manager()
    world.clock.now += DAY
    manager.save_tokens("alice", {**(manager.load_tokens("alice") or {}), "more": 1})
    found = account(world)
    assert found.refresh_token_obtained_at == began
    assert found.refresh_token_expires_at == began + 7 * DAY


def test_saving_another_refresh_token_begins_anew(world: World) -> None:
    world.sign_in(refresh_expires_in=7 * DAY)
    world.clock.now += DAY
    world.sign_in()
    found = account(world)
    assert found.refresh_token_obtained_at == world.clock.now
    assert found.refresh_token_expires_at is None


@pytest.mark.parametrize("field", ["obtained_at", "created_at"])
def test_an_import_tells_the_age_if_the_file_does(world: World, tmp_path: Path, field: str) -> None:
    began = world.clock.now - 5 * DAY
    tokens = {"access_token": "a", "refresh_token": "r", "refresh_token_expires_in": 7 * DAY}
    (tmp_path / "alice.json").write_text(json.dumps({**tokens, field: began}))
    with TokenRepository(world.database, clock=world.clock) as repository:
        list(import_accounts(repository, [tmp_path / "alice.json"], provider="test"))
    found = account(world)
    assert found.refresh_token_obtained_at == began
    assert found.refresh_token_expires_at == began + 7 * DAY


def test_an_import_of_unknown_age_stays_of_unknown_age(world: World, tmp_path: Path) -> None:
    tokens = {"access_token": "a", "refresh_token": "r", "refresh_token_expires_in": 7 * DAY}
    (tmp_path / "alice.json").write_text(json.dumps(tokens))
    with TokenRepository(world.database, clock=world.clock) as repository:
        list(import_accounts(repository, [tmp_path / "alice.json"], provider="test"))
    found = account(world, refresh_token_lifetime=DAY, refresh_token_idle=DAY)
    assert (found.refresh_token_obtained_at, found.refresh_token_expires_at) == (None, None)


# -- what a provider is configured to do ------------------------------------------------------


def test_the_first_end_that_is_known_counts(world: World) -> None:
    began = world.clock.now
    world.sign_in(refresh_expires_in=30 * DAY)
    world.clock.now += DAY
    assert account(world).refresh_token_expires_at == began + 30 * DAY
    assert account(world, refresh_token_lifetime=7 * DAY).refresh_token_expires_at == (
        began + 7 * DAY
    )
    assert account(
        world, refresh_token_lifetime=90 * DAY, refresh_token_idle=2 * DAY
    ).refresh_token_expires_at == (began + 2 * DAY)


def test_a_use_prolongs_the_idle_end_and_not_the_absolute_one(tmp_path: Path) -> None:
    with World(tmp_path, rotate=False) as world:
        began = world.clock.now
        world.sign_in()
        world.clock.now += 5 * DAY
        world.manager().refresh_token("alice")
        absolute = account(world, refresh_token_lifetime=7 * DAY)
        idle = account(world, refresh_token_idle=7 * DAY)
        assert absolute.refresh_token_expires_at == began + 7 * DAY
        assert idle.refresh_token_expires_at == began + 12 * DAY


def test_no_end_is_none(world: World) -> None:
    world.sign_in()
    endless = account(world, refresh_token_lifetime=math.inf, refresh_token_idle=math.inf)
    assert endless.refresh_token_expires_at is None


def test_a_provider_that_nobody_knows_spoils_no_list(world: World) -> None:
    world.sign_in(provider="nowhere", refresh_expires_in=DAY)
    assert account(world).refresh_token_expires_at == world.clock.now + DAY


# -- the migration ----------------------------------------------------------------------------


@of_sqlite
def test_revision_0002_keeps_every_row_down_and_up(world: World) -> None:
    world.sign_in("alice", refresh_expires_in=7 * DAY, kept={"nested": [1, None]})
    world.sign_in("bob", refresh_token=None, provider=None)
    world.sign_in("carol")
    manager = world.manager()
    manager.refresh_token("alice")
    world.server.revoke("carol")
    assert manager.get_valid_token("carol") is None
    manager.close()
    loaded = {name: manager.load_tokens(name) for name in ("alice", "bob", "carol")}
    manager.close()

    def rows(table: str, *left_out: str) -> list[dict[str, Any]]:
        with raw(world.path) as connection:
            found = connection.execute(f"SELECT * FROM {table} ORDER BY 1")
            names = [column[0] for column in found.description]
            dicts = [dict(zip(names, row, strict=True)) for row in found]
        return [{k: v for k, v in row.items() if k not in left_out} for row in dicts]

    new = ("refresh_token_obtained_at", "refresh_token_expires_at", *CHECKSUMS)
    before = rows("accounts", *new), rows("refreshes", "target")

    migrate.downgrade(world.path, "0001")

    assert set(rows("accounts")[0]) & set(new) == set()
    assert (rows("accounts"), rows("refreshes")) == before
    with pytest.raises(SchemaOutdatedError):
        manager.load_tokens("alice")

    migrate.upgrade(world.path)

    assert (rows("accounts", *new), rows("refreshes", "target")) == before
    assert {row[name] for row in rows("accounts") for name in new} == {None}
    assert {name: manager.load_tokens(name) for name in loaded} == loaded
    assert manager.refresh_token("alice")["kept"] == {"nested": [1, None]}
    with raw(world.path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
