"""Looks at a store and everything around it, and says what is wrong and what to do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tokenstore import migrate
from tokenstore.database import Database
from tokenstore.doctor.clock import compare_clocks
from tokenstore.doctor.contents import Contents
from tokenstore.doctor.files import Files
from tokenstore.doctor.finding import Finding, Severity
from tokenstore.doctor.logins import Logins, interrupted
from tokenstore.errors import StorageError
from tokenstore.location import locate, providers_file
from tokenstore.manager import TokenManager
from tokenstore.opening import Opener
from tokenstore.registry import Providers
from tokenstore.repository import TokenRepository
from tokenstore.schema import REVISION
from tokenstore.sealed import sealed

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

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

    Without *fix* nothing is changed, save that a database which is open to others is made private,
    as everybody does who opens it.

    Args:
        database: As for `TokenManager`.
        providers: Likewise.
        online: Ask the providers that accounts are bound to for the time, to compare clocks.
        fix: Put right what is safe to: the modes of files, and what processes that died have left.
        clock: The time, in UTC epoch seconds.
    """
    path = locate(database)
    findings: list[Finding] = []
    try:
        opener = Opener(path, migrate.to_head, journal_mode="wal", upgrade=False)
        if opener.file.inspect() is None:
            what = f"{path}: there is no database; the first save creates it"
            cure = "check the path, if there should be one"
            return [Finding("database", "warning", what, cure)]
        with Database(path, migrate.to_head).inspection() as connection:
            contents = Contents(path, connection)
            findings += _surroundings(opener, contents.journal_mode, fix=fix)
            findings += contents.examine()
            unanswered = contents.unanswered() if contents.revision == REVISION else None
        if unanswered is not None:
            findings += _logins(path, unanswered, providers, clock, online=online)
    except StorageError as error:
        findings.append(Finding("database", "error", str(error)))
    return findings


def _surroundings(opener: Opener, journal_mode: str, *, fix: bool) -> Iterator[Finding]:
    files = Files(opener.file, opener.builder, fix=fix)
    yield from files.permissions()
    yield from files.leftovers()
    yield from files.file_system(journal_mode)


def _logins(
    path: Path,
    unanswered: list[tuple[str, str, str]],
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
    with TokenRepository(path) as repository:
        yield from interrupted(repository, unanswered)
    yield from logins.providers(providers)
    yield from logins.clock()
    if online:
        yield from compare_clocks(providers, logins.in_use, clock)
