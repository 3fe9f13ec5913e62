"""The mailbox: how an execution gets to its agent, and the agent's worker does not miss it.

The two sides never lock each other. Who puts one in commits it first and then lowers the agent's ``wake_at``
(``touch``), which leaves an agent alone that is in a worker's hands. Who finishes commits the end of his lease first
and then looks into the mailbox once more (``touch``, too). Whichever of the two commits last sees the other. If the
process dies in between, the event is told again, or the sweep (``wake_forgotten``) finds what is pending.
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


def execution_of(run_pk: int, event: Event, handler: HandlerDefinition, now: datetime) -> HandlerExecution:
    """Return the unsaved execution of ``handler`` for ``event``; its key is the same however often it is asked for."""
    execution = HandlerExecution(
        run_id=run_pk,
        event=event,
        handler=handler.method,
        milestone=handler.milestone,
        created_at=now,
        due_at=now,
        unique_key=digest("handler", run_pk, event.pk, handler.method, handler.milestone),
    )
    execution.position = handler.position
    return execution


def put(executions: Sequence[HandlerExecution]) -> None:
    """Insert what is not there yet. Call ``touch`` for the agents after this has committed."""
    # In one order, whoever inserts: two who insert the same keys in different orders would wait for each other.
    insert_ignoring(HandlerExecution, sorted(executions, key=lambda each: (each.event_id, each.run_id, each.position)))


def pending_in(run: AgentRun, limit: int) -> list[HandlerExecution]:
    """Return what is pending in the agent's mailbox, the earliest first, due or not."""
    rows = HandlerExecution.objects.filter(run=run, status=HandlerStatus.PENDING).select_related("event")
    return list(rows.order_by("due_at", "pk")[:limit])


def wake_forgotten(now: datetime) -> int:
    """Wake agents whose mailbox nobody told them of, and cancel what came for agents that had ended; say how many."""
    due = HandlerExecution.objects.filter(status=HandlerStatus.PENDING, due_at__lte=now)
    waiting = due.filter(run__status=AgentStatus.ACTIVE, run__lease=None)
    late = waiting.filter(Q(run__wake_at=None) | Q(run__wake_at__gt=F("due_at")))
    forgotten = late.values_list("run", flat=True)
    pks = list(forgotten.distinct()[:10_000])
    touch(pks)
    ended = list(due.filter(run__status__in=FINISHED).values_list("pk", flat=True)[:10_000])
    return len(pks) + cancel_executions(HandlerExecution.objects.filter(pk__in=ended), now)


GIVEN = (HandlerStatus.COMPLETED, HandlerStatus.SKIPPED, HandlerStatus.FAILED)
"""What has become of an event that an agent had; one that was cancelled with its agent was not had."""


def had(singleton: str, events: Collection[int], but: AgentRun) -> set[int]:
    """Return which of ``events`` other lives of a singleton have had, and may have ended with."""
    rows = HandlerExecution.objects.filter(event__in=events, run__singleton=singleton, status__in=GIVEN)
    return set(rows.exclude(run=but.pk).values_list("event", flat=True))
