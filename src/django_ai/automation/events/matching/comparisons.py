"""The lookups that Python compares, where no row of the project's tables is asked: snapshots and payloads."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "in": lambda one, others: one in others,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "isnull": lambda one, wanted: (one is None) is bool(wanted),
}
