"""Helpers that read and change the rows that tests check."""

from __future__ import annotations

from typing import Any

from django_ai.automation.events.declarations import declared_on
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Effect


def effects() -> list[str]:
    """Return the effects that user code has recorded, in order."""
    return list(Effect.objects.order_by("pk").values_list("name", flat=True))


def leave(name: object) -> None:
    """Record an effect."""
    Effect.objects.create(name=str(name)[:200])


def event_of(entity: Any, name: str) -> Event:
    return Event.objects.of(entity).get(event_name=name)


def status_of(entity: Any, name: str) -> str:
    return str(event_of(entity, name).status)


def definition_of(model: type, name: str) -> EventDefinition:
    return next(each.definition for each in declared_on(model) if each.definition.name == name)


def status(run: WorkflowRun) -> str:
    run.refresh_from_db()
    return str(run.status)


def the_run(**lookups: Any) -> WorkflowRun:
    return WorkflowRun.objects.get(**lookups)


def the_execution(**lookups: Any) -> CallbackExecution:
    return CallbackExecution.objects.get(**lookups)


def history(run: WorkflowRun) -> list[tuple[str, int, str]]:
    return [(each.step, each.attempt, each.outcome) for each in run.steps.order_by("pk")]


def use_up_attempts(event, work) -> None:
    """Perform an event whose condition or payload raises, each attempt when it is due, until it is parked."""
    for _ in range(10):
        event.refresh_from_db()
        if event.wake_at is None:
            return
        work(event.wake_at)
    raise AssertionError(f"{event} is not parked")


def change(entity: Any, **fields: Any) -> Any:
    """Save ``fields`` on a fresh copy of ``entity``, as another request would."""
    fresh = type(entity).objects.get(pk=entity.pk)
    for name, value in fields.items():
        setattr(fresh, name, value)
    fresh.save()
    return fresh
