"""The tables, as the newest migration leaves them. Only migrations create them."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

REVISION: Final = "0004"
"""The newest migration, which is the schema that this code reads and writes."""

VERSION_TABLE: Final = "tokenstore_alembic_version"

APPLICATION_ID: Final = 0x746F6B73
"""What marks a SQLite file as a token store (``PRAGMA application_id``): "toks" in ASCII."""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    }
)

# In PostgreSQL, names are in the order of their code points, as everywhere else here.
_Name = String(512).with_variant(String(512, collation="C"), "postgresql")
_Number = BigInteger().with_variant(Integer(), "sqlite")  # as SQLite's autoincrement needs it

# All times are UTC epoch seconds. A row with a failure keeps its tokens: a verdict deletes nothing.
accounts = Table(
    "accounts",
    metadata,
    Column("account_name", _Name, primary_key=True),
    Column("provider", Text),
    Column("access_token", Text),
    Column("refresh_token", Text),
    Column("expires_at", Float(53)),
    Column("extra", Text, nullable=False),  # JSON: every other field of the token set
    # Drawn anew whenever the tokens change, also after a delete: equal means untouched.
    Column("version", BigInteger, nullable=False),
    Column("refreshed_at", Float(53)),  # when the tokens came from our refresh, else NULL
    Column("refresh_id", _Number),  # the refresh that these tokens or this failure came from
    Column("failure", Text),  # JSON: why the last refresh failed, NULL if it did not
    Column("refresh_token_obtained_at", Float(53)),
    Column("refresh_token_expires_at", Float(53)),  # NULL if the provider did not say
    # Of the access token, and of all tokens and other fields (rows.py). NULL in a row that was
    # stored before there were any.
    Column("access_checksum", BigInteger),
    Column("checksum", BigInteger),
    Index(None, "expires_at", "account_name"),  # what is due, the most urgent first
)

# Journal and history in one: a refresh is written down before its request and closed after it.
# A row that is still open while nobody holds the account's lock was interrupted.
refreshes = Table(
    "refreshes",
    metadata,
    Column("id", _Number, primary_key=True),
    Column("account_name", _Name, nullable=False),
    Column("provider", Text, nullable=False),
    Column("reason", Text, nullable=False),  # due, forced or rejected
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", Float(53), nullable=False),
    Column("sent", Text, nullable=False),  # fingerprint of the refresh token
    Column("finished_at", Float(53)),
    Column("outcome", Text),  # NULL while the refresh is open
    Column("received", Text),  # fingerprint of the refresh token that is stored afterwards
    Column("status_code", Integer),
    Column("error", Text),
    Column("maybe_spent", Boolean),
    Index(None, "account_name", "id"),
    sqlite_autoincrement=True,  # an id says which of two refreshes began first
)
