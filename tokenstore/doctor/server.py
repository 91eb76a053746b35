"""Check a PostgreSQL server: version, connection, durability, timeouts and limits."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from tokenstore.doctor.findings import Finding, ok

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

_NEARLY_ALL = 0.9  # of the connections
_MIN_TIMEOUT = 5000  # milliseconds; a busy server may need that long for a statement


# Settings that log statements, and the values with which they log none that has tokens.
_STATEMENT_LOGS = (
    ("log_statement", {"none", "ddl"}),
    ("log_min_duration_statement", {"-1"}),
    ("log_min_duration_sample", {"-1", ""}),
    ("log_transaction_sample_rate", {"0", ""}),
)
_NO_ERRORS = {"log", "fatal", "panic"}


class ServerChecks:
    """Checks the server behind a connection, with queries that every user can make.

    Args:
        name: The name of the database in messages.
        driver: The connection.
    """

    def __init__(self, name: str, driver: psycopg.Connection[Any]) -> None:
        self._name = name
        self._driver = driver

    def examine(self) -> Iterator[Finding]:
        """Check everything."""
        yield from self._server()
        yield from self._connection()
        yield from self._durability()
        yield from self._timeouts()
        yield from self._connections()
        yield from self._log()

    def _server(self) -> Iterator[Finding]:
        """Report the version; check that the server is writable and can store every name."""
        encoding = self._setting("server_encoding")
        yield ok("server", f"{self._name}: PostgreSQL {self._setting('server_version')}")
        if encoding != "UTF8":
            message = f"the database encoding {encoding} cannot store every account name"
            yield Finding("server", "error", message, "create a database with ENCODING 'UTF8'")
        if self._value("pg_is_in_recovery()"):
            message = "this server is a replica: tokens can be read but not refreshed"
            yield Finding("server", "error", message, "use the URL of the primary server")
        elif self._setting("default_transaction_read_only") == "on":
            message = "transactions are read-only by default: tokens cannot be refreshed"
            hint = "set default_transaction_read_only = off for this user and database"
            yield Finding("server", "error", message, hint)

    def _connection(self) -> Iterator[Finding]:
        """Check whether tokens cross a network unencrypted.

        With a connection pooler in between, each side sees only its own connection to it.
        """
        server = self._driver.info.hostaddr or None  # None for a unix socket
        client = self._value("host(inet_client_addr())")
        unencrypted = {
            address
            for address, is_encrypted in (
                (server, self._driver.pgconn.ssl_in_use),
                (client, self._value("(SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid())")),
            )
            if address and not is_encrypted and _crosses_a_network(address)
        }
        if unencrypted:
            addresses = ", ".join(sorted(unencrypted))
            message = f"tokens cross the network unencrypted (to or from {addresses})"
            hint = "enable TLS on the server, and add ?sslmode=verify-full to the URL"
            yield Finding("connection", "warning", message, hint)
        elif not _crosses_a_network(server):
            yield ok("connection", "local to this machine")
        elif (mode := self._sslmode()) != "verify-full":
            message = f"encrypted, but sslmode={mode} does not verify the server"
            yield Finding("connection", "info", message, "add ?sslmode=verify-full to the URL")
        else:
            yield ok("connection", "encrypted, and the server's certificate is verified")

    def _durability(self) -> Iterator[Finding]:
        """Check that committed transactions survive a crash of the server."""
        off = [name for name in ("fsync", "full_page_writes") if self._setting(name) == "off"]
        if off:
            settings = " and ".join(off)
            message = f"{settings} off: a crash of the server's machine may lose every account"
            yield Finding("durability", "warning", message, f"turn {settings} on")
        else:
            yield ok("durability", "committed transactions are on the server's disk")
        if self._setting("synchronous_commit") == "off":
            message = "synchronous_commit is off; tokenstore turns it on for its own transactions"
            yield Finding("durability", "info", message)

    def _timeouts(self) -> Iterator[Finding]:
        """Check the timeouts of statements, transactions and connections."""
        limit = self._milliseconds("statement_timeout")
        if 0 < limit < _MIN_TIMEOUT:
            message = f"statement_timeout is {limit} ms: a busy server may fail to save new tokens"
            hint = f"set it to {_MIN_TIMEOUT} ms or more for this user, or to 0"
            yield Finding("timeouts", "warning", message, hint)
            return
        idle = self._milliseconds("idle_in_transaction_session_timeout")
        messages = ["no timeout ends a transaction early"]
        if idle:
            messages = [
                f"transactions idle for {idle} ms are ended, except those for refresh locks"
            ]
        if _crosses_a_network(self._value("host(inet_client_addr())")):
            # Set for every transaction that holds a refresh lock.
            messages.append("a lost client releases its refresh locks within 60 s")
        yield Finding("timeouts", "info" if idle else "ok", "; ".join(messages))

    def _connections(self) -> Iterator[Finding]:
        """Check how many connections are left."""
        total = int(self._setting("max_connections"))
        reserved = sum(
            int(self._setting(name) or 0)
            for name in ("superuser_reserved_connections", "reserved_connections")
        )
        used = int(self._value("(SELECT sum(numbackends) FROM pg_stat_database)"))
        message = f"{used} of {total - reserved} connections are in use"
        if used >= _NEARLY_ALL * (total - reserved):
            hint = "raise max_connections, run fewer processes, or use a connection pooler"
            yield Finding("connections", "warning", message, hint)
        else:
            yield ok("connections", message)

    def _log(self) -> Iterator[Finding]:
        """Check that the server does not write tokens, which are parameters, to its log."""
        settings = [*self._logs_of_parameters(), *self._logs_of_extensions()]
        if not settings:
            yield ok("server log", "the settings of this session write no tokens to it")
            return
        user = self._value("quote_ident(current_user)")
        database = self._value("quote_ident(current_database())")
        hint = "; ".join(
            f"ALTER ROLE {user} IN DATABASE {database} SET {remedy}"
            for remedy in dict.fromkeys(remedy for _, remedy in settings)
        )
        yield Finding(
            "server log",
            "warning",
            f"the server writes tokens to its log: {', '.join(what for what, _ in settings)}",
            f"as a superuser, run: {hint}; then remove the tokens from the log",
        )

    def _logs_of_parameters(self) -> Iterator[tuple[str, str]]:
        """Yield settings that log the parameters of statements, with what to set instead."""
        if self._setting("log_parameter_max_length") != "0":
            none = "log_parameter_max_length = 0"
            for name, off in _STATEMENT_LOGS:
                if (value := self._setting(name)) not in off:
                    yield f"{name} = {value}", none
        length = self._setting("log_parameter_max_length_on_error")
        if length not in {"", "0"} and self._setting("log_min_error_statement") not in _NO_ERRORS:
            name = "log_parameter_max_length_on_error"
            yield f"{name} = {length}", f"{name} = 0"

    def _logs_of_extensions(self) -> Iterator[tuple[str, str]]:
        plans = self._setting("auto_explain.log_min_duration")
        length = "auto_explain.log_parameter_max_length"
        if plans not in {"", "-1"} and self._setting(length) != "0":
            yield f"auto_explain.log_min_duration = {plans}", f"{length} = 0"
        audited, parameters = self._setting("pgaudit.log"), "pgaudit.log_parameter"
        if audited not in {"", "none"} and self._setting(parameters) == "on":
            yield f"{parameters} = on", f"{parameters} = off"

    def _sslmode(self) -> str:
        options = {option.keyword: option.val for option in self._driver.pgconn.info}
        return (options.get(b"sslmode") or b"prefer").decode()

    def _milliseconds(self, setting: str) -> int:
        # pg_settings has milliseconds; current_setting() would return "5s".
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
