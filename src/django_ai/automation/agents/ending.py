"""How agents end: completed or cancelled from outside. Their pending executions are cancelled with them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from django.db import transaction
from django.db.models import F, QuerySet, Value
from django.db.models.functions import Concat

from ..db.writer import alias_of
from ..events.claims import release_all
from ..queues.causation import end_own_run
from ..queues.lease import revoke
from ..values.json_text import storable
from .models import AgentRoute, AgentRun, AgentStatus, HandlerExecution, HandlerStatus

KIND = "agent"


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
                clear_up(run.pk, now)
    return ended


def clear_up(run_pk: int, now: datetime) -> None:
    """Delete the routes and claims of an agent that has ended, and cancel its unfinished executions."""
    AgentRoute.objects.filter(run=run_pk).delete()
    release_all(KIND, run_pk)
    cancel_executions(HandlerExecution.objects.filter(run=run_pk), now)


def cancel_executions(executions: QuerySet[HandlerExecution, HandlerExecution], now: datetime) -> int:
    """Cancel unfinished executions whose agents have ended; return how many.

    Parked ones, too: an execution of an ended agent cannot be resumed.
    """
    cancelled = executions.filter(status=HandlerStatus.PENDING).update(
        status=HandlerStatus.CANCELLED, error="The agent has ended.", finished_at=now
    )
    return cancelled + executions.filter(status=HandlerStatus.PARKED).update(
        status=HandlerStatus.CANCELLED,
        error=Concat(Value("The agent has ended; this was parked: "), F("error")),
        finished_at=now,
    )
