"""``tokenstore refresh``: named accounts, or all that are due, once or continuously."""

from __future__ import annotations

import gc
import os
import random
import select
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from tokenstore.cli import output
from tokenstore.cli.context import DONE, FAILED, Store, exit_code, pass_store, require_account
from tokenstore.cli.options import account_argument, duration, json_option, provider_option
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

_GC_THRESHOLD = 700  # Python's default
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@click.command("refresh")
@account_argument("accounts", nargs=-1, metavar="[ACCOUNT]...")
@click.option(
    "--all",
    "due",
    is_flag=True,
    help="Refresh every due account, except those that need a new sign-in.",
)
@click.option(
    "--within", type=duration, help="With --all, also accounts that become due within DURATION."
)
@click.option(
    "--idle-for",
    type=duration,
    help="Refresh accounts whose refresh token was not used for DURATION, to keep it alive.",
)
@click.option("--every", type=duration, help="Keep running; start a round every DURATION.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=16,
    metavar="N",
    show_default=True,
    help="Accounts to refresh concurrently.",
)
@provider_option("With --all, only this provider's accounts; with ACCOUNT, the provider to use.")
@click.option("--dry-run", is_flag=True, help="List what would be refreshed.")
@json_option
@pass_store
def refresh(
    store: Store,
    *,
    accounts: tuple[str, ...],
    due: bool,
    within: float | None,
    idle_for: float | None,
    every: float | None,
    jobs: int,
    provider: str | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Refresh each ACCOUNT now, or with --all those that are due.

    A named account is refreshed even if it is not due. Overlapping runs share the work, also on
    several machines. With --every, SIGTERM or Ctrl-C ends the command after the requests under
    way.

    \b
    Examples: tokenstore refresh --all --within 1h  (from cron)
              tokenstore refresh --all --every 60s  (as a service)
    """  # noqa: D301 - click requires the character
    bulk = due or idle_for is not None
    if bool(accounts) == bulk:
        raise click.UsageError("use either account names, or --all or --idle-for")
    if not bulk and (dry_run or within is not None or every is not None):
        raise click.UsageError("--within, --every and --dry-run require --all or --idle-for")
    if idle_for is not None and within is not None:
        raise click.UsageError("--within and --idle-for cannot be combined")
    if every is not None and (dry_run or every <= 0):
        raise click.UsageError("--every must be positive and cannot be combined with --dry-run")
    with store.manager() as manager:

        def refresh_all(stop: Callable[[], bool] | None = None) -> Iterator[RefreshResult]:
            return manager.refresh_all(
                within=within or 0.0,
                idle_for=idle_for,
                provider=provider,
                jobs=jobs,
                dry_run=dry_run,
                stop=stop,
            )

        if every is not None:
            return _run_rounds(refresh_all, every, store.report_missing, as_json=as_json)
        if bulk:
            results = refresh_all()
        else:
            if len(accounts) == 1 and not manager._is_unattended(provider):  # noqa: SLF001 - for this
                require_account(manager, accounts[0])
            results = (_refresh(manager, name, provider) for name in accounts)
        tally = _Tally(output.progress(results, "refreshing", len(accounts) or None))
        _report(tally, as_json=as_json)
    return _exit_code(store, accounts, tally)


class _Tally:
    """Pass results through and count them.

    Attributes:
        counts: The number of results by outcome.
        error: The last error, or None.
    """

    def __init__(self, results: Iterable[RefreshResult]) -> None:
        self._results = results
        self.counts: Counter[str] = Counter()
        self.error: TokenStoreError | None = None

    def __iter__(self) -> Iterator[RefreshResult]:
        for result in self._results:
            self.counts[result.outcome] += 1
            self.error = result.error or self.error
            yield result


def _exit_code(store: Store, accounts: tuple[str, ...], tally: _Tally) -> int:
    if len(accounts) == 1 and tally.error is not None:
        return exit_code(tally.error)
    is_missing = not tally.counts["refreshed"] and store.report_missing()
    return FAILED if tally.error or is_missing else DONE


def _report(results: Iterable[RefreshResult], *, as_json: bool, on_one_line: bool = False) -> None:
    """Print each result as soon as it is known."""
    names = ("account_name", "outcome", "reason")
    if as_json:
        objects = ({name: getattr(result, name) for name in names} for result in results)
        output.print_results(objects, on_one_line=on_one_line)
        return
    for result in results:
        output.print_result(result.outcome, result.account_name, result.reason)


def _refresh(manager: TokenManager, name: str, provider: str | None) -> RefreshResult:
    from tokenstore.lifecycle.bulk import RefreshResult

    try:
        manager.refresh_token(name, provider)
    except TokenStoreError as error:
        return RefreshResult(name, "failed", str(error), error)
    return RefreshResult(name, "refreshed")


# -- --every: round after round, until a signal ------------------------------------------------


def _run_rounds(
    refresh_all: Callable[[Callable[[], bool]], Iterator[RefreshResult]],
    every: float,
    report_missing: Callable[[], bool],
    *,
    as_json: bool,
) -> int:
    """Refresh what is due in one round after the other, until SIGINT or SIGTERM."""
    is_first = True
    with _StopSignal() as stop:
        for _ in _rounds(every, stop):
            tally = _Tally(refresh_all(lambda: stop.is_set))
            try:
                if is_first:
                    report_missing()
                    is_first = False
                _report(tally, as_json=as_json, on_one_line=True)
            except (InsecureStorageError, SchemaOutdatedError, SchemaTooNewError):
                raise
            except StorageError as error:  # it may be available again in the next round
                output.print_message(str(error))
            if tally.counts and not as_json:
                output.print_summary(tally.counts)
    return DONE


class _StopSignal:
    """Records SIGINT or SIGTERM while it is entered. A second signal ends the process."""

    def __init__(self) -> None:
        self.is_set = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _StopSignal:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        # The system writes to it at once. A handler of Python's runs later: not during a wait that
        # begins just after the signal.
        self._previous_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, self._set) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._read)
        os.close(self._write)

    def wait(self, seconds: float) -> None:
        """Return after *seconds*, or when a signal arrives."""
        select.select([self._read], [], [], seconds)

    def _set(self, *_: object) -> None:
        self.is_set = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _rounds(every: float, stop: _StopSignal) -> Iterator[None]:
    """Yield for each round: at once, then every *every* seconds or slightly less.

    How much less is random, so that processes started together do not stay in step.
    """
    gc.set_threshold(_GC_THRESHOLD)  # `main` raises it for short commands
    while not stop.is_set:
        next_start = time.monotonic() + every * random.uniform(0.8, 1.0)  # noqa: S311 - no secret
        yield
        stop.wait(max(0.0, next_start - time.monotonic()))
