"""Texts for people: the line of an error that says what happened, and lines that are safe to print.

An error, an entity's key or a name may hold anything, also what makes a terminal clear its screen or a log file show a
line that nobody wrote. What is printed or logged goes through ``one_line`` first.
"""

from __future__ import annotations

import traceback
import unicodedata

from .json_text import storable

LONGEST_LINE = 2_000
PYDANTICS_PAGE = "For further information visit https://errors.pydantic.dev/"


def last_line(error: str) -> str:
    """Return the end of a traceback or reason: the line that says what happened, safe to print.

    Of Pydantic's errors that is the last field with what is wrong with it, and not the address of a page about it.
    """
    lines = [line for line in error.strip().splitlines() if not line.strip().startswith(PYDANTICS_PAGE)]
    if not lines:
        return ""
    last = lines[-1]
    if last.startswith("  ") and len(lines) > 1 and "[type=" in last:
        last = f"{lines[-2].strip()}: {last.strip()}"
    return one_line(last)


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


def trace_of(error: BaseException) -> str:
    """Return the traceback of ``error`` as text that every database takes, at most 20,000 characters of its end."""
    text = "".join(traceback.format_exception(error))
    return storable(text[-20_000:])
