"""Scenario 51: many rows at once.

Reconciliation does not read consistent rows. Events that are due at the same time occur in one batch.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
from django.db import DatabaseError, connection, transaction
from django.test.utils import CaptureQueriesContext
from pydantic import BaseModel

from django_ai.automation.db.notifications import notify
from django_ai.automation.events import occurrence
from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.declarations import sources_of
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.matching import lookback
from django_ai.automation.events.matching.lookback import occurred_matching
from django_ai.automation.events.matching.match import address
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.events.recording import reconcile
from django_ai.automation.events.recording.reconcile import reconcile_dates
from django_ai.automation.events.subscribers import Subscriber
from django_ai.automation.queues.attempt import ShutdownInterrupt
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import _seconds_per_row as pace
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.held_leases import HeldLeases
from django_ai.automation.queues.lanes import Lane
from django_ai.automation.queues.notifier import ring_after_commit, set_notifier
from django_ai.automation.queues.registry import wakeables
from django_ai.automation.queues.runtimes.poller import Poller
from django_ai.automation.values.clock import aware
from django_ai.automation.workflows.core import complete, engine, step, wait, workflow
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.apps.reservations.models import Reservation, Room, Suite, Ticket, Ware
from tests.support.marks import only_on
from tests.support.polling import until

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
def evaluated(monkeypatch):
    """Return the event name and the primary key of each entity that the reconciliation reads and compares."""
    found = []
    record = reconcile.record

    def watched(entities, *args, only, **kwargs):
        found.extend((only.definition.name, entity.pk) for entity in entities)
        return record(entities, *args, only=only, **kwargs)

    monkeypatch.setattr(reconcile, "record", watched)
    return found


@pytest.mark.parametrize("model", [Reservation, Ticket, Room, Suite])
def test_51_rows_that_are_in_line_are_not_read(model, clock, evaluated):
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
    assert evaluated == []
    assert costs[0] == costs[1]


@pytest.mark.parametrize("model", [Reservation, Ticket, Room, Suite])
def test_51_exactly_the_rows_that_differ_are_read(model, clock, evaluated, monkeypatch):
    monkeypatch.setattr(reconcile, "KEYS_PER_QUERY", 3)
    monkeypatch.setattr(reconcile, "ENTITIES_PER_TRANSACTION", 2)
    monkeypatch.setattr(reconcile, "DATES_PER_QUERY", 2)
    rows = make(model, 20, clock())
    for row in rows[:12]:
        row.save()
    if model is not Suite:  # bulk_create does not support multi-table inheritance
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
    assert sorted(pk for name, pk in evaluated if name == event) == sorted(expected)
    for pk, at in Event.objects.filter(declared_as=event).values_list("entity_id", "at"):
        found = model.objects.get(pk=pk)
        assert aware(getattr(found, name), "it") == at
    evaluated.clear()
    assert reconcile_dates(clock()) == 0
    assert evaluated == []


def test_51_a_key_that_only_python_can_write_is_compared_there(clock, declare, evaluated):
    declare(Ware, EventDefinition("ware_due", date_field="made_at"))
    Ware.objects.create(code="1.5", made_at=clock())
    assert reconcile_dates(clock()) == 0
    assert [str(pk) for _, pk in evaluated] == ["1.50"]
    Ware.objects.update(made_at=clock() + HOUR / 10)
    assert reconcile_dates(clock()) == 1
    assert Event.objects.get().at == clock() + HOUR / 10


def test_51_a_condition_that_turned_true_behind_django_is_found(clock, evaluated):
    stay = Reservation.objects.create(checkin_at=clock() - HOUR)
    Reservation.objects.create(checkin_at=clock() - HOUR, status="confirmed")
    assert reconcile_dates(clock()) == 0
    Reservation.objects.filter(pk=stay.pk).update(status="confirmed")
    assert reconcile_dates(clock()) == 1
    assert {pk for _, pk in evaluated} == {stay.pk}
    assert Event.objects.get(entity_id=stay.pk, declared_as="checkin_due").armed


def test_51_rows_are_read_once_more_for_new_subscribers(clock, evaluated):
    for row in make(Ticket, 3, clock()):
        row.save()
    assert reconcile_dates(clock()) == 0
    on_event("ticket_due", offset=-HOUR / 60)(lambda event: None)
    assert reconcile_dates(clock()) == 3
    assert len(evaluated) == 3
    assert set(Event.objects.filter(declared_as="ticket_due").values_list("wake_at", flat=True)) == {
        clock() + timedelta(minutes=4)
    }
    assert reconcile_dates(clock()) == 0
    assert len(evaluated) == 3


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


# -- doorbells ---------------------------------------------------------------------------------------------------------


class Bell:
    def __init__(self):
        self.rung = []

    def ring(self, alias, queues=()):
        self.rung.append(set(queues))


@pytest.fixture
def bell():
    found = Bell()
    set_notifier(found)
    yield found
    set_notifier(None)


def test_51_a_doorbell_names_what_became_due(bell, declare):
    @workflow("fifty-one", version=1)
    class Waiting:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return wait("go", then=self.last)

        @step()
        def last(self):
            return complete()

    engine.start("fifty-one")
    assert bell.rung.pop() == {"workflows"}
    drain(models=[WorkflowRun])
    engine.signal("go")
    assert bell.rung.pop() == {"signals"}
    drain(models=[Signal])
    assert bell.rung.pop() == {"workflows"}
    with transaction.atomic():
        engine.start("fifty-one")
        engine.signal("gone")
    assert bell.rung.pop() == {"workflows", "signals"}
    with transaction.atomic():
        engine.start("fifty-one")
        ring_after_commit("default")
    assert bell.rung.pop() == set()
    engine.start("fifty-one")
    assert bell.rung.pop() == {"workflows"}
    Ticket.objects.create(open=True)
    assert bell.rung == []
    on_event("ticket_closed")(lambda event: None)
    Ticket.objects.create(open=False)
    assert bell.rung == [{"callbacks"}]


@pytest.fixture
def watch():
    found = []

    def of(*models):
        found.append(Poller(10, models=models or wakeables()))
        found[-1].sleep(1)  # starts to LISTEN, and polls once more before it sleeps
        found[-1].seconds_until_due()
        return found[-1]

    yield of
    for each in found:
        each.close()


def slept(watch, seconds):
    started = time.monotonic()
    watch.sleep(seconds)
    return time.monotonic() - started


@only_on("postgresql", reason="only PostgreSQL has NOTIFY")
def test_51_a_worker_of_other_kinds_sleeps_on(watch):
    mine = watch(CallbackExecution, Event)
    notify("default", ["workflows", "agents"])
    assert slept(mine, 0.3) >= 0.3
    for queues in (["callbacks"], ["agents", "events"], ["callbacks:été", "callbacks:it's"], []):
        notify("default", queues)
        assert slept(mine, 10) < 5


@only_on("postgresql", reason="only PostgreSQL has NOTIFY")
def test_51_a_busy_worker_hears_what_becomes_due_meanwhile(watch):
    mine = watch(CallbackExecution, Event)
    notify("default", ["workflows"])
    until(lambda: mine._listening()._connection is not None, 20, "The LISTEN")
    assert not mine.hears_more()
    notify("default", ["callbacks"])
    until(mine.hears_more, 20, "The doorbell")
    assert mine.hears_more()
    mine.before_look()
    assert not mine.hears_more()
    mine._listening()._connection.connection.close()
    assert not mine.hears_more()


@only_on("postgresql", reason="only PostgreSQL has NOTIFY")
def test_51_a_burst_of_doorbells_is_answered_by_few_looks(watch):
    everything, looks = watch(), 0

    def burst():
        for _ in range(40):
            notify("default", ["workflows"])
            time.sleep(0.002)
        connection.close()

    ringing = threading.Thread(target=burst)
    ringing.start()
    while slept(everything, 1) < 1:
        if everything.seconds_until_due() == 0:  # sent to claim at once what the doorbells name
            assert everything.take_known().times.keys() == {Lane(WorkflowRun)}
            everything.record_performed(0)
        looks += 1
    ringing.join()
    assert 1 <= looks <= 15


class Rung:
    """A listener that always reports a NOTIFY, and records how long the poller pauses."""

    hears_every_commit = False

    def __init__(self):
        self.rests = []

    def prepare(self):
        pass

    def take_heard(self):
        return {""}  # it does not tell for what

    def wait(self, seconds, file=None):
        return True

    def sleep(self, seconds, file=None):
        self.rests.append(seconds)


def test_51_who_looks_in_vain_rests_longer_until_there_is_work(monkeypatch):
    monkeypatch.setattr("django_ai.automation.queues.runtimes.poller.time.monotonic", lambda: 100.0)
    found = Poller(10, models=wakeables())
    found._listener = Rung()
    found.seconds_until_due()
    for _ in range(6):
        found.sleep(10)
        assert found.seconds_until_due() == 10
    engine.start("story:count", steps=1)
    assert found.seconds_until_due() == 0
    found.record_performed(1)
    found.sleep(10)
    assert found._listener.rests == pytest.approx([0.003, 0.02, 0.04, 0.08, 0.1, 0.1, 0.003])


# -- one wait, many occurrences ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("few", [1000, 1])
@pytest.mark.parametrize("model", [Reservation, Ticket, Room])
def test_51_a_wait_reads_no_occurrence_of_others(few, model, clock, monkeypatch, declare):
    monkeypatch.setattr(lookback, "ROWS_PER_QUERY", few)
    declare(model, EventDefinition("saved"))
    field = {Reservation: "status", Ticket: "title"}.get(model, "is_clean")
    mine, other = (True, False) if model is Room else ("mine", "other")
    rows = make(model, 12, clock())
    for number, row in enumerate(rows):
        setattr(row, field, mine if number in (3, 7, 9) else other)
        row.save()
    read = []
    load = lookback.load_entities
    monkeypatch.setattr(lookback, "load_entities", lambda events: (read.extend(events), load(events))[1])
    sources, values = sources_of("saved"), {field: mine}
    found = list(occurred_matching(Event.objects.all(), sources, "saved", values, address("saved", values, sources)))
    assert [event.entity_id for event in found] == [str(rows[number].pk) for number in (3, 7, 9)]
    assert len(read) == 3


# -- many events that are due at once ----------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Set the measured time per event so low that a worker claims the largest batch."""
    monkeypatch.setitem(pace, Event, 0.0001)


