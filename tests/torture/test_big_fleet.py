"""Four workers on one PostgreSQL, 5,000 accounts, and one worker that is killed."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from tests.helpers.bulk_workers import BulkRefresher, run

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_five_thousand_accounts(
    schema: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BulkRefresher(schema, tmp_path, accounts=5000, lifetime=240.0) as fleet:
        facts = run(fleet, periods=2)
    with capsys.disabled():
        sys.stdout.write(f" {json.dumps(facts)} ")
