"""Looks at a store and everything around it, and says what is wrong and what to do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from tokenstore import migrate
from tokenstore.database import Database
from tokenstore.doctor.clock import compare_clocks
from tokenstore.doctor.contents import Contents
from tokenstore.doctor.files import Files
from tokenstore.doctor.finding import Finding, Severity
from tokenstore.doctor.logins import Logins, interrupted
from tokenstore.errors import InsecureStorageError, StorageError
from tokenstore.location import locate, providers_file, shown
from tokenstore.manager import TokenManager
from tokenstore.opening import Opener
from tokenstore.registry import Providers
from tokenstore.sealed import sealed

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy.engine import URL

    from tokenstore.providers import Provider

__all__ = ["Finding", "Severity", "examine"]


@sealed
def examine(
    database: str | os.PathLike[str] | URL | None = None,
    *,
    providers: Mapping[str, Provider] | None = None,
    online: bool = False,
    fix: bool = False,
    clock: Callable[[], float] = time.time,
) -> list[Finding]:
    """Examine a store; return what was found, also what is in order.

    Without *fix* nothing is changed, save what everybody does who opens a database: one that is
    open to others is made private, and SQLite completes what a process that died had begun.

    Args:
        database: As for `TokenManager`.
        providers: Likewise.
        online: Ask the providers that accounts are bound to for the time, to compare clocks.
        fix: Put right what is safe to: the modes of files, and what processes that died have left.
        clock: The time, in UTC epoch seconds.
    """
    path = locate(database)
    if not isinstance(path, Path):
        return [Finding("database", "info", f"{shown(path)} is no file: nothing is looked at")]
    findings: list[Finding] = []
    try:
        for finding in _examine(path, providers, clock, online=online, fix=fix):
            findings.append(finding)  # noqa: PERF402 - those before an error are kept
    except StorageError as error:
        findings.append(Finding("database", "error", str(error)))
    except OSError as error:
        what = f"{path.parent} cannot be looked at: {error.strerror or error}"
        cure = "run the doctor as the user that the directory belongs to"
        findings.append(Finding("directory", "error", what, cure))
    return findings


def _examine(
    path: Path,
    given: Mapping[str, Provider] | None,
    clock: Callable[[], float],
    *,
    online: bool,
    fix: bool,
) -> Iterator[Finding]:
    opener = Opener(path, migrate.to_head, journal_mode="wal", upgrade=False)
    if opener.file.inspect() is None:
        opener.file.refuse_leftovers()
        what = f"{path}: there is no database; the first save creates it"
        yield Finding("database", "warning", what, "check the path, if there should be one")
        return
    store = Database(path, migrate.to_head)
    try:
        with store.inspection():
            pass
    except InsecureStorageError:  # it is somebody else's: nothing around it is our business
        raise
    except StorageError:
        yield from Files(opener.file, fix=False).permissions(opened=False)
        raise
    files = Files(opener.file, fix=fix)
    yield from files.permissions()
    yield from files.leftovers()
    with store.inspection() as connection:
        contents = Contents(path, connection)
        yield from files.file_system(contents.journal_mode)
        yield from contents.examine()
        if not contents.is_readable:
            return
        unanswered = contents.unanswered()
    yield from _logins(path, given, clock, online=online)
    idle = {found for found in unanswered if not opener.locks.is_held(found.account_name)}
    if idle:  # some may have ended since they were read
        with store.inspection() as connection:
            idle &= Contents(path, connection).unanswered()
    yield from interrupted(idle)


def _logins(
    path: Path,
    given: Mapping[str, Provider] | None,
    clock: Callable[[], float],
    *,
    online: bool,
) -> Iterator[Finding]:
    with TokenManager(path, providers=given, clock=clock) as manager:
        logins = Logins(manager.accounts(), clock())
    file, required = providers_file(path)
    providers = Providers(given, file, required=required)
    yield from logins.logins()
    yield from logins.providers(providers)
    yield from logins.clock()
    if online:
        yield from compare_clocks(providers, logins.in_use, clock)
