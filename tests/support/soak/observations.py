"""Reads the database at the end of a soak: the data for the model, and the rows that nothing will ever wake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta

from django.db.models import Q, QuerySet
from django.utils import timezone

from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.models import CallbackExecution, CapturedWrite, Event, Schedule
from django_ai.automation.queues.operations.explanations import explain
from django_ai.automation.queues.registry import wakeables
from django_ai.automation.workflows.models import StepExecution, WorkflowRun
from tests.apps.soak import models as rows

from .actions import Outside
from .world import Effect, Milestone, Occurrence, Run, Ticking, World

ENTITIES = ("soak.thing", "soak.crate", "soak.visit")
CALLBACKS = {"soak": "call", "crate": "crate", "visit": "visit"}
"""Whose effects are those of each kind of callback."""


def world_of(
    outside: Outside,
    slack: timedelta = timedelta(0),
    skew: timedelta = timedelta(0),
    since: datetime | None = None,
) -> World:
    """Return all data that is known at the end. ``since``: when the workers began that know the schedules."""
    names = {str(deed.result): deed.target for deed in outside.deeds if deed.kind == "make"}
    return World(
        deeds=outside.deeds,
        effects=[
            Effect(each.owner, each.key, each.serial, each.at, each.not_before, each.idempotency)
            for each in rows.Effect.objects.order_by("pk")
        ],
        runs=[*_runs(names), *_keepers(names)],
        occurrences=[
            Occurrence(names.get(each.entity_id, each.entity_id), each.event_name, each.pk, each.occurred_at)
            for each in Event.objects.filter(entity_type__in=ENTITIES)
        ],
        milestones=[*_callbacks(names), *_planned()],
        now=timezone.now(),
        slack=slack + skew,
        skew=skew,
        schedules={
            each.name: Ticking(each.anchor, each.reached, each.fired, each.skipped) for each in Schedule.objects.all()
        },
        since=since,
        outbox=CapturedWrite.objects.count(),
        skipped=Counter(names[entity_id] for entity_id in _skipped().values_list("event__entity_id", flat=True)),
    )


def _callbacks(names: dict[str, str]) -> Iterator[Milestone]:
    for kind, owner in CALLBACKS.items():
        for each in CallbackExecution.objects.filter(callback__startswith=f"{kind}:").select_related("event"):
            entity = names.get(each.event.entity_id, each.event.entity_id)
            yield Milestone(
                f"{entity}:{owner}", each.callback.removeprefix(f"{kind}:"), each.event_id, each.created_at, ""
            )


def _planned() -> Iterator[Milestone]:
    for run in WorkflowRun.objects.filter(name="visit:planned").exclude(started_at=None):
        yield Milestone(f"{run.entity_id}:visit", "planned", run.data.get("event", 0), run.started_at, run.status)


def _skipped() -> QuerySet[HandlerExecution, HandlerExecution]:
    """Return the executions that were skipped because a claim kept an agent from handling a touch."""
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
    """Return how many rows are leased, or due before ``horizon`` has passed; without schedules, which always are."""
    moves = Q(wake_at__lt=timezone.now() + horizon) | Q(lease__isnull=False)
    return sum(model._base_manager.filter(moves).count() for model in wakeables() if model is not Schedule)


def without_reason(now: datetime) -> list[str]:
    """Return the unfinished rows that wait for nothing known, or for a worker although all workers are idle."""
    return [str(found) for found in explain(now) if not found.waits_for or found.waits_for.startswith("a worker")]


def history_of(tag: str) -> str:
    """Return the history of a run as readable text."""
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
    """Resume the rows that were parked because three workers in a row died, and return their number."""
    found = 0
    for model in wakeables():
        if not any(field.name == "error" for field in model._meta.fields):
            continue  # it is never parked
        for row in model._base_manager.filter(error__startswith="3 workers in a row died", wake_at=None, lease=None):
            if getattr(row, "status", "parked") == "parked":
                row.resume()  # type: ignore[attr-defined]
                found += 1
    return found
