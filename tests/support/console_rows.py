"""A day of a small hotel with at least one row on each page of the admin, and the addresses of all these pages.

A page that is added to the admin is found by ``pages``, so the tests that walk through all pages reach it. A model that
gets a page needs a row here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin
from django.contrib.auth.models import User
from django.db import models
from django.urls import URLPattern, reverse
from django.utils import timezone
from pydantic import BaseModel, Field

from django_ai.automation import (
    Concurrency,
    Retry,
    acting_as,
    complete,
    engine,
    event_workflow,
    goto,
    on_event,
    schedule,
    step,
    wait,
    workflow,
)
from django_ai.automation.events import claims
from django_ai.automation.events.models import CapturedWrite
from django_ai.automation.events.schedules import rows as schedules
from django_ai.automation.queues import maintenance
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.heartbeat import register_worker
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.front_desk.models import Booking, Message, Person
from tests.apps.reservations.models import Guest, Reservation
from tests.support.agents import counting_companion

PACKAGE = "django_ai.automation"
MAX_ROWS = 10
NO_ROW = 0
QUERIES = {
    "automation_console_catalogue_entry": "?kind=workflow&name=charge",
    "automation_workflows_workflowrun_start": "?workflow=charge",
}
"""What completes the addresses of pages that show nothing without it."""
OPERATOR, VIEWER = "olga", "vera"


def declare_hotel() -> None:
    """Declare the automations of the hotel."""

    @workflow("charge", concurrency=Concurrency(3))
    class Charge:
        """Charges a guest for the stay, and books the payment."""

        class Context(BaseModel):
            guest: str = "Ada"
            cents: int = Field(default=100, ge=1)

        @step(start=True)
        def price(self):
            self.context.cents += 10
            return goto(self.pay)

        @step(retry=Retry(max_attempts=2, base_delay=timedelta(0)))
        def pay(self):
            if self.context.guest == "Bob":
                raise ValueError("The card of Bob was refused.")
            return complete()

    @workflow("late_checkout")
    class LateCheckout:
        """Asks the front desk whether a guest may stay longer."""

        class Context(BaseModel):
            guest: str = "Ada"
            answer: str = ""

        @step(start=True)
        def ask(self):
            return wait("desk:answer", timeout=timedelta(hours=4), then=self.tell, on_timeout=self.refuse)

        @step
        def tell(self):
            return complete()

        @step
        def refuse(self):
            return complete()

    @event_workflow("checkin_due", offset=timedelta(days=-1), name="reminder")
    class Reminder:
        """Reminds a guest of the stay, a day before check-in."""

        class Context(BaseModel):
            entity_id: int

        @step(start=True)
        def send(self):
            return complete()

    @on_event("reservation_confirmed", name="send_invoice", retry=Retry(max_attempts=1))
    def send_invoice(event):
        if event.entity.note == "no address":
            raise LookupError("The guest has no address.")

    @schedule("0 2 * * *", name="night_audit")
    def night_audit() -> None:
        """Adds up the day."""

    counting_companion()


@dataclass(frozen=True)
class Day:
    """The rows of the day that tests look at."""

    failed: WorkflowRun
    waiting: WorkflowRun
    second_waiting: WorkflowRun
    called_off: WorkflowRun
    planned: WorkflowRun
    reminded: Reservation
    cancelled: Reservation


def spend_day(now: datetime | None = None) -> Day:
    """Let the day happen, with a worker, and with the operator Olga."""
    now = now or timezone.now()
    register_worker("test")
    maintenance.ensure_rows(now)
    schedules.ensure_rows(now)
    failed = engine.start("charge", guest="Bob")
    engine.start("charge", guest="Eve")
    waiting, second_waiting = engine.start("late_checkout"), engine.start("late_checkout", guest="Eve")
    gone = engine.start("charge", guest="Ada")
    WorkflowRun.objects.filter(pk=gone.pk).update(name="charge_by_cheque")  # its code is gone: it is parked
    stays = [_stay(name, now + timedelta(days=2), note) for name, note in (("Ada", ""), ("Bob", "no address"))]
    person = Person.objects.create(name="Cleo")
    Booking.objects.create(guest=person)
    drain()
    Message.objects.create(sender=person, text="May I come early?")
    claims.hold("message_received", match={"sender_id": person.pk + 1}, owner=waiting)
    engine.signal("desk:open")
    drain()
    stays[0].status = "cancelled"
    stays[0].save()
    CapturedWrite.objects.create(
        entity_type="reservations.reservation",
        entity_id=str(stays[1].pk),
        model="reservations.reservation",
        operation="update",
        written_at=now,
        wake_at=now + timedelta(days=1),
    )
    called_off = engine.start("late_checkout", guest="Dan")
    drain()
    with acting_as(User.objects.create_superuser(OPERATOR, password="x"), "The guest has left."):
        engine.cancel(called_off)
        engine.pause(workflow="reminder", reason="The texts are being checked.")
        engine.bulk("resume", "callback", everything=True, reason="The address is known now.")
        gone.refresh_from_db()
        engine.mute(gone, until=now + timedelta(days=1), reason="Its code comes back tonight.")
    failed.refresh_from_db()
    waiting.refresh_from_db()
    return Day(
        failed,
        waiting,
        second_waiting,
        called_off,
        planned=WorkflowRun.objects.get(name="reminder", status="waiting"),
        reminded=stays[1],
        cancelled=stays[0],
    )


def _stay(name: str, checkin: datetime, note: str) -> Reservation:
    guest = Guest.objects.create(name=name)
    return Reservation.objects.create(guest=guest, status="confirmed", checkin_at=checkin, note=note)


@dataclass(frozen=True)
class Page:
    """One address of the admin: its model, its name and its path. ``kind`` is the last word of the name."""

    model: type[models.Model]
    name: str
    path: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return self.name

    @property
    def kind(self) -> str:
        return self.name.rpartition("_")[2]

    @property
    def paths(self) -> list[str]:
        """The path, and those of the same page of other rows: a form makes sense in some states only."""
        if "object_id" not in self.arguments:
            return [self.path]
        rows = self.model._default_manager.order_by("pk").values_list("pk", flat=True)[:MAX_ROWS]
        return [reverse(f"admin:{self.name}", kwargs={**self.arguments, "object_id": pk}) for pk in rows]


def pages() -> Iterator[Page]:
    """Yield every page that the package has in the admin, with a row where the address names one."""
    for model, pattern in _patterns():
        arguments = {name: _argument(model, name) for name in pattern.pattern.converters}
        if arguments.get("object_id") != NO_ROW:
            path = reverse(f"admin:{pattern.name}", kwargs=arguments) + QUERIES.get(pattern.name or "", "")
            yield Page(model, str(pattern.name), path, arguments)


def models_without_rows() -> set[str]:
    """Return the models with a page of a row, of which the day has no row."""
    of_rows = {model for model, pattern in _patterns() if "object_id" in pattern.pattern.converters}
    return {model._meta.label for model in of_rows if _argument(model, "object_id") == NO_ROW}


def _patterns() -> Iterator[tuple[type[models.Model], URLPattern]]:
    for model, owner in admin.site._registry.items():
        if model.__module__.startswith(PACKAGE):
            named = [each for each in owner.get_urls() if isinstance(each, URLPattern) and each.name]
            yield from ((model, each) for each in named)


def _argument(model: type[models.Model], name: str) -> Any:
    if name == "object_id":
        row = model._default_manager.order_by("pk").first()
        return NO_ROW if row is None else row.pk
    values = {"label": Reservation._meta.label_lower, "key": Reservation.objects.latest("pk").pk}
    assert name in values, f"tests/support/console_rows.py has no value for {name!r} in an address of {model.__name__}"
    return values[name]
