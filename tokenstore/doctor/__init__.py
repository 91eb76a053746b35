"""Check a store and what it depends on; report problems and how to fix them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from tokenstore.doctor.accounts import AccountChecks, interrupted_refreshes
from tokenstore.doctor.clock import compare_clocks
from tokenstore.doctor.findings import Finding, Severity
from tokenstore.doctor.postgresql import PostgreSQLStore
from tokenstore.doctor.providers import check_providers
from tokenstore.doctor.sqlite import SQLiteStore
from tokenstore.errors import StorageError
from tokenstore.manager import TokenManager
from tokenstore.oauth.registry import ProviderRegistry
from tokenstore.redaction import protect
from tokenstore.storage.location import locate, providers_file

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy.engine import URL

    from tokenstore.oauth.provider import Provider

__all__ = ["Finding", "Severity", "examine"]


def examine(
    database: str | os.PathLike[str] | URL | None = None,
    *,
    providers: Mapping[str, Provider] | None = None,
    online: bool = False,
    fix: bool = False,
    clock: Callable[[], float] = time.time,
) -> list[Finding]:
    """Examine a store; return what was found, including what is in order.

    Without *fix* nothing is changed, except by opening a SQLite file: its mode is made private if
    other users have access, and SQLite completes what an interrupted process began. A PostgreSQL
    database is never changed.

    Args:
        database: As for `TokenManager`.
        providers: As for `TokenManager`.
        online: Compare the clock with those of the accounts' providers, which takes a request to
            each.
        fix: Fix what can be fixed safely: file modes, and files left by interrupted writes.
        clock: Returns the time, in UTC epoch seconds.

    Raises:
        ModuleNotFoundError: The database is PostgreSQL, and the driver is not installed.
    """
    location = locate(database)
    store = (
        SQLiteStore(location, fix=fix) if isinstance(location, Path) else PostgreSQLStore(location)
    )
    findings: list[Finding] = []
    try:
        for finding in _examine(location, store, providers, clock, online=online):
            findings.append(finding)  # noqa: PERF402 - keeps those before an error
    except StorageError as error:
        findings.append(Finding("database", "error", str(error)))
    except OSError as error:
        where = location.parent if isinstance(location, Path) else "the directory of providers.toml"
        message = f"cannot read {where}: {error.strerror or error}"
        hint = "run the doctor as the user that owns the directory"
        findings.append(Finding("directory", "error", message, hint))
    finally:
        store.close()
    return findings


def _examine(
    location: Path | URL,
    store: SQLiteStore | PostgreSQLStore,
    given: Mapping[str, Provider] | None,
    clock: Callable[[], float],
    *,
    online: bool,
) -> Iterator[Finding]:
    yield from store.examine()
    if not store.is_readable:
        return
    unanswered = store.unanswered_refreshes()
    yield from _examine_accounts(location, given, clock, online=online)
    interrupted = {refresh for refresh in unanswered if not store.is_locked(refresh.account_name)}
    if interrupted:  # some may have ended since they were read
        interrupted &= store.unanswered_refreshes()
    yield from interrupted_refreshes(interrupted)


def _examine_accounts(
    location: Path | URL,
    given: Mapping[str, Provider] | None,
    clock: Callable[[], float],
    *,
    online: bool,
) -> Iterator[Finding]:
    with TokenManager(location, providers=given, clock=clock) as manager:
        accounts = AccountChecks(manager.accounts(), clock())
    file, required = providers_file(location)
    registry = ProviderRegistry(given, file, required=required)
    yield from accounts.sign_ins()
    yield from check_providers(registry, accounts.by_provider)
    yield from accounts.clock()
    if online:
        yield from compare_clocks(registry, sorted(accounts.by_provider), clock)


protect(__name__)
