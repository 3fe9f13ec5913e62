"""Scenario 32: reads go to a replica that lags. The engine makes its decisions on reads from the writer.

The replica has all tables and no rows. The router is the one from Django's documentation.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.apps import apps
from django.db import connections, transaction
from pydantic import BaseModel

from django_ai.automation.db.writer import from_writer
from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.models import Event
from django_ai.automation.events.recording import recorder
from django_ai.automation.exceptions import AutomationError
from django_ai.automation.workflows.core import complete, event_workflow, step
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Effect, Guest, Reservation, Ticket
from tests.support.replicas import REPLICA

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", REPLICA])

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module", autouse=True)
def _replica(django_db_setup, django_db_blocker, tmp_path_factory):
    """Add a replica database for the tests of this module."""
    if REPLICA in connections.settings:  # TEST_REPLICA
        yield
        return
    file = str(tmp_path_factory.mktemp("replica") / "replica.sqlite3")
    added = {"default": {}, REPLICA: {"ENGINE": "django.db.backends.sqlite3", "NAME": file}}
    connections.settings[REPLICA] = connections.configure_settings(added)[REPLICA]
    with django_db_blocker.unblock():
        with connections[REPLICA].schema_editor() as editor:
            for model in apps.get_models():
                if model._meta.managed and not model._meta.proxy:
                    editor.create_model(model)
        yield
        connections[REPLICA].close()
    del connections[REPLICA], connections.settings[REPLICA]


@pytest.fixture(autouse=True)
def _router(settings):
    settings.DATABASE_ROUTERS = ["tests.support.replicas.PrimaryReplicaRouter"]


def only_event(name: str) -> Event:
    (event,) = Event.objects.filter(event_name=name)
    return event


def test_32_create_and_a_second_save_in_one_transaction(work):
    with transaction.atomic():
        ticket = Ticket.objects.create()
        ticket.open = False
        ticket.save()
    work()
    assert only_event("ticket_closed").status == "processed"


def test_32_a_date_that_moves_takes_its_timer_along(clock):
    ticket = Ticket.objects.create(due_at=clock() + HOUR)
    ticket.due_at = clock() + 9 * HOUR
    ticket.save(update_fields=["due_at"])
    event = only_event("ticket_due")
    assert (event.at, event.wake_at) == (ticket.due_at, ticket.due_at)


def test_32_a_callback_and_a_run_are_performed(work):
    seen = []

    @on_event("ticket_closed")
    def told(event):
        seen.append(event.entity.title)
        Effect.objects.create(name="told")

    @event_workflow("ticket_closed", name="replica flow")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete()

    Ticket.objects.create(open=False, title="written just now")
    for _ in range(3):
        work()
    assert seen == ["written just now"]
    assert WorkflowRun.objects.get(name="replica flow").status == "completed"


def test_32_conditions_and_relations_see_the_writer(work, monkeypatch):
    guest = Guest.objects.create(name="Ada")
    stay = Reservation.objects.create(guest=guest, status="pending")
    definition = next(each for each in Reservation.events if each.name == "guest_docs_uploaded")
    monkeypatch.setattr(definition, "condition", lambda stay: stay.guest.name == "Ada" and stay.note == "ready")
    Reservation.objects.using("default").filter(pk=stay.pk).update(note="ready")
    part = Reservation.objects.using("default").only("status").get(pk=stay.pk)
    part.status = "other"
    part.save()  # the note is deferred, and the guest is a relation
    work()
    assert only_event("guest_docs_uploaded").status == "processed"


def test_32_rows_and_their_relations_are_read_from_the_writer():
    Ticket.objects.create(open=False)
    event = only_event("ticket_closed")
    assert event._state.db == "default"
    assert list(event.executions.all()) == []
    event.refresh_from_db()
    with from_writer():
        assert Ticket.objects.count() == 1
    assert Ticket.objects.count() == 0, "outside from_writer(), only the project's router decides"


def test_32_a_refused_row_that_cannot_be_seen_is_an_error(monkeypatch):
    ticket = Ticket.objects.create()
    # An old snapshot hides the row of another transaction: the query finds nothing, but the unique key refuses.
    monkeypatch.setattr(recorder, "_rows_by_key", lambda desired: {})
    monkeypatch.setattr(recorder, "_rows_of", lambda desired: [])
    ticket.open = False
    with pytest.raises(AutomationError, match=r"ticket_closed.*cannot be armed"):
        ticket.save()
