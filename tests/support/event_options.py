"""Callbacks, workflows and a model for the tests of event options, and the rows of an event."""

from __future__ import annotations

from datetime import timedelta

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from pydantic import BaseModel

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.events.models import Event
from django_ai.automation.workflows.core import complete, event_workflow, get_wake, step, wait_for_event
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Guest
from tests.support.rows import effects, leave

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
CREATE, UPDATE, DELETE = EventTrigger.CREATE, EventTrigger.UPDATE, EventTrigger.DELETE


class Bill(models.Model):
    """A model with columns whose values can be written in several ways. Its table is created with the suite's."""

    guest = models.ForeignKey(Guest, null=True, on_delete=models.CASCADE)
    amount = models.DecimalField(max_digits=8, decimal_places=2, default=0)
    share = models.FloatField(default=0)
    number = models.IntegerField(default=0)
    due_at = models.DateTimeField(null=True)
    day = models.DateField(null=True)
    lasts = models.DurationField(null=True)
    token = models.UUIDField(null=True)
    raw = models.BinaryField(default=b"")
    details = models.JSONField(default=dict, encoder=DjangoJSONEncoder)
    title = models.CharField(max_length=50, default="", blank=True)
    paid = models.BooleanField(default=False)
    changed_at = models.DateTimeField(auto_now=True)

    events = [EventDefinition("bill_paid", condition=lambda bill: bill.paid)]

    class Meta:
        app_label = "app"

    def __str__(self) -> str:
        return f"bill {self.pk}"


def confirmed(stay) -> bool:
    return stay.status == "confirmed"


def rows(name: str, **lookups) -> list[Event]:
    """Return the rows of an event, the oldest first."""
    return list(Event.objects.filter(declared_as=name, **lookups).order_by("pk"))


def occurred(name: str, **lookups) -> int:
    return len(rows(name, status="processed", **lookups))


def hear(name: str, **options) -> None:
    @on_event(name, name=f"hear {name} {sorted(options)}", **options)
    def heard(event):
        leave(f"{event.event_name} {event.entity_id}")


def starts(event: str, name: str = "started", **options) -> None:
    """Declare a workflow that the event starts. It records ``name`` as an effect."""

    @event_workflow(event, name=name, **options)
    class Started:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            leave(name)
            return complete()


def pass_by(clock, work, hours: float) -> list[str]:
    """Advance the clock in steps of half an hour, work after each, and return the new effects."""
    before = len(effects())
    for _ in range(int(hours * 2)):
        clock.tick(HOUR / 2)
        work()
    return effects()[before:]


def gone(**options) -> EventDefinition:
    return EventDefinition("gone", trigger=DELETE, **options)


def own_waiter(name: str, **options) -> None:
    @event_workflow("made", name="own waiter")
    class OwnWaiter:
        class Context(BaseModel):
            entity_id: str = ""

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                leave(get_wake().payload["event_name"])
                return complete()
            return wait_for_event(name, **options)


def planned() -> list[str]:
    return sorted(run.name for run in WorkflowRun.objects.exclude(status="withdrawn"))
