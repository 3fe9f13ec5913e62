"""JSON text that every database stores alike.

PostgreSQL refuses NUL characters, NaN and lone surrogates; SQLite and MariaDB take some of them. One gate before all of
them gives one verdict, and says where in the value the trouble is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from ..conf import conf
from ..exceptions import NotStorableError

MAX_NESTING = 200


def encode(value: Any, what: str) -> str:
    """Return ``value`` as JSON text; ``what`` names it in errors.

    Raises ``NotStorableError`` for NaN and infinities, NUL characters, lone surrogates, objects that JSON has no form
    for, and text larger than ``AUTOMATION["MAX_JSON_BYTES"]``.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text) if text.isascii() else len(text.encode())
    except (ValueError, TypeError, RecursionError) as error:
        raise NotStorableError(f"{what} cannot be stored as JSON: {_trouble(value, str(error))}.") from None
    # How deep json itself goes depends on the version of Python; how deep a database goes, on its stack.
    if ("\\u0000" in text or text.count("[") + text.count("{") > MAX_NESTING) and (trouble := _trouble(value, "")):
        raise NotStorableError(f"{what} cannot be stored as JSON: {trouble}.")
    if size > conf().MAX_JSON_BYTES:
        raise NotStorableError(
            f"{what} is too large to store: {size:,} bytes of JSON, and AUTOMATION['MAX_JSON_BYTES'] is "
            f"{conf().MAX_JSON_BYTES:,}. Keep large data in a model or a file, and its key in here."
        )
    return text


def storable(text: str) -> str:
    """Return ``text`` in a form that every database takes: NUL characters and lone surrogates are spelt out."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def _trouble(value: Any, otherwise: str) -> str:
    return next(_troubles(value, "", 0), otherwise)


def _troubles(value: Any, path: str, depth: int) -> Iterator[str]:
    at = f"at {path!r} " if path else ""
    if depth > MAX_NESTING:
        yield f"{at}it is nested too deeply, or contains itself"
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{at}is {value!r}, a number that JSON does not have (use None)"
    elif isinstance(value, str):
        if "\x00" in value:
            yield f"{at}has a NUL character (remove it, or keep binary data in a BinaryField)"
        elif not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                yield f"{at}has a lone surrogate, which is not text"
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int | float | bool | None):
                yield f"{at}has the key {key!r}, which is not text"
            yield from _troubles(key, f"{path}.{key}" if path else str(key), depth + 1)
            yield from _troubles(item, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _troubles(item, f"{path}[{index}]", depth + 1)
    elif not isinstance(value, int | float | bool | None):
        yield f"{at}is a {type(value).__name__}, which JSON has no form for"
