"""``manage.py automation_baseline``: what already holds for existing rows is marked, and never occurs."""

from __future__ import annotations

import re
from datetime import date, timedelta
from decimal import Decimal
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_ai.automation import EventDefinition, acting_as, on_event_created
from django_ai.automation.db.inserts import insert_similar_ignoring
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.events.recording import baseline as baseline_module
from django_ai.automation.events.recording.entity_state import HELD_BEFORE_NOTE
from django_ai.automation.events.recording.reconcile import reconcile_dates
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Action, Maintenance
from tests.apps.front_desk.models import Booking, Person
from tests.apps.reservations.models import Document, Hotel, Reservation, Room, Suite, Ticket, Trip, Ware
from tests.support.automation_command import automation
from tests.support.race import once
from tests.support.rows import change
from tests.support.trips import declare_arrival

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


def baseline(*args, **options) -> str:
    out, err = StringIO(), StringIO()
    try:
        call_command("automation_baseline", *args, stdout=out, stderr=err, **options)
    except CommandError as error:
        return out.getvalue() + err.getvalue() + f"EXIT {error.returncode}: {error}"
    return out.getvalue() + err.getvalue()


def stays(number: int, **values) -> list[Reservation]:
    return Reservation.objects.bulk_create([Reservation(**values) for _ in range(number)])


def marked(name: str) -> set[str]:
    return set(Event.objects.filter(declared_as=name, status="expired").values_list("entity_id", flat=True))


# -- what is marked ----------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_what_holds_is_marked_and_never_occurs(clock, work):
    old = stays(3, status="confirmed", checkin_at=clock() - HOUR)
    stays(2, checkin_at=clock() - HOUR)
    output = baseline("--model", "app.Reservation")
    assert "app.Reservation 'reservation_confirmed': 3 marked, 0 with an event already, 0 failed" in output
    assert "app.Reservation 'checkin_due': 3 marked" in output
    assert "app.Reservation 'guest_docs_uploaded': 0 marked" in output
    assert marked("reservation_confirmed") == marked("checkin_due") == {str(stay.pk) for stay in old}
    event = Event.objects.filter(declared_as="checkin_due").first()
    assert (event.error, event.wake_at, event.armed, event.at) == (HELD_BEFORE_NOTE, None, True, clock() - HOUR)
    for stay in Reservation.objects.all():
        stay.save()
    reconcile_dates(clock())
    work()
    assert not Event.objects.filter(status="processed").exists()


def test_what_becomes_true_later_occurs(work):
    (stay,) = stays(1)
    baseline("--model", "app.Reservation")
    assert not Event.objects.exists()
    change(stay, status="confirmed")
    work()
    assert Event.objects.get(event_name="reservation_confirmed").status == "processed"


def test_dates_ahead_are_left_to_their_timers(clock, work):
    (stay,) = stays(1, status="confirmed", checkin_at=clock() + HOUR)
    baseline("--model", "app.Reservation", "--event", "checkin_due")
    assert not Event.objects.exists()
    change(stay, note="saved")
    work(clock.tick(2 * HOUR))
    assert Event.objects.get(event_name="checkin_due").status == "processed"


def test_days_in_the_time_zones_of_their_entities(clock):
    """It is noon in London: the 8th has begun in Kiritimati, and the 7th everywhere."""
    days = {}
    for tz in ("Pacific/Kiritimati", "Europe/Berlin", "Pacific/Pago_Pago", "Mars/Olympus"):
        hotel = Hotel.objects.create(tz=tz)
        for day in (7, 8, 9):
            days[tz, day] = str(Trip.objects.create(hotel=hotel, arrives_on=date(2030, 1, day)).pk)
    declare_arrival(date_field="arrives_on")
    with CaptureQueriesContext(connection) as queries:
        output = baseline("--model", "app.Trip")
    assert sum(Hotel._meta.db_table in query["sql"] for query in queries) <= 3  # the number, and two batches
    assert "4 marked, 0 with an event already, 1 failed" in output
    assert "Mars/Olympus" in output
    begun = [("Pacific/Kiritimati", 7), ("Pacific/Kiritimati", 8), ("Europe/Berlin", 7), ("Pacific/Pago_Pago", 7)]
    assert marked("arrival") == {days[each] for each in begun}
    assert Event.objects.get(entity_id=days["Pacific/Kiritimati", 8]).timezone == "Pacific/Kiritimati"
    for trip in Trip.objects.all():
        trip.save()
    assert Event.objects.filter(status="expired").count() == 4


