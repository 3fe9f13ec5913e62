"""Scenario 33: an event is declared on a table with existing rows. It does not occur for past states and dates."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_ai.automation.events.models import Event
from django_ai.automation.events.recording.reconcile import reconcile_dates
from tests.apps.reservations.models import Effect, Reservation, Room, Ticket

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


def old_ticket(**values) -> Ticket:
    """Return a ticket that was created without signals, so that it has no event yet."""
    (ticket,) = Ticket.objects.bulk_create([Ticket(**values)])
    return Ticket.objects.get(pk=ticket.pk)


def events(name: str) -> list[tuple[str, bool]]:
    return [(event.status, event.occurred_at is not None) for event in Event.objects.filter(event_name=name)]


@pytest.mark.parametrize("how", ["loaded", "refreshed", "in part", "by hand", "update_fields"])
def test_33_what_held_before_is_a_baseline(how, work):
    ticket = old_ticket(open=False)
    if how == "in part":
        ticket = Ticket.objects.defer("open").get(pk=ticket.pk)
        ticket.open = False
    elif how == "by hand":
        Room.objects.bulk_create([Room(number="7", is_clean=True)])
        Room(number="7", is_clean=True).save()
        work()
        assert events("room_cleaned") == [("expired", False)]
    elif how == "refreshed":
        ticket.open = True
        ticket.refresh_from_db()
    ticket.title = "edited"
    ticket.save(**({"update_fields": ["title"]} if how == "update_fields" else {}))
    work()
    assert events("ticket_closed") == [("expired", False)]
    assert 'existing="fire"' in Event.objects.get(event_name="ticket_closed").error
    ticket.save()
    work()
    assert events("ticket_closed") == [("expired", False)]


def test_33_what_this_save_makes_true_occurs(work):
    ticket = old_ticket(open=True)
    ticket.open = False
    ticket.save()
    room = Room.objects.bulk_create([Room(number="8")])[0]
    Room(number=room.number, is_clean=True).save()
    work()
    assert events("ticket_closed") == events("room_cleaned") == [("processed", True)]


def test_33_a_new_row_that_is_true_at_once_occurs(work):
    Ticket(open=False).save()
    Room(number="9", is_clean=True).save()
    work()
    assert events("ticket_closed") == events("room_cleaned") == [("processed", True)]


def test_33_existing_fire(work, monkeypatch):
    closed = next(each for each in Ticket.events if each.name == "ticket_closed")
    monkeypatch.setattr(closed, "existing", "fire")
    old_ticket(open=False).save()
    work()
    assert events("ticket_closed") == [("processed", True)]


def test_33_dates_ahead_are_timers_and_dates_past_are_not(clock, work):
    ahead, past = old_ticket(due_at=clock() + HOUR), old_ticket(due_at=clock() - HOUR)
    ahead.save()
    past.save()
    assert Event.objects.get(event_name="ticket_due", entity_id=str(ahead.pk)).wake_at == ahead.due_at
    assert Event.objects.get(event_name="ticket_due", entity_id=str(past.pk)).status == "expired"
    past.due_at = clock() + HOUR  # it has never occurred, and its date is now in the future
    past.save()
    work(clock.tick(2 * HOUR))
    assert events("ticket_due") == [("processed", True)] * 2


def test_33_a_date_that_this_save_moves_to_now_occurs(clock, work):
    ticket = old_ticket(due_at=clock() + HOUR)
    ticket.due_at = clock() - HOUR
    ticket.save()
    work()
    assert events("ticket_due") == [("processed", True)]


def test_33_reconciliation_does_not_fire_the_past(clock, work):
    Reservation.objects.bulk_create([Reservation(status="confirmed", checkin_at=clock() - HOUR)])
    Reservation.objects.bulk_create([Reservation(status="confirmed", checkin_at=clock() + timedelta(minutes=1))])
    reconcile_dates(clock())
    work()
    assert events("reservation_confirmed") == [], "only a save records immediate events"
    assert sorted(events("checkin_due")) == [("expired", False), ("pending", False)]


def test_33_reconciliation_makes_up_for_what_it_missed(clock, work):
    """A date that bulk_create set after the event was declared, and that passed while no worker ran, still fires."""
    Reservation.objects.create(status="confirmed", checkin_at=clock() + 99 * HOUR)
    Reservation.objects.bulk_create([Reservation(status="confirmed", checkin_at=clock() + HOUR)])
    reconcile_dates(clock.tick(3 * HOUR))
    work()
    assert sorted(events("checkin_due")) == [("pending", False), ("processed", True)]


def test_33_an_ordinary_save_reads_nothing_more():
    ticket = Ticket.objects.get(pk=Ticket.objects.create().pk)
    Effect.objects.exists()
    with CaptureQueriesContext(connection) as queries:
        ticket.save()
    reads = [each["sql"] for each in queries if each["sql"].startswith("SELECT")]
    assert len(reads) == 1, reads
