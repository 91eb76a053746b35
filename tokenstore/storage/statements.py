"""Every statement that the repository and the journal run on the tables."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from sqlalchemy import (
    Float,
    Text,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from tokenstore.storage.query import CompiledStatement
from tokenstore.storage.rows import CHECKSUMS, FURTHER_COLUMNS, TOKEN_COLUMNS
from tokenstore.storage.tables import access_tokens, accounts, refreshes

HISTORY: Final = 50
"""Number of refreshes that the history keeps for each account."""

LOCK_LOST: Final = "lock_lost"
"""The journal's ``error`` of a refresh during which another process could refresh the account."""

_TOKENS = (*(accounts.c[name] for name in TOKEN_COLUMNS), accounts.c.checksum)
_this = accounts.c.account_name == bindparam("account_name")
_its = refreshes.c.account_name == bindparam("account_name")

# -- accounts -----------------------------------------------------------------------------------

LOAD = CompiledStatement(select(*_TOKENS).where(_this))
NAMES = CompiledStatement(
    select(accounts.c.account_name)
    .where(accounts.c.account_name.between(bindparam("first"), bindparam("last")))
    .order_by(accounts.c.account_name)
    .limit(bindparam("page"))
)
EXISTS = CompiledStatement(select(1).where(_this))
ACCESS_TOKEN = CompiledStatement(
    select(
        accounts.c.access_token,
        accounts.c.expires_at,
        accounts.c.refreshed_at,
        accounts.c.provider,
        accounts.c.access_checksum,
    ).where(_this)
)

_record = select(
    accounts.c.account_name,
    accounts.c.provider,
    accounts.c.version,
    accounts.c.refreshed_at,
    accounts.c.refresh_id,
    accounts.c.failure,
    *_TOKENS,
)
_listed = select(
    accounts.c.account_name,
    accounts.c.provider,
    accounts.c.failure,
    accounts.c.access_token.is_not(None),
    accounts.c.refresh_token.is_not(None),
    accounts.c.expires_at,
    accounts.c.refreshed_at,
    accounts.c.refresh_token_obtained_at,
    accounts.c.refresh_token_expires_at,
)
_after = accounts.c.account_name > bindparam("after")

RECORD = CompiledStatement(_record.where(_this))
ACCOUNT = CompiledStatement(_listed.where(_this))
PAGE_OF_RECORDS = CompiledStatement(
    _record.where(_after).order_by(accounts.c.account_name).limit(bindparam("page"))
)
PAGE_OF_ACCOUNTS = CompiledStatement(
    _listed.where(_after).order_by(accounts.c.account_name).limit(bindparam("page"))
)

COUNT_BY_PROVIDER = CompiledStatement(
    select(accounts.c.provider, func.count()).group_by(accounts.c.provider)
)

# Candidates for a refresh: a token that expires soon, one of unknown expiry, or no token at all.
_expiry, _name = accounts.c.expires_at, accounts.c.account_name
_after_expiry = tuple_(bindparam("after_expiry", type_=Float), bindparam("after", type_=Text))
PAGE_OF_EXPIRING = CompiledStatement(
    _listed.where(_expiry <= bindparam("horizon"), tuple_(_expiry, _name) > _after_expiry)
    .order_by(_expiry, _name)
    .limit(bindparam("page"))
)
PAGE_OF_UNDATED = CompiledStatement(
    _listed.where(_expiry.is_(None), _after).order_by(_name).limit(bindparam("page"))
)
PAGE_OF_TOKENLESS = CompiledStatement(
    _listed.where(accounts.c.access_token.is_(None), _expiry > bindparam("horizon"), _after)
    .order_by(_name)
    .limit(bindparam("page"))
)

_stored = (*TOKEN_COLUMNS, *CHECKSUMS)
_given: dict[str, Any] = {
    n: bindparam(n) for n in ("account_name", "provider", "version", *_stored)
}


def _insert(insert: Any) -> Any:
    return insert(accounts).values(_given).on_conflict_do_nothing()


