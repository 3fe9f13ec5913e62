"""Limits of ``@on_event``: concurrency, throttle, rate limit and singleton."""

from __future__ import annotations

from datetime import timedelta

import pytest

from django_ai.automation import Concurrency, Debounce, RateLimit, Retry, Singleton, Throttle, on_event
from django_ai.automation.conf import conf
from django_ai.automation.events.checks import check_callbacks
from django_ai.automation.events.models import CallbackExecution
from django_ai.automation.queues.claim import claim_rows
from django_ai.automation.queues.models import Limiter
from django_ai.automation.queues.operations.explanations import explain
from django_ai.automation.testing import time_machine
from tests.apps.reservations.models import Guest, Reservation
from tests.support.limits import HOUR, MINUTE, SECOND, slots
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

NAME = "call"


def listen(**options: object) -> None:
    @on_event("reservation_confirmed", name=NAME, **options)
    def call(event):
        leave(f"call {event.entity.note}")
        if event.entity.note.startswith("fail"):
            raise RuntimeError("no")


def book(*notes: str, **fields: object) -> list[Reservation]:
    return [Reservation.objects.create(status="confirmed", note=note, **fields) for note in notes]


def calls() -> list[str]:
    return list(CallbackExecution.objects.order_by("pk").values_list("status", flat=True))


def held_by_a_dead_worker(clock) -> CallbackExecution:
    """Let a worker acquire what the first call needs, and die before it has run it."""
    from django_ai.automation.events import execution

    first = CallbackExecution.objects.order_by("pk").first()
    (row,) = claim_rows(CallbackExecution, [first.pk], clock.now)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "attempt", lambda *arguments, **options: True)
        row.perform(lambda: clock.now)
    return row


def test_a_call_waits_while_as_many_run_as_the_limit_says(clock, work):
    listen(concurrency=Concurrency(1))
    book("a", "b")
    first = held_by_a_dead_worker(clock)
    work()
    assert effects() == []
    second = CallbackExecution.objects.exclude(pk=first.pk).get()
    assert (second.status, second.wake_at, second.lease) == ("pending", None, None)
    assert "a slot of the limit 'concurrency' of callback call on reservation_confirmed" in [
        each.waits_for for each in explain(clock.now, ["callback execution"])
    ]
    clock.tick(conf().LEASE + SECOND)
    work()
    assert (effects(), calls(), slots()) == (["call a", "call b"], ["completed"] * 2, {})


def test_the_key_reads_the_entity(clock, work):
    listen(concurrency=Concurrency(1, key="{{ instance.guest }}-{{ instance.guest.name }}"))
    one, other = Guest.objects.create(name="one"), Guest.objects.create(name="other")
    book("a", "b", guest=one)
    book("c", guest=other)
    held_by_a_dead_worker(clock)
    work()
    assert effects() == ["call c"]
    assert sorted(Limiter.objects.values_list("value", flat=True)) == [f"{one.pk}-one", f"{other.pk}-other"]


def test_a_key_of_a_missing_relation_is_none(clock, work):
    listen(concurrency=Concurrency(1, key="{{ instance.guest.name }}"))
    book("a")
    work()
    assert (calls(), Limiter.objects.get().value) == (["completed"], "null")


def test_a_key_that_raises_is_a_failed_attempt(clock, work):
    key = "{{ instance.nonsense }}"
    listen(concurrency=Concurrency(1, key=key), retry=Retry(max_attempts=2, base_delay=MINUTE))
    book("a")
    work()
    assert calls() == ["pending"]
    clock.tick(MINUTE)
    work()
    row = CallbackExecution.objects.get()
    assert (row.status, row.attempt, slots(), effects()) == ("failed", 2, {}, [])
    assert row.error.splitlines()[-1] == "AttributeError: 'Reservation' object has no attribute 'nonsense'"


def test_a_call_in_the_backoff_of_a_retry_holds_no_slot(clock, work):
    listen(concurrency=Concurrency(1), retry=Retry(max_attempts=2, base_delay=MINUTE))
    book("fail", "b")
    work()
    assert (effects(), calls(), slots()) == (["call b"], ["pending", "completed"], {})
    clock.tick(MINUTE)
    work()
    assert (calls(), slots()) == (["failed", "completed"], {})


