"""``tokenstore backup``, ``restore`` and ``doctor``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from tokenstore.cli import output
from tokenstore.cli.context import DONE, FAILED, SIGN_IN, Store, pass_store
from tokenstore.cli.options import json_option

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenstore.doctor import Finding
    from tokenstore.storage.base import Restored


@click.command("backup")
@click.argument("file", type=click.Path(dir_okay=False), metavar="FILE")
@click.option("--replace", is_flag=True, help="Replace FILE if it exists.")
@json_option
@pass_store
def backup(store: Store, *, file: str, replace: bool, as_json: bool) -> int:
    """Copy the database to FILE while it is in use.

    FILE is private (mode 0600). Do not copy the database file itself: the newest tokens may still
    be in SQLite's write-ahead log.

    To restore it, use tokenstore restore. A refresh token that was rotated after the backup is no
    longer valid; that account needs a new sign-in.

    SQLite only. To back up a PostgreSQL database, use pg_dump.

    Example: tokenstore backup ~/backups/tokens-$(date +%F).db
    """
    with store.repository() as repository:
        path = repository.backup(file, replace=replace)
    if as_json:
        output.print_json({"backup": {"path": str(path)}})
    else:
        output.print_result("backed up", path)
    return DONE


@click.command("restore")
@click.argument("file", type=click.Path(dir_okay=False), metavar="FILE")
@json_option
@pass_store
def restore(store: Store, *, file: str, as_json: bool) -> int:
    """Replace the database with the backup in FILE.

    Stop every process that uses the database first. The backup is checked, and the previous
    database is moved aside. Prints the accounts whose refresh tokens were rotated after the
    backup: they need a new sign-in.

    SQLite only. To restore a PostgreSQL database, use pg_restore.

    Example: tokenstore restore ~/backups/tokens.db
    """
    with store.repository() as repository:
        done = repository.restore(file)
    if as_json:
        output.print_json({"restore": _restored(done)})
        return DONE
    output.print_result("restored", done.path)
    if done.moved_to is not None:
        output.print_result("moved", done.moved_to)
    for account in done.rotated or ():
        output.print_result("rotated", account, "needs a new sign-in")
    if done.rotated is None:
        output.print_message(
            "the previous database cannot be read, so it is unknown which refresh tokens were "
            "rotated since; run: tokenstore refresh --all"
        )
    return DONE


def _restored(done: Restored) -> dict[str, object]:
    return {
        "path": str(done.path),
        "moved_to": None if done.moved_to is None else str(done.moved_to),
        "rotated": None if done.rotated is None else list(done.rotated),
    }


@click.command("doctor")
@click.option("--online", is_flag=True, help="Compare the clock with the providers' clocks.")
@click.option("--fix", is_flag=True, help="Fix what can be fixed safely.")
@json_option
@pass_store
def doctor(store: Store, *, online: bool, fix: bool, as_json: bool) -> int:
    """Check the database and its accounts, and say what to fix.

    For SQLite, also checks the files next to the database; for PostgreSQL, the server and the
    privileges.

    Exit codes, for cron: 0 nothing to do, 1 something to fix, 3 only sign-ins are needed.

    Example: tokenstore doctor --online || mail -s "tokens" me@example.com
    """
    from tokenstore.doctor import examine

    findings = examine(store.locate(), online=online, fix=fix)
    if as_json:
        output.print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        output.print_findings(findings)
    return _exit_code(findings)


def _exit_code(findings: Iterable[Finding]) -> int:
    checks = {finding.check for finding in findings if finding.is_open}
    if not checks:
        return DONE
    return SIGN_IN if checks == {"logins"} else FAILED
