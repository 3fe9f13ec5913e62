"""Names that a command is given: what is known, and what was probably meant."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from .output import Usage

MAX_LISTED_NAMES = 20


def hint(given: str, known: Collection[str]) -> str:
    """Return "Did you mean ...?", or what is known."""
    near = get_close_matches(given, known, n=1) or get_close_matches(given.lower(), known, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    listed = sorted(known)
    more = f" and {len(listed) - MAX_LISTED_NAMES} more" if len(listed) > MAX_LISTED_NAMES else ""
    return f"Known: {', '.join(map(repr, listed[:MAX_LISTED_NAMES])) or 'none'}{more}."


def check_name(given: str, known: Collection[str], what: str) -> str:
    """Return ``given``. Raises ``Usage`` unless it is known; ``what``: "workflow"."""
    if given not in known:
        raise Usage(f"There is no {what} {given!r}. {hint(given, known)}")
    return given


def moment(text: str | None, option: str) -> datetime | None:
    """Return the moment that an option names as an ISO date, in the current time zone if it has none."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Usage(f"{option} {text!r} is not an ISO date. Write 2030-01-07 or 2030-01-07T12:00+01:00.") from None
    return timezone.make_aware(found) if timezone.is_naive(found) else found


def add_fields(parser: CommandParser, option: str, what: str) -> None:
    """Add the options that give fields of a Context or payload."""
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help=f"fields of the {what}; a value is JSON or a string",
    )
    parser.add_argument(option, metavar="JSON", help=f"fields of the {what} as a JSON object")


def fields_of(text: str | None, pairs: Sequence[str], option: str) -> dict[str, Any]:
    """Return the fields that are given as a JSON object, and as ``NAME=VALUE``.

    A value of a pair is JSON if it can be read as such, else a string: ``guests=2``, ``name=Ada``, ``code='"12"'``.
    """
    found = {} if text is None else _object(text, option)
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise Usage(f"{pair!r}: write NAME=VALUE.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _object(text: str, option: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Usage(f"{option} is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise Usage(f"{option} must be a JSON object in braces, as in '{{\"approved\": true}}'.")
    return found
