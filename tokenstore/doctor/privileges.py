"""Rights on a store in PostgreSQL: what this user may do with it, and who else may read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenstore.doctor.findings import Finding, ok
from tokenstore.storage.tables import VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

_NEEDED = (
    *((table, r) for table in ("accounts", "refreshes") for r in ("SELECT", "INSERT")),
    *((table, r) for table in ("accounts", "refreshes") for r in ("UPDATE", "DELETE")),
    (VERSION_TABLE, "SELECT"),
)

# Of a column, too. No entry means that the owner alone has rights.
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
    WHERE c.relname = 'accounts' AND c.relnamespace = to_regnamespace(%(schema)s)
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


class Rights:
    """Looks at rights in the server's catalog, which every user may read.

    Args:
        schema: The schema of the store.
        driver: A connection.
    """

    def __init__(self, schema: str, driver: psycopg.Connection[Any]) -> None:
        self._schema = schema
        self._driver = driver
        self.may_read = True  # as far as is known

    def examine(self) -> Iterator[Finding]:
        """Look at everything."""
        yield from self.mine()
        yield from self.readers()

    def tables(self) -> set[str]:
        """Return the names of the tables in the schema, none if there is no schema."""
        query = """
            SELECT relname FROM pg_class
            WHERE relkind IN ('r', 'p') AND relnamespace = to_regnamespace(%(schema)s)
        """
        return {str(name) for (name,) in self._rows(query)}

    def creation(self) -> str | None:
        """Return what has to be granted before this user can create the store, None if nothing."""
        query = """
            SELECT
                CASE WHEN to_regnamespace(%(schema)s) IS NULL
                THEN has_database_privilege(current_database(), 'CREATE')
                ELSE has_schema_privilege(to_regnamespace(%(schema)s), 'CREATE') END,
                quote_ident(current_user)
        """
        ((may, user),) = self._rows(query)
        return None if may else f"CREATE SCHEMA {self._schema} AUTHORIZATION {user}"

    def mine(self) -> Iterator[Finding]:
        """Look whether this user may do with the tables what a refresh needs."""
        query = """
            SELECT
                quote_ident(current_user),
                has_schema_privilege(to_regnamespace(%(schema)s), 'USAGE'),
                pg_has_role(current_user, c.relowner, 'USAGE'),
                quote_ident(pg_get_userbyid(c.relowner))
            FROM pg_class c
            WHERE c.relname = 'accounts' AND c.relnamespace = to_regnamespace(%(schema)s)
        """
        ((user, may_use, is_owner, owner),) = self._rows(query)
        grants = [] if may_use else [f"GRANT USAGE ON SCHEMA {self._schema} TO {user}"]
        lacking = [(t, right) for t, right in _NEEDED if not self._may(t, right)]
        grants += [f"GRANT {right} ON {self._schema}.{t} TO {user}" for t, right in lacking]
        if may_use and not lacking and (sequence := self._sequence()) is not None:
            grants.append(f"GRANT USAGE ON SEQUENCE {sequence} TO {user}")
        self.may_read = may_use and not any(right == "SELECT" for _, right in lacking)
        if grants:
            what = f"{user} lacks {len(grants)} of the rights that a refresh needs"
            yield Finding("rights", "error", what, f"as {owner}, run: {'; '.join(grants)}")
        elif is_owner:
            yield ok("rights", f"{user} may do everything with the tables")
        else:
            what = f"{user} may refresh; only {owner}, who owns the tables, can upgrade them"
            yield Finding("rights", "info", what)

    def readers(self) -> Iterator[Finding]:
        """Look who else may read the tokens, superusers left out."""
        found = list(self._rows(_READERS))
        strangers = ", ".join(name for name, writes in found if not writes)
        if strangers:
            tables = f"{self._schema}.accounts, {self._schema}.refreshes"
            yield Finding(
                "readers",
                "warning",
                f"may read every token without being able to refresh one: {strangers}",
                f"run: REVOKE ALL ON {tables} FROM {strangers}",
            )
        workers = ", ".join(name for name, writes in found if writes)
        if workers:
            yield Finding("readers", "info", f"may read and write, as this user: {workers}")
        if not found:
            yield ok("readers", "nobody else was granted the right to read the tokens")

    def _may(self, table: str, right: str) -> bool:
        query = """
            SELECT has_table_privilege(oid, %(right)s) FROM pg_class
            WHERE relname = %(table)s AND relnamespace = to_regnamespace(%(schema)s)
        """
        return all(may for (may,) in self._rows(query, table=table, right=right))

    def _sequence(self) -> str | None:
        """Return the sequence of the journal's numbers, None if this user may draw from it."""
        query = """
            SELECT name, has_sequence_privilege(name, 'USAGE')
            FROM pg_get_serial_sequence(%(table)s, 'id') name
        """
        ((name, may_use),) = self._rows(query, table=f"{self._schema}.refreshes")
        return name if name is not None and not may_use else None

    def _rows(self, query: str, **parameters: str) -> list[tuple[Any, ...]]:
        return self._driver.execute(
            query.encode(), {"schema": self._schema, **parameters}
        ).fetchall()