def _replace(insert: Any, *, older: bool = False) -> Any:
    statement = insert(accounts).values(_given)
    new = statement.excluded
    same = accounts.c.refresh_token == new.refresh_token
    replaced = {
        **{c.name: new[c.name] for c in accounts.c if not c.primary_key},
        "provider": func.coalesce(new.provider, accounts.c.provider),
        # Saving the same refresh token again does not change its age.
        **{
            c.name: case((same, func.coalesce(c, new[c.name])), else_=new[c.name])
            for c in (accounts.c.refresh_token_obtained_at, accounts.c.refresh_token_expires_at)
        },
    }
    expires_at = accounts.c.expires_at
    is_older = and_(
        new.expires_at.is_not(None), or_(expires_at.is_(None), expires_at < new.expires_at)
    )
    return statement.on_conflict_do_update(
        index_elements=["account_name"], set_=replaced, where=is_older if older else None
    )


INSERT = CompiledStatement(_insert)
REPLACE = CompiledStatement(_replace)
REPLACE_OLDER = CompiledStatement(partial(_replace, older=True))
DELETE = CompiledStatement(delete(accounts).where(_this))

_unchanged = and_(
    accounts.c.account_name == bindparam("name"),
    accounts.c.version == bindparam("read_version"),
)

STORE_TOKENS = CompiledStatement(
    update(accounts)
    .where(_unchanged)
    .values(
        {
            **{name: bindparam(name) for name in _stored},
            "version": bindparam("version"),
            "provider": func.coalesce(accounts.c.provider, bindparam("provider")),
            "refreshed_at": bindparam("refreshed_at"),
            "refresh_id": bindparam("refresh_id"),
            "failure": None,
        }
    )
)
# Both take the row's lock, and need the right to change it. What they write is what is there.
TOUCH = CompiledStatement(update(accounts).where(_unchanged).values(version=accounts.c.version))
LOCK_ROW = CompiledStatement(update(accounts).where(_this).values(version=accounts.c.version))
STORE_FAILURE = CompiledStatement(
    update(accounts)
    .where(_unchanged)
    .values(refresh_id=bindparam("refresh_id"), failure=bindparam("failure"))
)

# -- further access tokens ------------------------------------------------------------------------

_of_account = access_tokens.c.account_name == bindparam("account_name")
_further = select(*(access_tokens.c[name] for name in FURTHER_COLUMNS))
FURTHER_TOKEN = CompiledStatement(
    _further.where(_of_account, access_tokens.c.target_digest == bindparam("target_digest"))
)
FURTHER_TOKENS = CompiledStatement(_further.where(_of_account))


def _put_further(insert: Any, *, replaced: tuple[str, ...]) -> Any:
    names = ("account_name", "target_digest", *FURTHER_COLUMNS)
    statement = insert(access_tokens).values({n: bindparam(n) for n in names})
    return statement.on_conflict_do_update(
        index_elements=["account_name", "target_digest"],
        set_={name: statement.excluded[name] for name in replaced},
    )


STORE_FURTHER = CompiledStatement(partial(_put_further, replaced=FURTHER_COLUMNS))
STORE_REFUSAL = CompiledStatement(partial(_put_further, replaced=("failure", "refresh_id")))
DROP_FURTHER = CompiledStatement(delete(access_tokens).where(_of_account))
FURTHER_EXPIRIES = CompiledStatement(
    select(access_tokens.c.target_digest, access_tokens.c.expires_at).where(_of_account)
)
EVICT_FURTHER = CompiledStatement(
    delete(access_tokens).where(
        _of_account, access_tokens.c.target_digest == bindparam("target_digest")
    )
)

# -- refreshes ----------------------------------------------------------------------------------

_begun = ("account_name", "provider", "reason", "host", "pid", "started_at", "sent")
_finished = ("finished_at", "outcome", "received", "status_code", "error", "maybe_spent")
_entry = ("id", *_begun, *_finished, "target")

