"""Freeze the newest revision: ``python -m tests.frozen.freeze`` writes its .db and its .json file.

Run it once, when a revision is released; what it wrote never changes after that. The JSON file is
what the database answered on that day, and what every later tokenstore has to answer for it.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.helpers.stores import becomes
from tokenstore import TokenRepository
from tokenstore.lifecycle.targets import further_token, refresh_token_only
from tokenstore.models.failures import Failure
from tokenstore.models.targets import Target
from tokenstore.models.tokens import TokenSet
from tokenstore.oauth.client import TokenResponse
from tokenstore.storage.tables import REVISION

HERE = Path(__file__).parent
NOW = 1_800_000_000.0
MAIL = Target(scopes=("mail", "read"))
API = Target(resources=("https://api.example.com",))


def fill(repository: TokenRepository) -> None:
    """Store an account of every kind that there is."""
    repository.save("never refreshed", _tokens(1), provider="google")
    repository.save("nur access/ü", {"access_token": "access-2", "expires_at": NOW - 1})
    repository.save("refreshed", _tokens(3), provider="google")
    repository.save("dead", _tokens(4), provider="microsoft")
    repository.save("interrupted", _tokens(5), provider="google")
    repository.save("waiting", _tokens(6), provider="google")
    _refresh(repository, "refreshed", TokenSet.from_mapping(_tokens(33), now=NOW))
    failure = Failure(
        kind="reauthorization",
        message="dead: refused",
        client="client",
        status_code=400,
        error="invalid_grant",
    )
    _refresh(repository, "dead", failure)
    _refresh(repository, "interrupted", None)
    _refresh(
        repository,
        "waiting",
        Failure(kind="transient", message="waiting", client="client", retry_at=NOW + 60),
    )
    _refresh(repository, "refreshed", TokenSet.from_mapping(_tokens(34), now=NOW), MAIL)
    refused = Failure(
        kind="client_rejected", message="refused", client="client", error="invalid_target"
    )
    _refresh(repository, "refreshed", refused, API)


def answers(repository: TokenRepository) -> dict[str, Any]:
    """Return all that a repository tells of its accounts, as JSON can hold it."""
    return {
        "accounts": [asdict(account) for account in repository.accounts()],
        "tokens": {
            account.name: repository.load(account.name) for account in repository.accounts()
        },
        "history": [
            {k: v for k, v in asdict(entry).items() if k not in {"host", "pid"}}
            for entry in repository.journal.history()
        ],
        "further": {
            account.name: [asdict(token) for token in repository.further.of(account.name)]
            for account in repository.accounts()
        },
    }


def _tokens(number: int) -> dict[str, Any]:
    return {
        "access_token": f"access-{number}",
        "refresh_token": f"refresh-{number}",
        "expires_at": NOW + 3600,
        "refresh_token_expires_in": 86400 * number,
        "scope": "mail ☺",
        "nested": {"list": [1, 2.5, None, True]},
    }


def _refresh(
    repository: TokenRepository,
    name: str,
    outcome: TokenSet | Failure | None,
    target: Target | None = None,
) -> None:
    record = repository.record(name)
    assert record is not None
    refresh = repository.journal.begin(
        record, provider="google", reason="due", longest=60.0, target=target
    )
    if outcome is None:
        return
    given: Any = becomes(outcome) if isinstance(outcome, TokenSet) else outcome
    further = None
    if target is not None and isinstance(outcome, TokenSet):
        given = refresh_token_only(given)
        response = TokenResponse({"token_type": "Bearer"})
        further = further_token(target, response, outcome, refreshed_at=NOW, id_=refresh.id)
    repository.journal.finish(refresh, given, provider="google", further=further)


if __name__ == "__main__":
    target = HERE / f"{REVISION}.db"
    if target.exists():
        sys.exit(f"{target.name} is frozen already")
    with TokenRepository(target, journal_mode="delete", clock=lambda: NOW) as repository:
        fill(repository)
        told = json.dumps(answers(repository), indent=1, ensure_ascii=False)
    with closing(sqlite3.connect(target, isolation_level=None)) as connection:
        connection.execute("UPDATE refreshes SET host = 'host', pid = 1")
        connection.execute("VACUUM")
    (HERE / f"{REVISION}.json").write_text(f"{told}\n", "utf-8")
