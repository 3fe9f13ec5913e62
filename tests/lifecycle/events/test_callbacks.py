"""Callbacks: each call is a durable row that a worker executes and retries; a failure stays visible."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction

from django_ai.automation import idempotency_key
from django_ai.automation.events import callbacks
from django_ai.automation.events.callbacks import on_event, on_event_cancelled, on_event_created
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.exceptions import NotResumableError
from django_ai.automation.queues.causation import current_cause
from django_ai.automation.values.retry import Retry
from tests.apps.reservations.models import Guest, Reservation, Suite, Ticket
from tests.support.rows import effects, event_of, leave, the_execution

pytestmark = pytest.mark.django_db(transaction=True)

CONFIRMED = "reservation_confirmed"
SECOND = timedelta(seconds=1)


def confirm(**values) -> Reservation:
    return Reservation.objects.create(status="confirmed", **values)


# -- durable -----------------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_a_row_is_made_with_the_occurrence_and_run_by_a_worker(clock, work):
    @on_event(CONFIRMED)
    def greet(event):
        leave("hello")

    stay = confirm()
    row = the_execution()
    assert (row.status, row.attempt, row.wake_at, row.event.entity) == ("pending", 0, clock(), stay)
    assert row.callback == f"{greet.__module__}.{greet.__qualname__}"
    assert effects() == []
    clock.tick(SECOND)
    work()
    row.refresh_from_db()
    assert (row.status, row.attempt, row.started_at, row.finished_at) == ("completed", 1, clock(), clock())
    assert (row.error, row.wake_at, row.lease) == ("", None, None)
    assert effects() == ["hello"]


def test_several_handlers_and_one_that_fails(work):
    @on_event(CONFIRMED)
    def one(event):
        leave("one")

    @on_event(CONFIRMED, retry=Retry(max_attempts=1))
    def two(event):
        raise RuntimeError("two")

    @on_event(CONFIRMED)
    def three(event):
        leave("three")

    confirm()
    work()
    assert effects() == ["one", "three"]
    assert dict(CallbackExecution.objects.values_list("status", "error").order_by("pk"))["completed"] == ""
    assert "RuntimeError: two" in the_execution(status="failed").error


def test_one_function_on_several_events(work):
    @on_event(CONFIRMED)
    @on_event("guest_docs_uploaded")
    def listen(event):
        leave(event.event_name)

    confirm(docs=True)
    work()
    assert effects() == [CONFIRMED, "guest_docs_uploaded"]


def test_a_function_that_is_named_twice_is_called_once(work):
    @on_event(CONFIRMED)
    @on_event(CONFIRMED)
    def listen(event):
        leave("once")

    confirm()
    work()
    assert effects() == ["once"]


# -- retries -----------------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_three_tries_by_default_then_it_has_failed_for_all_to_see(clock, work):
    tries = []

    @on_event(CONFIRMED)
    def stumble(event):
        tries.append(clock())
        raise ValueError(f"try {len(tries)}")

    confirm()
    start = clock()
    for _ in range(10):
        work()
        clock.tick(SECOND)
    assert tries == [start, start + SECOND, start + 3 * SECOND]
    row = the_execution()
    assert (row.status, row.attempt, row.wake_at) == ("failed", 3, None)
    assert "ValueError: try 3" in row.error
    assert "Traceback" in row.error
    assert "test_callbacks.py" in row.error


@pytest.mark.exact_times
def test_delays_are_exact(clock, work):
    @on_event(CONFIRMED, retry=Retry(max_attempts=4, base_delay=2 * SECOND, backoff_factor=3, max_delay=10 * SECOND))
    def stumble(event):
        raise ValueError

    confirm()
    for delay in (2, 6, 10):
        work()
        row = the_execution()
        assert (row.status, row.wake_at) == ("pending", clock() + delay * SECOND)
        assert "ValueError" in row.error  # also visible between attempts
        clock.tick(delay * SECOND - timedelta(microseconds=1))
        assert work() == 0
        clock.tick(timedelta(microseconds=1))
    work()
    assert the_execution().status == "failed"


def test_a_try_that_succeeds_ends_it(clock, work):
    tries = []

    @on_event(CONFIRMED)
    def stumble(event):
        tries.append(1)
        if len(tries) < 3:
            raise ValueError
        leave("up")

    confirm()
    for _ in range(5):
        work()
        clock.tick(10 * SECOND)
    row = the_execution()
    assert (effects(), row.status, row.attempt, row.error) == (["up"], "completed", 3, "")


def test_a_failed_one_can_be_tried_again_with_a_fresh_budget(clock, work):
    @on_event(CONFIRMED, retry=Retry(max_attempts=2))
    def stumble(event):
        if not Guest.objects.exists():
            raise ValueError

    confirm()
    for _ in range(3):
        work()
        clock.tick(10 * SECOND)
    row = the_execution()
    assert row.status == "failed"
    Guest.objects.create(name="x")
    row.resume()
    work()
    row.refresh_from_db()
    assert (row.status, row.attempt) == ("completed", 1)
    with pytest.raises(NotResumableError, match="completed"):
        row.resume()


def test_the_users_writes_of_a_failed_try_are_rolled_back(clock, work):
    tries = []

    @on_event(CONFIRMED)
    def stumble(event):
        tries.append(1)
        leave(f"try {len(tries)}")
        Reservation.objects.filter(pk=event.entity.pk).update(note=f"try {len(tries)}")
        if len(tries) < 3:
            raise ValueError

    stay = confirm()
    for _ in range(5):
        work()
        clock.tick(10 * SECOND)
    stay.refresh_from_db()
    assert (effects(), stay.note) == (["try 3"], "try 3")


def test_without_atomic_what_was_written_stays_written(clock, work):
    @on_event(CONFIRMED, atomic=False, retry=Retry(max_attempts=2))
    def stumble(event):
        leave("tried")
        assert not transaction.get_connection().in_atomic_block
        raise ValueError

    confirm()
    for _ in range(3):
        work()
        clock.tick(10 * SECOND)
    assert effects() == ["tried", "tried"]


def test_a_mistake_of_the_users_sql_is_the_users_failure(clock, work):
    @on_event(CONFIRMED, retry=Retry(max_attempts=2))
    def clash(event):
        Suite.objects.create(number="1")
        Suite.objects.create(number="1", pk="1", room_ptr_id="1").save(force_insert=True)

    confirm()
    for _ in range(3):
        work()
        clock.tick(10 * SECOND)
    row = the_execution()
    assert (row.status, row.attempt) == ("failed", 2)
    assert IntegrityError.__name__ in row.error
    assert not Suite.objects.exists()


def test_events_of_a_failed_try_never_happened(work):
    @on_event(CONFIRMED, retry=Retry(max_attempts=1))
    def chain(event):
        Ticket.objects.create(open=False)
        raise ValueError

    @on_event("ticket_closed")
    def closed(event):
        leave("closed")

    confirm()
    work()
    assert (Ticket.objects.count(), effects()) == (0, [])
    assert not Event.objects.filter(event_name="ticket_closed").exists()


def test_an_error_with_odd_characters_is_kept(work):
    @on_event(CONFIRMED, retry=Retry(max_attempts=1))
    def stumble(event):
        raise ValueError("a NUL \x00, a surrogate \ud800, an ü")

    confirm()
    work()
    row = the_execution()
    assert row.status == "failed"
    assert "an ü" in row.error


# -- idempotency keys and causation ------------------------------------------------------------------------------------


def test_the_idempotency_key_is_one_for_all_tries_and_another_for_each_call(clock, work):
    keys: dict[str, list[str]] = {}

    def stumble(event):
        mine = keys.setdefault(f"{current_cause().label}", [])
        mine.append(idempotency_key())
        if len(mine) < 3:
            raise ValueError

    on_event(CONFIRMED, name="one")(stumble)
    on_event(CONFIRMED, name="two")(stumble)
    confirm()
    confirm()
    for _ in range(4):
        work()
        clock.tick(10 * SECOND)
    assert [len(found) for found in keys.values()] == [3, 3, 3, 3]
    assert [len(set(found)) for found in keys.values()] == [1, 1, 1, 1]
    assert len({key for found in keys.values() for key in found}) == 4


def test_outside_there_is_no_key():
    with pytest.raises(RuntimeError, match="idempotency_key"):
        idempotency_key()


def test_what_a_callback_saves_carries_the_chain(work):
    @on_event(CONFIRMED)
    def chain(event):
        Ticket.objects.create(open=False)

    stay = confirm()
    work()
    closed = Event.objects.get(event_name="ticket_closed")
    assert (closed.status, closed.depth) == ("processed", 1)
    assert closed.caused_by == f"callback:{the_execution(event__event_name=CONFIRMED).pk}"
    assert (event_of(stay, CONFIRMED).depth, event_of(stay, CONFIRMED).caused_by) == (0, "")


def test_a_storm_ends(work, settings):
    settings.AUTOMATION = {**settings.AUTOMATION, "MAX_DEPTH": 5}

    @on_event(CONFIRMED)
    def again(event):
        confirm()

    confirm()
    work()
    assert Reservation.objects.count() == 7
    parked = Event.objects.get(status="parked", event_name=CONFIRMED)
    assert "EventStormError" in parked.error
    assert "MAX_DEPTH" in parked.error
    assert Event.objects.occurred().filter(event_name=CONFIRMED).count() == 6


# -- created and cancelled ---------------------------------------------------------------------------------------------


def test_created_is_heard_long_before_it_occurs(clock, work):
    @on_event_created("checkin_due")
    def created(event):
        leave(f"created {event.status} {event.entity_id}")

    @on_event("checkin_due")
    def due(event):
        leave("due")

    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + timedelta(hours=1))
    work()
    assert effects() == [f"created pending {stay.pk}"]
    stay.checkin_at += timedelta(hours=1)
    stay.save()
    work()
    clock.tick(timedelta(hours=2))
    work()
    assert effects() == [f"created pending {stay.pk}", "due"]


def test_created_is_heard_of_an_event_whose_condition_is_false(work):
    @on_event_created(CONFIRMED)
    def created(event):
        leave("created")

    stay = Reservation.objects.create()
    work()
    assert effects() == ["created"]
    stay.save()
    stay.status = "confirmed"
    stay.save()
    work()
    assert effects() == ["created"]


def test_created_comes_before_occurred(work):
    @on_event(CONFIRMED)
    def occurred(event):
        leave("occurred")

    @on_event_created(CONFIRMED)
    def created(event):
        leave("created")

    confirm()
    work()
    assert sorted(effects()) == ["created", "occurred"]


@pytest.mark.exact_times
def test_cancelled_gets_the_snapshot_of_a_deleted_entity(clock, work):
    seen = []

    @on_event_cancelled("checkin_due")
    def cancelled(event):
        entity = event.entity
        seen.append((type(entity), entity.pk, entity.note, entity.checkin_at, entity.guest_id))

    guest = Guest.objects.create(name="g")
    stay = Reservation.objects.create(checkin_at=clock() + timedelta(hours=1), note="sea view", guest=guest)
    pk, guest_pk = stay.pk, guest.pk
    guest.delete()  # also deletes the reservation (cascade)
    work()
    assert seen == [(Reservation, pk, "sea view", clock() + timedelta(hours=1), guest_pk)]


def test_cancelled_is_heard_of_a_child_with_all_its_columns(work):
    seen = []

    @on_event_cancelled("suite_opened")
    def cancelled(event):
        seen.append((type(event.entity), event.entity.pk, event.entity.stars, event.entity.is_clean))

    Suite.objects.create(number="7", stars=2, is_clean=True).delete()
    work()
    assert seen == [(Suite, "7", 2, True)]


def test_cancelled_is_not_heard_of_what_has_occurred(work):
    @on_event_cancelled(CONFIRMED)
    def cancelled(event):
        leave("cancelled")

    confirm().delete()
    work()
    assert effects() == []
    Reservation.objects.create().delete()
    work()
    assert effects() == ["cancelled"]


def test_cancelled_by_hand_is_heard_once(work):
    @on_event_cancelled(CONFIRMED)
    def cancelled(event):
        leave(f"cancelled {event.status} {event.entity.pk}")

    stay = Reservation.objects.create()
    event_of(stay, CONFIRMED).cancel()
    work()
    stay.save()
    work()
    assert effects() == [f"cancelled cancelled {stay.pk}"]


def test_cancelled_by_hand_is_heard_of_an_entity_that_is_deleted_at_once(work):
    on_event_cancelled(CONFIRMED)(lambda event: leave(f"cancelled {event.entity.note}"))
    stay = Reservation.objects.create(note="sea view")
    event_of(stay, CONFIRMED).cancel()
    stay.delete()
    work()
    work()
    assert effects() == ["cancelled sea view"]


def test_what_is_parked_after_it_has_occurred_is_not_cancelled(clock, work):
    """An event that occurred and was then parked after three lost workers cannot be cancelled, only resumed."""
    on_event_cancelled("checkin_due")(lambda event: leave("cancelled"))
    on_event("checkin_due", name="at")(lambda event: leave("at its date"))
    on_event("checkin_due", name="later", offset=timedelta(hours=1))(lambda event: leave("an hour later"))
    stay = Reservation.objects.create(checkin_at=clock(), status="confirmed")
    work()
    event = event_of(stay, "checkin_due")
    Event.objects.filter(pk=event.pk).update(lease="dead:1:x", losses=2, wake_at=clock())
    work()
    event.refresh_from_db()
    assert (event.status, event.cancel()) == ("parked", False)
    event.resume()
    clock.tick(timedelta(hours=1))
    work()
    assert effects() == ["at its date", "an hour later"]


def test_a_deletion_that_is_rolled_back_cancels_nothing(work):
    @on_event_cancelled(CONFIRMED)
    def cancelled(event):
        leave("cancelled")

    stay = Reservation.objects.create()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Reservation.objects.get(pk=stay.pk).delete()
        raise ZeroDivisionError
    work()
    assert effects() == []
    assert event_of(stay, CONFIRMED).status == "pending"


def test_an_entity_that_is_deleted_between_occurrence_and_callback_is_a_snapshot(work):
    @on_event(CONFIRMED)
    def greet(event):
        leave(f"hello {event.entity.note}")

    stay = confirm(note="late riser")
    stay.delete()
    work()
    assert effects() == ["hello late riser"]


# -- removed functions -------------------------------------------------------------------------------------------------


def test_an_unknown_callback_parks_and_can_be_resumed(work):
    @on_event(CONFIRMED, name="hotel.greet")
    def greet(event):
        leave("hello")

    @on_event(CONFIRMED, name="hotel.other")
    def other(event):
        leave("other")

    confirm()
    mine = callbacks.find_callback(CONFIRMED, "hotel.greet", "")
    callbacks.unregister(mine)
    work()
    row = the_execution(callback="hotel.greet")
    assert (row.status, row.lease) == ("parked", None)
    assert "UnknownCallbackError" in row.error
    assert "'hotel.greet'" in row.error
    assert effects() == ["other"]
    on_event(CONFIRMED, name="hotel.greet")(greet)
    row.resume()
    work()
    row.refresh_from_db()
    assert (row.status, row.error, effects()) == ("completed", "", ["other", "hello"])


def test_an_engine_that_breaks_on_one_row_goes_on_with_the_others(work, monkeypatch):
    @on_event(CONFIRMED)
    def greet(event):
        leave(event.entity_id)

    bad, good = confirm(), confirm()
    perform = CallbackExecution.perform

    def broken(row, clock):
        if row.event.entity_id == str(bad.pk):
            raise RuntimeError("a bug of the engine")
        perform(row, clock)

    monkeypatch.setattr(CallbackExecution, "perform", broken)
    work()
    assert effects() == [str(good.pk)]


def test_it_runs_in_one_transaction_by_default(work):
    inside = []

    @on_event(CONFIRMED)
    def look(event):
        inside.append(transaction.get_connection().in_atomic_block)

    confirm()
    work()
    assert inside == [True]
