"""What the database says at the end of a soak: as the model wants it, and which rows nobody will ever wake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta

from django.db.models import Q, QuerySet
from django.utils import timezone

from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues.operations.explanations import explain
from django_ai.automation.queues.registry import wakeables
from django_ai.automation.workflows.models import StepExecution, WorkflowRun
from tests.apps.soak import models as rows

from .actions import Outside
from .model import Effect, Milestone, Occurrence, Run, World


def world_of(outside: Outside, slack: timedelta = timedelta(0), skew: timedelta = timedelta(0)) -> World:
    """Return all that is known at the end."""
    names = {str(deed.result): deed.target for deed in outside.deeds if deed.kind == "make"}
    return World(
        deeds=outside.deeds,
        effects=[
            Effect(each.owner, each.key, each.serial, each.at, each.not_before, each.idempotency)
            for each in rows.Effect.objects.order_by("pk")
        ],
        runs=[*_runs(names), *_keepers(names)],
        occurrences=[
            Occurrence(names[each.entity_id], each.event_name, each.pk, each.occurred_at)
            for each in Event.objects.filter(entity_type="soak.thing")
        ],
        milestones=[
            Milestone(f"{names[each.event.entity_id]}:call", each.callback.removeprefix("soak:"), each.event_id, at, "")
            for each in CallbackExecution.objects.filter(callback__startswith="soak:").select_related("event")
            if (at := each.created_at)
        ],
        now=timezone.now(),
        slack=slack + skew,
        skew=skew,
        skipped=Counter(names[entity_id] for entity_id in _skipped().values_list("event__entity_id", flat=True)),
    )


def _skipped() -> QuerySet[HandlerExecution, HandlerExecution]:
    """Return how often a claim kept an agent from handling the touches of a thing."""
    return HandlerExecution.objects.filter(run__name="soak:keeper", handler="touched", status="skipped")


def _runs(names: dict[str, str]) -> Iterator[Run]:
    lost = set(StepExecution.objects.filter(outcome=StepExecution.LOST).values_list("run", flat=True))
    for run in WorkflowRun.objects.filter(name__startswith="soak:").order_by("pk"):
        tag = run.data.get("tag") or f"{names[run.entity_id]}:{run.name.removeprefix('soak:')}"
        yield Run(tag, run.status, run.data.get("tally", []), run.created_at, run.error, run.pk in lost)


def _keepers(names: dict[str, str]) -> Iterator[Run]:
    for run in AgentRun.objects.filter(name="soak:keeper").order_by("pk"):
        yield Run(f"{names[run.entity_id]}:keeper", run.status, run.data.get("tally", []), run.started_at, run.error)


def restless(horizon: timedelta) -> int:
    """Return how many rows are due before ``horizon`` has passed, or leased."""
    moves = Q(wake_at__lt=timezone.now() + horizon) | Q(lease__isnull=False)
    return sum(model._base_manager.filter(moves).count() for model in wakeables())


def without_reason(now: datetime) -> list[str]:
    """Return the unfinished rows that wait for nothing that has a name, or for a worker although all of them rest."""
    return [str(found) for found in explain(now) if not found.waits_for or found.waits_for.startswith("a worker")]


def history_of(tag: str) -> str:
    """Return the history rows of a run, for a person."""
    found = []
    for run in WorkflowRun.objects.filter(name__startswith="soak:"):
        if run.data.get("tag") == tag:
            found.append(
                f"{run} {run.status} at {run.current_step}, wakes {run.wake_at}, waits {[*map(str, run.waits.all())]}"
            )
            found += [
                f"  {each.finished:%H:%M:%S.%f} {each.step} visit {each.visit} try {each.attempt}: {each.outcome}"
                f" ({each.wake_reason} {each.wake_ref}) {each.error.strip()[-100:]}"
                for each in run.steps.order_by("pk")
            ]
    return "\n".join(found)


def resume_lost() -> int:
    """Resume what was parked because three of its workers died, and say how much it was."""
    found = 0
    for model in wakeables():
        for row in model._base_manager.filter(error__startswith="3 workers in a row died", wake_at=None, lease=None):
            if getattr(row, "status", "parked") == "parked":
                row.resume()  # type: ignore[attr-defined]
                found += 1
    return found
