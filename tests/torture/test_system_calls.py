"""Each system call of ten operations, failed and killed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.requirements import needs_tracing
from tests.whole.test_system_calls import OPERATIONS, try_calls
from tokenstore.testing import AuthorizationServer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_tracing


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_fault_at_each_system_call(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with AuthorizationServer() as server:
        count = try_calls(OPERATIONS[name](server), tmp_path)
    with capsys.disabled():
        sys.stdout.write(f" {count} faults ")
    assert count > 200
