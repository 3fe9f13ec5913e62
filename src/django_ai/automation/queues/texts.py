"""Texts for people: the line of an error that says what happened, and lines that are safe to print.

An error, an entity's key or a name may hold anything, also what makes a terminal clear its screen or a log file show a
line that nobody wrote. What is printed or logged goes through ``one_line`` first.
"""

from __future__ import annotations

import unicodedata

LONGEST_LINE = 2_000


def last_line(error: str) -> str:
    """Return the end of a traceback or reason: the line that says what happened, safe to print."""
    lines = error.strip().splitlines()
    return one_line(lines[-1]) if lines else ""


def one_line(text: object) -> str:
    """Return ``text`` on one line, at most ``LONGEST_LINE`` characters, with control characters as escapes."""
    line = str(text)
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE - 1]}…"
    return line if line.isprintable() else "".join(map(_printable, line))


def _printable(character: str) -> str:
    if character == "\t" or character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()
