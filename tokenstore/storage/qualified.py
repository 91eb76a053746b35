"""Statements for PostgreSQL whose operators and functions are those of ``pg_catalog``.

PostgreSQL looks for an operator or function without a schema in every schema of ``search_path``,
and prefers the one whose argument types fit best: that may be one that another role has created
there, which would run with the privileges of this one, and with tokens as its arguments.
"""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy.dialects.postgresql.psycopg import PGCompiler_psycopg, PGDialect_psycopg

_SYMBOL = re.compile(r"\s*([-+*/<>=~!@#%^&|`?]+)\s*")
_COMPARISONS = {"=", "<>", "!=", "<", "<=", ">", ">="}
_KEYWORDS = {"coalesce", "nullif", "greatest", "least"}  # part of the grammar, in no schema


class _QualifyingCompiler(PGCompiler_psycopg):
    def _generate_generic_binary(self, binary: Any, opstring: str, *args: Any, **kw: Any) -> str:
        symbol = _SYMBOL.fullmatch(opstring)
        if symbol is None:
            return super()._generate_generic_binary(binary, opstring, *args, **kw)
        qualified = f" OPERATOR(pg_catalog.{symbol[1]}) "
        text: str = super()._generate_generic_binary(binary, qualified, *args, **kw)
        # Written so, all operators have the same precedence.
        return text if symbol[1] in _COMPARISONS else f"({text})"

    # These have no form with a schema; PostgreSQL would look up the operators that they stand for.

    def visit_between_op_binary(self, binary: Any, operator: Any, **kw: Any) -> str:  # noqa: ARG002
        value, (first, last) = binary.left, binary.right.clauses
        return self.process((value >= first) & (value <= last), **kw)

    def visit_is_distinct_from_binary(self, binary: Any, operator: Any, **kw: Any) -> str:  # noqa: ARG002
        left, right = self.process(binary.left, **kw), self.process(binary.right, **kw)
        equal = self.process(binary.left == binary.right, **kw)
        return f"NOT coalesce({equal}, {left} IS NULL AND {right} IS NULL)"

    def visit_in_op_binary(self, binary: Any, operator: Any, **kw: Any) -> str:  # noqa: ARG002
        left, query = self.process(binary.left, **kw), self.process(binary.right, **kw)
        return f"{left} OPERATOR(pg_catalog.=) ANY {query}"

    def visit_function(self, func: Any, *args: Any, **kw: Any) -> str:
        called: str = super().visit_function(func, *args, **kw)
        return called if func.name in _KEYWORDS else f"pg_catalog.{called}"


class QualifyingDialect(PGDialect_psycopg):
    """The dialect of such statements; it compiles, and connects to nothing."""

    statement_compiler = _QualifyingCompiler
    supports_statement_cache = False
