"""Processes of two users who are not root, and a directory that both can reach."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.helpers.stores import python

if TYPE_CHECKING:
    from collections.abc import Iterator

VICTIM, ATTACKER = 61001, 61002  # no accounts of the system have these ids

_PRELUDE = f"""
VICTIM, ATTACKER = {VICTIM}, {ATTACKER}
# They need not be able to read where the code is, so what is imported late is imported now.
import grp, json, logging, pwd, shlex, tomllib
import alembic.autogenerate, alembic.command, argparse, difflib, filelock, platformdirs, requests
import tokenstore.storage.sqlite.database, tokenstore.storage.sqlite.restore
from tokenstore import TokenManager, TokenRepository, doctor, migrate
from tokenstore.jsonfiles import export_accounts
from tokenstore.oauth.registry import ProviderRegistry
logging.getLogger("tokenstore").addHandler(logging.NullHandler())

def run_as(user, work, *arguments):
    '''Run work(*arguments) in a process of another user, and wait for it.'''
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            os.umask(0)
            work(*arguments)
        except BaseException as error:
            tell(type(error).__name__, error)
        os._exit(0)
    os.waitpid(child, 0)

def attempt(*works):
    '''Tell of each whether it was done or refused.'''
    for work in works:
        try:
            work()
            tell("done")
        except InsecureStorageError as error:
            tell("refused", error)

def plant(*paths):
    '''Put files where the other user will write.'''
    for path in paths:
        Path(path).touch(0o666)
"""


def among_users(code: str, *arguments: object) -> list[str]:
    """Run *code* (see `python`) as root, who becomes other users; return the lines it printed."""
    return python(_PRELUDE + code, *arguments, cwd="/").splitlines()


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
