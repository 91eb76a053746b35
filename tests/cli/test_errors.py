"""Errors and warnings of the command, each one line on stderr."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tokenstore.cli.app import run

if TYPE_CHECKING:
    from pathlib import Path


def test_an_error_that_is_logged_and_raised_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()

    assert run(["--database", str(tmp_path / "file" / "tokens.db"), "status"]) == 1

    _, err = capsys.readouterr()
    assert [record.levelno for record in caplog.records if hasattr(record, "raised")] == [
        logging.ERROR
    ]
    assert err.startswith(f"tokenstore: {tmp_path / 'file' / 'tokens.db'}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("extra", "printed"),
    [
        ({}, "tokenstore: warning: something is odd\n"),
        ({"operation": "refresh_all"}, ""),
        ({"raised": True}, ""),
    ],
    ids=str,
)
def test_a_warning_is_printed_unless_the_command_reports_it(
    extra: dict[str, object], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["--version"])
    capsys.readouterr()

    logging.getLogger("tokenstore.some.module").warning("something is %s", "odd", extra=extra)

    assert capsys.readouterr().err == printed
