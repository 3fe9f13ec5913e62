"""Orders, and runs that wait for events of matching orders."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from decimal import Decimal

from django.db import models
from pydantic import BaseModel

from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.events.models import Event
from django_ai.automation.workflows.core import complete, engine, get_wake, sleep, step, wait_for_event, workflow
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Guest
from tests.support.rows import status

DAY = timedelta(days=1)


class Order(models.Model):
    """An order with an amount and many guests. Its table is created with the suite's."""

    guests = models.ManyToManyField(Guest)
    payer = models.ForeignKey(Guest, null=True, on_delete=models.SET_NULL, related_name="+")
    amount = models.DecimalField(max_digits=8, decimal_places=2, default=0)
    token = models.UUIDField(default=uuid.uuid4)
    due_at = models.DateTimeField(null=True)
    status = models.CharField(max_length=20, default="new")

    events = [
        EventDefinition("order_saved", trigger=EventTrigger.UPDATE),
        EventDefinition("order_gone", trigger=EventTrigger.DELETE),
    ]

    class Meta:
        app_label = "app"

    def __str__(self) -> str:
        return f"order {self.pk}"


class Context(BaseModel):
    statuses: list[str] = ["paid", "sent"]
    least: Decimal = Decimal("100")
    text: str = ""
    guest_ids: list[int] = []
    token: uuid.UUID | None = None
    when: datetime | None = None
    number: int = 0


def waiting(match, event="order_saved", before=None, asleep=False, timeout=None, atomic=True, **fields) -> WorkflowRun:
    """Start a run that calls ``before()`` or sleeps for a day (``asleep``), and then waits for ``match``."""
    name = f"waiter {WorkflowRun.objects.count()}"

    class Waiter:
        @step(start=True, atomic=atomic)
        def first(self):
            if get_wake().reason == "event":
                return complete()
            if asleep and get_wake().reason != "timer":
                return sleep(DAY)
            if before is not None:
                before()
            return wait_for_event(event, match=match, timeout=timeout)

    Waiter.Context = Context
    workflow(name)(Waiter)
    return engine.start(name, **fields)


def statuses(*runs: WorkflowRun) -> list[str]:
    return [status(run) for run in runs]


def entity_of(run: WorkflowRun) -> str:
    """Return the id of the entity whose event woke the run."""
    return Event.objects.get(pk=run.steps.order_by("pk").last().wake_ref).entity_id


def save(order: Order, **values) -> Order:
    for name, value in values.items():
        setattr(order, name, value)
    order.save()
    return order
