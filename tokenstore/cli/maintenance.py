"""The commands that keep a store in order."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from tokenstore.cli import output
from tokenstore.cli.app import DONE, FAILED, SIGN_IN, Store, app, json_option, pass_store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenstore.doctor import Finding


@app.command("backup")
@click.argument("file", type=click.Path(dir_okay=False), metavar="FILE")
@click.option("--replace", is_flag=True, help="Replace a file that is there already.")
@json_option
@pass_store
def backup(store: Store, *, file: str, replace: bool, as_json: bool) -> int:
    """Copy the database to FILE, 0600, while others go on writing to it.

    Copying the file itself would leave out what is still in SQLite's log, such as the newest
    tokens.

    To restore, stop the application, move DATABASE-wal, DATABASE-shm and DATABASE-journal away if
    they are there, and put a copy of FILE in the place of the database. A refresh token that was
    rotated after the backup is dead in it: such an account has to sign in again.

    It is for SQLite files. Back a PostgreSQL database up with pg_dump.

    Example: tokenstore backup ~/backups/tokens-$(date +%F).db
    """
    with store.repository() as repository:
        path = repository.backup(file, replace=replace)
    if as_json:
        output.print_json({"backup": {"path": output.printable(str(path))}})
    else:
        output.print_result("backed up", path)
    return DONE


@app.command("doctor")
@click.option("--online", is_flag=True, help="Compare the clock with those of the providers.")
@click.option("--fix", is_flag=True, help="Put right what is safe to.")
@json_option
@pass_store
def doctor(store: Store, *, online: bool, fix: bool, as_json: bool) -> int:
    """Look at the database and its accounts, and say what is wrong and what to do.

    Of a SQLite file, at the files beside it, too; of PostgreSQL, at the server and at rights.

    Exit codes, for cron: 0 nothing has to be done, 1 something has, 3 only sign-ins are needed.

    Example: tokenstore doctor --online || mail -s "tokens" me@example.com
    """
    from tokenstore.doctor import examine

    findings = examine(store.locate(), online=online, fix=fix)
    if as_json:
        output.print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        output.print_findings(findings)
    return _code(findings)


def _code(findings: Iterable[Finding]) -> int:
    checks = {finding.check for finding in findings if finding.is_open}
    if not checks:
        return DONE
    return SIGN_IN if checks == {"logins"} else FAILED
