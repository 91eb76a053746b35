"""``tokenstore refresh``: some accounts now, or whatever is due, once or for ever."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from tokenstore.cli import output
from tokenstore.cli.accounts import require_account
from tokenstore.cli.app import DONE, FAILED, Store, app, exit_code, json_option, pass_store
from tokenstore.cli.completion import account_argument, provider_option
from tokenstore.cli.options import duration
from tokenstore.cli.worker import Stop, rounds
from tokenstore.errors import (
    InsecureStorageError,
    SchemaOutdatedError,
    SchemaTooNewError,
    StorageError,
    TokenStoreError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tokenstore.lifecycle.bulk import RefreshResult
    from tokenstore.manager import TokenManager


@app.command("refresh")
@account_argument("accounts", nargs=-1, metavar="[ACCOUNT]...")
@click.option("--all", "due", is_flag=True, help="All that are due and not known to be dead.")
@click.option("--within", type=duration, metavar="1h", help="... or become due within this time.")
@click.option(
    "--unused-for",
    type=duration,
    metavar="30d",
    help="All whose refresh token was not used for so long, to keep it alive.",
)
@click.option("--every", type=duration, metavar="60s", help="Go on, a round in this time.")
@click.option("--jobs", type=click.IntRange(min=1), default=16, help="So many at a time (16).")
@provider_option("Of several: only those of this provider. Of one: whom to ask.")
@click.option("--dry-run", is_flag=True, help="Only tell which of them it would be.")
@json_option
@pass_store
def refresh(
    store: Store,
    *,
    accounts: tuple[str, ...],
    due: bool,
    within: float | None,
    unused_for: float | None,
    every: float | None,
    jobs: int,
    provider: str | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Refresh the named accounts now, whether or not they are due; or --all that are due.

    Several runs at once, on as many machines, share the work. One that goes on with --every ends
    at SIGTERM or Ctrl-C, after the requests that are under way.

    \b
    Examples: tokenstore refresh --all --within 1h  (from cron)
              tokenstore refresh --all --every 60s  (as a service)
    """  # noqa: D301 - click wants the character
    fleet = due or unused_for is not None
    if bool(accounts) == fleet:
        raise click.UsageError("name accounts, or use --all or --unused-for")
    if not fleet and (dry_run or within is not None or every is not None):
        raise click.UsageError("--within, --every and --dry-run go with --all or --unused-for")
    if unused_for is not None and within is not None:
        raise click.UsageError("--within and --unused-for exclude each other")
    if every is not None and (dry_run or every <= 0):
        raise click.UsageError("--every needs a time, and something to do in it")
    with store.manager() as manager:

        def chosen(stop: Callable[[], bool] | None = None) -> Iterator[RefreshResult]:
            return manager.refresh_all(
                within=within or 0.0,
                unused_for=unused_for,
                provider=provider,
                jobs=jobs,
                dry_run=dry_run,
                stop=stop,
            )

        if every is not None:
            return _go_on(chosen, every, as_json=as_json)
        if fleet:
            results = chosen()
        else:
            if len(accounts) == 1:
                require_account(manager, accounts[0])
            results = (_refresh(manager, name, provider) for name in accounts)
        tally = _Tally(output.progress(results, "refreshing", len(accounts) or None))
        _tell(tally, as_json=as_json)
    if len(accounts) == 1 and tally.failure is not None:
        return exit_code(tally.failure)
    return FAILED if tally.failure else DONE


class _Tally:
    """Counts results on their way.

    Attributes:
        counts: How many there were of each outcome.
        failure: The last error, if there was one.
    """

    def __init__(self, results: Iterable[RefreshResult]) -> None:
        self._results = results
        self.counts: Counter[str] = Counter()
        self.failure: TokenStoreError | None = None

    def __iter__(self) -> Iterator[RefreshResult]:
        for result in self._results:
            self.counts[result.outcome] += 1
            self.failure = result.error or self.failure
            yield result


def _tell(results: Iterable[RefreshResult], *, as_json: bool, on_one_line: bool = False) -> None:
    """Print what becomes of accounts, each as soon as it is known."""
    names = ("account_name", "outcome", "reason")
    if as_json:
        objects = ({name: getattr(result, name) for name in names} for result in results)
        output.print_results(objects, on_one_line=on_one_line)
        return
    for result in results:
        output.print_result(result.outcome, result.account_name, result.reason)


def _go_on(
    chosen: Callable[[Callable[[], bool]], Iterator[RefreshResult]], every: float, *, as_json: bool
) -> int:
    """Refresh what is due in one round after the other, until somebody says stop."""
    with Stop() as stop:
        for _ in rounds(every, stop):
            tally = _Tally(chosen(lambda: stop.is_set))
            try:
                _tell(tally, as_json=as_json, on_one_line=True)
            except (InsecureStorageError, SchemaOutdatedError, SchemaTooNewError):
                raise
            except StorageError as error:  # the next round may find it well again
                click.echo(f"tokenstore: {error}", err=True)
            if tally.counts and not as_json:
                output.summarize(tally.counts)
    return DONE


def _refresh(manager: TokenManager, name: str, provider: str | None) -> RefreshResult:
    from tokenstore.lifecycle.bulk import RefreshResult

    try:
        manager.refresh_token(name, provider)
    except TokenStoreError as error:
        return RefreshResult(name, "failed", str(error), error)
    return RefreshResult(name, "refreshed")
