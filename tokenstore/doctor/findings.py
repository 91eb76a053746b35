"""`Finding`: what one check of the doctor reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check of a store has found. It contains no secret.

    Attributes:
        check: The name of the check, such as ``integrity``.
        severity: ``ok``; ``info``: worth knowing; ``warning``: requires action;
            ``error``: the store is not reliable.
        message: What was found, and where.
        hint: What to do about it, or None.
        accounts: The names of the affected accounts, in order, if it is about accounts.
        fixed: Whether it was fixed.
    """

    check: str
    severity: Severity
    message: str
    hint: str | None = None
    accounts: tuple[str, ...] = ()
    fixed: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it requires action."""
        return self.severity in {"warning", "error"} and not self.fixed


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, such as ``2 accounts``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def ok(check: str, message: str) -> Finding:
    """Return the finding that a check found no problem."""
    return Finding(check, "ok", message)