def due_tickets(number, clock):
    """Save ``number`` tickets, and move the clock past their date."""
    tickets = make(Ticket, number, clock())
    for ticket in tickets:
        ticket.save()
    clock.tick(HOUR)
    return tickets


def test_51_events_that_are_due_together_occur_together(clock, quick):
    on_event("ticket_due", name="told")(lambda event: None)
    due_tickets(60, clock)
    with CaptureQueriesContext(connection) as queries:
        assert drain(clock(), models=[Event]) == 60
    assert Event.objects.filter(declared_as="ticket_due", status="processed").count() == 60
    assert CallbackExecution.objects.values("event").distinct().count() == CallbackExecution.objects.count() == 60
    assert sum(each["sql"].startswith("UPDATE") for each in queries) <= (2 if connection.vendor == "postgresql" else 62)
    assert sum(not each["sql"].startswith("UPDATE") for each in queries) <= 30
    positions = Event.objects.filter(declared_as="ticket_due").order_by("pk").values_list("position", flat=True)
    assert list(positions) == sorted(set(positions))


def test_51_one_bad_event_does_not_stop_its_batch(clock, quick, monkeypatch):
    tickets = due_tickets(9, clock)
    bad, asked = str(tickets[4].pk), []

    class Failing(Subscriber):
        def occurred(self, events, now):
            asked.append(len(events))
            if any(event.entity_id == bad for event in events):
                raise RuntimeError("a bug in this layer")

    monkeypatch.setattr(occurrence, "subscribers", lambda: (Failing(),))
    assert drain(clock(), models=[Event]) == 9
    assert asked == [9] + [1] * 9
    rows = Event.objects.filter(declared_as="ticket_due")
    assert rows.filter(status="processed").count() == 8
    left = rows.get(entity_id=bad)
    assert (left.status, left.losses, left.lease) == ("pending", 1, None)
    assert "a bug in this layer" in left.error