_last = select(func.max(refreshes.c.id)).scalar_subquery()
LAST_BEGUN = CompiledStatement(select(refreshes.c.started_at).where(refreshes.c.id == _last))
LAST_REFRESH = CompiledStatement(select(func.max(refreshes.c.id)).where(_its))
BEGIN_REFRESH = CompiledStatement(
    insert(refreshes)
    .values({n: bindparam(n) for n in (*_begun, "target")})
    .returning(refreshes.c.id)
)
CLOSE_REFRESH = CompiledStatement(
    update(refreshes)
    .where(refreshes.c.id == bindparam("id_"))
    .values({name: bindparam(name) for name in _finished})
)
CLOSE_INTERRUPTED = CompiledStatement(
    update(refreshes)
    .where(_its, refreshes.c.outcome.is_(None))
    .values(finished_at=bindparam("finished_at"), outcome="interrupted")
)
# Another process may have taken it for interrupted.
IS_STORED = CompiledStatement(
    select(refreshes.c.id).where(
        refreshes.c.id == bindparam("id_"), refreshes.c.outcome != "interrupted"
    )
)
UNANSWERED = CompiledStatement(
    select(refreshes.c.host, refreshes.c.started_at, refreshes.c.outcome, refreshes.c.status_code)
    .where(
        _its,
        refreshes.c.id < bindparam("before"),
        refreshes.c.sent == bindparam("sent"),
        or_(
            refreshes.c.outcome.is_(None),
            refreshes.c.outcome == "interrupted",
            refreshes.c.maybe_spent,
        ),
    )
    .order_by(refreshes.c.id.desc())
    .limit(1)
)

REASON = CompiledStatement(select(refreshes.c.reason).where(refreshes.c.id == bindparam("id_")))
_later = refreshes.alias()
_spent_at = (
    select(refreshes.c.started_at)
    .where(
        refreshes.c.sent == bindparam("sent"),
        or_(refreshes.c.outcome == "refreshed", refreshes.c.outcome == "superseded"),
        refreshes.c.received != refreshes.c.sent,
        # Of a superseded refresh, these tell whether it had succeeded.
        refreshes.c.status_code.is_(None),
        refreshes.c.maybe_spent.is_(False),
        or_(refreshes.c.error.is_(None), refreshes.c.error == LOCK_LOST),
        # A provider may give the same token again.
        ~exists().where(
            _later.c.account_name == refreshes.c.account_name,
            _later.c.id > refreshes.c.id,
            _later.c.received == refreshes.c.sent,
        ),
    )
    .limit(1)
)
SPENT_AT = CompiledStatement(_spent_at)
# Compared inside the database, so that a damaged token can be replaced and deleted too.
_rotates = accounts.c.refresh_token.is_distinct_from(bindparam("refresh_token", type_=Text))
BEFORE_SAVE = CompiledStatement(
    select(
        select(_rotates).where(_this).scalar_subquery(),
        _spent_at.scalar_subquery(),
        exists().where(_of_account),
    )
)

_history = (
    select(*(refreshes.c[name] for name in _entry))
    .where(refreshes.c.id < bindparam("before"))
    .order_by(refreshes.c.id.desc())
    .limit(bindparam("page"))
)

OPEN_REFRESH = CompiledStatement(
    select(*(refreshes.c[name] for name in _entry))
    .where(_its, refreshes.c.outcome.is_(None))
    .order_by(refreshes.c.id.desc())
    .limit(1)
)
PAGE_OF_HISTORY = CompiledStatement(_history)
PAGE_OF_ITS_HISTORY = CompiledStatement(_history.where(_its))

_newest = (
    select(refreshes.c.id)
    .where(_its)
    .order_by(refreshes.c.id.desc())
    .limit(1)
    .offset(HISTORY)
    .scalar_subquery()
)
PRUNE_REFRESHES = CompiledStatement(delete(refreshes).where(_its, refreshes.c.id <= _newest))
FORGET_REFRESH = CompiledStatement(delete(refreshes).where(refreshes.c.id == bindparam("id_")))
FORGET_REFRESHES = CompiledStatement(
    delete(refreshes).where(_its, refreshes.c.outcome.is_not(None))
)