def test_plain_dates_and_every_kind_of_primary_key(clock):
    today = clock().date()
    Room.objects.bulk_create(
        [Room(number="Zimmer 7", inspected_on=today), Room(number="8", inspected_on=today + timedelta(days=2))]
    )
    Suite.objects.create(number="9", is_clean=True)
    Event.objects.all().delete()
    (ticket,) = Ticket.objects.bulk_create([Ticket(open=False)])
    Ware.objects.bulk_create([Ware(code=Decimal("12.50"), sold=True, pieces=6)])
    baseline(batch=1)
    assert marked("inspection_due") == {"Zimmer 7"}
    assert marked("room_cleaned") == marked("suite_opened") == {"9"}
    assert marked("ticket_closed") == {str(ticket.pk)}
    assert marked("ware_sold") == marked("ware_doubled") == {"12.50"}
    before = Event.objects.count()
    baseline()
    assert Event.objects.count() == before


def test_watched_fields_keep_their_values_so_that_the_next_change_occurs(work):
    guest = Person.objects.create()
    Booking.objects.bulk_create([Booking(guest=guest, note="old"), Booking(guest=guest, note="old")])
    output = baseline("--model", Booking._meta.label, "--event", "booking_noted", "booking_deleted")
    assert "'booking_deleted': skipped (it occurs at writes" in output
    assert "'booking_noted': 2 marked" in output
    first, second = Booking.objects.order_by("pk")
    change(first, note="new")
    change(second, status="confirmed")
    work()
    (event,) = Event.objects.filter(event_name="booking_noted", status="processed")
    assert event.entity_id == str(first.pk)


def test_no_callback_of_a_creation_is_called(work):
    @on_event_created("document_uploaded", name="noted")
    def noted(event):
        raise AssertionError

    (stay,) = stays(1)
    Document.objects.bulk_create([Document(reservation=stay)])
    baseline("--model", "app.Document")
    work()
    assert len(marked("document_uploaded")) == 1
    assert not CallbackExecution.objects.exists()


def test_existing_fire_is_left_alone(declare, work):
    declare(Reservation, EventDefinition("reservation_confirmed", lambda stay: True, existing="fire"))
    (stay,) = stays(1)
    assert 'skipped (existing="fire": it occurs at the next save of each row)' in baseline("--model", "app.Reservation")
    change(stay, note="saved")
    work()
    assert Event.objects.get().status == "processed"


def test_transitions_have_no_past(declare, work):
    declare(Reservation, EventDefinition("reservation_left", was={"status": "confirmed"}, becomes={"status": "left"}))
    (stay,) = stays(1, status="confirmed")
    assert "'reservation_left': skipped (it occurs at writes" in baseline("--model", "app.Reservation", "--all")
    change(stay, status="left")
    work()
    assert Event.objects.get().status == "processed"


def test_all_counts_every_row_as_seen(work):
    (stay,) = stays(1)
    output = baseline("--model", "app.Reservation", "--all", "--event", "reservation_confirmed", "checkin_due")
    assert "'reservation_confirmed': 1 marked" in output
    assert "'checkin_due': 0 marked" in output
    event = Event.objects.get()
    assert (event.status, event.armed, event.wake_at) == ("pending", False, None)
    Reservation.objects.update(status="confirmed")  # no signal
    Reservation.objects.get(pk=stay.pk).save()
    work()
    event.refresh_from_db()
    assert event.status == "processed"


