"""``tokenstore import`` and ``export``: accounts from and to files."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from tokenstore.cli import output
from tokenstore.cli.context import DONE, FAILED, Store, pass_store
from tokenstore.cli.options import json_option, provider_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenstore.jsonfiles import FileResult


@click.command("import")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True), metavar="PATH...")
@provider_option("Provider to assign to the accounts.")
@click.option("--replace", is_flag=True, help="Replace accounts that are already stored.")
@click.option("--newer", is_flag=True, help="Replace an account if the file's token expires later.")
@json_option
@pass_store
def import_(
    store: Store,
    *,
    paths: tuple[str, ...],
    provider: str | None,
    replace: bool,
    newer: bool,
    as_json: bool,
) -> int:
    """Import accounts from files or directories.

    A file is JSON with one account, a token storage of globus-sdk or a cache of MSAL; it is not
    changed. An account that is already stored is skipped, except with --replace or --newer. A
    file that cannot be read is reported and does not stop the import.

    Example: tokenstore import ~/.myapp/tokens --provider google
    """
    from tokenstore.jsonfiles import find_files, import_accounts

    if replace and newer:
        raise click.UsageError("--replace and --newer cannot be combined")
    files = find_files(paths)
    with store.repository() as repository:
        results = import_accounts(
            repository, files, provider=provider, replace=replace, newer=newer
        )
        return _report(output.progress(results, "importing", len(files)), as_json=as_json)


@click.command("export")
@click.argument("directory", type=click.Path(file_okay=False), metavar="DIRECTORY")
@json_option
@pass_store
def export(store: Store, *, directory: str, as_json: bool) -> int:
    """Export every account to a JSON file in DIRECTORY.

    The files are private (mode 0600). A refresh token must be used in one place only: do not
    continue with both the files and the database.

    Example: tokenstore export backup/
    """
    from tokenstore.jsonfiles import export_accounts

    with store.repository() as repository:
        results = export_accounts(repository, directory)
        return _report(output.progress(results, "exporting"), as_json=as_json)


def _report(results: Iterator[FileResult], *, as_json: bool) -> int:
    """Print each result as soon as it is known; return the exit code."""
    counts: Counter[str] = Counter()

    def counted() -> Iterator[FileResult]:
        for result in results:
            counts[result.outcome] += 1
            yield result

    if as_json:
        names = ("account_name", "path", "outcome", "reason")
        output.print_results(
            {name: getattr(result, name) for name in names}
            | {"path": output.printable(str(result.path))}
            for result in counted()
        )
    else:
        for result in counted():
            output.print_result(result.outcome, result.account_name, result.path, result.reason)
        output.print_summary(counts)
    return FAILED if counts["failed"] else DONE
