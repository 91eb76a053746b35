"""The doctor on a PostgreSQL server: everything that it finds is brought about for real."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import make_url

from tests.helpers import postgresql as postgres
from tests.helpers.stores import Process, tokens
from tokenstore import TokenManager, TokenRepository, TransientRefreshError, doctor, migrate
from tokenstore.cli.app import run
from tokenstore.doctor.server import _crosses_a_network
from tokenstore.storage.tables import REVISION
from tokenstore.testing import AuthorizationServer, Drop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenstore.doctor import Finding

pytestmark = pytest.mark.slow

PASSWORD = "CANARY-password"
ORDER = [
    *("server", "connection", "durability", "timeouts", "connections", "server log", "privileges"),
    *("readers", "foreign code", "schema", "integrity", "shared tokens", "logins", "interrupted"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Return the URL of a server that keeps what it acknowledges, as its superuser."""
    with postgres.server("") as url:
        with postgres.connect(url) as admin:
            for name in ("app", "reader", "writer"):
                admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'".encode())
        yield url


@pytest.fixture
def admin(server: str) -> Iterator[psycopg.Connection[Any]]:
    with postgres.connect(server) as admin:
        admin.execute("CREATE SCHEMA IF NOT EXISTS tokenstore AUTHORIZATION app")
        yield admin
        admin.execute("DROP SCHEMA IF EXISTS tokenstore CASCADE")


def url_of(server: str, user: str = "app", **query: str) -> str:
    url = make_url(server).set(username=user, password=PASSWORD)
    return url.update_query_dict(query).render_as_string(hide_password=False)


@pytest.fixture
def url(server: str, admin: psycopg.Connection[Any]) -> str:
    """A store with two accounts, of the user app."""
    del admin
    url = url_of(server)
    with TokenRepository(url) as repository:
        repository.save("alice", tokens(1, extra="CANARY-alice"))
        repository.save("bob", tokens(2))
    return url


def look(url: str, **options: Any) -> list[Finding]:
    """Examine a store; no secret is ever in what is found."""
    findings = doctor.examine(url, **options)
    assert "CANARY" not in repr(findings)
    assert "refresh-1" not in repr(findings)
    return findings


def bad(url: str, **options: Any) -> list[Finding]:
    return [finding for finding in look(url, **options) if finding.is_open]


def only(url: str, **options: Any) -> Finding:
    [finding] = bad(url, **options)
    return finding


def about(check: str, url: str) -> Finding:
    [finding] = [finding for finding in look(url) if finding.check == check]
    return finding


def test_a_sound_store_is_told_to_be_sound(url: str) -> None:
    found = look(url)

    assert [finding.check for finding in found if finding.severity == "ok"] == ORDER
    assert not bad(url)
    assert "PostgreSQL 1" in found[0].message


def test_looking_changes_nothing(url: str, admin: psycopg.Connection[Any]) -> None:
    counted = "SELECT pg_current_xact_id_if_assigned(), xmin, * FROM tokenstore.accounts"
    before = admin.execute(counted).fetchall()
    next_transaction = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text"
    number = admin.execute(next_transaction).fetchone()

    look(url, fix=True)

    assert admin.execute(counted).fetchall() == before
    assert admin.execute(next_transaction).fetchone() == number  # not one was begun that writes


def test_where_there_is_no_store_none_is_made(server: str, admin: psycopg.Connection[Any]) -> None:
    found = only(url_of(server))

    assert (found.check, found.severity) == ("database", "warning")
    assert "contains no store" in found.message
    assert admin.execute("SELECT to_regclass('tokenstore.accounts')").fetchone() == (None,)


def test_what_a_downgrade_to_base_leaves_is_no_store(url: str) -> None:
    migrate.downgrade(url, "base", x=["destroy=yes"])

    assert "contains no store" in only(url).message


def test_who_may_not_create_a_store_is_told_what_to_have_run(
    server: str, admin: psycopg.Connection[Any]
) -> None:
    elsewhere = url_of(server, schema="elsewhere")

    command = str(only(elsewhere).hint).partition("administrator, run: ")[2]

    assert command == "CREATE SCHEMA elsewhere AUTHORIZATION app"
    admin.execute(command.encode())
    assert "administrator" not in str(only(elsewhere).hint)
    admin.execute("DROP SCHEMA elsewhere")


