"""A condition that lets the database leave out payloads that cannot match, before Python compares the others.

It may let too many through, never too few. Databases store and compare JSON in different ways, so only whole numbers
and plain ASCII strings take part; any other value is left to Python.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any
from uuid import UUID

from django.db.models import Model, Q

from ..free_events import FreeEvent
from .payload_fields import split_lookup, typed_field

PLAIN_STRING = re.compile(r"[A-Za-z0-9 _.,:;@/+=#-]{1,200}")
PLAIN_PATH = re.compile(r"[A-Za-z][A-Za-z0-9]*(_?[A-Za-z0-9]+)*(__[A-Za-z][A-Za-z0-9]*(_?[A-Za-z0-9]+)*)*")
MAX_EXACT_NUMBER = 2**53
"""The largest whole number that JSON numbers hold exactly in every database."""


def payload_filter(sources: Sequence[FreeEvent], values: Mapping[str, Any]) -> Q:
    """Return a condition that all payloads of ``sources`` meet that match ``values``."""
    condition = Q()
    for name, value in values.items():
        path, lookup = split_lookup(name)
        if lookup or PLAIN_PATH.fullmatch(path) is None:
            continue
        forms = [_forms(source, path, value) for source in sources]
        if all(forms):
            condition &= Q(**{f"payload__{path}__in": [each for found in forms for each in found]})
    return condition


def _forms(source: FreeEvent, path: str, value: Any) -> list[Any]:
    """Return the JSON values that equal ``value`` in the field ``path``; none: the database cannot tell."""
    typed = typed_field(source.schema, path, value.pk if isinstance(value, Model) else value)
    if isinstance(typed, Enum):
        typed = typed.value
    if isinstance(typed, UUID):
        return [form for text in (str(typed), typed.hex) for form in (text, text.upper())]
    if isinstance(typed, int) and not isinstance(typed, bool) and abs(typed) <= MAX_EXACT_NUMBER:
        return [typed, float(typed), str(typed)]
    return [typed] if isinstance(typed, str) and PLAIN_STRING.fullmatch(typed) else []
