"""Check the privileges on a PostgreSQL store: this user's, and those of other readers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenstore.doctor.findings import Finding, ok
from tokenstore.storage.tables import VERSION_TABLE, metadata

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

_TABLES = (*metadata.tables, VERSION_TABLE)
_REQUIRED = (
    *((table, r) for table in metadata.tables for r in ("SELECT", "INSERT", "UPDATE", "DELETE")),
    (VERSION_TABLE, "SELECT"),
)

# Includes privileges on columns. No entry means that only the owner has privileges.
_READERS = """
WITH granted AS (
    SELECT c.relowner, a.grantee, a.privilege_type
    FROM pg_class c
    CROSS JOIN LATERAL (
        SELECT * FROM aclexplode(c.relacl)
        UNION ALL
        SELECT entry.* FROM pg_attribute t CROSS JOIN LATERAL aclexplode(t.attacl) entry
        WHERE t.attrelid = c.oid AND t.attname IN ('access_token', 'refresh_token', 'extra')
    ) a
    WHERE c.relname IN ('accounts', 'access_tokens')
        AND c.relnamespace = to_regnamespace(%(schema)s)
)
SELECT
    CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END AS name,
    grantee <> 0 AND bool_or(privilege_type = 'UPDATE') AS writes
FROM granted
WHERE grantee NOT IN (relowner, (SELECT oid FROM pg_roles WHERE rolname = current_user))
GROUP BY grantee
HAVING bool_or(privilege_type = 'SELECT')
ORDER BY 1
"""


_CODE = """
WITH ours AS (
    SELECT oid, relname FROM pg_class
    WHERE relnamespace = to_regnamespace(%(schema)s) AND relname = ANY (%(tables)s::name[])
)
SELECT kind || ' ' || quote_ident(name) || ' on ' || relname FROM (
    SELECT 'trigger', tgname, tgrelid FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT 'rule', rulename, ev_class FROM pg_rewrite
    UNION ALL SELECT 'policy', polname, polrelid FROM pg_policy
) AS found (kind, name, relation) JOIN ours ON ours.oid = relation
ORDER BY 1
"""
_CREATORS = """
SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END
FROM pg_namespace CROSS JOIN LATERAL aclexplode(nspacl)
WHERE
    nspname = %(schema)s AND privilege_type = 'CREATE'
    AND grantee NOT IN (nspowner, (SELECT oid FROM pg_roles WHERE rolname = current_user))
    AND NOT coalesce((SELECT rolsuper FROM pg_roles WHERE oid = grantee), false)
