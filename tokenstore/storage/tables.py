"""The tables of the newest schema revision. Only migrations create them."""

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

REVISION: Final = "0006"
"""The newest migration: the schema that this code reads and writes."""

VERSION_TABLE: Final = "tokenstore_alembic_version"

APPLICATION_ID: Final = 0x746F6B73
"""Marks a SQLite file as a tokenstore database (``PRAGMA application_id``): "toks" in ASCII."""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    }
)

# PostgreSQL sorts names by their code points, as all other code does.
_Name = String(512).with_variant(String(512, collation="C"), "postgresql")
_Number = BigInteger().with_variant(Integer(), "sqlite")  # SQLite's autoincrement needs it

# All times are UTC epoch seconds. A row with a failure keeps its tokens.
accounts = Table(
    "accounts",
    metadata,
    Column("account_name", _Name, primary_key=True),
    Column("provider", Text),
    Column("access_token", Text),
    Column("refresh_token", Text),
    Column("expires_at", Float(53)),
    Column("extra", Text, nullable=False),  # JSON: every other field of the token set
    # A new random number whenever the tokens change, also after a delete: equal means unchanged.
    Column("version", BigInteger, nullable=False),
    Column("refreshed_at", Float(53)),  # when a refresh produced the tokens, else NULL
    Column("refresh_id", _Number),  # the refresh that produced these tokens or this failure
    Column("failure", Text),  # JSON: why the last refresh failed, or NULL
    Column("refresh_token_obtained_at", Float(53)),
    Column("refresh_token_expires_at", Float(53)),  # NULL if the provider did not report it
    # Checksums of the access token, and of all tokens and other fields (rows.py). NULL in a row
    # that is older than the columns.
    Column("access_checksum", BigInteger),
    Column("checksum", BigInteger),
    Index(None, "expires_at", "account_name"),  # due accounts, most urgent first
)

# Further access tokens of a login, each for a scope or resource. A row without a token has the
# failure of its target. They go whenever the account's tokens are replaced or deleted.
access_tokens = Table(
    "access_tokens",
    metadata,
    Column("account_name", _Name, primary_key=True),
    Column("target_digest", String(32), primary_key=True),  # a target is too long for an index
    Column("target", Text, nullable=False),
    Column("access_token", Text),
    Column("token_type", Text),
    Column("scope", Text),  # as granted
    Column("expires_at", Float(53)),
    Column("refreshed_at", Float(53)),
    Column("refresh_id", _Number),  # the refresh that produced this token or this failure
    Column("failure", Text, nullable=True),  # JSON: why the provider refused the target
    Column("checksum", BigInteger, nullable=False),
)

# Journal and history in one: a refresh is recorded before its request and closed after it. A row
# that is still open while no process holds the account's lock was interrupted.
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
    Column("received", Text),  # fingerprint of the refresh token stored afterwards
    Column("status_code", Integer),
    Column("error", Text),
    Column("maybe_spent", Boolean),
    Column("target", Text),  # the further access token it is for, NULL for the account's own
    Index(None, "account_name", "id"),
    Index(None, "sent"),  # whether a refresh token is spent
    sqlite_autoincrement=True,  # so that ids increase with time
)
