"""What other roles have put into a schema of search_path is never called, nor is what they own."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url

from tests.helpers.postgresql import connect, in_schema, server
from tests.helpers.stores import tokens
from tokenstore import (
    InsecureStorageError,
    StorageError,
    TokenManager,
    TokenRepository,
    doctor,
    migrate,
)
from tokenstore.storage.postgresql.locks import key_of
from tokenstore.testing import Answer, AuthorizationServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

pytestmark = pytest.mark.slow

# For each operator of PostgreSQL one with the same name and types in the schema evil, also for the
# types that it knows by another one (varchar by text), and for each function; whichever is called
# fails. So do the types and tables that are found there.
PLANT = """
CREATE SCHEMA evil;
GRANT USAGE ON SCHEMA evil TO PUBLIC;
DO $do$
DECLARE
    found record;
    arguments text;
BEGIN
    FOR found IN
        SELECT DISTINCT oprname, l.typname AS l, r.typname AS r
        FROM pg_operator
        CROSS JOIN unnest(ARRAY['varchar', 'text', 'int2', 'int4', 'int8', 'float8', 'name', 'oid',
            'bool', 'bpchar', 'regclass', 'regnamespace']) AS l (typname)
        CROSS JOIN unnest(ARRAY['varchar', 'text', 'int2', 'int4', 'int8', 'float8', 'name', 'oid',
            'bool', 'bpchar', 'regclass', 'regnamespace']) AS r (typname)
        WHERE oprname IN ('=', '<>', '<', '<=', '>', '>=', '||', '+', '-')
    LOOP
        EXECUTE format(
            'CREATE FUNCTION evil.%I(pg_catalog.%I, pg_catalog.%I) RETURNS bool LANGUAGE plpgsql '
            'AS $$ BEGIN RAISE ''planted operator''; END $$',
            'op' || md5(found.oprname || found.l || ' ' || found.r), found.l, found.r
        );
        EXECUTE format(
            'CREATE OPERATOR evil.%s (FUNCTION = evil.%I, LEFTARG = pg_catalog.%I, '
            'RIGHTARG = pg_catalog.%I)',
            found.oprname, 'op' || md5(found.oprname || found.l || ' ' || found.r), found.l, found.r
        );
    END LOOP;
    FOR found IN
        SELECT p.proname, pg_get_function_identity_arguments(p.oid) AS arguments
        FROM pg_proc p
        WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind IN ('f', 'a')
            AND proname IN ('max', 'min', 'count', 'sum', 'set_config', 'current_setting',
                'replace', 'to_regclass', 'to_regnamespace', 'pg_advisory_xact_lock', 'pg_has_role',
                'pg_try_advisory_xact_lock', 'current_schema', 'current_database', 'version',
                'has_schema_privilege', 'has_table_privilege', 'quote_ident', 'pg_get_userbyid',
                'pg_is_in_recovery', 'host', 'inet_client_addr', 'pg_backend_pid', 'aclexplode',
                'has_database_privilege', 'pg_get_serial_sequence', 'format_type', 'pg_get_expr',
                'pg_table_is_visible', 'col_description', 'obj_description', 'array_agg', 'unnest')
    LOOP
        BEGIN
            EXECUTE format(
                'CREATE FUNCTION evil.%I(%s) RETURNS bool LANGUAGE plpgsql AS '
                '$$ BEGIN RAISE ''planted function''; END $$', found.proname, found.arguments
            );
        EXCEPTION WHEN OTHERS THEN  -- of pseudo-types, which plpgsql does not take
        END;
    END LOOP;
    FOREACH arguments IN ARRAY ARRAY['text', 'name', 'oid'] LOOP
        EXECUTE format('CREATE DOMAIN evil.%I AS pg_catalog.bool CHECK (false)', arguments);
    END LOOP;
    FOREACH arguments IN ARRAY ARRAY['pg_class', 'pg_namespace', 'pg_roles', 'pg_settings'] LOOP
        EXECUTE format('CREATE TABLE evil.%I (planted int)', arguments);
    END LOOP;
