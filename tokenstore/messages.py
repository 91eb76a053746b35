"""Text for people: printable on any terminal, with commands that a shell takes as they are."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def printable(text: str, keep: str = "") -> str:
    """Return *text* with every character escaped that a terminal obeys or does not show.

    These are the control characters (C0 and C1), those that change the direction of text, line
    separators, and whatever else has no glyph. Text of others may contain them to hide or to
    imitate something.

    Args:
        text: Any text, with lone surrogates, too.
        keep: Characters that are not escaped.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """Return *text*, which may have several lines, as one printable line."""
    return printable(" ".join(line.strip() for line in text.split("\n")))


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return a question with the word that is most similar, None if none is similar."""
    import difflib

    close = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean {close[0]!r}?" if close else None


def shell_command(*words: str) -> str:
    """Return a command for a shell, on one line."""
    return " ".join(map(shell_word, words))


def shell_word(word: str) -> str:
    """Return *word* quoted for a shell: ``'…'``, or ``$'…'`` if it is not printable."""
    if word.isprintable():
        return shlex.quote(word)
    return f"$'{''.join(map(_escaped, word))}'"


def _escaped(character: str) -> str:
    """Return a character between ``$'`` and ``'`` (POSIX.1-2024, and bash, zsh and ksh before)."""
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))
