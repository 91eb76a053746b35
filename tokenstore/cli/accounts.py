"""``tokenstore token``, ``history`` and ``delete``."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice

import click

from tokenstore.cli import output
from tokenstore.cli.context import (
    DONE,
    SignInNeededError,
    Store,
    login_command,
    pass_store,
    require_account,
)
from tokenstore.cli.options import account_argument, duration, json_option, provider_option
from tokenstore.errors import InvalidTokenError, ReauthorizationRequired
from tokenstore.models.targets import Target


@click.command("token")
@account_argument("account")
@provider_option("Provider to use if the account has none.")
@click.option("--min-ttl", type=duration, help="How long the token must remain valid.")
@click.option(
    "--scope",
    multiple=True,
    metavar="SCOPE",
    help="Scope of a further token of the same login; repeatable.",
)
@click.option(
    "--resource",
    multiple=True,
    metavar="URI",
    help="API that a further token of the same login is for; repeatable.",
)
@json_option
@pass_store
def token(
    store: Store,
    *,
    account: str,
    provider: str | None,
    min_ttl: float | None,
    scope: tuple[str, ...],
    resource: tuple[str, ...],
    as_json: bool,
) -> int:
    """Print a valid access token of ACCOUNT.

    Refreshes the token first if it is due. Prints nothing else on stdout. With --scope or
    --resource, prints a further access token of the same login, which is stored besides the
    account's own.

    \b
    Examples: curl -H "Authorization: Bearer $(tokenstore token alice)" https://api.example.com/
              tokenstore token alice --resource https://api.example.com --json
    """  # noqa: D301 - click requires the character
    try:
        Target.of(scope or None, resource or None)
    except InvalidTokenError as error:
        raise click.UsageError(f"--{error}") from None
    with store.manager() as manager:
        try:
            found = manager.get_access_token(
                account, provider, min_ttl=min_ttl, scope=scope or None, resource=resource or None
            )
            if as_json:
                output.print_json(found.to_dict())
            else:
                output.print_exactly(found.token)
        except ReauthorizationRequired as error:
            require_account(manager, account)
            raise SignInNeededError(f"{error}: {login_command(account)}") from None
    return DONE


@click.command("history")
@account_argument("account", required=False)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=50,
    metavar="N",
    show_default=True,
    help="Maximum number of refreshes to show.",
)
@json_option
@pass_store
def history(store: Store, *, account: str | None, limit: int, as_json: bool) -> int:
    """Show recent refreshes, of ACCOUNT or of all, newest first.

    Shows when and why each refresh began, which process ran it, which further access token it was
    for, and how it ended. The last 50 refreshes of each account are kept. Tokens are shown as
    fingerprints.

    Example: tokenstore history alice@example.com --limit 10
    """
    with store.manager() as manager:
        entries = list(islice(manager.history(account), limit))
        if account is not None and not entries:
            require_account(manager, account)
    if not entries:
        store.report_missing()
    if as_json:
        output.print_json({"history": [asdict(e) | {"duration": e.duration} for e in entries]})
    else:
        output.print_history(output.until_lost(entries))
    return DONE


@click.command("delete")
@account_argument("account")
@json_option
@pass_store
def delete(store: Store, *, account: str, as_json: bool) -> int:
    """Remove ACCOUNT and its tokens from the database.

    Does not contact the provider; to revoke the tokens as well, use logout.

    Example: tokenstore delete alice@example.com
    """
    with store.manager() as manager:
        if not manager.delete_tokens(account):
            require_account(manager, account)
    output.print_outcome(account, "deleted", as_json=as_json)
    return DONE
