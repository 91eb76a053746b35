"""``tokenstore db``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.command import Ran, save
from tokenstore.storage.tables import REVISION

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokenstore.testing import AuthorizationServer


def test_db_runs_alembics_commands_on_the_database(cli: Callable[..., Ran], database: Path) -> None:
    assert cli("db", "upgrade").code == 0
    assert database.exists()
    assert f"{REVISION} (head)" in cli("db", "current").out
    assert f"{REVISION} (head) (current)" in cli("db", "history").out
    assert cli("db", "check").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["db", "downgrade", "base", "-x", "destroy=yes"], id="after the command"),
        pytest.param(["db", "-x", "destroy=yes", "downgrade", "base"], id="as alembic has it"),
    ],
)
def test_a_downgrade_to_base_drops_accounts_only_when_told(
    cli: Callable[..., Ran], database: Path, server: AuthorizationServer, arguments: list[str]
) -> None:
    save(database, server, "alice", expires_in=3600)

    refused = cli("db", "downgrade", "base")

    assert refused.code == 1
    assert "destroy=yes" in refused.err
    assert cli("status", "--json").json["accounts"]
    assert cli(*arguments).code == 0
    outdated = cli("status")
    assert outdated.code == 1
    assert f"tokenstore --database {database} db upgrade" in outdated.err


def test_d14_a_relative_revision_is_not_an_option(cli: Callable[..., Ran]) -> None:
    assert cli("db", "upgrade").code == 0
    assert cli("db", "downgrade", "-1").code == 0
    assert cli("db", "downgrade", "--", "-1").code == 0

    assert "No such option" in cli("db", "downgrade", "--nothing").err
    unknown = cli("db", "-x", "tag=1", "upgrade")
    assert (unknown.code, "not a known argument" in unknown.err) == (2, True)


def test_d3_stamp_corrects_the_record(cli: Callable[..., Ran]) -> None:
    assert cli("db", "upgrade").code == 0
    assert cli("db", "stamp").out == f"stamped\t{REVISION}\n"
