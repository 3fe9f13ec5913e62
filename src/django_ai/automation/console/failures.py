"""Reads the traceback that a row keeps: which frames are code of the project, and which of libraries.

The rows keep tracebacks as text, so this reads text. What it does not recognise stays in the text.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ..values.text import last_line
from .story import Failure, Frame

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>.+)$')
_PACKAGE = str(Path(__file__).resolve().parents[1])
_LIBRARIES = tuple(
    {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {_PACKAGE}
)
MAX_TEXT = 20_000
"""How many characters of an error a page shows: an exception may quote a whole response."""


def failure_of(text: str) -> Failure | None:
    """Return the error of a row, or None if it has none."""
    if not text.strip():
        return None
    shown = text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT // 2]}\n…\n{text[-MAX_TEXT // 2 :]}"
    return Failure(last_line(text), list(_frames(shown)), shown)


def _frames(text: str) -> Iterator[Frame]:
    lines = text.splitlines()
    for number, line in enumerate(lines):
        found = _FRAME.match(line)
        if found is None:
            continue
        following = lines[number + 1].strip() if number + 1 < len(lines) else ""
        code = "" if _FRAME.match(following) or not lines[number + 1 : number + 2] else following
        file = found["file"]
        is_library = file.startswith(("<", *_LIBRARIES)) or "site-packages" in file
        yield Frame(f"{_short(file)}:{found['line']} {found['name']}", code, is_library)


def _short(file: str) -> str:
    """Return the last three parts of a path."""
    parts = Path(file).parts
    return str(Path(*parts[-3:])) if len(parts) > 3 else file
