"""Processes under two user ids that are not root's, and a directory that both can reach."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.helpers.stores import Process, python

if TYPE_CHECKING:
    from collections.abc import Iterator

VICTIM, ATTACKER = 61001, 61002  # no accounts of the system have these ids

_IMPORTS = """
import pwd, grp, json, shlex, tomllib
import tokenstore.storage.sqlite.database, tokenstore.storage.sqlite.restore, tokenstore.jsonfiles
import alembic.command, alembic.autogenerate, argparse, difflib, filelock, platformdirs, requests
import tokenstore.doctor, tokenstore.oauth.registry, tokenstore.migrate
from tokenstore import TokenManager, TokenRepository
import logging; logging.getLogger("tokenstore").addHandler(logging.NullHandler())
os.setgroups([]); os.setresgid(*[int(sys.argv[1])] * 3); os.setresuid(*[int(sys.argv[1])] * 3)
del sys.argv[1]
"""


def run_as(user: int, code: str, *arguments: object, **options: object) -> str:
    """Run *code* (see `python`) as another user, who need not be able to read where the code is."""
    return python(_IMPORTS + code, user, *arguments, cwd="/", **options)


def process_as(user: int, code: str, *arguments: object) -> Process:
    """Start *code* (see `Process`) as another user."""
    return Process(_IMPORTS + code, user, *arguments)


@contextmanager
def shared_directory() -> Iterator[Path]:
    """Yield a directory like ``/tmp``: root's, sticky, and writable by everybody."""
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        directory.chmod(0o1777)
        yield directory
    finally:
        shutil.rmtree(directory)


def directory_of(user: int, parent: Path, name: str = "own", mode: int = 0o700) -> Path:
    """Make a directory of a user."""
    directory = parent / name
    directory.mkdir()
    os.chown(directory, user, user)
    directory.chmod(mode)
    return directory
