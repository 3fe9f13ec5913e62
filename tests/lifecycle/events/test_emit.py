"""``emit``: an event without a model occurs once, after the commit or at its date."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from django.db import transaction
from pydantic import BaseModel, ValidationError

from django_ai.automation import FreeEvent, emit, idempotency_key, on_event, on_event_cancelled, on_event_created
from django_ai.automation.conf import conf
from django_ai.automation.events import free_events
from django_ai.automation.events.models import CallbackExecution, Event, EventStatus
from django_ai.automation.events.recording.reconcile import reconcile_dates
from django_ai.automation.exceptions import NaiveDatetimeError, NotResumableError, NotStorableError
from django_ai.automation.queues.runtimes.tasks import cleanup_old
from tests.apps.reservations.models import Reservation
from tests.support.free_events import PAID, Payment, hear, paid, the_event
from tests.support.rows import effects, leave, the_execution

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.exact_times]

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)


# -- immediate ---------------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_it_occurs_after_the_commit(clock, work):
    hear(paid())
    with transaction.atomic():
        event = emit(PAID, {"order_id": 7})
        assert event.status == EventStatus.PENDING
        assert event.pk is not None
        assert not CallbackExecution.objects.exists()
    event.refresh_from_db()
    assert (event.status, event.at, event.occurred_at) == ("processed", clock(), clock())
    assert (event.event_name, event.declared_as, event.namespace, event.key) == (PAID, PAID, "", "")
    assert (event.entity, event.payload, event.wake_at, event.lease) == (None, {"order_id": 7}, None, None)
    assert (event.is_free, event.is_valid, str(event)) == (True, True, f"event {PAID!r}")
    work()
    assert effects() == ["heard {'order_id': 7}"]


def test_without_a_transaction_it_is_committed_at_once(work):
    hear(paid())
    emit(PAID)
    assert the_event().status == "processed"
    work()
    assert effects() == ["heard {}"]


def test_it_is_rolled_back_with_its_transaction(work):
    hear(paid())
    with pytest.raises(RuntimeError), transaction.atomic():
        Reservation.objects.create()
        emit(PAID, {"order_id": 7})
        raise RuntimeError
    with transaction.atomic():
        with pytest.raises(RuntimeError), transaction.atomic():
            emit(PAID, {"order_id": 8})
            raise RuntimeError
        emit(PAID, {"order_id": 9})
    work()
    assert effects() == ["heard {'order_id': 9}"]
    assert not Reservation.objects.exists()


def test_each_call_without_a_key_is_an_event(work):
    hear(paid())
    with transaction.atomic():
        emit(PAID, {"n": 1})
        emit(PAID, {"n": 1})
    work()
    assert effects() == ["heard {'n': 1}"] * 2


def test_a_declaration_is_emitted_as_its_name_is(work):
    event = paid()
    hear(event)
    emit(event, {"n": 1})
    work()
    assert effects() == ["heard {'n': 1}"]


def test_a_worker_performs_what_a_process_left_over(work, monkeypatch):
    hear(paid())
    monkeypatch.setattr("django_ai.automation.events.commit_batch.CommitBatch.__call__", lambda self: None)
    emit(PAID, {"n": 1})
    assert the_event().status == "pending"
    work()
    assert effects() == ["heard {'n': 1}"]


# -- once for each key -------------------------------------------------------------------------------------------------


def test_a_key_is_recorded_once(work):
    hear(paid())
    first = emit(PAID, {"n": 1}, key="a")
    second = emit(PAID, {"n": 2}, key="a")
    assert second == first
    assert second.payload == {"n": 1}
    assert (second.key, str(second)) == ("a", f"event {PAID!r} with the key 'a'")
    with transaction.atomic():
        third, fourth = emit(PAID, {"n": 3}, key="b"), emit(PAID, {"n": 4}, key="b")
        assert third == fourth
        assert fourth.payload == {"n": 3}
    work()
    assert effects() == ["heard {'n': 1}", "heard {'n': 3}"]


def test_a_key_counts_for_one_name_and_namespace():
    paid()
    FreeEvent("payment.failed")
    events = {
        emit(PAID, key="a"),
        emit(PAID, key="a", namespace="north"),
        emit(PAID, key="a", namespace="south"),
        emit("payment.failed", key="a"),
        emit(PAID, key="A"),
    }
    assert len(events) == Event.objects.count() == 5


def test_a_key_of_a_rolled_back_transaction_is_free(work):
    hear(paid())
    with pytest.raises(RuntimeError), transaction.atomic():
        emit(PAID, {"n": 1}, key="a")
        raise RuntimeError
    emit(PAID, {"n": 2}, key="a")
    work()
    assert effects() == ["heard {'n': 2}"]


# -- scheduled ---------------------------------------------------------------------------------------------------------


def test_it_occurs_at_its_date(clock, work):
    hear(paid())
    event = emit(PAID, {"n": 1}, at=clock.now + HOUR)
    assert event.wake_at == event.at
    work()
    assert effects() == []
    clock.tick(HOUR - SECOND)
    work()
    assert effects() == []
    clock.tick(SECOND)
    work()
    assert effects() == ["heard {'n': 1}"]
    assert the_event().occurred_at == clock.now


def test_a_date_that_is_past_is_due_at_once(clock, work):
    hear(paid())
    event = emit(PAID, {"n": 1}, at=clock.now - 100 * DAY)
    event.refresh_from_db()
    assert event.status == "processed"
    assert event.at == clock.now - 100 * DAY
    work()
    assert effects() == ["heard {'n': 1}"]


def test_after_an_outage_it_still_occurs(clock, work):
    hear(paid())
    emit(PAID, {"n": 1}, at=clock.now + HOUR)
    clock.tick(100 * DAY)
    work()
    assert effects() == ["heard {'n': 1}"]


def test_a_date_needs_a_time_zone():
    paid()
    with pytest.raises(NaiveDatetimeError):
        emit(PAID, at=datetime(2030, 1, 8))  # noqa: DTZ001


def test_offsets_before_and_after_the_date(clock, work):
    event = paid()
    hear(event, "before", offset=-HOUR)
    hear(event, "at")
    hear(event, "after", offset=HOUR)
    hear(event, "checked", offset=2 * HOUR, recheck=True)
    emit(PAID, {}, at=clock.now + 2 * HOUR)
    heard = []
    for _ in range(5):
        clock.tick(HOUR)
        work()
        heard.append(effects()[sum(map(len, heard)) :])
    assert heard == [["before {}"], ["at {}"], ["after {}"], ["checked {}"], []]


def test_offsets_of_an_immediate_event_are_counted_from_the_call(clock, work):
    event = paid()
    hear(event, "before", offset=-HOUR)
    hear(event, "after", offset=HOUR)
    emit(PAID, {})
    work()
    assert effects() == ["before {}"]
    clock.tick(HOUR)
    work()
    assert effects() == ["before {}", "after {}"]


def test_an_offset_that_is_deployed_later_is_noticed(clock, work):
    paid()
    emit(PAID, {}, at=clock.now + 2 * HOUR)
    hear(PAID, "before", offset=-HOUR)
    assert reconcile_dates(clock.now) == 0  # not due soon
    clock.tick(HOUR - timedelta(minutes=10))
    assert reconcile_dates(clock.now) == 1
    assert reconcile_dates(clock.now) == 0
    work()
    assert effects() == []
    clock.tick(timedelta(minutes=10))
    work()
    assert effects() == ["before {}"]


def test_reconciliation_goes_on_where_its_time_slice_ended(clock, monkeypatch):
    from django_ai.automation.events.recording import reconcile
    from django_ai.automation.queues.periodic_tasks import TimeSlice

    paid()
    for _ in range(5):
        emit(PAID, {}, at=clock.now + 2 * HOUR)
    hear(PAID, "before", offset=-2 * HOUR)
    monkeypatch.setattr(reconcile, "ENTITIES_PER_TRANSACTION", 2)
    monkeypatch.setattr(TimeSlice, "is_over", property(lambda self: True))
    position, written = None, []
    for _ in range(100):
        found = reconcile.reconcile_slice(TimeSlice(clock.now, position=position))
        position = found.position
        written.append(found.done)
        if position is None:
            break
    assert sum(written) == 5
    assert position is None


# -- created and cancelled ---------------------------------------------------------------------------------------------


def test_it_is_heard_when_it_is_recorded_and_when_it_is_cancelled(clock, work):
    event = paid()
    hear(event, "created", on_event_created)
    hear(event, "cancelled", on_event_cancelled)
    hear(event, "occurred")
    row = emit(PAID, {"n": 1}, at=clock.now + HOUR)
    work()
    assert effects() == ["created {'n': 1}"]
    assert row.cancel()
    assert not row.cancel()
    work()
    assert effects() == ["created {'n': 1}", "cancelled {'n': 1}"]
    clock.tick(DAY)
    work()
    assert len(effects()) == 2
    assert the_event().status == "cancelled"


def test_a_cancelled_event_may_be_emitted_again_under_its_key(clock, work):
    hear(paid())
    first = emit(PAID, {"n": 1}, key="a", at=clock.now + HOUR)
    first.cancel()
    second = emit(PAID, {"n": 2}, key="a", at=clock.now + 2 * HOUR)
    assert second != first
    assert emit(PAID, {"n": 3}, key="a") == second
    clock.tick(2 * HOUR)
    work()
    assert effects() == ["heard {'n': 2}"]


def test_an_event_that_has_occurred_keeps_its_key():
    paid()
    event = emit(PAID, key="a")
    event.refresh_from_db()
    assert not event.cancel()
    assert emit(PAID, key="a") == event


# -- payloads ----------------------------------------------------------------------------------------------------------


def test_a_payload_is_checked_and_converted_by_its_schema(work):
    hear(paid(Payment))
    emit(PAID, {"order_id": "7"})
    emit(PAID, Payment(order_id=8, cents=5))
    work()
    assert effects() == ["heard {'cents': 0, 'order_id': 7}", "heard {'cents': 5, 'order_id': 8}"]
    with pytest.raises(ValidationError):
        emit(PAID, {"order_id": "seven"})
    assert Event.objects.count() == 2


def test_any_model_may_be_the_payload(work):
    class Other(BaseModel):
        at: datetime

    hear(paid())
    emit(PAID, Other(at=datetime.fromisoformat("2030-01-07T12:00Z")))
    work()
    assert effects() == ["heard {'at': '2030-01-07T12:00:00Z'}"]


@pytest.mark.parametrize("value", [float("nan"), "a\x00", object(), "\ud800", {1, 2}])
def test_what_not_every_database_stores_is_refused(value):
    paid()
    with pytest.raises(NotStorableError, match="The payload of emit"):
        emit(PAID, {"x": value})
    assert not Event.objects.exists()


def test_strings_come_back_as_they_were(work):
    hear(paid())
    emit(PAID, {"x": "Zoë 🛎 'quoted' \"twice\" \\ \n"}, key="ключ 🗝", namespace="nørth")
    event = the_event()
    assert event.payload == {"x": "Zoë 🛎 'quoted' \"twice\" \\ \n"}
    assert (event.key, event.namespace) == ("ключ 🗝", "nørth")


# -- names -------------------------------------------------------------------------------------------------------------


def test_namespaces_and_patterns(work):
    FreeEvent("stripe:*")
    for name in ("*", "stripe:*", "stripe:charge.*", "stripe:charge.failed", "stripe:refund"):
        hear(name, f"on {name}")
    hear("stripe:*", "in north", namespace="north")
    emit("stripe:charge.failed", {}, namespace="north")
    work()
    expected = ["in north {}", *(f"on {name} {{}}" for name in ("*", "stripe:*", "stripe:charge.*"))]
    assert sorted(effects()) == sorted([*expected, "on stripe:charge.failed {}"])
    event = the_event()
    assert (event.event_name, event.declared_as) == ("stripe:charge.failed", "stripe:*")


# -- from callbacks ----------------------------------------------------------------------------------------------------


def test_it_commits_with_the_callback_that_emits_it(work):
    """The first attempt fails after the call: nothing of it is left, and the second attempt emits once."""
    FreeEvent("unit.next")
    hear("unit.next", "next")
    tries = []

    @on_event(paid().name, name="emits")
    def emits(event):
        tries.append(1)
        emit("unit.next", {"try": len(tries)})
        if len(tries) == 1:
            raise RuntimeError("the first try fails")

    row = emit(PAID)
    work()
    work(the_execution(callback="emits").wake_at)
    work()
    assert effects() == ["next {'try': 2}"]
    following = the_event(event_name="unit.next")
    assert following.caused_by == f"callback:{the_execution(callback='emits').pk}"
    assert following.depth == row.depth + 1


def test_a_function_that_holds_no_transaction_uses_a_key(work):
    FreeEvent("unit.next")
    hear("unit.next", "next")
    tries = []

    @on_event(paid().name, name="emits", atomic=False)
    def emits(event):
        tries.append(1)
        emit("unit.next", {"try": len(tries)}, key=idempotency_key())
        if len(tries) == 1:
            raise RuntimeError("the first try fails")

    emit(PAID)
    work()
    work(the_execution(callback="emits").wake_at)
    work()
    assert effects() == ["next {'try': 1}"]


def test_an_endless_chain_is_parked(work, settings):
    settings.AUTOMATION = {**settings.AUTOMATION, "MAX_DEPTH": 5}

    @on_event(paid().name)
    def again(event):
        leave("again")
        emit(PAID)

    emit(PAID)
    for _ in range(10):
        work()
    assert len(effects()) == 6
    parked = Event.objects.get(status=EventStatus.PARKED)
    assert "EventStormError" in parked.error
    parked.resume()
    work()
    assert len(effects()) > 6


# -- releases ----------------------------------------------------------------------------------------------------------


def test_an_event_that_this_release_does_not_declare_waits_for_one_that_does(clock, work):
    event = paid()
    emit(PAID, {"n": 1}, at=clock.now + HOUR)
    free_events.unregister(event)
    FreeEvent("payment.receivd")
    clock.tick(HOUR)
    work()
    row = the_event()
    assert (row.status, row.is_valid) == ("parked", False)
    assert f"no FreeEvent({PAID!r}) is declared any longer. Was it renamed to 'payment.receivd'?" in row.error
    hear(paid())
    work(row.wake_at)
    assert effects() == ["heard {'n': 1}"]


def test_resume_is_for_parked_events():
    paid()
    with pytest.raises(NotResumableError):
        emit(PAID).resume()


# -- retention ---------------------------------------------------------------------------------------------------------


def test_events_are_pruned_with_what_they_caused_and_their_keys_are_free_again(clock, work):
    hear(paid())
    emit(PAID, {"n": 1}, key="a")
    emit(PAID, {"n": 2})
    pending = emit(PAID, {"n": 3}, key="later", at=clock.now + 1000 * DAY)
    work()
    clock.tick(conf().RETENTION - DAY)
    cleanup_old()
    assert Event.objects.count() == 3
    assert emit(PAID, {"n": 4}, key="a").payload == {"n": 1}
    clock.tick(2 * DAY)
    cleanup_old()
    assert list(Event.objects.all()) == [pending]
    assert not CallbackExecution.objects.exists()
    assert emit(PAID, {"n": 5}, key="a").payload == {"n": 5}


def test_a_scheduled_event_is_kept_as_long_after_its_occurrence(clock, work):
    paid()
    emit(PAID, key="a", at=clock.now + 100 * DAY)
    clock.tick(100 * DAY)
    work()
    clock.tick(conf().RETENTION - DAY)
    cleanup_old()
    assert Event.objects.exists()
    clock.tick(2 * DAY)
    cleanup_old()
    assert not Event.objects.exists()


def test_cancelled_events_are_pruned_and_parked_ones_stay(clock, work, settings):
    event = paid()
    emit(PAID, key="a", at=clock.now + DAY).cancel()
    emit(PAID, key="b", at=clock.now + HOUR)
    emit(PAID, at=clock.now + HOUR)
    free_events.unregister(event)
    clock.tick(HOUR)
    work()
    Event.objects.filter(status="parked").update(wake_at=None)
    clock.tick(conf().RETENTION + DAY)
    cleanup_old()
    assert [each.status for each in Event.objects.all()] == ["parked", "parked"]