def test_a_throttle_delays_calls():
    listen(throttle=Throttle(1, per=MINUTE))
    with time_machine("2031-01-07T12:00+00:00") as machine:
        now = machine.now
        book("a", "b", "c")
        machine.advance(hours=1)
        began = CallbackExecution.objects.order_by("pk").values_list("started_at", flat=True)
        assert [each - now for each in began] == [timedelta(0), MINUTE, 2 * MINUTE]


def test_a_rate_limit_skips_calls_and_says_so(clock, work):
    listen(rate_limit=RateLimit(1, per=HOUR))
    book("a", "b")
    work()
    assert (effects(), calls()) == (["call a"], ["completed", "cancelled"])
    skipped = CallbackExecution.objects.get(status="cancelled")
    assert skipped.error.startswith("Skipped: rate_limit=RateLimit(limit=1, ")
    assert "is used up. The next one may start at 2030-01-07 14:00:00." in skipped.error
    clock.tick(HOUR)
    book("c")
    work()
    assert effects() == ["call a", "call c"]


def test_a_singleton_is_held_between_the_attempts(clock, work):
    listen(singleton=Singleton(on_conflict="queue"), retry=Retry(max_attempts=2, base_delay=MINUTE))
    book("fail", "b")
    work()
    assert (effects(), calls()) == ([], ["pending", "pending"])
    clock.tick(MINUTE)
    work()
    assert (effects(), calls(), slots()) == (["call b"], ["failed", "completed"], {})


def test_a_singleton_that_cancels_what_runs(clock, work):
    listen(singleton=Singleton(on_conflict="cancel_running"), retry=Retry(max_attempts=2, base_delay=MINUTE))
    book("fail")
    work()
    book("b")
    work()
    assert (effects(), calls(), slots()) == (["call b"], ["cancelled", "completed"], {})
    first = CallbackExecution.objects.get(status="cancelled")
    assert first.error.startswith("Superseded by callback execution #")


def test_each_subscription_has_its_own_limit(clock, work):
    @on_event("reservation_confirmed", name=NAME, rate_limit=RateLimit(1, per=HOUR))
    @on_event("guest_docs_uploaded", name=NAME, rate_limit=RateLimit(1, per=HOUR))
    def call(event):
        leave(event.event_name)

    Reservation.objects.create(status="confirmed", docs=True)
    work()
    assert sorted(effects()) == ["guest_docs_uploaded", "reservation_confirmed"]


def test_the_key_may_read_the_payload(clock, work):
    @on_event("document_uploaded", name=NAME, rate_limit=RateLimit(1, per=HOUR, key="{{ payload.kind }}"))
    def call(event):
        leave(event.payload["kind"])

    reservation = Reservation.objects.create()
    for kind in ("passport", "visa", "visa"):
        reservation.documents.create(kind=kind)
    work()
    assert effects() == ["passport", "visa"]


def test_a_check_finds_a_field_that_the_entity_does_not_have():
    listen(concurrency=Concurrency(1, key="{{ instance.guest_nme }}"))
    (found,) = check_callbacks(None)
    assert found.id == "automation.E116"
    assert (
        found.msg == "call: the key '{{ instance.guest_nme }}' reads 'guest_nme', which app.Reservation does not have."
    )
    assert found.hint.startswith("Did you mean")


def test_a_window_is_closed_before_its_call_waits_for_its_turn(clock, work):
    """What comes meanwhile is for the next call."""

    @on_event("reservation_confirmed", name=NAME, debounce=Debounce(SECOND), concurrency=Concurrency(1))
    def call(events):
        leave("+".join(event.entity.note for event in events))

    book("a", "b")
    clock.tick(SECOND)
    first = held_by_a_dead_worker(clock)
    book("c")
    clock.tick(SECOND)
    work()
    assert effects() == []
    book("d")
    clock.tick(SECOND)
    work()
    assert (effects(), slots()) == ([], {"held": 1, "queued": 2})
    clock.tick(conf().LEASE + SECOND)
    work()
    assert effects() == ["a+b", "c", "d"]
    assert first.pk == CallbackExecution.objects.first().pk
