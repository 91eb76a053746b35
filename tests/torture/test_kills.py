"""Hundreds of processes that are killed at work. Its seed is part of a test's name.

``make torture SEED=…`` repeats the choices; when who runs, the system decides.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, get_args

import pytest

from tests.helpers.kills import SEED
from tests.whole.test_crashes import kill_backups, kill_exporters, kill_writers
from tokenstore.storage.base import JournalMode

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable
    from pathlib import Path

    Tell = Callable[[Counter[str]], None]

pytestmark = pytest.mark.parametrize("seed", [SEED], ids="seed {}".format)


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    def tell(facts: Counter[str]) -> None:
        with capsys.disabled():
            sys.stdout.write(f" {json.dumps(facts)} ")

    return tell


@pytest.mark.parametrize("journal_mode", get_args(JournalMode))
def test_what_was_acknowledged_outlives_any_crash(
    tmp_path: Path, journal_mode: JournalMode, seed: int, tell: Tell
) -> None:
    facts = kill_writers(tmp_path, journal_mode, seed, 120)
    tell(facts)
    assert min(facts["changes undone"], facts["logs left"]) > 0


def test_no_export_is_half(tmp_path: Path, seed: int, tell: Tell) -> None:
    tell(kill_exporters(tmp_path, seed, 80))


def test_no_backup_is_half(tmp_path: Path, seed: int, tell: Tell) -> None:
    tell(kill_backups(tmp_path, seed, 80))
