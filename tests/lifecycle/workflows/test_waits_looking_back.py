"""Waits look back: an event that occurred before the wait was registered still ends it."""

from __future__ import annotations

import uuid
from datetime import timedelta
from decimal import Decimal

import pytest
from django.utils import timezone

from django_ai.automation.events.matching import lookback
from django_ai.automation.events.models import Event
from tests.apps.reservations.models import Guest, Reservation, Suite
from tests.support.matching_runs import Order, entity_of, save, statuses, waiting
from tests.support.rows import status

pytestmark = pytest.mark.django_db(transaction=True)

DAY = timedelta(days=1)


def test_it_looks_back_at_the_first_that_fits(work):
    made = []

    def occur():
        for amount in (5, 200, 300):
            made.append(save(Order.objects.create(), amount=amount))

    run = waiting({"amount__gte": 100}, before=occur)
    work()
    work()
    assert entity_of(run) == str(made[1].pk)


def test_it_looks_back_through_more_entities_than_it_lists(work, monkeypatch):
    monkeypatch.setattr(lookback, "ROWS_PER_QUERY", 2)
    made = []

    def occur():
        for number in range(5):
            made.append(save(Order.objects.create(status="paid"), amount=number))

    runs = [
        waiting({"status": "paid", "amount__gte": 3}, before=occur),
        waiting({"status__in": ["paid"]}, before=occur),
        waiting({"amount__lt": 0}, before=occur),
    ]
    work()
    work()
    assert statuses(*runs) == ["completed", "completed", "suspended"]


def test_what_occurred_before_the_run_began_is_not_meant(clock, work):
    save(Order.objects.create(), amount=200)
    clock.tick(DAY)
    run = waiting({"amount__gte": 100})
    work()
    assert status(run) == "suspended"


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False], ids=["looking back", "notified"])
def test_deleted_entities_are_compared_by_their_snapshots(clock, work, before):
    Guest.objects.create(pk=5, name="Ann")
    order = Order.objects.create(amount=100, status="paid", token=uuid.UUID(int=7), payer_id=5)
    matches = [
        ({"status": "paid"}, True),
        ({"status__in": ["paid", "sent"]}, True),
        ({"amount__gte": "{{ ctx.least }}"}, True),
        ({"amount__lt": "100.00"}, False),
        ({"amount__lte": Decimal("100")}, True),
        ({"amount__gt": 99, "status": "paid"}, True),
        ({"amount__gt": 99, "status": "new"}, False),
        ({"status__in": ["new"]}, False),
        ({"due_at__isnull": True}, True),
        ({"due_at__isnull": False}, False),
        ({"due_at__lt": "2030-01-01T00:00Z"}, False),
        ({"token": "{{ ctx.token }}"}, True),
        ({"token__in": [str(uuid.UUID(int=7))]}, True),
        ({"payer__gte": 6}, False),
        ({"payer__gte": "5"}, True),
        ({"payer__in": [5]}, True),
    ]
    runs = {str(match): waiting(match, "order_gone", asleep=before, token=uuid.UUID(int=7)) for match, _ in matches}
    work()
    order.delete()
    clock.tick(DAY)
    work()
    work()
    expected = {str(match): "completed" if fits else "suspended" for match, fits in matches}
    assert {title: status(run) for title, run in runs.items()} == expected


def test_an_entity_that_was_deleted_after_its_event(work):
    def occur():
        for amount in (5, 200):
            save(Order.objects.create(), amount=amount).delete()

    run = waiting({"amount__gte": 100}, before=occur, atomic=False)
    work()
    work()
    assert status(run) == "completed"


def test_a_deleted_entity_and_a_lookup_that_needs_the_database(work):
    """A lookup that needs the deleted row cannot be evaluated: the run keeps waiting and does not fail."""
    run = waiting({"status__iregex": "p"}, "order_gone")
    many = waiting({"guests__name": "Ann"}, "order_gone")
    work()
    order = Order.objects.create(status="paid")
    order.guests.add(Guest.objects.create(name="Ann"))
    order.delete()
    work()
    assert statuses(run, many) == ["suspended", "suspended"]


def test_a_parents_row_is_compared_whichever_class_saved_it(work):
    runs = [
        waiting({"number__in": ["1", "2"]}, "room_cleaned"),
        waiting({"number__startswith": "1"}, "room_cleaned"),
        waiting({"stars__gte": 4}, "suite_opened"),
        waiting({"stars__gte": 6}, "suite_opened"),
    ]
    work()
    Suite.objects.create(number="1", is_clean=True, stars=5)
    work()
    assert statuses(*runs) == ["completed"] * 3 + ["suspended"]


def test_looking_back_reads_a_few_events_at_a_time_and_none_twice(work, monkeypatch):
    """It needs no open cursor: the batches have no gaps, even if events occurred at the same moment."""
    monkeypatch.setattr(lookback, "ROWS_PER_QUERY", 2)
    for _ in range(7):
        Reservation.objects.create(status="confirmed")
    Event.objects.filter(event_name="reservation_confirmed").update(occurred_at=timezone.now())
    events = Event.objects.filter(event_name="reservation_confirmed")
    Event.objects.filter(pk=events.last().pk).update(occurred_at=None)
    found = [event.pk for event in lookback._with_entities(events)]
    assert found[1:] == sorted(found[1:]), "the events are not in the order of their occurrence"
    assert (len(set(found)), len(found), found[0]) == (7, 7, events.last().pk)