END
$do$;
"""


@pytest.fixture(scope="module")
def own_server() -> Iterator[str]:
    """A server with the roles victim and attacker, and a schema in which all is planted."""
    with server() as url:
        with connect(url) as admin:
            admin.execute(PLANT.encode())
            for role in ("victim", "attacker"):
                admin.execute(f"CREATE ROLE {role} LOGIN".encode())
        yield url


@pytest.fixture
def admin(own_server: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(own_server) as admin:
        admin.execute("GRANT CREATE ON DATABASE postgres TO victim, attacker")
        yield admin
        admin.execute("DROP SCHEMA IF EXISTS tokenstore CASCADE; ALTER ROLE victim RESET ALL")


def as_role(url: str, role: str, **query: str) -> str:
    location = make_url(url).set(username=role).update_query_dict(query)
    return location.render_as_string(hide_password=False)


@pytest.mark.parametrize(
    "path", ["evil, pg_catalog", "pg_catalog, evil"], ids=["before pg_catalog", "after pg_catalog"]
)
def test_nothing_planted_is_called(
    own_server: str, admin: psycopg.Connection[Any], path: str
) -> None:
    admin.execute(f"ALTER ROLE victim SET search_path = {path}".encode())
    url = as_role(own_server, "victim")
    with connect(url) as victim, pytest.raises(Exception, match=r"planted|\(NULL\)|boolean|bool"):
        # So it is where the schema is not written.
        victim.execute("SELECT 'a'::varchar = 'a'::varchar, pg_has_role('victim', 'MEMBER')")

    with (
        AuthorizationServer() as provider,
        TokenManager(url, providers={"test": provider.provider()}, cache_ttl=0) as manager,
    ):
        for name in ("alice", "bob", "carol"):
            manager.save_tokens(name, provider.sign_in(name) | {"expires_in": -1}, provider="test")
        manager.save_tokens("bob", provider.sign_in("bob") | {"expires_in": 10})
        assert manager.get_valid_token("alice")
        provider.script(Answer(400, {"error": "invalid_grant"}))
        assert manager.get_valid_token("carol") is None
        assert {result.outcome for result in manager.refresh_all()} == {"refreshed"}
        assert [account.name for account in manager.accounts()] == ["alice", "bob", "carol"]
        assert list(manager.accounts(names=["bob"]))
        assert list(manager.history())
        assert list(manager.history("alice"))
        assert manager.delete_tokens("bob")
    with TokenRepository(url) as repository:
        assert repository.listing.names("a", limit=5) == ["alice"]
        with repository.transaction():
            repository.save("dave", tokens(4))
    migrate.check(url)
    migrate.downgrade(url, "0002")
    migrate.upgrade(url)

    assert [f.message for f in doctor.examine(url) if f.check == "schema" and f.is_open] == []
    assert not [
        f for f in doctor.examine(url) if f.check in {"database", "integrity"} and f.is_open
    ]


# -- what another role owns --------------------------------------------------------------------

GRANTS = """
GRANT USAGE, CREATE ON SCHEMA tokenstore TO victim;
GRANT ALL ON ALL TABLES IN SCHEMA tokenstore TO victim;
GRANT ALL ON ALL SEQUENCES IN SCHEMA tokenstore TO victim;
"""


@pytest.fixture
def of_attacker(own_server: str, admin: psycopg.Connection[Any]) -> str:
    """The victim's URL of a store that the attacker has made."""
    with TokenRepository(as_role(own_server, "attacker")) as repository:
        repository.save("x", tokens(1))
    admin.execute(GRANTS.encode())
    return as_role(own_server, "victim")


def refused(url: str) -> str:
    """Return why nothing can be read from, or written to, a store."""
    reasons = set()
    with TokenRepository(url) as repository:
        for call in (
            lambda: repository.save("alice", tokens(2)),
            lambda: repository.load("x"),
            lambda: list(repository.listing.names("x", limit=1)),
            lambda: migrate.upgrade(url),
            lambda: migrate.current(url),
        ):
            with pytest.raises(InsecureStorageError) as raised:
                call()
            reasons.add(str(raised.value))
    (reason,) = reasons
    return reason


def test_tables_of_another_role_are_refused(
    of_attacker: str, admin: psycopg.Connection[Any]
) -> None:
    reason = refused(of_attacker)

    assert "belong to the role attacker" in reason
    assert "owner=attacker" in reason
    rows = admin.execute("SELECT account_name FROM tokenstore.accounts").fetchall()
    assert rows == [("x",)]


