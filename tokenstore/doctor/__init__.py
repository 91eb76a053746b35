"""Looks at a store and everything around it, and says what is wrong and what to do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from tokenstore.doctor.accounts import Logins, interrupted
from tokenstore.doctor.clock import compare_clocks
from tokenstore.doctor.findings import Finding, Severity
from tokenstore.doctor.postgresql import PostgreSQLStore
from tokenstore.doctor.sqlite import SQLiteStore
from tokenstore.errors import StorageError
from tokenstore.manager import TokenManager
from tokenstore.oauth.registry import ProviderRegistry
from tokenstore.redaction import sealed
from tokenstore.storage.location import locate, providers_file

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy.engine import URL

    from tokenstore.oauth.provider import Provider

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

    Without *fix* nothing is changed, save what everybody does who opens a SQLite file: one that is
    open to others is made private, and SQLite completes what a process that died had begun. In
    PostgreSQL nothing is ever changed.

    Args:
        database: As for `TokenManager`.
        providers: Likewise.
        online: Ask the providers that accounts are bound to for the time, to compare clocks.
        fix: Put right what is safe to: the modes of files, and what processes that died have left.
        clock: The time, in UTC epoch seconds.

    Raises:
        ModuleNotFoundError: It is in PostgreSQL, and the driver is not installed.
    """
    place = locate(database)
    store = SQLiteStore(place, fix=fix) if isinstance(place, Path) else PostgreSQLStore(place)
    findings: list[Finding] = []
    try:
        for finding in _examine(place, store, providers, clock, online=online):
            findings.append(finding)  # noqa: PERF402 - those before an error are kept
    except StorageError as error:
        findings.append(Finding("database", "error", str(error)))
    except OSError as error:
        where = place.parent if isinstance(place, Path) else "what is beside the providers file"
        what = f"{where} cannot be looked at: {error.strerror or error}"
        cure = "run the doctor as the user that the directory belongs to"
        findings.append(Finding("directory", "error", what, cure))
    finally:
        store.close()
    return findings


def _examine(
    place: Path | URL,
    store: SQLiteStore | PostgreSQLStore,
    given: Mapping[str, Provider] | None,
    clock: Callable[[], float],
    *,
    online: bool,
) -> Iterator[Finding]:
    yield from store.examine()
    if not store.is_readable:
        return
    unanswered = store.unanswered()
    yield from _logins(place, given, clock, online=online)
    idle = {found for found in unanswered if not store.is_held(found.account_name)}
    if idle:  # some may have ended since they were read
        idle &= store.unanswered()
    yield from interrupted(idle)


def _logins(
    place: Path | URL,
    given: Mapping[str, Provider] | None,
    clock: Callable[[], float],
    *,
    online: bool,
) -> Iterator[Finding]:
    with TokenManager(place, providers=given, clock=clock) as manager:
        logins = Logins(manager.accounts(), clock())
    file, required = providers_file(place)
    providers = ProviderRegistry(given, file, required=required)
    yield from logins.logins()
    yield from logins.providers(providers)
    yield from logins.clock()
    if online:
        yield from compare_clocks(providers, logins.in_use, clock)
