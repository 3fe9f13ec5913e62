"""How agents end: completed or cancelled from outside. Their pending executions are cancelled with them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from django.db import transaction
from django.db.models import F, QuerySet, Value
from django.db.models.functions import Concat

from ..db.locks import locked
from ..db.writer import alias_of
from ..events.claims import release_all
from ..queues.causation import end_own_run
from ..queues.lease import revoke
from ..queues.limits.release import release_from_outside
from ..values.json_text import storable
from .definitions import any_limits
from .models import HANDLER, AgentRoute, AgentRun, AgentStatus, HandlerExecution, HandlerStatus

KIND = "agent"
UNFINISHED = (HandlerStatus.PENDING, HandlerStatus.WAITING)
"""Statuses of executions that are cancelled with their agent, besides parked ones."""


def end_agents(runs: Iterable[AgentRun], status: AgentStatus, reason: str, now: datetime) -> int:
    """End ``runs`` in one transaction; return how many ended.

    A worker that leases one of them has its write refused. An agent that ends itself within its own handler ends with
    that handler's commit.
    """
    ended, reason = 0, storable(reason)
    with transaction.atomic(using=alias_of(AgentRun)):
        for run in runs:
            if end_own_run(KIND, run.pk, status, reason):
                ended += 1
                continue
            changed = revoke(
                AgentRun.objects.unfinished().filter(pk=run.pk),
                status=status,
                error=reason,
                finished_at=now,
                wake_at=None,
            )
            if changed:
                ended += 1
                clear_up(run.pk, now, leased_until=run.wake_at if run.lease else None)
    return ended


def clear_up(run_pk: int, now: datetime, leased_until: datetime | None = None) -> None:
    """Delete the routes and claims of an agent that has ended, and cancel its unfinished executions.

    ``leased_until``: the end of the lease of the worker that is executing a handler, whose code may still run.
    """
    AgentRoute.objects.filter(run=run_pk).delete()
    release_all(KIND, run_pk)
    cancel_executions(HandlerExecution.objects.filter(run=run_pk), now, leased_until)


def cancel_executions(
    executions: QuerySet[HandlerExecution, HandlerExecution], now: datetime, leased_until: datetime | None = None
) -> int:
    """Cancel unfinished executions whose agents have ended; return how many.

    Parked ones, too: an execution of an ended agent cannot be resumed.
    """
    if not any_limits():
        return _cancel(executions, now)
    with transaction.atomic(using=alias_of(HandlerExecution)):
        pks = list(locked(executions.filter(status__in=UNFINISHED)).values_list("pk", flat=True))
        release_from_outside(HANDLER, pks, now, leased_until=leased_until)
        return _cancel(executions, now)


def _cancel(executions: QuerySet[HandlerExecution, HandlerExecution], now: datetime) -> int:
    unfinished = executions.filter(status__in=UNFINISHED)
    cancelled = unfinished.update(status=HandlerStatus.CANCELLED, error="The agent has ended.", finished_at=now)
    return cancelled + executions.filter(status=HandlerStatus.PARKED).update(
        status=HandlerStatus.CANCELLED,
        error=Concat(Value("The agent has ended; this was parked: "), F("error")),
        finished_at=now,
    )
