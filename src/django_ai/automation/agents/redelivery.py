"""``AgentManager.redeliver``: executions that were skipped or have failed are pending again."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import QuerySet

from ..db.deadlocks import retry_on_deadlock
from ..db.locks import locked
from ..db.writer import alias_of
from ..events.models import Event
from ..exceptions import DefinitionError, StateError
from ..queues.history import note, together
from .models import AgentRun, HandlerExecution, HandlerStatus, touch_after_commit

REDELIVERED = (HandlerStatus.SKIPPED, HandlerStatus.FAILED)


def redeliver(target: Any, run: AgentRun | int | None, handler: str | None, now: datetime) -> list[HandlerExecution]:
    """Make the executions of ``target`` pending that were skipped or have failed; return them, read again."""
    what = f"AgentManager.redeliver({target!s:.100})"
    rows = _selected(target, run, handler, what)
    alias = alias_of(HandlerExecution)

    def write() -> list[int]:
        with transaction.atomic(using=alias):
            # Locked in one order, and the agents first, as where an agent ends with its executions.
            found = list(rows.order_by("pk").values_list("pk", "run"))
            living = AgentRun.objects.unfinished().filter(pk__in={run_pk for _, run_pk in found})
            agents = set(locked(living.order_by("pk")).values_list("pk", flat=True))
            again = HandlerExecution.objects.filter(pk__in=[pk for pk, _ in found], run__in=agents)
            mine = list(locked(again.filter(status__in=REDELIVERED).order_by("pk")))
            if not mine:
                raise StateError(f"{what}: {_why_none(rows)}", target)
            changes = {"status": HandlerStatus.PENDING, "attempt": 0, "deferrals": 0, "error": "", "due_at": now}
            HandlerExecution.objects.filter(pk__in=[each.pk for each in mine]).update(**changes, finished_at=None)
            with together():
                for each in mine:
                    note(each, "Redelivered")
            touch_after_commit(sorted({each.run_id for each in mine}))
            return [each.pk for each in mine]

    pks = retry_on_deadlock(alias, write)
    if isinstance(target, HandlerExecution):
        target.refresh_from_db()
        return [target]
    return list(HandlerExecution.objects.filter(pk__in=pks).order_by("pk"))


def _selected(
    target: Any, run: AgentRun | int | None, handler: str | None, what: str
) -> QuerySet[HandlerExecution, HandlerExecution]:
    if isinstance(target, HandlerExecution):
        if run is not None or handler is not None:
            raise DefinitionError(f"{what}: an execution is of one agent and one handler: leave run= and handler= out.")
        return HandlerExecution.objects.filter(pk=target.pk)
    if not isinstance(target, Event):
        raise DefinitionError(f"{what}: give a HandlerExecution or an Event, not {target!r:.80}.")
    rows = HandlerExecution.objects.filter(event=target)
    if run is not None:
        rows = rows.filter(run=run.pk if isinstance(run, AgentRun) else run)
    return rows if handler is None else rows.filter(handler=handler)


def _why_none(rows: QuerySet[HandlerExecution, HandlerExecution]) -> str:
    """Return why none of ``rows`` is handled again, and the fix."""
    found = list(rows.select_related("run"))
    if not found:
        return "no agent has received it. Agents whose match it fits receive it when it occurs; spawn one with event=."
    states = Counter(str(each.status) for each in found)
    listed = ", ".join(f"{count} {status}" for status, count in sorted(states.items()))
    if any(each.status in REDELIVERED for each in found):
        ended = next(each.run for each in found if each.status in REDELIVERED)
        return f"its agent {ended} has ended ({ended.status}), and handles nothing more. Spawn another with event=."
    if HandlerStatus.PARKED in states:
        return f"none was skipped or has failed ({listed}). Resume the parked: automation_resume handler."
    return f"none was skipped or has failed ({listed}). What has completed is not repeated."