def test_the_tables_of_something_else_are_told(server: str, admin: psycopg.Connection[Any]) -> None:
    admin.execute("CREATE TABLE tokenstore.accounts (mail text)")

    found = only(url_of(server))

    assert (found.check, found.severity) == ("database", "error")
    assert "another application" in found.message


def test_a_server_that_cannot_be_reached_is_told_without_the_password(tmp_path: Any) -> None:
    url = f"postgresql+psycopg://app:{PASSWORD}@/db?host={tmp_path}"

    found = only(url)

    assert (found.check, found.severity) == ("database", "error")
    assert str(tmp_path) in found.message


def test_an_older_schema_names_the_command_that_upgrades_it(url: str) -> None:
    migrate.downgrade(url, "0002")

    found = only(url)

    assert f"0002 is older than {REVISION}" in found.message
    assert "db upgrade" in str(found.hint)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ("ALTER TABLE tokenstore.accounts ADD COLUMN x TEXT", "schema"),
        ("DROP INDEX tokenstore.ix_refreshes_account_name_id", "schema"),
        ("DROP TABLE tokenstore.refreshes", "database"),
    ],
)
def test_tables_that_somebody_changed_are_told(
    url: str, admin: psycopg.Connection[Any], change: str, check: str
) -> None:
    admin.execute(change.encode())

    assert (only(url).check, only(url).severity) == (check, "error")


def test_a_damaged_token_is_told_with_its_account(url: str, admin: psycopg.Connection[Any]) -> None:
    admin.execute("UPDATE tokenstore.accounts SET refresh_token = 'x' WHERE account_name = 'bob'")

    found = only(url)

    assert (found.check, found.severity, found.accounts) == ("integrity", "error", ("bob",))


def test_accounts_with_one_refresh_token_are_told_without_it(url: str) -> None:
    with TokenRepository(url) as repository:
        repository.save("carol", tokens(1))

    found = only(url)

    assert (found.check, found.accounts) == ("shared tokens", ("alice", "carol"))


BEGIN = """
repository = TokenRepository(sys.argv[1])
with repository.refresh_lock("alice", timeout=1):
    repository.journal.begin(repository.record("alice"), provider="test", reason="due", longest=60)
    tell("begun")
    wait()
"""


def test_a_refresh_whose_process_died_is_told(url: str) -> None:
    with Process(BEGIN, url) as process:
        assert process.line() == "begun"
        assert not bad(url)  # it still runs
        process.kill()

        with TokenRepository(url) as repository, repository.refresh_lock("alice", timeout=60):
            pass  # the server has noticed
        found = only(url)

    assert (found.check, found.accounts) == ("interrupted", ("alice",))


def test_a_refresh_that_nobody_answered_is_told(url: str) -> None:
    with AuthorizationServer() as provider:
        known = {"test": provider.provider()}
        with TokenManager(url, providers=known) as manager:
            manager.save_tokens("carol", provider.sign_in("carol"), provider="test")
            provider.script(Drop(spent=False))
            with pytest.raises(TransientRefreshError):
                manager.refresh_token("carol")

        found = only(url, providers=known)

    assert (found.check, found.accounts) == ("interrupted", ("carol",))


# -- rights -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grant", "stranger"),
    [
        ("SELECT ON tokenstore.accounts TO PUBLIC", "PUBLIC"),
        ("SELECT ON tokenstore.accounts TO reader", "reader"),
        ("SELECT (refresh_token) ON tokenstore.accounts TO reader", "reader"),
    ],
)
def test_who_else_may_read_tokens_is_told_until_it_is_revoked(
    url: str, admin: psycopg.Connection[Any], grant: str, stranger: str
) -> None:
    admin.execute(f"GRANT {grant}".encode())

    found = only(url)
    assert (found.check, found.severity) == ("readers", "warning")
    assert found.message.endswith(f": {stranger}")

    admin.execute(str(found.hint).removeprefix("run: ").encode())
    assert not bad(url)