def test_templates_and_namespaces_are_evaluated(declare):
    declare(
        Reservation,
        EventDefinition("confirmed:{{ instance.pk }}", lambda stay: True, namespace=lambda stay: stay.note or None),
    )
    (stay,) = stays(1, note="north")
    baseline("--model", "app.Reservation")
    event = Event.objects.get()
    assert (event.event_name, event.namespace) == (f"confirmed:{stay.pk}", "north")


# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_condition_that_raises_leaves_its_row_and_no_other(declare, work):
    def condition(stay):
        if stay.note == "broken":
            raise RuntimeError("out of order")
        return True

    declare(Reservation, EventDefinition("reservation_confirmed", condition))
    (broken,) = stays(1, note="broken")
    good = stays(2)
    output = baseline("--model", "app.Reservation")
    assert "2 marked, 0 with an event already, 1 failed" in output
    assert f"app.Reservation {broken.pk}: RuntimeError: out of order" in output
    assert "EXIT 1: 1 evaluation(s) raised" in output
    assert marked("reservation_confirmed") == {str(stay.pk) for stay in good}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "app.Reservaton"], "--model app.Reservaton: .* Did you mean 'app.reservation'"),
        (["--event", "reservation_confirmd"], "Did you mean 'reservation_confirmed'"),
        (["--model", "app.Room", "--event", "ticket_closed"], "None of app.Room declares ticket_closed"),
        (["--batch", "0"], "--batch=0 must be at least 1"),
    ],
)
def test_what_does_not_exist_is_named(arguments, said):
    assert re.search(said, baseline(*arguments))
    assert not Maintenance.objects.exists()


# -- counting, interrupting, racing ------------------------------------------------------------------------------------


def test_a_dry_run_counts_the_same_and_writes_nothing(clock):
    stays(3, status="confirmed")
    Reservation.objects.create(status="confirmed")
    before = list(Event.objects.values())
    output = baseline("--model", "app.Reservation", "--dry-run")
    assert "'reservation_confirmed': 3 to mark, 1 with an event already, 0 failed" in output
    assert list(Event.objects.values()) == before
    assert not Maintenance.objects.exists()
    output = baseline("--model", "app.Reservation")
    assert "'reservation_confirmed': 3 marked, 1 with an event already, 0 failed" in output


class Killed(BaseException):
    pass


@pytest.fixture
def evaluated(monkeypatch):
    """The entities that were evaluated."""
    found: list[int] = []
    real = baseline_module.evaluate_definition

    def counted(desired, entity, raw):
        found.append(entity.pk)
        return real(desired, entity, raw)

    monkeypatch.setattr(baseline_module, "evaluate_definition", counted)
    return found


def interrupted(monkeypatch, *args, **options):
    """Run the command, and let it die in the transaction of its third batch."""
    real, calls = baseline_module.insert_similar_ignoring, []

    def dying(model, rows):
        calls.append(model)
        if len(calls) == 3:
            raise Killed
        return real(model, rows)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(baseline_module, "insert_similar_ignoring", dying)
        call_command("automation_baseline", *args, stdout=StringIO(), stderr=StringIO(), **options)


ONE = ("--model", "app.Reservation", "--event", "reservation_confirmed")


def test_an_interrupted_run_continues_where_it_stopped(evaluated, monkeypatch):
    old = stays(10, status="confirmed")
    interrupted(monkeypatch, *ONE, batch=2)
    assert len(marked("reservation_confirmed")) == 4
    evaluated.clear()
    drain(heartbeat=True)  # a worker leaves the row of the position alone
    output = baseline(*ONE, batch=2)
    assert f"app.Reservation: continues after '{old[3].pk}'; --restart begins again" in output
    assert evaluated == [stay.pk for stay in old[4:]]
    assert marked("reservation_confirmed") == {str(stay.pk) for stay in old}
    evaluated.clear()
    assert "continues" not in baseline(*ONE)
    assert len(evaluated) == 10