def test_a_schema_of_another_role_is_refused(
    own_server: str, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("CREATE SCHEMA tokenstore AUTHORIZATION attacker")
    admin.execute("GRANT USAGE, CREATE ON SCHEMA tokenstore TO victim")

    assert "attacker" in refused(as_role(own_server, "victim"))
    assert admin.execute("SELECT to_regclass('tokenstore.accounts')").fetchone() == (None,)


@pytest.mark.parametrize("table", ["accounts", "refreshes", "tokenstore_alembic_version"])
def test_one_table_of_another_role_is_refused(
    own_server: str, admin: psycopg.Connection[Any], table: str
) -> None:
    url = as_role(own_server, "victim")
    with TokenRepository(url) as repository:
        repository.save("x", tokens(1))
    admin.execute(f"ALTER TABLE tokenstore.{table} OWNER TO attacker".encode())

    assert "attacker" in refused(url)


def test_the_owner_that_the_url_names_is_trusted(of_attacker: str) -> None:
    with TokenRepository(f"{of_attacker}&owner=attacker") as repository:
        repository.save("alice", tokens(2))
        assert repository.load("alice") is not None
        assert "owner=attacker" in repository.name


@pytest.mark.parametrize(
    ("trust", "distrust"),
    [
        ("GRANT attacker TO victim", "REVOKE attacker FROM victim"),
        ("ALTER DATABASE postgres OWNER TO attacker", "ALTER DATABASE postgres OWNER TO postgres"),
        ("ALTER ROLE attacker SUPERUSER", "ALTER ROLE attacker NOSUPERUSER"),
    ],
    ids=["a role that it is a member of", "the owner of the database", "a superuser"],
)
def test_who_could_read_the_tokens_anyway_is_trusted(
    of_attacker: str, admin: psycopg.Connection[Any], trust: str, distrust: str
) -> None:
    admin.execute(trust.encode())
    try:
        with TokenRepository(of_attacker) as repository:
            assert repository.load("x") is not None
    finally:
        admin.execute(distrust.encode())
    assert "attacker" in refused(of_attacker)


# -- names of schemas --------------------------------------------------------------------------


def test_every_word_of_sql_is_the_name_of_a_schema(own_server: str) -> None:
    with connect(own_server) as admin:
        query = "SELECT word FROM pg_get_keywords() WHERE catcode <> 'U' AND word ~ '^[a-z_]+$'"
        words = [word for (word,) in admin.execute(query).fetchall()]
    assert {"user", "select", "order", "table"} <= {*words}

    for word in [*words[::20], "user", "order"]:
        url = in_schema(own_server, word)
        with TokenRepository(url) as repository, repository.transaction():
            repository.save("alice", tokens(1))
        with TokenRepository(url) as repository:
            assert repository.load("alice") is not None
        migrate.check(url)


@pytest.mark.parametrize("schema", ["information_schema", "pg_catalog", "Mixed", "a-b", 'a"b'])
def test_other_names_are_refused_at_once(schema: str) -> None:
    with pytest.raises(ValueError, match="schema must be a name"):
        TokenRepository(in_schema("postgresql+psycopg://nobody@nowhere/x", schema))


# -- waiting for another process that migrates ---------------------------------------------------


def test_not_every_error_of_a_wait_is_another_process(
    own_server: str, admin: psycopg.Connection[Any]
) -> None:
    url = as_role(own_server, "victim")
    admin.execute("ALTER ROLE victim SET statement_timeout = '50ms'")
    admin.execute(b"SELECT pg_advisory_lock(%s)", (key_of("tokenstore is migrated"),))
    try:
        with TokenRepository(url) as repository, pytest.raises(StorageError) as raised:
            repository.save("alice", tokens(1))
    finally:
        admin.execute("SELECT pg_advisory_unlock_all()")

    assert raised.value.errno == errno.ETIMEDOUT
    assert "statement_timeout" in str(raised.value)
    assert "another process" not in str(raised.value)


def test_a_wait_for_another_process_says_so(
    own_server: str, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenstore.storage.postgresql.schema._TIMEOUT", 0.05)
    admin.execute(b"SELECT pg_advisory_lock(%s)", (key_of("tokenstore is migrated"),))
    try:
        with (
            TokenRepository(as_role(own_server, "victim")) as repository,
            pytest.raises(StorageError, match="another process has been creating"),
        ):
            repository.save("alice", tokens(1))
    finally:
        admin.execute("SELECT pg_advisory_unlock_all()")
