from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tests.helpers.stores import raw
from tokenstore import migrate
from tokenstore.storage.migrations import scripts, target_metadata
from tokenstore.storage.tables import REVISION, VERSION_TABLE, accounts, refreshes

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path


@pytest.fixture
def script() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(scripts()))
    config.set_main_option("path_separator", "os")
    return ScriptDirectory.from_config(config)


def tables_of(connection: sqlite3.Connection) -> dict[str, str]:
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name != ?", [VERSION_TABLE]
    )
    return {name: re.sub(r" ?([(),]) ?", r"\1", " ".join(sql.split())) for name, sql in rows}


def test_the_migrations_create_exactly_the_tables(tmp_path: Path) -> None:
    migrate.upgrade(tmp_path / "migrated.db")
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(tmp_path / "described.db")))
    target_metadata().create_all(engine)
    engine.dispose()

    with raw(tmp_path / "migrated.db") as migrated, raw(tmp_path / "described.db") as described:
        assert tables_of(migrated) == tables_of(described)


def test_alembic_finds_no_difference_either(tmp_path: Path) -> None:
    migrate.upgrade(tmp_path / "tokens.db")

    engine = sa.create_engine(f"sqlite:///{tmp_path}/tokens.db")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, target_metadata()) == []
    engine.dispose()


def test_the_revision_of_the_code_is_the_only_head(script: ScriptDirectory) -> None:
    assert script.get_heads() == [REVISION]


def test_revisions_are_numbered_without_a_gap(script: ScriptDirectory) -> None:
    found = sorted(revision.revision for revision in script.walk_revisions())

    assert found == [f"{number:04}" for number in range(1, len(found) + 1)]


def test_a_migration_file_begins_with_its_revision(script: ScriptDirectory) -> None:
    for revision in script.walk_revisions():
        assert revision.path.rpartition("/")[2].startswith(f"{revision.revision}_")


@pytest.mark.parametrize(
    "column",
    [accounts.c.expires_at, accounts.c.refreshed_at, refreshes.c.started_at],
    ids=lambda column: column.name,
)
def test_a_timestamp_is_a_number(column: sa.Column[object]) -> None:
    assert isinstance(column.type, sa.Float)


def test_the_id_of_a_refresh_is_never_reused(tmp_path: Path) -> None:
    migrate.upgrade(tmp_path / "tokens.db")
    insert = (
        "INSERT INTO refreshes (account_name, provider, reason, host, pid, started_at, sent)"
        " VALUES ('a', 'p', 'due', 'h', 1, 1.0, 's') RETURNING id"
    )

    with raw(tmp_path / "tokens.db") as connection:
        first = connection.execute(insert).fetchall()[0][0]
        connection.execute("DELETE FROM refreshes")
        second = connection.execute(insert).fetchall()[0][0]

    assert second > first
