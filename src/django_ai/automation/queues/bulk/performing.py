"""A worker's path for one bulk action: a bite of its rows, in one transaction with its own progress.

A bulk action is due work like any other: ``drain`` claims it, and after each bite it is due again at once. So other
work that is due comes between two bites, and another worker may take the next one. The rows of a bite, their histories
and the new position of the bulk action commit together. So a worker that dies leaves a bite done or not begun; a worker
that has lost its lease, or whose bulk action was cancelled meanwhile, has its ``advance`` refused, and its bite is
rolled back.

A row that raises an error does not stop the others: the bite is repeated with a savepoint for each row.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from django.db import connections, transaction

from ...conf import conf
from ...db.connections import close_if_broken
from ...db.deadlocks import retry_on_deadlock
from ...db.errors import is_database_failure
from ...db.writer import alias_of
from ...exceptions import AutomationError, DefinitionError, LeaseLostError
from ...values.clock import Clock
from ...values.text import one_line
from ..acting import Actor, acting_as
from ..advance import advance
from ..held_leases import keep_lease_for
from ..history import together
from ..models import BulkAction, BulkStatus
from ..parking import awaits_code
from .filters import has_problem, rows_of, with_end_of_error
from .verbs import BulkKind, BulkVerb, find_kind, find_verb

logger = logging.getLogger("django_ai.automation")

ROWS_PER_BITE = 100
SECONDS_PER_BITE = 0.3
"""A bite ends after this time, or after ``ROWS_PER_BITE`` rows: other work waits for its end, and for its locks."""
ERRORS_PER_BITE = 1000
"""How many errors a bite reads to find rows that have a problem."""
MAX_EXAMPLES = 20


@dataclass(slots=True)
class Bite:
    """What happened to the rows of a bite. ``position``: the key up to which all rows are done; None: all of them."""

    position: int | None
    done: int = 0
    refused: int = 0
    failed: int = 0
    awaiting_code: int = 0


def perform_bulk(row: BulkAction, clock: Clock) -> None:
    """Do the next bite. Parks the bulk action if this code lacks its verb. Raises ``LeaseLostError`` and database
    failures."""
    try:
        kind = find_kind(row.row_kind)
        verb = find_verb(kind, row.verb)
    except DefinitionError as error:
        row.park(f"{row}: {error}", clock, awaiting_deploy=True)
        return
    keep_lease_for(conf().STEP_TIMEOUT)
    before, alias = dict(row.__dict__), alias_of(BulkAction)

    def bite(*, careful: bool) -> None:
        row.__dict__.update(before)  # one that was rolled back has changed the row in memory
        with transaction.atomic(using=alias), acting_as(_actor_of(row), row.reason), together():
            _do(row, kind, verb, clock(), careful=careful)

    try:
        retry_on_deadlock(alias, partial(bite, careful=False))
    except LeaseLostError:
        raise
    except Exception as error:
        if is_database_failure(error, connections[alias]):
            raise
        close_if_broken(connections[alias])
        retry_on_deadlock(alias, partial(bite, careful=True))


def _actor_of(row: BulkAction) -> Actor | None:
    return Actor(row.actor, row.actor_name or row.actor, row.reason) if row.actor else None


def _do(row: BulkAction, kind: BulkKind, verb: BulkVerb, now: datetime, *, careful: bool) -> None:
    """Do one bite in the open transaction, and write how far it came."""
    until = time.monotonic() + SECONDS_PER_BITE
    rows, position = _next_rows(row, kind, verb)
    bite, examples = Bite(position), list[dict[str, Any]]()
    if verb.act_together is not None and not careful:
        together_done = verb.act_together(rows, row.reason)
        bite.done += len(together_done)
        rows = [each for each in rows if each.pk not in together_done]
    for number, each in enumerate(rows, 1):
        awaited = not verb.is_final and awaits_code(each)
        try:
            refusal = _act_on(each, row, verb, careful=careful)
        except RowError as error:
            bite.failed += 1
            examples.append(_example(each, str(error), failed=True))
        else:
            if refusal:
                bite.refused += 1
                examples.append(_example(each, refusal, failed=False))
            else:
                bite.done += 1
                bite.awaiting_code += awaited
        if number < len(rows) and time.monotonic() >= until:
            bite.position = each.pk
            break
    is_over = bite.position is None
    changes: dict[str, Any] = {
        "status": BulkStatus.COMPLETED if is_over else BulkStatus.RUNNING,
        "position": row.last_pk if is_over else bite.position,
        "done": row.done + bite.done,
        "refused": row.refused + bite.refused,
        "failed": row.failed + bite.failed,
        "awaiting_code": row.awaiting_code + bite.awaiting_code,
        "examples": [*row.examples, *examples][:MAX_EXAMPLES],
        "started_at": row.started_at or now,
        "finished_at": now if is_over else None,
        "parked_at": None,
        "error": "",
        "lease": None,
        "wake_at": None if is_over else now,
    }
    advance(row, changes)


class RowError(Exception):
    """The last line of the error that a row has raised."""


def _act_on(row: Any, bulk: BulkAction, verb: BulkVerb, *, careful: bool) -> str:
    """Do the verb to one row. Return why it was refused, or an empty string.

    ``careful``: within a savepoint, so that an error of this row does not undo the others. Raises ``RowError`` then.
    """
    alias = alias_of(BulkAction)
    try:
        if not careful:
            return "" if verb.act(row, bulk.reason) is not False else verb.refusal
        with transaction.atomic(using=alias):
            return "" if verb.act(row, bulk.reason) is not False else verb.refusal
    except LeaseLostError:
        raise
    except AutomationError as error:
        return str(error)
    except Exception as error:
        if not careful or is_database_failure(error, connections[alias]):
            raise
        logger.exception("%s could not %s %s; it continues with the other rows.", bulk, bulk.verb, row)
        raise RowError(f"{type(error).__name__}: {error}") from error


def _example(row: Any, why: str, *, failed: bool) -> dict[str, Any]:
    return {"key": row.pk, "row": one_line(row)[:200], "why": one_line(why)[:500], "failed": failed}


def _next_rows(row: BulkAction, kind: BulkKind, verb: BulkVerb) -> tuple[Sequence[Any], int | None]:
    """Return the rows of the next bite, and the position after them; None: there are no more."""
    matching = rows_of(kind, row.filter).filter(verb.applies(), pk__lte=row.last_pk)
    if row.position is not None:
        matching = matching.filter(pk__gt=row.position)
    problem = row.filter.get("problem")
    if problem is None:
        rows = list(matching.order_by("pk")[:ROWS_PER_BITE])
        return rows, rows[-1].pk if len(rows) == ROWS_PER_BITE else None
    read = list(with_end_of_error(matching)[:ERRORS_PER_BITE])
    pks = [pk for pk, end in read if has_problem(problem, end)]
    position = read[-1][0] if len(read) == ERRORS_PER_BITE else None
    if len(pks) > ROWS_PER_BITE:
        pks = pks[:ROWS_PER_BITE]
        position = pks[-1]
    return list(matching.filter(pk__in=pks).order_by("pk")), position
