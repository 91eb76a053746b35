"""Workers on one store share its accounts, and the death of one costs no more than it must."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.bulk_workers import BulkRefresher, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_workers_refresh_each_account_once_a_period_though_one_is_killed(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    database = str(tmp_path / "tokens.db")
    if engine == "postgresql":
        database = request.getfixturevalue("schema")
    with BulkRefresher(database, tmp_path, accounts=120, lifetime=8.0) as fleet:
        run(fleet, periods=2)
