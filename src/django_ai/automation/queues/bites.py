"""Changes of whole tables in bites: short transactions over ranges of primary keys, with progress.

A bite locks a few thousand rows for some milliseconds, however large the table is. Ranges of keys, and not pages of
the rows that match, so that each statement reads its range once: after a million changed rows an index still has
entries of the old values, which each search for the next page would pass.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator

from django.db import models, transaction

from ..db.writer import alias_of

BITE = 2000
"""Keys in one range."""
ROWS_BETWEEN_REPORTS = 100_000

logger = logging.getLogger("django_ai.automation")


def ranges(model: type[models.Model], size: int = BITE, after: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the ranges of the keys of a table, as (above, up to), in their order. Rows that are inserted meanwhile are
    in the last ones."""
    keys = model._base_manager.using(alias_of(model)).order_by("pk").values_list("pk", flat=True)
    while True:
        page = list(keys.filter(pk__gt=after)[:size])
        if not page:
            return
        yield after, page[-1]
        after = page[-1]


def in_bites(
    what: str, model: type[models.Model], change: Callable[[models.QuerySet[models.Model]], int], size: int = BITE
) -> int:
    """Call ``change`` with the rows of each range, each in its own transaction. Return the sum of what it returns.

    ``what``: who changes the rows, for the progress.
    """
    alias, progress, changed = alias_of(model), Progress(what, model), 0
    for above, upto in ranges(model, size):
        with transaction.atomic(using=alias):
            changed += change(model._base_manager.using(alias).filter(pk__gt=above, pk__lte=upto))
        progress.report(upto, changed)
    progress.end(changed)
    return changed


class Progress:
    """Reports how far a long change is: to the log, and to a terminal."""

    def __init__(self, what: str, model: type[models.Model]) -> None:
        self._what, self._label = what, model._meta.label
        self._reported = 0

    def report(self, position: int, changed: int) -> None:
        """Tell that all rows up to the key ``position`` are done, if it was not told recently."""
        if position - self._reported < ROWS_BETWEEN_REPORTS:
            return
        self._reported = position
        self._tell(f"{self._what}: {self._label} up to #{position:,}, {changed:,} rows changed")

    def end(self, changed: int) -> None:
        """Tell what was changed in the whole table, if anything was."""
        if changed:
            self._tell(f"{self._what}: {changed:,} rows of {self._label} changed")

    def _tell(self, text: str) -> None:
        logger.info(text)
        if sys.stderr.isatty():
            sys.stderr.write(f"  {text}\n")
