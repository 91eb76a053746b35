"""The commands on accounts."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING

import click

from tokenstore.cli import output
from tokenstore.cli.app import (
    DONE,
    FAILED,
    NO_ACCOUNT,
    SIGN_IN,
    Store,
    app,
    json_option,
    login_command,
    pass_store,
)
from tokenstore.cli.completion import account_argument, provider_option
from tokenstore.cli.options import duration
from tokenstore.errors import ReauthorizationRequired

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenstore.jsonfiles import FileResult
    from tokenstore.manager import TokenManager


@app.command("import")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True), metavar="PATH...")
@provider_option("Bind the accounts to this provider.")
@click.option("--replace", is_flag=True, help="Replace accounts that are stored already.")
@click.option("--newer", is_flag=True, help="Replace them where the file's token lives longer.")
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
    """Import accounts from files, or directories of them.

    A file is JSON with one account, a token storage of globus-sdk or a cache of MSAL. It stays
    as it is. An account that is stored already is skipped, unless told otherwise; a file that
    cannot be read stops nothing.

    Example: tokenstore import ~/.myapp/tokens --provider google
    """
    from tokenstore.jsonfiles import find_files, import_accounts

    if replace and newer:
        raise click.UsageError("--replace and --newer exclude each other")
    files = find_files(paths)
    with store.repository() as repository:
        results = import_accounts(
            repository, files, provider=provider, replace=replace, newer=newer
        )
        return _report_files(output.progress(results, "importing", len(files)), as_json=as_json)


@app.command("export")
@click.argument("directory", type=click.Path(file_okay=False), metavar="DIR")
@json_option
@pass_store
def export(store: Store, *, directory: str, as_json: bool) -> int:
    """Write every account to a JSON file of its own in DIR, 0600.

    A refresh token may be in use in one place only: do not go on with the files and the database
    at the same time.

    Example: tokenstore export backup/
    """
    from tokenstore.jsonfiles import export_accounts

    with store.repository() as repository:
        results = export_accounts(repository, directory)
        return _report_files(output.progress(results, "exporting"), as_json=as_json)


@app.command("token")
@account_argument("account")
@provider_option("Whom to ask, if the account is bound to nobody yet.")
@click.option(
    "--min-ttl", type=duration, metavar="S", help="Seconds the token is needed for, or 10m, 1h."
)
@pass_store
def token(store: Store, *, account: str, provider: str | None, min_ttl: float | None) -> int:
    """Print a live access token of ACCOUNT on stdout, refreshed if need be.

    Example: curl -H "Authorization: Bearer $(tokenstore token alice)" https://api.example.com/
    """
    with store.manager() as manager:
        try:
            click.echo(manager.ensure_valid_token(account, provider, min_ttl=min_ttl))
        except ReauthorizationRequired as error:
            require_account(manager, account)
            raise _SignInNeededError(f"{error}: {login_command(account)}") from None
    return DONE


@app.command("history")
@account_argument("account", required=False)
@click.option("--limit", type=click.IntRange(min=1), default=50, help="So many at most (50).")
@json_option
@pass_store
def history(store: Store, *, account: str | None, limit: int, as_json: bool) -> int:
    """Show the last refreshes, of ACCOUNT or of all: when, why, by whom, and how they ended.

    The last 50 of each account are remembered. Tokens are shown as fingerprints.

    Example: tokenstore history alice@example.com --limit 10
    """
    with store.manager() as manager:
        entries = list(islice(manager.history(account), limit))
        if account is not None and not entries:
            require_account(manager, account)
    if as_json:
        output.print_json({"history": [asdict(e) | {"duration": e.duration} for e in entries]})
    else:
        output.print_history(entries)
    return DONE


@app.command("delete")
@account_argument("account")
@json_option
@pass_store
def delete(store: Store, *, account: str, as_json: bool) -> int:
    """Remove ACCOUNT and its tokens from the database. The provider is not told: see logout.

    Example: tokenstore delete alice@example.com
    """
    with store.manager() as manager:
        if not manager.delete_tokens(account):
            require_account(manager, account)
    if as_json:
        output.print_results([{"account_name": account, "outcome": "deleted", "reason": None}])
    else:
        output.print_result("deleted", account)
    return DONE


class _NoAccountError(click.ClickException):
    exit_code = NO_ACCOUNT


class _SignInNeededError(click.ClickException):
    exit_code = SIGN_IN


def require_account(manager: TokenManager, account: str) -> None:
    """End the command with a hint, unless there is such an account."""
    if manager.load_tokens(account) is not None:
        return
    import difflib

    near = difflib.get_close_matches(account, [a.name for a in manager.accounts()], 1)
    hint = f"; did you mean {near[0]!r}?" if near else "; see: tokenstore status"
    raise _NoAccountError(f"there is no account {account!r}{hint}")


def _report_files(results: Iterator[FileResult], *, as_json: bool) -> int:
    counts: Counter[str] = Counter()

    def told() -> Iterator[FileResult]:
        for result in results:
            counts[result.outcome] += 1
            yield result

    if as_json:
        names = ("account_name", "path", "outcome", "reason")
        output.print_results(
            {name: getattr(result, name) for name in names}
            | {"path": output.printable(str(result.path))}
            for result in told()
        )
    else:
        for result in told():
            output.print_result(result.outcome, result.account_name, result.path, result.reason)
        output.summarize(counts)
    return FAILED if counts["failed"] else DONE