def test_51_what_somebody_changes_meanwhile_is_left_out_of_the_batch(clock, quick, declare):
    def moves_the_first(ticket):
        if clock() > begun and ticket.title == "last":
            first = Ticket.objects.get(title="first")
            first.due_at = clock() + HOUR
            first.save()
        return True

    declare(Ticket, EventDefinition("ticket_due", moves_the_first, date_field="due_at"))
    begun = clock()
    tickets = make(Ticket, 5, begun)
    tickets[0].title, tickets[-1].title = "first", "last"
    for ticket in tickets:
        ticket.save()
    clock.tick(HOUR)
    drain(clock(), models=[Event])
    statuses = dict(Event.objects.values_list("entity_id", "status"))
    assert statuses.pop(str(tickets[0].pk)) == "pending"
    assert set(statuses.values()) == {"processed"}
    clock.tick(2 * HOUR)
    drain(clock(), models=[Event])
    assert Event.objects.get(entity_id=str(tickets[0].pk)).at == begun + 2 * HOUR


def test_51_the_leases_of_a_whole_batch_are_kept(clock):
    due_tickets(4, clock)
    rows = claim(Event, clock(), 10)
    leases = HeldLeases(has_heartbeat=False, clock=clock)
    leases.hold(list(rows))
    assert leases.start_batch(rows[:3]) == rows[:3]
    leases.keep_for(HOUR)
    before = rows[0].wake_at
    clock.tick(HOUR / 3600)
    leases.renew()
    found = {row.pk: row for row in Event.objects.filter(declared_as="ticket_due")}
    assert [found[row.pk].wake_at for row in rows[:3]] == [before + HOUR / 3600] * 3
    assert found[rows[3].pk].lease is None


def test_51_a_batch_that_is_broken_off_is_given_back(clock, quick, monkeypatch):
    due_tickets(4, clock)

    def end(events, clock):
        raise ShutdownInterrupt(0)

    monkeypatch.setattr(Event, "perform_batch", end)
    with pytest.raises(ShutdownInterrupt):
        drain(clock(), models=[Event])
    assert list(Event.objects.due(clock()).values_list("lease", "losses")) == [(None, 0)] * 4
