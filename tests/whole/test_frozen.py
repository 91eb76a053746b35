"""A database of every released revision can still be read, upgraded and downgraded to."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.frozen.freeze import NOW, answers
from tests.helpers.stores import ROOT, mode, raw
from tokenstore import SchemaOutdatedError, TokenRepository, migrate
from tokenstore.storage.sqlite.engine import pragma
from tokenstore.storage.tables import REVISION

if TYPE_CHECKING:
    from pathlib import Path

FROZEN = ROOT / "tests" / "frozen"
REVISIONS = sorted(path.stem for path in FROZEN.glob("*.db"))


@pytest.fixture(params=REVISIONS)
def revision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(revision: str, tmp_path: Path) -> Path:
    path = tmp_path / "tokens.db"
    shutil.copyfile(FROZEN / f"{revision}.db", path)
    return path


def rows(path: Path) -> dict[str, list[Any]]:
    with raw(path) as connection:
        found = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        tables = [name for (name,) in connection.execute(found)]
        return {t: connection.execute(f"SELECT * FROM {t} ORDER BY 1").fetchall() for t in tables}


def expected(revision: str) -> Any:
    return json.loads((FROZEN / f"{revision}.json").read_text("utf-8"))


def as_known_to(old: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return *found* without the fields that are newer than *old*, which must be empty."""
    new = {name: value for name, value in found.items() if name not in old}
    assert not any(value for each in new.values() for value in each.values())
    known = {name: found[name] for name in old}
    for name in ("accounts", "history"):
        fields = set(old[name][0])
        assert not any(v for row in found[name] for k, v in row.items() if k not in fields)
        known[name] = [{k: v for k, v in row.items() if k in fields} for row in found[name]]
    return known


def test_every_revision_is_frozen() -> None:
    made = (ROOT / "migrations" / "versions").glob("[0-9]*.py")
    assert sorted(path.stem[:4] for path in made) == REVISIONS


def test_a_frozen_database_has_its_revision(path: Path, revision: str) -> None:
    assert rows(path)["tokenstore_alembic_version"] == [(revision,)]


def test_an_upgrade_of_a_frozen_database_loses_nothing(path: Path, revision: str) -> None:
    before = rows(path)
    with TokenRepository(path, upgrade=True, clock=lambda: NOW) as repository:
        found = json.loads(json.dumps(answers(repository)))

    assert as_known_to(expected(revision), found) == expected(revision)
    backups = list(path.parent.glob("tokens.db-backup-*"))
    assert len(backups) == (revision != REVISION)
    for backup in backups:
        assert mode(backup) == 0o600
        assert rows(backup) == before


def test_a_downgrade_restores_a_frozen_database(path: Path, revision: str) -> None:
    before = rows(path)

    migrate.upgrade(path)
    migrate.downgrade(path, revision) if revision != REVISION else None

    assert rows(path) == before
    with raw(path) as connection:
        assert pragma(connection, "integrity_check") == "ok"


def test_an_upgraded_database_works_like_a_new_one(path: Path) -> None:
    with TokenRepository(path, upgrade=True, clock=lambda: NOW) as repository:
        repository.save("refreshed", {"access_token": "new", "refresh_token": "new"})
        repository.save("another", {"access_token": "another"})
        assert repository.delete("dead")
        found = {account.name: account.state for account in repository.accounts()}

    assert found["another"] == "valid"  # it has no end, and nothing has rejected it
    assert found["refreshed"] == "due"
    assert "dead" not in found
    migrate.check(path)


def test_without_upgrade_a_frozen_database_is_unchanged(path: Path, revision: str) -> None:
    before = path.read_bytes()
    if revision != REVISION:
        with TokenRepository(path) as repository, pytest.raises(SchemaOutdatedError):
            repository.load("dead")
    assert path.read_bytes() == before
