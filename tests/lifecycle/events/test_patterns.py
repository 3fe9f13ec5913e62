"""Patterns: a subscription to all events, or to all events whose name has a given prefix."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from django_ai.automation.events.callbacks import on_event, on_event_cancelled, on_event_created
from django_ai.automation.events.models import Event
from django_ai.automation.workflows.core import complete, engine, event_workflow, step
from tests.apps.reservations.models import Chore, Document, Errand, Reservation, Ticket
from tests.support.event_options import hear, starts
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_subscriber_to_everything(work):
    hear("*")
    stay = Reservation.objects.create(status="confirmed")
    document = Document.objects.create(reservation=stay)
    Errand.objects.create(done=True)
    work()
    assert sorted(effects()) == sorted(
        [
            f"reservation_confirmed {stay.pk}",
            f"document_uploaded {document.pk}",
            f"task_done {Errand.objects.get().pk}",
        ]
    )


def test_a_prefix(work):
    hear("ticket_*")
    starts("ticket_*")
    Reservation.objects.create(status="confirmed")
    ticket = Ticket.objects.create(open=False)
    work()
    assert sorted(effects()) == ["started", f"ticket_closed {ticket.pk}"]


def test_everything_that_is_created_and_cancelled(work):
    on_event_created("*", name="created")(lambda event: leave(f"created {event.event_name}"))
    on_event_cancelled("*", name="cancelled")(lambda event: leave(f"cancelled {event.event_name}"))
    chore = Chore.objects.create()
    work()
    chore.delete()
    work()
    assert effects() == ["created task_done", "cancelled task_done"]


def test_a_function_that_hears_an_event_by_two_names_is_called_for_each(work):
    @on_event("task_done", name="by name")
    @on_event("*", name="by star")
    def heard(event):
        leave("heard")

    Chore.objects.create(done=True)
    work()
    assert effects() == ["heard"] * 2


def test_a_subscriber_to_everything_that_saves_is_a_storm(work, settings):
    settings.AUTOMATION = {**settings.AUTOMATION, "MAX_DEPTH": 5}

    @on_event("*")
    def echo(event):
        Chore.objects.create(done=True)

    Chore.objects.create(done=True)
    for _ in range(12):
        work()
    found = Event.objects.order_by("pk")
    assert [row.status for row in found] == ["processed"] * 6 + ["parked"]
    assert "EventStormError" in found[6].error
    assert "MAX_DEPTH" in found[6].error


def test_a_workflow_on_everything_that_saves_is_a_storm(work, settings):
    settings.AUTOMATION = {**settings.AUTOMATION, "MAX_DEPTH": 6}

    @event_workflow("*", name="echo")
    class Echo:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            Chore.objects.create(done=True)
            return complete()

    Chore.objects.create(done=True)
    for _ in range(12):
        work()
    statuses = list(Event.objects.order_by("pk").values_list("status", flat=True))
    assert statuses[-1] == "parked"
    assert statuses.count("parked") == 1


def test_signals_are_no_events(work):
    hear("*")
    engine.signal("anything")
    work()
    assert effects() == []
