"""Strings for display: the line of an error that names its cause, and lines that are safe to print.

An error, an entity's key or a name may contain anything, including control characters that clear a terminal or forge a
line of a log file. Everything that is printed or logged passes through ``one_line`` first.
"""

from __future__ import annotations

import traceback
import unicodedata

from .json_text import storable

MAX_LINE_LENGTH = 2_000
MAX_TRACE_LENGTH = 20_000
PYDANTIC_ERROR_URL = "For further information visit https://errors.pydantic.dev/"


def last_line(error: str) -> str:
    """Return the line of a traceback or reason that names the cause, safe to print.

    For Pydantic's errors that is the last field with its problem, not the URL of the documentation.
    """
    lines = [line for line in error.strip().splitlines() if not line.strip().startswith(PYDANTIC_ERROR_URL)]
    if not lines:
        return ""
    last = lines[-1]
    if last.startswith("  ") and len(lines) > 1 and "[type=" in last:
        last = f"{lines[-2].strip()}: {last.strip()}"
    return one_line(last)


def one_line(text: object) -> str:
    """Return ``text`` on one line, at most ``MAX_LINE_LENGTH`` characters, with control characters as escapes."""
    line = str(text)
    if len(line) > MAX_LINE_LENGTH:
        line = f"{line[: MAX_LINE_LENGTH - 1]}…"
    return printable(line)


def printable(line: str) -> str:
    """Return a line of any length with control characters as escapes."""
    return line if line.isprintable() else "".join(map(_printable, line))


def _printable(character: str) -> str:
    if character == "\t" or character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()


def trace_of(error: BaseException) -> str:
    """Return the traceback of ``error`` in a form that every database accepts, at most its last
    ``MAX_TRACE_LENGTH`` characters."""
    text = "".join(traceback.format_exception(error))
    return storable(text[-MAX_TRACE_LENGTH:])
