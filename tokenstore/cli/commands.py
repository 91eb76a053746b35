"""The commands on accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tokenstore.cli import output
from tokenstore.cli.app import DONE, FAILED, NO_ACCOUNT, Store, app, exit_code, pass_store
from tokenstore.errors import ReauthorizationRequired, TokenRefreshError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenstore.jsonfiles import FileResult
    from tokenstore.manager import TokenManager

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@app.command("import")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True), metavar="PATH...")
@click.option("--provider", help="Bind the accounts to this provider.")
@click.option("--replace", is_flag=True, help="Replace accounts that are stored already.")
@click.option("--newer", is_flag=True, help="Replace them where the file's token lives longer.")
@_json
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
    """Import accounts from JSON files, or directories of them.

    The files stay as they are. An account that is stored already is skipped, unless told
    otherwise; a file that cannot be read stops nothing.

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
@_json
@pass_store
def export(store: Store, *, directory: str, as_json: bool) -> int:
    """Write every account to a JSON file of its own in DIR, 0600.

    A refresh token may be in use in one place only: do not go on with the files and the database
    at the same time.
    """
    from tokenstore.jsonfiles import export_accounts

    with store.repository() as repository:
        results = export_accounts(repository, directory)
        return _report_files(output.progress(results, "exporting"), as_json=as_json)


@app.command("status")
@_json
@pass_store
def status(store: Store, *, as_json: bool) -> int:
    """Show every account: valid, due, to be tried later, or in need of a sign-in.

    It reads the database alone: no request, no change, no secret.
    """
    with store.manager() as manager:
        if not as_json:
            output.print_accounts(manager.accounts())
            return DONE
        names = ("name", "provider", "state", "expires_at", "refreshed_at", "last_error")
        accounts = [{n: getattr(a, n) for n in names} for a in manager.accounts()]
    output.print_json({"accounts": accounts})
    return DONE


@app.command("token")
@click.argument("account")
@click.option("--provider", help="Whom to ask, if the account is bound to nobody yet.")
@click.option(
    "--min-ttl", type=click.FloatRange(min=0), metavar="S", help="Seconds the token is needed."
)
@pass_store
def token(store: Store, *, account: str, provider: str | None, min_ttl: float | None) -> int:
    """Print a live access token of ACCOUNT on stdout, refreshed if need be.

    Example: curl -H "Authorization: Bearer $(tokenstore token alice)" https://api.example.com/
    """
    with store.manager() as manager:
        try:
            click.echo(manager.ensure_valid_token(account, provider, min_ttl=min_ttl))
        except ReauthorizationRequired:
            _require_account(manager, account)
            raise
    return DONE


@app.command("refresh")
@click.argument("accounts", nargs=-1, metavar="[ACCOUNT]...")
@click.option("--all", "every", is_flag=True, help="All that are due and not known to be dead.")
@click.option("--provider", help="Whom to ask, for accounts that are bound to nobody yet.")
@_json
@pass_store
def refresh(
    store: Store, *, accounts: tuple[str, ...], every: bool, provider: str | None, as_json: bool
) -> int:
    """Refresh the named accounts now, whether or not they are due; or --all that are due."""
    if bool(accounts) == every:
        raise click.UsageError("name accounts, or use --all")
    errors: dict[str, TokenRefreshError | None] = {}
    with store.manager() as manager:
        if len(accounts) == 1:
            _require_account(manager, accounts[0])
        names = accounts or [a.name for a in manager.accounts() if a.state == "due"]
        for name in output.progress(names, "refreshing", len(names)):
            errors[name] = _refresh(manager, name, provider, forced=not every)
    results = [(name, "failed" if e else "refreshed", e) for name, e in errors.items()]
    if as_json:
        output.print_results(results)
    else:
        for name, outcome, error in results:
            output.print_result(outcome, name, error)
    failed = [error for error in errors.values() if error]
    if len(accounts) == 1 and failed:
        return exit_code(failed[0])
    return FAILED if failed else DONE


@app.command("delete")
@click.argument("account")
@_json
@pass_store
def delete(store: Store, *, account: str, as_json: bool) -> int:
    """Remove ACCOUNT and its tokens from the database. The provider is not told."""
    with store.manager() as manager:
        _require_account(manager, account)
        manager.delete_tokens(account)
    if as_json:
        output.print_results([(account, "deleted", None)])
    else:
        output.print_result("deleted", account)
    return DONE


class _NoAccountError(click.ClickException):
    exit_code = NO_ACCOUNT


def _require_account(manager: TokenManager, account: str) -> None:
    if manager.load_tokens(account) is not None:
        return
    import difflib

    near = difflib.get_close_matches(account, [a.name for a in manager.accounts()], 1)
    hint = f"; did you mean {near[0]!r}?" if near else "; see: tokenstore status"
    raise _NoAccountError(f"there is no account {account!r}{hint}")


def _refresh(
    manager: TokenManager, name: str, provider: str | None, *, forced: bool
) -> TokenRefreshError | None:
    try:
        if forced:
            manager.refresh_token(name, provider)
        else:
            manager.ensure_valid_token(name, provider)
    except TokenRefreshError as error:
        return error
    return None


def _report_files(results: Iterator[FileResult], *, as_json: bool) -> int:
    done = list(results)
    if as_json:
        names = ("account_name", "path", "outcome", "reason")
        shown = [{n: getattr(result, n) for n in names} for result in done]
        output.print_json({"results": shown})
    else:
        for result in done:
            output.print_result(result.outcome, result.account_name, result.path, result.reason)
        output.summarize(result.outcome for result in done)
    return FAILED if any(result.outcome == "failed" for result in done) else DONE
