"""Text for people, and commands in it."""

from __future__ import annotations

import subprocess

import pytest

from tokenstore.messages import one_line, printable, shell_command, shell_word

HOSTILE = "\x1b]0;owned\x07\x9b2J\u202e\u2066\u2028\x7f\r\n\t\x00\udc9b"


def test_what_a_terminal_obeys_is_escaped() -> None:
    shown = printable(HOSTILE)

    assert shown.isprintable()
    assert shown == r"\x1b]0;owned\x07\x9b2J\u202e\u2066\u2028\x7f\r\n\t\x00\udc9b"


@pytest.mark.parametrize("text", ["", "two  spaces", "Jürgen 日本 🙂", r"C:\x1b", "a'b\"c"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text
    assert one_line(text) == text


def test_layout_is_kept_if_it_is_the_callers() -> None:
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


def test_several_lines_become_one() -> None:
    assert one_line("Usage: x\n  that is  wrong\r\n\x1b") == r"Usage: x that is  wrong \x1b"


@pytest.mark.parametrize(
    "word", ["plain", "two  spaces", "it's", "$(date)", "a\nb", "\x1b'\\", "é\u202e1", "--x", ""]
)
def test_a_shell_understands_every_word(word: str) -> None:
    quoted = shell_word(word)
    command = shell_command("printf", "%s", word)

    assert quoted.isprintable()
    ran = subprocess.run(["bash", "-c", command], capture_output=True, check=True)
    assert ran.stdout.decode() == word


def test_a_name_that_is_not_utf_8_is_the_same_name_for_a_shell() -> None:
    ran = subprocess.run(
        ["bash", "-c", f"printf %s {shell_word(chr(0xDCFF))}"], capture_output=True, check=True
    )

    assert ran.stdout == b"\xff"
