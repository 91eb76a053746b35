"""``tokenstore demo``."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from tests.helpers.command import COMMAND

if TYPE_CHECKING:
    from pathlib import Path


def test_the_demo_runs_to_its_end_and_leaves_nothing(tmp_path: Path) -> None:
    ran = subprocess.run(
        [*COMMAND, "demo"],
        env=os.environ | {"TMPDIR": str(tmp_path), "HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "exported" in ran.stdout
    assert list(tmp_path.iterdir()) == []