def test_who_works_on_the_store_is_no_stranger(
    url: str, server: str, admin: psycopg.Connection[Any]
) -> None:
    rights = "SELECT, INSERT, UPDATE, DELETE"
    tables = "tokenstore.accounts, tokenstore.refreshes"
    admin.execute(f"GRANT {rights} ON {tables} TO writer".encode())

    assert about("readers", url).severity == "info"
    assert about("readers", url).message.endswith(": writer")
    assert only(url_of(server, "writer", owner="app")).check == "privileges"

    for _ in range(2):  # the tables, then the numbers of the journal
        for command in (
            str(only(url_of(server, "writer", owner="app")).hint).partition("run: ")[2].split("; ")
        ):
            admin.execute(command.encode())
    assert not bad(url_of(server, "writer", owner="app"))
    with TokenRepository(url_of(server, "writer", owner="app")) as repository:
        repository.save("carol", tokens(3))
        record = repository.record("carol")
        assert record is not None
        assert repository.journal.begin(record, provider="test", reason="due", longest=60).id


@pytest.mark.usefixtures("url")
def test_who_may_read_nothing_is_told_of_the_rights_alone(server: str) -> None:
    assert [finding.check for finding in bad(url_of(server, "reader", owner="app"))] == [
        "privileges"
    ]


# -- the server -------------------------------------------------------------------------------


def reloaded(admin: psycopg.Connection[Any], server: str, setting: str, value: str) -> None:
    """Set what only a whole server has, and wait until new connections have it."""
    admin.execute(f"ALTER SYSTEM SET {setting} = {value}".encode())
    admin.execute("SELECT pg_reload_conf()")
    for _ in range(10_000):
        with postgres.connect(server) as fresh:
            if fresh.execute(f"SHOW {setting}".encode()).fetchone() == (value,):
                return


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_a_server_that_may_lose_what_it_acknowledged_is_told(
    url: str, server: str, admin: psycopg.Connection[Any], setting: str
) -> None:
    reloaded(admin, server, setting, "off")
    try:
        found = only(url)
    finally:
        reloaded(admin, server, setting, "on")

    assert (found.check, found.severity) == ("durability", "warning")
    assert setting in found.message


@pytest.mark.parametrize(
    ("setting", "check", "severity"),
    [
        ("synchronous_commit = off", "durability", "info"),
        ("statement_timeout = 100", "timeouts", "warning"),
        ("idle_in_transaction_session_timeout = '1min'", "timeouts", "info"),
        ("default_transaction_read_only = on", "server", "error"),
    ],
)
def test_a_setting_of_the_user_is_told(
    url: str, admin: psycopg.Connection[Any], setting: str, check: str, severity: str
) -> None:
    admin.execute(f"ALTER ROLE app SET {setting}".encode())
    try:
        told = [(f.check, f.severity) for f in look(url) if f.severity != "ok"][:-1]
    finally:
        admin.execute("ALTER ROLE app RESET ALL")

    assert told == [(check, severity)]  # and that the accounts are bound to no provider