GROUP BY grantee
ORDER BY 1
"""


class PrivilegeChecks:
    """Checks privileges in the server's catalog, which every user can read.

    Args:
        schema: The schema of the store.
        driver: A connection.

    Attributes:
        can_read: Whether this user can read the tables; True until `examine` has found out.
    """

    def __init__(self, schema: str, driver: psycopg.Connection[Any]) -> None:
        self._schema = schema
        self._driver = driver
        self.can_read = True
        ((self._quoted,),) = self._rows("SELECT quote_ident(%(schema)s)")

    def examine(self) -> Iterator[Finding]:
        """Check this user's privileges and those of others."""
        yield from self._own_privileges()
        yield from self._readers()
        yield from self._foreign_code()

    def tables(self) -> set[str]:
        """Return the names of the tables in the schema; empty if there is no schema."""
        query = """
            SELECT relname FROM pg_class
            WHERE relkind IN ('r', 'p') AND relnamespace = to_regnamespace(%(schema)s)
        """
        return {str(name) for (name,) in self._rows(query)}

    def required_to_create(self) -> str | None:
        """Return the statement that lets this user create the store, None if it can already."""
        query = """
            SELECT
                CASE WHEN to_regnamespace(%(schema)s) IS NULL
                THEN has_database_privilege(current_database(), 'CREATE')
                ELSE has_schema_privilege(to_regnamespace(%(schema)s), 'CREATE') END,
                quote_ident(current_user)
        """
        ((can_create, user),) = self._rows(query)
        return None if can_create else f"CREATE SCHEMA {self._quoted} AUTHORIZATION {user}"

    def _own_privileges(self) -> Iterator[Finding]:
        """Check that this user has the privileges that a refresh requires."""
        query = """
            SELECT
                quote_ident(current_user),
                has_schema_privilege(to_regnamespace(%(schema)s), 'USAGE'),
                pg_has_role(current_user, c.relowner, 'USAGE'),
                quote_ident(pg_get_userbyid(c.relowner))
            FROM pg_class c
            WHERE c.relname = 'accounts' AND c.relnamespace = to_regnamespace(%(schema)s)
        """
        ((user, can_use, is_owner, owner),) = self._rows(query)
        grants = [] if can_use else [f"GRANT USAGE ON SCHEMA {self._quoted} TO {user}"]
        missing = [(t, p) for t, p in _REQUIRED if not self._has_privilege(t, p)]
        grants += [f"GRANT {p} ON {self._quoted}.{t} TO {user}" for t, p in missing]
        if can_use and not missing and (sequence := self._sequence()) is not None:
            grants.append(f"GRANT USAGE ON SEQUENCE {sequence} TO {user}")
        self.can_read = can_use and not any(privilege == "SELECT" for _, privilege in missing)
        if grants:
            message = f"{user} lacks {len(grants)} of the privileges that a refresh requires"
            yield Finding("privileges", "error", message, f"as {owner}, run: {'; '.join(grants)}")
        elif is_owner:
            yield ok("privileges", f"{user} has all privileges on the tables")
        else:
            message = f"{user} can refresh; only {owner}, the owner, can upgrade the tables"
            yield Finding("privileges", "info", message)

    def _readers(self) -> Iterator[Finding]:
        """Report who else can read the tokens, except superusers."""
        readers = list(self._rows(_READERS))
        only_readers = ", ".join(name for name, writes in readers if not writes)
        if only_readers:
            tables = ", ".join(f"{self._quoted}.{table}" for table in metadata.tables)
            yield Finding(
                "readers",
                "warning",
                f"can read every token but cannot refresh: {only_readers}",
                f"run: REVOKE ALL ON {tables} FROM {only_readers}",
            )
        writers = ", ".join(name for name, writes in readers if writes)
        if writers:
            yield Finding("readers", "info", f"can read and write like this user: {writers}")
        if not readers:
            yield ok("readers", "no other user has been granted access to the tokens")

    def _foreign_code(self) -> Iterator[Finding]:
        """Report what runs when the tables are used, and who else can create something there."""
        code = ", ".join(name for (name,) in self._rows(_CODE))
        if code:
            yield Finding(
                "foreign code",
                "warning",
                f"tokenstore creates no triggers, rules or policies, but the tables have: {code}",
                "drop them unless you created them and know what they do with tokens",
            )
        creators = ", ".join(name for (name,) in self._rows(_CREATORS))
        if creators:
            yield Finding(
                "foreign code",
                "warning",
                f"can create functions and tables in the schema: {creators}",
                f"run: REVOKE CREATE ON SCHEMA {self._quoted} FROM {creators}",
            )
        if not code and not creators:
            yield ok("foreign code", "the tables have no triggers, rules or policies")

    def _has_privilege(self, table: str, privilege: str) -> bool:
        query = """
            SELECT has_table_privilege(oid, %(privilege)s) FROM pg_class
            WHERE relname = %(table)s AND relnamespace = to_regnamespace(%(schema)s)
        """
        rows = self._rows(query, table=table, privilege=privilege)
        return all(granted for (granted,) in rows)

    def _sequence(self) -> str | None:
        """Return the sequence of the journal's ids, None if this user can use it."""
        query = """
            SELECT name, has_sequence_privilege(name, 'USAGE')
            FROM pg_get_serial_sequence(%(table)s, 'id') name
        """
        ((name, can_use),) = self._rows(query, table=f"{self._quoted}.refreshes")
        return name if name is not None and not can_use else None

    def _rows(self, query: str, **parameters: str) -> list[tuple[Any, ...]]:
        values = {"schema": self._schema, "tables": list(_TABLES), **parameters}
        return self._driver.execute(query.encode(), values).fetchall()
