"""What the doctor tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look at a store has found. No secret is in it.

    Attributes:
        check: What was looked at, such as ``integrity``.
        severity: ``ok``; ``info``: worth knowing; ``warning``: something is to be done;
            ``error``: the store cannot be relied on.
        message: What was found, and of what.
        cure: What to do about it, or None.
        accounts: The accounts that it is about, in order, if it is about accounts.
        fixed: Whether it was put right.
    """

    check: str
    severity: Severity
    message: str
    cure: str | None = None
    accounts: tuple[str, ...] = ()
    fixed: bool = False

    @property
    def is_open(self) -> bool:
        """Whether somebody has to do something."""
        return self.severity in {"warning", "error"} and not self.fixed


def counted(number: int, noun: str, nouns: str | None = None) -> str:
    """Return how many there are of something, in words."""
    return f"{number} {noun if number == 1 else nouns or noun + 's'}"


def ok(check: str, message: str) -> Finding:
    """Return that a look has found nothing to be done."""
    return Finding(check, "ok", message)
