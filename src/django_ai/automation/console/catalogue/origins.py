"""Where a declaration is in the source, and the first paragraph of its docstring."""

from __future__ import annotations

import inspect
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from django.conf import settings


def first_paragraph(declared: Any) -> str:
    """Return the first paragraph of the docstring of a class or function, in one line. Docstrings of bases are not
    those of a class."""
    text = inspect.cleandoc(getattr(declared, "__doc__", None) or "")
    return " ".join(text.split("\n\n")[0].split())


@lru_cache(maxsize=2048)
def origin_of(declared: Any) -> str:
    """Return the file and the line of a class or function, as ``file:line``; empty if it has none, as in a shell."""
    try:
        found = inspect.unwrap(declared) if callable(declared) and not isinstance(declared, type) else declared
        path = inspect.getsourcefile(found)
        _, line = inspect.getsourcelines(found)
    except (OSError, TypeError):
        return ""
    return "" if path is None else f"{_short(path)}:{line}"


@lru_cache(maxsize=2048)
def origin_of_name(model: type, name: str) -> str:
    """Return where the source of a model names an event; where it does not, where the model begins."""
    start = origin_of(model)
    try:
        lines, first = inspect.getsourcelines(model)
    except (OSError, TypeError):
        return start
    quoted = (f'"{name}"', f"'{name}'")
    line = next((at for at, text in enumerate(lines, first) if any(each in text for each in quoted)), first)
    return f"{start.rpartition(':')[0]}:{line}"


def origin_of_module(module_name: str, name: str) -> str:
    """Return where a module names an event; empty if it does not."""
    path = getattr(sys.modules.get(module_name), "__file__", None)
    return "" if path is None else _origin_in_file(path, name)


@lru_cache(maxsize=2048)
def _origin_in_file(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    quoted = (f'"{name}"', f"'{name}'")
    line = next((at for at, text in enumerate(lines, 1) if any(each in text for each in quoted)), 1)
    return f"{_short(path)}:{line}"


def _short(path: str) -> str:
    """Return a path without the folder of the project or of the installed packages."""
    base = getattr(settings, "BASE_DIR", None)
    roots = [str(base)] if base else []
    roots += sorted((each for each in sys.path if each), key=len, reverse=True)
    found = Path(path).resolve()
    for root in roots:
        resolved = Path(root).resolve()
        if resolved != resolved.parent and found.is_relative_to(resolved):
            return found.relative_to(resolved).as_posix()
    return found.as_posix()