def test_a_database_in_another_encoding_is_told(
    server: str, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    url = make_url(url_of(server)).set(database="latin")

    found = bad(url.render_as_string(hide_password=False))

    assert (found[0].check, found[0].severity) == ("server", "error")
    assert "LATIN1" in found[0].message
    admin.execute("DROP DATABASE latin WITH (FORCE)")


def test_few_connections_that_are_left_are_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert about("connections", url).severity == "ok"
    monkeypatch.setattr("tokenstore.doctor.server._NEARLY_ALL", 0.0)

    assert only(url).check == "connections"


@pytest.mark.parametrize(
    ("address", "crosses"),
    [
        *((inner, False) for inner in (None, "127.0.0.1", "127.9.9.9", "::1")),
        *((outer, True) for outer in ("10.0.0.7", "192.0.2.1", "fe80::1%eth0", "2001:db8::1")),
    ],
)
def test_what_crosses_a_network(address: str | None, crosses: bool) -> None:
    assert _crosses_a_network(address) is crosses


def test_a_connection_in_clear_is_told_unless_it_stays_on_this_machine(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert about("connection", url).severity == "ok"
    # The address of a unix socket counts as one of a network: no test may need a second machine.
    monkeypatch.setattr("tokenstore.doctor.server._crosses_a_network", lambda _: True)
    monkeypatch.setattr(psycopg.ConnectionInfo, "hostaddr", "192.0.2.1")

    found = only(url)

    assert (found.check, found.severity) == ("connection", "warning")
    assert "192.0.2.1" in found.message
    assert "sslmode=verify-full" in str(found.hint)


# -- the command ------------------------------------------------------------------------------


def test_the_command_prints_findings_and_no_password(
    url: str,
    admin: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TOKENSTORE_DATABASE", url)

    assert run(["doctor"]) == 0
    admin.execute("GRANT SELECT ON tokenstore.accounts TO PUBLIC")
    assert run(["doctor", "--json"]) == 1

    printed = capsys.readouterr()
    assert "CANARY" not in printed.out + printed.err
    lines = printed.out.partition("{")
    found = json.loads("".join(lines[1:]))["findings"]
    assert [f["check"] for f in found if f["severity"] == "warning"] == ["readers"]


# -- the server's log, and other roles ---------------------------------------------------------

LOGGED = {
    "every statement": ("log_statement", "'all'"),
    "statements that change something": ("log_statement", "mod"),
    "slow statements": ("log_min_duration_statement", "'1s'"),
    "some slow statements": ("log_min_duration_sample", "0"),
    "some transactions": ("log_transaction_sample_rate", "0.5"),
    "errors": ("log_parameter_max_length_on_error", "-1"),
}


@pytest.mark.parametrize(("setting", "value"), LOGGED.values(), ids=LOGGED)
def test_settings_that_write_tokens_to_the_servers_log_are_told(
    url: str, admin: psycopg.Connection[Any], setting: str, value: str
) -> None:
    admin.execute(f"ALTER ROLE app SET {setting} = {value}".encode())
    try:
        found = only(url)
        hint = str(found.hint).partition("run: ")[2].partition(";")[0]

        assert found.check == "server log"
        assert f"{setting} = {value}".replace("'", "") in found.message
        admin.execute(hint.encode())
        assert not bad(url)
    finally:
        admin.execute("ALTER ROLE app RESET ALL; ALTER ROLE app IN DATABASE postgres RESET ALL")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("log_statement", "ddl"), ("log_duration", "on"), ("log_min_error_statement", "debug1")],
)
def test_settings_that_log_no_parameters_are_fine(
    url: str, admin: psycopg.Connection[Any], setting: str, value: str
) -> None:
    admin.execute(f"ALTER ROLE app SET {setting} = {value}".encode())
    try:
        assert not bad(url)
    finally:
        admin.execute("ALTER ROLE app RESET ALL")


FOREIGN = {
    "trigger": "CREATE TRIGGER spy AFTER UPDATE ON tokenstore.accounts EXECUTE FUNCTION spy()",
    "rule": "CREATE RULE spy AS ON UPDATE TO tokenstore.accounts DO ALSO SELECT 1",
    "policy": "CREATE POLICY spy ON tokenstore.accounts USING (true)",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_code_that_runs_with_a_save_is_told(
    url: str, admin: psycopg.Connection[Any], kind: str
) -> None:
    admin.execute(
        "CREATE OR REPLACE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql "
        "AS 'BEGIN RETURN NULL; END'"
    )
    admin.execute(FOREIGN[kind].encode())

    found = only(url)

    assert found.check == "foreign code"
    assert f"{kind} spy on accounts" in found.message


def test_who_may_create_something_in_the_schema_is_told(
    url: str, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("GRANT CREATE ON SCHEMA tokenstore TO writer, PUBLIC")

    found = only(url)

    assert found.message.endswith("in the schema: PUBLIC, writer")
    admin.execute(str(found.hint).removeprefix("run: ").encode())
    assert not bad(url)


def test_a_store_of_another_role_is_told(url: str, server: str) -> None:
    assert url
    found = only(url_of(server, "reader"))

    assert (found.check, found.severity) == ("database", "error")
    assert "belong to the role app" in found.message
    assert "owner=app" in found.message


@pytest.mark.parametrize("word", ["user", "select", "table"])
def test_a_schema_that_is_a_word_of_sql(
    server: str, admin: psycopg.Connection[Any], word: str
) -> None:
    elsewhere = url_of(server, schema=word)
    command = str(only(elsewhere).hint).partition("administrator, run: ")[2]
    admin.execute(command.encode())
    try:
        with TokenRepository(elsewhere) as repository:
            repository.save("alice", tokens(1))
        admin.execute(f'REVOKE INSERT ON "{word}".accounts FROM app'.encode())
        hint = str(only(elsewhere).hint).partition("run: ")[2]
        admin.execute(hint.encode())
        assert not bad(elsewhere)
    finally:
        admin.execute(f'DROP SCHEMA "{word}" CASCADE'.encode())
