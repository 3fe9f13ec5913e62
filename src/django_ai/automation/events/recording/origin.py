"""``Origin``: which transaction has made a captured write, and what the entity was before that transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from ..changes import Values
from ..declarations import Declared


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a captured write comes from.

    ``transaction``: the number of the transaction that has made it; None: the open one. ``written_at``: by the clock
    of the database. ``values_before``: returns the values that an event compares, as they were before the transaction;
    None: the row did not exist.
    """

    transaction: int | None
    written_at: datetime
    values_before: Callable[[Declared], Values | None]
