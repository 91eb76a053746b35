"""A statement on the tables, compiled for a database's dialect when it first runs there."""

from __future__ import annotations

from functools import cached_property, lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.sql import quoted_name
from sqlalchemy.sql.compiler import SQLCompiler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.engine import Dialect
    from sqlalchemy.sql import ClauseElement

Row = tuple[Any, ...]

_SQLITE = SQLiteDialect_pysqlite(paramstyle="qmark")


class DialectStatement(NamedTuple):
    """A statement as one dialect's text.

    Attributes:
        sql: The text.
        constants: The values that are part of the statement, by parameter name.
        values: Returns all values in the order of the text, for a driver with positional
            parameters. sqlite3 takes a third longer to find them by name for one row by its key
            (6.6 instead of 3.9 µs, `benchmarks`).
    """

    sql: str
    constants: dict[str, Any]
    values: Callable[[dict[str, Any]], tuple[Any, ...]]


class CompiledStatement:
    """A Core statement that runs on the driver's own cursor, with a compiled form per dialect.

    SQLAlchemy's own execution takes several times as long as SQLite takes for statements this
    small; its errors carry the parameters, and its log the rows.

    Args:
        statement: The statement, or a function that builds it from a dialect's ``insert``, as an
            upsert is not standard SQL.
    """

    def __init__(self, statement: ClauseElement | Callable[[Any], Any]) -> None:
        self._statement = statement

    @cached_property
    def sqlite(self) -> DialectStatement:
        """The statement for SQLite."""
        return self._compile(_SQLITE, sqlite.insert)

    def postgresql(self, schema: str) -> DialectStatement:
        """Return the statement for PostgreSQL, with its tables in *schema*."""
        return _compile_for_postgresql(self, schema)

    def _compile(self, dialect: Dialect, insert: object, **options: Any) -> DialectStatement:
        build = self._statement
        statement = build(insert) if callable(build) else build
        compiled = statement.compile(dialect=dialect, **options)
        assert isinstance(compiled, SQLCompiler)  # noqa: S101 - for the type checker
        constants = {n: b.value for n, b in compiled.binds.items() if not b.required}
        values = _in_order(compiled.positiontup or (), constants)
        return DialectStatement(str(compiled), constants, values)


def _in_order(
    names: Sequence[str], constants: dict[str, Any]
) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    if len(names) > 1:
        pick = itemgetter(*names)
        return (lambda parameters: pick(constants | parameters)) if constants else pick
    if constants or not names:
        return lambda parameters: tuple((constants | parameters)[name] for name in names)
    (name,) = names
    return lambda parameters: (parameters[name],)


@lru_cache(maxsize=1024)
def _compile_for_postgresql(statement: CompiledStatement, schema: str) -> DialectStatement:
    from sqlalchemy.dialects import postgresql

    from tokenstore.storage.qualified import QualifyingDialect

    return statement._compile(  # noqa: SLF001 - of this module
        QualifyingDialect(),  # type: ignore[no-untyped-call]
        postgresql.insert,
        schema_translate_map={None: quoted_name(schema, quote=True)},  # it may be a word of SQL
        render_schema_translate=True,
    )
