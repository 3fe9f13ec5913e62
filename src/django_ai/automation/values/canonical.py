"""Canonical strings: values that a database compares as equal have equal strings, whatever their Python types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any


def canonical(value: Any) -> str:
    """Return a string that is equal for values that a database compares as equal, and different otherwise."""
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"bool:{value}"
    if isinstance(value, int | float | Decimal):
        number = Decimal(str(value))
        # Adding zero normalizes -0 to 0.
        return f"number:{number.normalize() + 0:f}" if number.is_finite() else f"number:{number}"
    if isinstance(value, datetime):
        moment = value.astimezone(UTC) if value.tzinfo else value
        return f"datetime:{moment.isoformat()}"
    if isinstance(value, date):
        return f"date:{value.isoformat()}"
    if isinstance(value, list | tuple | Mapping):
        return f"json:{json.dumps(value, sort_keys=True, default=str)}"
    return f"{'text' if isinstance(value, str) else type(value).__name__}:{value}"
