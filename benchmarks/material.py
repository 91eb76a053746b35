"""Made-up accounts: token sets of which a row takes 1.4 kB, no two alike."""

from __future__ import annotations

import time
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIFETIME = 86400.0  # seconds; nothing expires while it is measured

_numbers = count()
_ACCESS, _REFRESH = "a" * 1000, "r" * 240
_SCOPE = "openid email profile https://mail.example.com/ https://calendar.example.com/"


def name(number: int) -> str:
    """Return the name of an account."""
    return f"person-{number:07}@example.com"


def names(accounts: int, most: int = 10) -> list[str]:
    """Return a few names, spread over a store of so many accounts."""
    return [name(number) for number in range(0, accounts, max(accounts // most, 1))][:most]


def tokens(refresh: int = 0) -> dict[str, Any]:
    """Return tokens whose access token is new; SQLite writes nothing when a row stays the same.

    Args:
        refresh: Which refresh token it is.
    """
    return {
        "access_token": f"{next(_numbers):012}{_ACCESS}",
        "refresh_token": f"{refresh:012}{_REFRESH}",
        "expires_at": time.time() + LIFETIME,
        "scope": _SCOPE,
        "token_type": "Bearer",
    }


def rotated() -> dict[str, Any]:
    """Return tokens of which the refresh token is new as well."""
    return tokens(next(_numbers))


def reads(accounts: list[str]) -> Callable[[int], Iterator[tuple[str]]]:
    """Return what makes the arguments of reads of these accounts, in turn."""
    return lambda many: ((accounts[number % len(accounts)],) for number in range(many))


def writes(
    accounts: list[str], make: Callable[[], dict[str, Any]] = tokens
) -> Callable[[int], Iterator[tuple[str, dict[str, Any]]]]:
    """Return what makes the arguments of writes to these accounts, in turn."""
    return lambda many: ((accounts[number % len(accounts)], make()) for number in range(many))
