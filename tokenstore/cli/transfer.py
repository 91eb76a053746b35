"""``tokenstore import`` and ``export``: accounts from and to files."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenstore.cli import output
from tokenstore.cli.context import DONE, FAILED, Store, pass_store, report_missing
from tokenstore.cli.options import NAME, json_option, provider_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenstore.jsonfiles import FileResult


@click.command("import")
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, allow_dash=True),
    metavar="PATH...",
)
@provider_option("Provider to assign to the accounts.")
@click.option(
    "--as",
    "account_name",
    type=NAME,
    metavar="ACCOUNT",
    help="Name of the account in one file.",
)
@click.option("--replace", is_flag=True, help="Replace accounts that are already stored.")
@click.option("--newer", is_flag=True, help="Replace an account if the file's token expires later.")
@click.option("--dry-run", is_flag=True, help="Report what would be imported; store nothing.")
@json_option
@pass_store
def import_(
    store: Store,
    *,
    paths: tuple[str, ...],
    provider: str | None,
    account_name: str | None,
    replace: bool,
    newer: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Import accounts from files or directories.

    A file is JSON with one account or several, a token storage of globus-sdk or a cache of MSAL;
    it is not changed. PATH may be - for standard input. An account is called like its file, or
    like the folder and the file where several files have one name.

    An account that is already stored is skipped, except with --replace or --newer. A file that
    cannot be read is reported and does not stop the import.

    Example: tokenstore import ~/.myapp/tokens --provider google
    """
    from tokenstore.jsonfiles import find_files, import_accounts

    if replace and newer:
        raise click.UsageError("--replace and --newer cannot be combined")
    if paths.count("-") > 1:
        raise click.UsageError("standard input can be read only once")
    if "-" in paths and sys.stdin is None:
        raise click.UsageError("standard input is closed; give a file instead of -")
    if account_name is not None:
        _require_one_file(paths)
    if provider is not None:
        _require_provider(store, provider)
    sources: list[Any] = []
    for path in paths:
        sources += [sys.stdin.buffer] if path == "-" else find_files(path)
    with store.repository() as repository:
        results = import_accounts(
            repository,
            sources,
            provider=provider,
            replace=replace,
            newer=newer,
            account_name=account_name,
            dry_run=dry_run,
        )
        return _report(
            output.progress(results, "importing", len(sources)), as_json=as_json, dry_run=dry_run
        )


@click.command("export")
@click.argument("directory", type=click.Path(file_okay=False), metavar="DIRECTORY")
@click.option("--prune", is_flag=True, help="Remove exported files of accounts that are gone.")
@json_option
@pass_store
def export(store: Store, *, directory: str, prune: bool, as_json: bool) -> int:
    """Export every account to a JSON file in DIRECTORY.

    A file that was imported is written as it was, under its name. The files are private (mode
    0600). A refresh token must be used in one place only: do not continue with both the files and
    the database.

    Example: tokenstore export backup/
    """
    from tokenstore.jsonfiles import export_accounts

    if not directory:
        raise click.UsageError("DIRECTORY must not be empty; use . for the current directory")
    with store.repository() as repository:
        missing = report_missing(repository)
        results = iter(()) if missing else export_accounts(repository, directory, prune=prune)
        code = _report(output.progress(results, "exporting"), as_json=as_json)
    return FAILED if missing else code


def _require_one_file(paths: tuple[str, ...]) -> None:
    if len(paths) != 1 or (paths[0] != "-" and Path(paths[0]).is_dir()):
        raise click.UsageError("--as names the account of one file; give one file")


def _require_provider(store: Store, name: str) -> None:
    """Fail if there is no such provider; it need not be usable yet."""
    from tokenstore.oauth.registry import ProviderRegistry
    from tokenstore.storage.location import providers_file

    file, required = providers_file(store.locate())
    registry = ProviderRegistry(None, file, required=required)
    if name not in registry.names():
        registry.get(name)  # raises the error that names the providers


def _report(results: Iterator[FileResult], *, as_json: bool, dry_run: bool = False) -> int:
    """Print each result as soon as it is known; return the exit code."""
    counts: Counter[str] = Counter()

    def counted() -> Iterator[FileResult]:
        for result in results:
            counts[result.outcome] += 1
            yield result

    if as_json:
        names = ("account_name", "path", "outcome", "reason")
        output.print_results(
            {name: getattr(result, name) for name in names} | {"path": str(result.path)}
            for result in counted()
        )
    else:
        for result in counted():
            output.print_result(result.outcome, result.account_name, result.path, result.reason)
        output.print_summary(counts)
        if dry_run:
            output.print_line("nothing was stored", err=True)
    return FAILED if counts["failed"] else DONE
