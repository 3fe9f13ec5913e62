"""JSON text that every database stores in the same way.

PostgreSQL refuses NUL characters, NaN and lone surrogates; SQLite and MariaDB accept some of them. ``encode`` refuses
them for every database, and its error names the place in the value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import date, datetime, time
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder

from ..conf import conf
from ..exceptions import NotStorableError

MAX_NESTING = 200


class MicrosecondEncoder(DjangoJSONEncoder):
    """Keep microseconds, which Django's encoder cuts to milliseconds."""

    def default(self, o: Any) -> Any:
        return o.isoformat() if isinstance(o, datetime | time) else super().default(o)


def encode(value: Any, what: str) -> str:
    """Return ``value`` as JSON text; ``what`` names it in errors.

    Raises ``NotStorableError`` for NaN and infinities, NUL characters, lone surrogates, objects that are not JSON
    serializable, and text larger than ``AUTOMATION["MAX_JSON_BYTES"]``.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text) if text.isascii() else len(text.encode())
    except (ValueError, TypeError, RecursionError) as error:
        raise NotStorableError(f"{what} cannot be stored as JSON: {_first_problem(value, str(error))}.") from None
    # The nesting limit of ``json`` depends on the Python version, that of a database on its stack size.
    if ("\\u0000" in text or text.count("[") + text.count("{") > MAX_NESTING) and (
        problem := _first_problem(value, "")
    ):
        raise NotStorableError(f"{what} cannot be stored as JSON: {problem}.")
    if size > conf().MAX_JSON_BYTES:
        raise NotStorableError(
            f"{what} is too large to store: {size:,} bytes of JSON, and AUTOMATION['MAX_JSON_BYTES'] is "
            f"{conf().MAX_JSON_BYTES:,}. Store large data in a model or a file, and only its key here."
        )
    return text


def storable(text: str) -> str:
    """Return ``text`` in a form that every database accepts: NUL characters and lone surrogates are escaped."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def _first_problem(value: Any, otherwise: str) -> str:
    return next(_problems(value, "", 0), otherwise)


def _problems(value: Any, path: str, depth: int) -> Iterator[str]:
    at = f"at {path!r} " if path else ""
    if depth > MAX_NESTING:
        yield f"{at}it is nested too deeply, or contains itself"
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{at}is {value!r}, a number that JSON does not support (use None)"
    elif isinstance(value, str):
        if "\x00" in value:
            yield f"{at}has a NUL character (remove it, or store binary data in a BinaryField)"
        elif not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                yield f"{at}has a lone surrogate, which is not valid Unicode"
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int | float | bool | None):
                yield f"{at}has the key {key!r}, which is not a string"
            yield from _problems(key, f"{path}.{key}" if path else str(key), depth + 1)
            yield from _problems(item, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _problems(item, f"{path}[{index}]", depth + 1)
    elif not isinstance(value, int | float | bool | None):
        fix = "its isoformat()" if isinstance(value, date | time) else "a string, number, list or dict"
        yield f"{at}is of the type {type(value).__name__}, which is not JSON serializable (store {fix})"
