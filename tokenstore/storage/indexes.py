"""Indexes of a part of a table. `metadata` is complete with them: what all migrations add up to.

Their conditions load the dialects that they are of, for which nobody but a migration should wait.
"""

from __future__ import annotations

from sqlalchemy import Index

from tokenstore.storage.tables import accounts, metadata

__all__ = ["metadata"]

Index(
    "ix_accounts_tokenless",
    accounts.c.account_name,
    sqlite_where=accounts.c.access_token.is_(None),
    postgresql_where=accounts.c.access_token.is_(None),
)
