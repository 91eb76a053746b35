"""A PostgreSQL server: what it is, how it is reached, whether it keeps what it acknowledges."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from tokenstore.doctor.findings import Finding, ok

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

_NEARLY_ALL = 0.9  # of the connections
_BRIEF = 5000  # milliseconds; less than that may end a statement of ours on a busy day


class Server:
    """Looks at the server behind a connection, with queries that every user may make.

    Args:
        name: What to call the database.
        driver: The connection.
    """

    def __init__(self, name: str, driver: psycopg.Connection[Any]) -> None:
        self._name = name
        self._driver = driver

    def examine(self) -> Iterator[Finding]:
        """Look at everything."""
        yield from self.server()
        yield from self.connection()
        yield from self.durability()
        yield from self.timeouts()
        yield from self.connections()

    def server(self) -> Iterator[Finding]:
        """Tell which server it is; look whether it can be written to, and can hold every name."""
        encoding = self._setting("server_encoding")
        yield ok("server", f"{self._name}: PostgreSQL {self._setting('server_version')}")
        if encoding != "UTF8":
            what = f"the database's encoding is {encoding}, in which not every name can be stored"
            yield Finding("server", "error", what, "create a database with ENCODING 'UTF8'")
        if self._value("pg_is_in_recovery()"):
            what = "this server is a replica: what is stored can be read, but nothing refreshed"
            yield Finding("server", "error", what, "name the primary server in the URL")
        elif self._setting("default_transaction_read_only") == "on":
            what = "transactions are read-only, unless they say otherwise: nothing is refreshed"
            cure = "set default_transaction_read_only = off for this user and database"
            yield Finding("server", "error", what, cure)

    def connection(self) -> Iterator[Finding]:
        """Look whether tokens cross a network, and whether others can read them there.

        There may be a pooler on the way: then the server knows of its part alone, and we of ours.
        """
        ours = self._driver.info.hostaddr or None  # None: a unix socket
        theirs = self._value("host(inet_client_addr())")
        clear = {
            address
            for address, is_encrypted in (
                (ours, self._driver.pgconn.ssl_in_use),
                (theirs, self._value("(SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid())")),
            )
            if address and not is_encrypted and _crosses_a_network(address)
        }
        if clear:
            what = f"tokens cross the network in clear (to or from {', '.join(sorted(clear))})"
            cure = "give the server a certificate, and add ?sslmode=verify-full to the URL"
            yield Finding("connection", "warning", what, cure)
        elif not _crosses_a_network(ours):
            yield ok("connection", "it does not leave this machine")
        elif (mode := self._sslmode()) != "verify-full":
            what = f"encrypted, but with sslmode={mode} nobody checks that it is your server"
            yield Finding("connection", "info", what, "add ?sslmode=verify-full to the URL")
        else:
            yield ok("connection", "encrypted, to the server that the certificate names")

    def durability(self) -> Iterator[Finding]:
        """Look whether the server keeps what it has acknowledged when it is cut off."""
        off = [name for name in ("fsync", "full_page_writes") if self._setting(name) == "off"]
        if off:
            what = f"{' and '.join(off)} off: a crash of the server's machine may lose every login"
            yield Finding("durability", "warning", what, f"turn {' and '.join(off)} on")
        else:
            yield ok("durability", "what is acknowledged is on the server's disk")
        if self._setting("synchronous_commit") == "off":
            what = "synchronous_commit is off; tokenstore turns it on for its own transactions"
            yield Finding("durability", "info", what)

    def timeouts(self) -> Iterator[Finding]:
        """Look at what ends statements and transactions, and notices that a machine is gone."""
        limit = self._milliseconds("statement_timeout")
        if 0 < limit < _BRIEF:
            what = f"statement_timeout is {limit} ms: a busy server may refuse to store new tokens"
            cure = f"set it to {_BRIEF} ms or more for this user, or to 0"
            yield Finding("timeouts", "warning", what, cure)
            return
        idle = self._milliseconds("idle_in_transaction_session_timeout")
        told = [f"it ends transactions that idle for {idle} ms, save those that hold refresh locks"]
        told = told if idle else ["nothing ends a transaction early"]
        if _crosses_a_network(self._value("host(inet_client_addr())")):
            # As a transaction that holds a refresh lock has it.
            told.append("a machine that vanishes while it refreshes is noticed within 60 s")
        yield Finding("timeouts", "info" if idle else "ok", "; ".join(told))

    def connections(self) -> Iterator[Finding]:
        """Look how many connections are left."""
        most = int(self._setting("max_connections"))
        kept = sum(
            int(self._setting(name) or 0)
            for name in ("superuser_reserved_connections", "reserved_connections")
        )
        used = int(self._value("(SELECT sum(numbackends) FROM pg_stat_database)"))
        told = f"{used} of {most - kept} connections are in use"
        if used >= _NEARLY_ALL * (most - kept):
            cure = "raise max_connections, run fewer processes, or put a pooler in front"
            yield Finding("connections", "warning", told, cure)
        else:
            yield ok("connections", told)

    def _sslmode(self) -> str:
        found = {o.keyword: o.val for o in self._driver.pgconn.info}
        return (found.get(b"sslmode") or b"prefer").decode()

    def _milliseconds(self, setting: str) -> int:
        # As pg_settings has it: current_setting() would say "5s".
        query = "SELECT setting FROM pg_settings WHERE name = %s"
        row = self._driver.execute(query, (setting,)).fetchone()
        return 0 if row is None else int(row[0])

    def _setting(self, name: str) -> str:
        return str(self._value(f"current_setting('{name}', true)") or "")

    def _value(self, expression: str) -> Any:
        row = self._driver.execute(f"SELECT {expression}".encode()).fetchone()
        return None if row is None else row[0]


def _crosses_a_network(address: str | None) -> bool:
    return address is not None and not ip_address(address.partition("%")[0]).is_loopback
