"""The mailbox: how an execution reaches its agent, and why the agent's worker does not miss it.

The two sides never lock each other. Delivery commits the execution first and then lowers the agent's ``wake_at``
(``touch``), which changes no leased agent. A worker that finishes commits the end of its lease first and then looks
into the mailbox again (``touch``, too). Whichever commits last sees the other. If the process dies in between, the
event is delivered again, or maintenance (``wake_forgotten``) finds the pending execution.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from django.db.models import F, Q

from ..db.inserts import insert_ignoring
from ..events.models import Event
from ..values.digests import digest
from .definitions import HandlerDefinition
from .ending import cancel_executions
from .models import FINISHED, AgentRun, AgentStatus, HandlerExecution, HandlerStatus, touch

HANDLED = (HandlerStatus.COMPLETED, HandlerStatus.SKIPPED, HandlerStatus.FAILED)
"""Statuses of an execution whose event counts as handled. An event that was cancelled with its agent does not."""

MAX_REPAIRED_ROWS = 10_000
"""Agents, and executions, that one reconciliation wakes or cancels at most."""


def execution_of(run_pk: int, event: Event, handler: HandlerDefinition, now: datetime) -> HandlerExecution:
    """Return the unsaved execution of ``handler`` for ``event``; its key is the same for every call."""
    execution = HandlerExecution(
        run_id=run_pk,
        event=event,
        handler=handler.method,
        milestone=handler.milestone,
        created_at=now,
        due_at=now,
        unique_key=execution_key(run_pk, event.pk, handler.method, handler.milestone),
    )
    execution.position = handler.position
    return execution


def execution_key(run_pk: int, event_pk: int, method: str, milestone: str) -> str:
    """Return the key of the one execution of a handler for a milestone of an event."""
    return digest("handler", run_pk, event_pk, method, milestone)


def put_in_mailbox(executions: Sequence[HandlerExecution]) -> None:
    """Insert the executions that do not exist yet. Call ``touch`` for their agents after this has committed."""
    # Always in the same order: two processes that insert the same keys in different orders would deadlock.
    insert_ignoring(HandlerExecution, sorted(executions, key=lambda each: (each.event_id, each.run_id, each.position)))


def pending_in(run: AgentRun, limit: int) -> list[HandlerExecution]:
    """Return the pending executions of the agent's mailbox, the earliest first, due or not."""
    rows = HandlerExecution.objects.filter(run=run, status=HandlerStatus.PENDING).select_related("event")
    return list(rows.order_by("due_at", "pk")[:limit])


def wake_forgotten(now: datetime) -> int:
    """Wake agents that miss due executions in their mailbox, and cancel executions of ended agents; return how many."""
    due = HandlerExecution.objects.filter(status=HandlerStatus.PENDING, due_at__lte=now)
    waiting = due.filter(run__status=AgentStatus.ACTIVE, run__lease=None)
    late = waiting.filter(Q(run__wake_at=None) | Q(run__wake_at__gt=F("due_at")))
    forgotten = late.values_list("run", flat=True)
    pks = list(forgotten.distinct()[:MAX_REPAIRED_ROWS])
    touch(pks)
    ended = list(due.filter(run__status__in=FINISHED).values_list("pk", flat=True)[:MAX_REPAIRED_ROWS])
    return len(pks) + cancel_executions(HandlerExecution.objects.filter(pk__in=ended), now)


def handled_elsewhere(singleton: str, events: Collection[int], run: AgentRun) -> set[int]:
    """Return which of ``events`` were handled by agents with the same singleton key other than ``run``."""
    rows = HandlerExecution.objects.filter(event__in=events, run__singleton=singleton, status__in=HANDLED)
    return set(rows.exclude(run=run.pk).values_list("event", flat=True))
