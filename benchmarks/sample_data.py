"""Sample accounts: distinct token sets of 1.4 kB per row."""

from __future__ import annotations

import time
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIFETIME = 86400.0  # seconds; nothing expires during a measurement

_numbers = count()
_ACCESS, _REFRESH = "a" * 1000, "r" * 240
_SCOPE = "openid email profile https://mail.example.com/ https://calendar.example.com/"


def name(number: int) -> str:
    """Return the name of an account."""
    return f"person-{number:07}@example.com"


def names(accounts: int, limit: int = 10) -> list[str]:
    """Return up to *limit* names, spread evenly over a store of *accounts* accounts."""
    return [name(number) for number in range(0, accounts, max(accounts // limit, 1))][:limit]


def tokens(refresh: int = 0) -> dict[str, Any]:
    """Return a token set with a new access token: SQLite does not write an unchanged row.

    Args:
        refresh: The number of the refresh token.
    """
    return {
        "access_token": f"{next(_numbers):012}{_ACCESS}",
        "refresh_token": f"{refresh:012}{_REFRESH}",
        "expires_at": time.time() + LIFETIME,
        "scope": _SCOPE,
        "token_type": "Bearer",
    }


def rotated() -> dict[str, Any]:
    """Return a token set with a new access token and a new refresh token."""
    return tokens(next(_numbers))


def reads(accounts: list[str]) -> Callable[[int], Iterator[tuple[str]]]:
    """Return a function that yields the arguments of reads, cycling through the accounts."""
    return lambda calls: ((accounts[number % len(accounts)],) for number in range(calls))


def writes(
    accounts: list[str], make: Callable[[], dict[str, Any]] = tokens
) -> Callable[[int], Iterator[tuple[str, dict[str, Any]]]]:
    """Return a function that yields the arguments of writes, cycling through the accounts."""
    return lambda calls: ((accounts[number % len(accounts)], make()) for number in range(calls))
