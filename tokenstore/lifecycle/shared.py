"""Notices that one refresh token is saved under two names.

The first of the two accounts that is refreshed may end the login of the other.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenstore.storage.repository import TokenRepository

_REMEMBERED = 10_000
# The names of accounts, by database and hash of the refresh token.
_saved_as: dict[tuple[str, int], str] = {}

_log = logging.getLogger(__name__)


def warn_of_shared_token(
    repository: TokenRepository, account_name: str, refresh_token: str
) -> None:
    """Warn if this process has saved the token under another name, and it is still there.

    Of what other processes have saved, the doctor tells: no index may contain a token.
    """
    key = repository.name, hash(refresh_token)
    other = _saved_as.get(key)
    _saved_as[key] = account_name
    while len(_saved_as) > _REMEMBERED:
        _saved_as.pop(next(iter(_saved_as)), None)
    if other is None or other == account_name:
        return
    record = repository.record(other)
    if record is not None and record.tokens.refresh_token == refresh_token:
        _log.warning(
            "%s has the same refresh token as %s: the first of them that is refreshed may end the "
            "other's login; delete one of them, or sign in to it again",
            account_name,
            other,
        )
