"""Scenario 51: many rows at once. What is in order costs nothing, and what is due together is done together."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import DatabaseError, connection
from django.test.utils import CaptureQueriesContext

from django_ai.automation.events import reconcile
from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import Event
from django_ai.automation.events.reconcile import reconcile_dates
from django_ai.automation.queues.clock import aware
from tests.app.models import Reservation, Room, Suite, Ticket, Ware

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


def make(model, number, now):
    """Return ``number`` unsaved rows of ``model`` whose dates are near."""
    soon = now + timedelta(minutes=5)
    kinds = {
        Reservation: lambda n: Reservation(status="confirmed", checkin_at=soon, checkout_at=now - HOUR),
        Ticket: lambda n: Ticket(due_at=soon),
        Room: lambda n: Room(number=f"a{n}", inspected_on=soon.date()),
        Suite: lambda n: Suite(number=f"A{n}", inspected_on=now.date()),
    }
    return [kinds[model](number) for number in range(number)]


@pytest.fixture
def judged(monkeypatch):
    """The entities that the reconciliation has read and compared, by the name of the event."""
    found = []
    record = reconcile.record

    def watched(entities, *args, only, **kwargs):
        found.extend((only.definition.name, entity.pk) for entity in entities)
        return record(entities, *args, only=only, **kwargs)

    monkeypatch.setattr(reconcile, "record", watched)
    return found


@pytest.mark.parametrize("model", [Reservation, Ticket, Room, Suite])
def test_51_rows_that_are_in_line_are_not_read(model, clock, judged):
    costs = []
    for number in (2, 20):
        model.objects.all().delete()
        for row in make(model, number, clock()):
            row.save()
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert reconcile_dates(clock()) == 0
        costs.append(len(queries))
    assert judged == []
    assert costs[0] == costs[1]


@pytest.mark.parametrize("model", [Reservation, Ticket, Room, Suite])
def test_51_exactly_the_rows_that_differ_are_read(model, clock, judged, monkeypatch):
    monkeypatch.setattr(reconcile, "PAGE", 3)
    monkeypatch.setattr(reconcile, "CHUNK", 2)
    monkeypatch.setattr(reconcile, "DAYS", 2)
    rows = make(model, 20, clock())
    for row in rows[:12]:
        row.save()
    if model is not Suite:  # Django makes no rows with a parent's in bulk
        model.objects.bulk_create(rows[12:])
    name = {Reservation: "checkin_at", Ticket: "due_at"}.get(model, "inspected_on")
    moved = {row.pk for row in rows[3:10]}
    for number, pk in enumerate(sorted(moved)):
        sooner = timedelta(days=1) if number % 2 or name == "inspected_on" else HOUR
        model.objects.filter(pk=pk).update(**{name: getattr(rows[0], name) - sooner})
    fresh = set() if model is Suite else {row.pk for row in rows[12:]}
    event = {Reservation: "checkin_due", Ticket: "ticket_due"}.get(model, "inspection_due")
    expected = moved | fresh
    assert reconcile_dates(clock()) >= len(expected)
    assert sorted(pk for name, pk in judged if name == event) == sorted(expected)
    for pk, at in Event.objects.filter(declared_as=event).values_list("entity_id", "at"):
        found = model.objects.get(pk=pk)
        assert aware(getattr(found, name), "it") == at
    judged.clear()
    assert reconcile_dates(clock()) == 0
    assert judged == []


def test_51_a_key_that_only_python_can_write_is_compared_there(clock, declare, judged):
    declare(Ware, EventDefinition("ware_due", date_field="made_at"))
    Ware.objects.create(code="1.5", made_at=clock())
    assert reconcile_dates(clock()) == 0
    assert [str(pk) for _, pk in judged] == ["1.50"]
    Ware.objects.update(made_at=clock() + HOUR / 10)
    assert reconcile_dates(clock()) == 1
    assert Event.objects.get().at == clock() + HOUR / 10


def test_51_a_condition_that_turned_true_behind_django_is_found(clock, judged):
    stay = Reservation.objects.create(checkin_at=clock() - HOUR)
    Reservation.objects.create(checkin_at=clock() - HOUR, status="confirmed")
    assert reconcile_dates(clock()) == 0
    Reservation.objects.filter(pk=stay.pk).update(status="confirmed")
    assert reconcile_dates(clock()) == 1
    assert {pk for _, pk in judged} == {stay.pk}
    assert Event.objects.get(entity_id=stay.pk, declared_as="checkin_due").armed


def test_51_rows_are_read_once_more_for_new_subscribers(clock, judged):
    for row in make(Ticket, 3, clock()):
        row.save()
    assert reconcile_dates(clock()) == 0
    on_event("ticket_due", offset=-HOUR / 60)(lambda event: None)
    assert reconcile_dates(clock()) == 3
    assert len(judged) == 3
    assert set(Event.objects.filter(declared_as="ticket_due").values_list("wake_at", flat=True)) == {
        clock() + timedelta(minutes=4)
    }
    assert reconcile_dates(clock()) == 0
    assert len(judged) == 3


def test_51_a_model_without_its_table_stops_no_other(clock, caplog):
    Ticket.objects.bulk_create(make(Ticket, 1, clock()))
    Room.objects.bulk_create(make(Room, 1, clock()))
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE app_reservation RENAME TO app_gone")
    try:
        with pytest.raises(DatabaseError):
            reconcile_dates(clock())
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE app_gone RENAME TO app_reservation")
    assert set(Event.objects.values_list("event_name", flat=True)) == {"ticket_due", "inspection_due"}
    assert "Reconciling 'checkin_due' of app.reservation failed" in caplog.text
