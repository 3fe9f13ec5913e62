"""Scheduled events never fire early, move with their date, and fire once, however late a worker polls."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from django.db import connection, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import Event
from django_ai.automation.exceptions import NaiveDatetimeError
from django_ai.automation.queues.runtimes.tasks import poll_due
from tests.apps.reservations.models import Reservation, Room, Suite, Ticket
from tests.support.rows import definition_of, effects, event_of, leave, status_of, use_up_attempts
from tests.support.scheduled_events import book

pytestmark = pytest.mark.django_db(transaction=True)

DUE = "checkin_due"
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture(autouse=True)
def heard():
    @on_event(DUE, name="hear")
    def hear(event):
        leave(f"due {event.entity_id}")


# -- dates -------------------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_it_occurs_at_its_date_and_not_before(clock, work):
    stay = book(clock)
    event = event_of(stay, DUE)
    assert (event.status, event.at, event.wake_at) == ("pending", stay.checkin_at, stay.checkin_at)
    clock.tick(HOUR - timedelta(microseconds=1))
    assert work() == 0
    clock.tick(timedelta(microseconds=1))
    work()
    assert status_of(stay, DUE) == "processed"
    assert event_of(stay, DUE).occurred_at == clock()
    clock.tick(30 * DAY)
    work()
    assert effects() == [f"due {stay.pk}"]


@pytest.mark.exact_times
@pytest.mark.parametrize("by", [-timedelta(minutes=30), HOUR, 10 * DAY])
def test_it_moves_with_its_date(by, clock, work):
    stay = book(clock)
    stay.checkin_at += by
    stay.save()
    assert event_of(stay, DUE).wake_at == clock() + HOUR + by
    clock.tick(HOUR + by - timedelta(seconds=1))
    work()
    assert effects() == []
    clock.tick(timedelta(seconds=1))
    work()
    assert effects() == [f"due {stay.pk}"]


@pytest.mark.exact_times
def test_it_moves_in_the_same_transaction(clock):
    stay = book(clock)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        stay.checkin_at += DAY
        stay.save()
        raise ZeroDivisionError
    assert event_of(stay, DUE).wake_at == clock() + HOUR


def test_what_has_occurred_does_not_occur_again_when_the_date_moves(clock, work):
    stay = book(clock)
    clock.tick(HOUR)
    work()
    stay.checkin_at += DAY
    stay.save()
    clock.tick(2 * DAY)
    work()
    poll_due(clock())
    assert effects() == [f"due {stay.pk}"]


def test_a_date_that_becomes_null_disarms_it(clock, work):
    stay = book(clock)
    stay.checkin_at = None
    stay.save()
    event = event_of(stay, DUE)
    assert (event.status, event.at, event.wake_at, event.is_valid) == ("pending", None, None, False)
    clock.tick(DAY)
    assert work() == 0
    stay.checkin_at = clock() + HOUR
    stay.save()
    clock.tick(HOUR)
    work()
    assert effects() == [f"due {stay.pk}"]


def test_without_a_date_there_is_nothing_to_wait_for(clock, work):
    stay = Reservation.objects.create(status="confirmed")
    assert event_of(stay, DUE).wake_at is None
    clock.tick(365 * DAY)
    assert work() <= 1  # only the confirmation is processed


@pytest.mark.exact_times
def test_update_fields_that_leave_the_date_out(clock):
    stay = book(clock)
    stay.checkin_at += DAY
    stay.note = "x"
    stay.save(update_fields=["note"])
    assert event_of(stay, DUE).wake_at == clock() + HOUR
    stay.save(update_fields=["checkin_at"])
    assert event_of(stay, DUE).wake_at == clock() + HOUR + DAY


@pytest.mark.exact_times
def test_a_deferred_date_is_left_alone(clock):
    stay = book(clock)
    lean = Reservation.objects.defer("checkin_at").get(pk=stay.pk)
    lean.note = "x"
    lean.save()
    assert event_of(stay, DUE).wake_at == clock() + HOUR


@pytest.mark.exact_times
def test_a_date_that_only_the_database_knows(clock):
    stay = book(clock)
    stay.checkin_at = F("checkin_at") + DAY
    stay.save()
    assert event_of(stay, DUE).wake_at == clock() + HOUR + DAY


def test_a_date_given_as_text(clock):
    stay = Reservation.objects.create(status="confirmed", checkin_at="2030-01-07T15:00:00+01:00")
    assert event_of(stay, DUE).at == datetime(2030, 1, 7, 14, tzinfo=UTC)


def test_a_plain_date_is_midnight_here(clock, work):
    @on_event("inspection_due")
    def inspect(event):
        leave(f"inspect {event.entity_id}")

    room = Room.objects.create(number="1", inspected_on=date(2030, 1, 9))
    assert event_of(room, "inspection_due").at == datetime(2030, 1, 8, 23, tzinfo=UTC)
    clock.now = datetime(2030, 1, 8, 22, 59, 59, tzinfo=UTC)
    work()
    assert effects() == []
    clock.tick(timedelta(seconds=1))
    work()
    assert effects() == ["inspect 1"]


def test_a_child_has_its_parents_dates(clock, work):
    suite = Suite.objects.create(number="1", inspected_on=date(2030, 1, 9))
    Suite.objects.filter(pk=suite.pk).update(inspected_on=date(2030, 1, 8))
    clock.tick(DAY)
    poll_due(clock())
    assert status_of(suite, "inspection_due") == "processed"


def test_a_naive_date_is_refused_and_nothing_is_saved(clock):
    with pytest.raises(NaiveDatetimeError) as raised:
        Reservation.objects.create(checkin_at=datetime(2030, 1, 9, 15))  # noqa: DTZ001
    assert "app.Reservation.checkin_at" in str(raised.value)
    assert "make_aware" in str(raised.value)
    assert not Reservation.objects.exists()
    assert not Event.objects.exists()
    stay = book(clock)
    stay.note, stay.checkin_at = "changed", datetime(2030, 1, 9, 15)  # noqa: DTZ001
    with pytest.raises(NaiveDatetimeError):
        stay.save()
    stay.refresh_from_db()
    assert stay.note == ""


# -- conditions --------------------------------------------------------------------------------------------------------


def test_the_condition_is_asked_of_the_entity_as_it_is_at_its_date(clock, work):
    stay = book(clock)
    Reservation.objects.filter(pk=stay.pk).update(status="cancelled")
    clock.tick(HOUR)
    work()
    assert (status_of(stay, DUE), effects()) == ("pending", [])


def test_a_condition_that_turns_true_in_time(clock, work):
    stay = book(clock, status="pending")
    assert not event_of(stay, DUE).is_valid
    stay.status = "confirmed"
    stay.save()
    clock.tick(HOUR)
    work()
    assert effects() == [f"due {stay.pk}"]


def test_a_condition_that_turns_false_before_the_date(clock, work):
    stay = book(clock)
    stay.status = "cancelled"
    stay.save()
    clock.tick(HOUR)
    work()
    assert (status_of(stay, DUE), effects()) == ("pending", [])


@pytest.mark.parametrize("looked", [True, False])
def test_a_condition_that_turns_true_within_the_grace(looked, clock, work):
    stay = book(clock, status="pending")
    clock.tick(HOUR + timedelta(hours=23))
    if looked:
        work()
    stay.status = "confirmed"
    stay.save()
    work()
    assert effects() == [f"due {stay.pk}"]


@pytest.mark.parametrize("looked", [True, False])
def test_a_condition_that_turns_true_after_the_grace(looked, clock, work):
    """The event expires even if no worker polled in between: the grace period depends only on the condition."""
    stay = book(clock, status="pending")
    clock.tick(HOUR + timedelta(hours=25))
    if looked:
        work()
        assert status_of(stay, DUE) == "expired"
    stay.status = "confirmed"
    stay.save()
    work()
    assert (status_of(stay, DUE), effects()) == ("expired", [])


def test_the_grace_is_the_definitions_own(clock, work, monkeypatch):
    monkeypatch.setattr(definition_of(Reservation, DUE), "_grace", timedelta(minutes=5))
    stay = book(clock, status="pending")
    clock.tick(HOUR + timedelta(minutes=6))
    work()
    assert status_of(stay, DUE) == "expired"
    assert "grace" in event_of(stay, DUE).error


def test_an_expired_event_whose_date_is_put_off_lives_again(clock, work):
    stay = book(clock, ahead=-3 * DAY)
    assert status_of(stay, DUE) == "expired"
    stay.checkin_at = clock() + HOUR
    stay.save()
    assert status_of(stay, DUE) == "pending"
    clock.tick(HOUR)
    work()
    assert effects() == [f"due {stay.pk}"]


@pytest.mark.parametrize("outage", [2 * DAY, 400 * DAY])
def test_after_an_outage_what_is_overdue_fires_once(outage, clock, work):
    stay = book(clock)
    clock.tick(outage)
    work()
    work()
    assert effects() == [f"due {stay.pk}"]


def test_after_an_outage_a_save_does_not_expire_what_is_overdue(clock, work):
    stay = book(clock)
    clock.tick(3 * DAY)
    stay.note = "seen"
    stay.save()
    work()
    assert effects() == [f"due {stay.pk}"]


def test_a_date_that_is_past_when_first_recorded(clock, work):
    old, recent = book(clock, ahead=-timedelta(hours=25)), book(clock, ahead=-timedelta(hours=23))
    assert status_of(old, DUE) == "expired"
    work()
    assert effects() == [f"due {recent.pk}"]


def test_editing_an_entity_from_before_the_deployment_greets_nobody(clock, work):
    stay = book(clock)
    Event.objects.all().delete()
    clock.tick(100 * DAY)
    stay.note = "edited"
    stay.save()
    work()
    assert (status_of(stay, DUE), effects()) == ("expired", [])


def test_a_condition_that_raises_at_its_date_parks_the_event_and_no_other(clock, work, monkeypatch):
    bad, good = book(clock, note="bad"), book(clock)

    def condition(stay):
        return bool(1 / (stay.note != "bad"))

    monkeypatch.setattr(definition_of(Reservation, DUE), "condition", condition)
    clock.tick(HOUR)
    work()
    use_up_attempts(event_of(bad, DUE), work)
    assert status_of(bad, DUE) == "parked"
    assert "ZeroDivisionError" in event_of(bad, DUE).error
    assert effects() == [f"due {good.pk}"]


def test_a_parked_event_can_be_resumed(clock, work, monkeypatch):
    stay = book(clock)
    definition = definition_of(Reservation, DUE)
    right = definition.condition
    monkeypatch.setattr(definition, "condition", lambda stay: 1 / 0)
    clock.tick(HOUR)
    work()
    use_up_attempts(event_of(stay, DUE), work)
    monkeypatch.setattr(definition, "condition", right)
    event_of(stay, DUE).resume()
    work()
    assert effects() == [f"due {stay.pk}"]


def test_a_definition_that_is_gone_parks_its_events_until_it_is_back(clock, work, declare, monkeypatch):
    from django_ai.automation.events.declarations import forget_declarations

    stay = book(clock)
    before = Reservation.events
    declare(Reservation, *[each for each in before if each.name != DUE])
    clock.tick(HOUR)
    work()
    event = event_of(stay, DUE)
    assert event.status == "parked"
    assert DUE in event.error
    monkeypatch.setattr(Reservation, "events", before)
    forget_declarations()
    event.resume()
    work()
    assert effects() == [f"due {stay.pk}"]


# -- writes that bypass Django's signals -------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_a_date_that_an_update_brought_forward_is_found(clock, work):
    stay = book(clock, ahead=10 * DAY)
    Reservation.objects.filter(pk=stay.pk).update(checkin_at=clock() + timedelta(minutes=10))
    poll_due(clock())
    assert event_of(stay, DUE).wake_at == clock() + timedelta(minutes=10)
    assert effects() == []
    clock.tick(timedelta(minutes=10))
    work()
    assert effects() == [f"due {stay.pk}"]


def test_a_date_that_an_update_brought_into_the_past_is_found(clock):
    stay = book(clock, ahead=10 * DAY)
    Reservation.objects.filter(pk=stay.pk).update(checkin_at=clock() - HOUR)
    poll_due(clock())
    assert effects() == [f"due {stay.pk}"]


@pytest.mark.parametrize("polled", [True, False])
def test_a_date_that_an_update_put_off_is_never_early(polled, clock, work):
    stay = book(clock)
    Reservation.objects.filter(pk=stay.pk).update(checkin_at=clock() + 2 * HOUR)
    if polled:
        poll_due(clock())
    clock.tick(HOUR)
    work()
    assert effects() == []
    clock.tick(HOUR - timedelta(seconds=1))
    work()
    assert effects() == []
    clock.tick(timedelta(seconds=1))
    work()
    assert effects() == [f"due {stay.pk}"]


def test_a_date_that_an_update_took_away(clock, work):
    stay = book(clock)
    Reservation.objects.filter(pk=stay.pk).update(checkin_at=None)
    clock.tick(HOUR)
    work()
    assert (status_of(stay, DUE), effects()) == ("pending", [])
    assert event_of(stay, DUE).wake_at is None


def test_rows_made_with_bulk_create_are_found(clock, work):
    Reservation.objects.bulk_create(
        [
            Reservation(status="confirmed", checkin_at=clock() + timedelta(minutes=10)),
            Reservation(status="confirmed", checkin_at=clock() + 10 * DAY),
            Reservation(status="confirmed", checkin_at=clock() - 10 * DAY),
        ]
    )
    near, far, old = Reservation.objects.order_by("pk")
    poll_due(clock())
    assert status_of(near, DUE) == "pending"
    clock.tick(timedelta(minutes=10))
    work()
    assert effects() == [f"due {near.pk}"]
    clock.tick(10 * DAY)
    poll_due(clock())
    assert effects() == [f"due {near.pk}", f"due {far.pk}"]
    assert not Event.objects.of(old).occurred().filter(event_name=DUE).exists()


def test_polling_twice_changes_nothing(clock):
    book(clock, ahead=timedelta(minutes=5))
    Reservation.objects.filter().update(checkin_at=clock() + timedelta(minutes=7))
    assert poll_due(clock()) >= 1
    assert poll_due(clock()) == 0


def test_a_condition_that_an_update_made_true_is_found_at_the_date(clock, work):
    stay = book(clock, status="pending", ahead=timedelta(minutes=10))
    Reservation.objects.filter(pk=stay.pk).update(status="confirmed")
    poll_due(clock())
    clock.tick(timedelta(minutes=10))
    work()
    assert effects() == [f"due {stay.pk}"]


# -- cancellation and limits -------------------------------------------------------------------------------------------


def test_a_deleted_entity_cancels_what_is_pending(clock, work):
    stay = book(clock)
    event = event_of(stay, DUE)
    stay.delete()
    event.refresh_from_db()
    assert (event.status, event.wake_at) == ("cancelled", None)
    clock.tick(DAY)
    work()
    assert effects() == []


def test_a_queryset_that_deletes_is_heard(clock):
    book(clock)
    Reservation.objects.all().delete()
    assert set(Event.objects.filter(event_name=DUE).values_list("status", flat=True)) == {"cancelled"}


def test_cancelled_by_hand_stays_cancelled(clock, work):
    stay = book(clock)
    event = event_of(stay, DUE)
    assert event.cancel() is True
    assert event.cancel() is False
    stay.checkin_at += HOUR
    stay.save()
    clock.tick(DAY)
    work()
    poll_due(clock())
    assert (status_of(stay, DUE), effects()) == ("cancelled", [])


def test_only_near_dates_are_looked_at(clock, declare):
    poll_due(clock())
    with CaptureQueriesContext(connection) as without:
        poll_due(clock())
    Ticket.objects.bulk_create([Ticket(due_at=clock() + DAY * number) for number in range(1, 200)])
    with CaptureQueriesContext(connection) as with_distant:
        poll_due(clock())
    assert len(with_distant) == len(without)
    assert not Event.objects.exists()


@pytest.mark.exact_times
def test_a_definition_with_its_own_grace_of_zero(clock, work, declare):
    declare(Ticket, EventDefinition("ticket_due", date_field="due_at", grace=timedelta(0)))
    ticket = Ticket.objects.create(due_at=clock() - timedelta(seconds=1))
    assert status_of(ticket, "ticket_due") == "expired"
    on_time = Ticket.objects.create(due_at=clock())
    work()
    assert status_of(on_time, "ticket_due") == "processed"
