"""Runs of orders that an event of their order cancels."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (
    On,
    Retry,
    RetryAfter,
    complete,
    engine,
    event_workflow,
    goto,
    run_subflow,
    sleep,
    step,
    wait,
    wait_all,
    wait_any,
    wait_for_event,
    workflow,
)
from django_ai.automation.events import claims
from django_ai.automation.events.models import Event, RoutingShape
from django_ai.automation.workflows.delivery import wake_waiting_for
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.matching_runs import Order
from tests.support.rows import leave

HOUR, DAY = timedelta(hours=1), timedelta(days=1)

SAVED = On("order_saved", match={"pk": "{{ ctx.order }}"})
DOCS = On("guest_docs_uploaded", match={"pk": "{{ ctx.entity_id }}"})


class OfOrder(BaseModel):
    order: int
    do: str = ""
    statuses: list[str] = ["paid"]


class OfEntity(BaseModel):
    entity_id: int


WAYS = ["sleep", "signal", "event", "child", "any", "all", "fail", "defer", "claim"]


def declare_watched() -> type:
    """Declare a workflow that is cancelled when its order is saved, and does what its Context names."""

    @workflow("watched", cancel_on=[SAVED], default_retry=Retry(max_attempts=9, base_delay=DAY, max_delay=DAY))
    class Watched:
        Context = OfOrder

        @step(start=True)
        def begin(self):
            leave("begin")
            match self.context.do:
                case "sleep":
                    return sleep(DAY, then=self.end)
                case "signal":
                    return wait("go", then=self.end)
                case "event":
                    return wait_for_event("order_saved", match={"pk": "{{ ctx.order }}"}, then=self.end)
                case "child":
                    return run_subflow("child", then=self.end)
                case "any":
                    return wait_any(child=run_subflow("child"), later=sleep(DAY), then=self.end)
                case "all":
                    return wait_all(child=run_subflow("child"), go=wait("go"), timeout=DAY, then=self.end)
                case "fail":
                    raise ValueError("no")
                case "defer":
                    raise RetryAfter(HOUR, "HTTP 429")
                case "claim":
                    claims.hold("checkin_due", {"pk": 7}, expires_in=None)
                    return wait("never")
            return goto(self.end)

        @step()
        def end(self):
            leave("end")
            return complete()

    @workflow("child")
    class Child:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            return wait("never")

    return Watched


def order_of(do: str = "signal") -> tuple[Order, WorkflowRun]:
    """Start a watched run of a new order."""
    order = Order.objects.create()
    return order, engine.start("watched", order=order.pk, do=do)


def patient(name: str, *on: On, context: type[BaseModel] = OfOrder, **options: Any) -> type:
    """Declare a workflow that waits until one of ``on`` cancels it."""

    class Patient:
        Context = context

        @step(start=True)
        def begin(self):
            leave("begin")
            return wait("never")

    return workflow(name, cancel_on=on, **options)(Patient)


def cancelled_by_docs(event_name: str = "checkin_due", offset: timedelta | None = None, **options: Any) -> type:
    """Declare an event workflow of reservations, which the documents of the guest cancel."""

    @event_workflow(event_name, name="by docs", offset=offset, cancel_on=[DOCS], **options)
    class ByDocs:
        Context = OfEntity

        @step(start=True)
        def begin(self):
            leave("begin")
            return wait("never")

    return ByDocs


def notify_again(events: Iterable[Event]) -> None:
    """Notify the runs of events that have occurred, as after the death of the process that has committed them."""
    found = list(events)
    wake_waiting_for(found, RoutingShape.of(found), timezone.now())