def test_restart_and_another_selection_begin_at_the_beginning(evaluated, monkeypatch):
    stays(10, status="confirmed")
    interrupted(monkeypatch, *ONE, batch=2)
    for more in (["--restart"], ["--all"]):
        evaluated.clear()
        assert "continues" not in baseline(*ONE, *more)
        assert len(evaluated) == 10
        interrupted(monkeypatch, *ONE, batch=2)
    assert "continues" not in baseline("--model", "app.Reservation")
    assert len(marked("reservation_confirmed")) == 10


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_save_meanwhile_knows_more(moment, monkeypatch, work):
    """It changes the row between the reading of a batch and its commit, or right after that."""
    (stay,) = stays(1, status="confirmed")

    def meanwhile():
        change(stay, status="cancelled")
        change(stay, status="confirmed")

    acted = once(monkeypatch, baseline_module.Baseline, "_mark", **{moment: meanwhile})
    baseline(*ONE)
    work()
    assert acted
    assert Event.objects.get(declared_as="reservation_confirmed").entity_id == str(stay.pk)
    before = list(Event.objects.values())
    Reservation.objects.get(pk=stay.pk).save()
    work()
    assert list(Event.objects.values()) == before


def test_two_at_once_mark_each_row_once(monkeypatch):
    stays(6, status="confirmed")
    once(monkeypatch, baseline_module.Baseline, "_mark", before=lambda: baseline(*ONE, batch=2))
    baseline(*ONE, batch=3)
    assert Event.objects.filter(declared_as="reservation_confirmed").count() == 6


@pytest.mark.parametrize("fired", [[[], []], [["a"], ["b"]]])
def test_rows_are_inserted_together_whatever_they_differ_in(fired):
    def rows():
        keys = ["first", "second"]
        return [Event(entity_id=key, active_key=key, fired=each) for key, each in zip(keys, fired, strict=True)]

    assert insert_similar_ignoring(Event, rows()) == 2
    assert insert_similar_ignoring(Event, [*rows(), Event(entity_id="third", active_key="third")]) == 1
    assert list(Event.objects.order_by("pk").values_list("entity_id", "fired")) == [
        ("first", fired[0]),
        ("second", fired[1]),
        ("third", []),
    ]
    assert insert_similar_ignoring(Event, []) == 0


def test_progress_is_shown_on_a_terminal(monkeypatch):
    class Terminal(StringIO):
        def isatty(self):
            return True

    stays(3, status="confirmed")
    err = Terminal()
    call_command("automation_baseline", *ONE, batch=2, stdout=StringIO(), stderr=err)
    assert "app.Reservation [####################..........]  67%  2 of 3 rows" in err.getvalue()
    assert "[##############################] 100%  3 of 3 rows" in err.getvalue()


# -- who did it --------------------------------------------------------------------------------------------------------

MINE = "--model=app.Reservation"


def test_a_baseline_is_noted_for_each_model():
    Reservation.objects.bulk_create([Reservation(status="confirmed"), Reservation(status="new")])
    baseline(MINE, because="A new table.", dry_run=True)
    assert not Action.objects.exists()
    baseline(MINE, because="A new table.")
    action = Action.objects.get()
    assert (action.done, action.model, action.key) == ("Baselined", "app.reservation", "baseline")
    assert action.reason == "A new table."
    assert action.actor.startswith("command:automation_baseline")
    assert action.what.startswith("app.Reservation, events 'reservation_confirmed', ")
    baseline(MINE)
    assert Action.objects.count() == 1  # nothing was left to mark


def test_the_verb_baseline_takes_the_actor_and_the_reason():
    Reservation.objects.bulk_create([Reservation(status="confirmed")])
    options = ["--model", "app.Reservation", "--actor", "user:5", "--reason", "A new table."]
    assert automation("baseline", *options).code == 0
    action = Action.objects.get()
    assert (action.actor, action.reason) == ("user:5", "A new table.")
    assert set(Event.objects.values_list("caused_by", flat=True)) == {"user:5"}


def test_a_command_that_somebody_calls_acts_as_they_do():
    with acting_as("system:nightly", "The usual one."):
        Reservation.objects.bulk_create([Reservation(status="confirmed")])
        baseline(MINE)
    action = Action.objects.get()
    assert (action.actor, action.reason) == ("system:nightly", "The usual one.")
