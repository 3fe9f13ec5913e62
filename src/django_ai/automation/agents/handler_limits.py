"""Executions of handlers and their limits.

An execution that needs a slot of a limit leaves the mailbox with the status WAITING, and the others go on. Its
admission puts it back as due. There is no ``singleton=`` for handlers: those of one agent never overlap, and
``@agent(singleton=True)`` lets one agent live for each match.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db import models, transaction
from django.db.models import Case, Q, Value, When

from ..db.locks import locked, skipping_locked
from ..db.writer import alias_of
from ..queues.limits.owners import MAX_CLOCK_SKEW, SlotOwner
from ..queues.limits.release import release_from_outside
from ..queues.parking import park
from ..values.limits import DeclaredLimit
from .definitions import HandlerDefinition, all_agents, any_limits
from .models import HANDLER, AgentRun, AgentStatus, HandlerExecution, HandlerStatus, touch


def limiter_name(handler: HandlerDefinition) -> str:
    """Return the name under which the limits of a handler are stored."""
    at = f" at {handler.milestone}" if handler.milestone else ""
    return f"{handler.agent}.{handler.method} on {handler.event_name}{at}"


def park_agent(run: AgentRun, reason: str, now: datetime, *, awaiting_deploy: bool) -> None:
    """Park an agent that this worker has leased. Its executions keep no slot of a limit."""
    if not any_limits():
        park(run, reason, now, awaiting_deploy=awaiting_deploy)
        return
    with transaction.atomic(using=alias_of(AgentRun)):
        park(run, reason, now, awaiting_deploy=awaiting_deploy)
        pending = HandlerExecution.objects.filter(run=run.pk, status=HandlerStatus.PENDING)
        release_from_outside(HANDLER, list(locked(pending).values_list("pk", flat=True)), now)


def slot_owner() -> SlotOwner:
    """Return how limits reach the executions of handlers."""

    def find(name: str) -> tuple[DeclaredLimit, ...] | None:
        handlers = (handler for agent in all_agents() for handler in agent.handlers)
        return next((each.limits for each in handlers if limiter_name(each) == name), None)

    def executing(now: datetime) -> models.QuerySet[Any]:
        soon = now + MAX_CLOCK_SKEW
        is_due = Q(run__lease__isnull=False) | Q(run__status=AgentStatus.ACTIVE, run__wake_at__lte=soon)
        return HandlerExecution.objects.filter(is_due, status=HandlerStatus.PENDING, due_at__lte=soon)

    def cancel(pk: int, reason: str, now: datetime) -> None:
        raise NotImplementedError("No limit of a handler cancels executions.")

    return SlotOwner(
        kind=HANDLER,
        model=HandlerExecution,
        find=find,
        unfinished=lambda: HandlerExecution.objects.filter(
            status__in=[HandlerStatus.PENDING, HandlerStatus.WAITING, HandlerStatus.PARKED]
        ),
        waiting=lambda: HandlerExecution.objects.filter(status=HandlerStatus.WAITING),
        executing=executing,
        admit=_admit,
        cancel=cancel,
    )


def _admit(starts: Mapping[int, datetime]) -> None:
    """Put executions back into the mailbox, and touch their agents now and after the commit.

    Now only those that no other transaction has locked: the worker of a locked agent looks into the mailbox after its
    commit, and may wait for the limiter that is locked here.
    """
    rows = HandlerExecution.objects.filter(pk__in=list(starts), status=HandlerStatus.WAITING)
    agents = list(rows.values_list("run", flat=True))
    due_at = Case(
        *(When(pk=pk, then=Value(start)) for pk, start in starts.items()), output_field=models.DateTimeField()
    )
    rows.update(status=HandlerStatus.PENDING, due_at=due_at)
    free = list(skipping_locked(AgentRun.objects.filter(pk__in=agents)).values_list("pk", flat=True))
    touch(free)
    transaction.on_commit(lambda: touch(agents), using=alias_of(AgentRun), robust=True)
