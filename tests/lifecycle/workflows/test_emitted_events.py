"""Workflows and events without a model: started by one, waiting for one that matches by its payload, emitting one."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from pydantic import BaseModel

from django_ai.automation import (
    Debounce,
    FreeEvent,
    Retry,
    complete,
    emit,
    engine,
    event_workflow,
    get_wake,
    sleep,
    step,
    wait_for_event,
    workflow,
)
from django_ai.automation.events.matching import lookback
from django_ai.automation.events.models import Event, RoutingShape
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.free_events import PAID, Payment, hear, paid, the_event
from tests.support.matching_runs import Context as Values
from tests.support.matching_runs import statuses, waiting
from tests.support.rows import effects, leave, status, the_run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.exact_times]

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)


# -- started by one ----------------------------------------------------------------------------------------------------


def books(**options):
    @event_workflow(PAID, name="books", **options)
    class Books:
        class Context(BaseModel):
            order_id: int = 0
            entity_id: str = "none"

        @step(start=True)
        def book(self):
            leave(f"{self.context.order_id} {self.context.entity_id}")
            return complete()


def test_a_context_gets_its_fields_from_the_payload(work):
    paid()
    books()
    emit(PAID, {"order_id": 7, "cents": 5}, key="a")
    work()
    assert effects() == ["7 none"]
    run = the_run()
    assert (run.status, run.entity_type, run.entity_id, run.event) == ("completed", "", "", the_event())


def test_create_context_reads_the_payload(work):
    paid()

    @event_workflow(PAID, name="books")
    class Books:
        class Context(BaseModel):
            number: int

        @classmethod
        def create_context(cls, event):
            assert event.entity is None
            return cls.Context(number=event.payload["order_id"])

        @step(start=True)
        def book(self):
            leave(self.context.number)
            return complete()

    emit(PAID, {"order_id": 7})
    work()
    assert effects() == ["7"]


def test_a_repeated_event_starts_no_second_run(work):
    paid()
    books()
    for _ in range(3):
        emit(PAID, {"order_id": 7}, key="a")
        work()
    assert effects() == ["7 none"]


@pytest.mark.parametrize("offset", [-HOUR, HOUR])
def test_a_run_is_planned_at_its_offset(clock, work, offset):
    paid()
    books(offset=offset)
    emit(PAID, {"order_id": 7}, at=clock.now + 2 * HOUR)
    run = the_run()
    assert (run.status, run.wake_at) == ("waiting", clock.now + 2 * HOUR + offset)
    work(run.wake_at - SECOND)
    assert effects() == []
    work(run.wake_at)
    assert effects() == ["7 none"]
    work(clock.now + 2 * HOUR)
    assert effects() == ["7 none"]


def test_a_planned_run_is_withdrawn_with_its_event(clock, work):
    paid()
    books(offset=-HOUR)
    emit(PAID, {"order_id": 7}, at=clock.now + 2 * HOUR).cancel()
    assert the_run().status == "withdrawn"
    clock.tick(DAY)
    work()
    assert effects() == []


def test_recheck_does_not_hold_back_what_has_no_condition(clock, work):
    paid()
    books(offset=HOUR, recheck=True)
    emit(PAID, {"order_id": 7})
    clock.tick(HOUR)
    work()
    assert effects() == ["7 none"]


def test_several_events_become_one_run(clock, work):
    """A debounce and a batch collect events by a key that reads their payload."""
    paid()

    @event_workflow(PAID, name="books", debounce=Debounce(HOUR, key="{{ payload.order_id }}"))
    class Books:
        class Context(BaseModel):
            cents: list[int]

        @classmethod
        def create_context(cls, events):
            return cls.Context(cents=[event.payload["cents"] for event in events])

        @step(start=True)
        def book(self):
            leave(self.context.cents)
            return complete()

    for number, cents in ((7, 1), (8, 2), (7, 3)):
        emit(PAID, {"order_id": number, "cents": cents}, key=f"{number} {cents}")
    clock.tick(HOUR)
    work()
    assert sorted(effects()) == ["[1, 3]", "[2]"]
    assert {run.entity_id for run in WorkflowRun.objects.all()} == {""}


# -- waits -------------------------------------------------------------------------------------------------------------


def test_a_wait_ends_with_the_event_that_matches(work):
    paid()
    run = waiting({"order_id": "{{ ctx.number }}"}, event=PAID, number=7)
    other = waiting({"order_id": "{{ ctx.number }}"}, event=PAID, number=8)
    work()
    assert statuses(run, other) == ["suspended", "suspended"]
    emit(PAID, {"order_id": 7, "text": "from the payload"})
    work()
    assert statuses(run, other) == ["completed", "suspended"]
    run.refresh_from_db()
    assert run.data["text"] == "from the payload"


def test_a_wait_receives_the_payload(work):
    paid()

    @workflow("listens")
    class Listens:
        Context = Values

        @step(start=True)
        def listen(self):
            return wait_for_event(PAID, match={"order_id": 7}, then=self.end)

        @step()
        def end(self):
            leave(sorted(get_wake().payload.items()))
            return complete()

    engine.start("listens")
    work()
    emit(PAID, {"order_id": 7, "cents": 5}, key="a")
    work()
    assert effects() == ["[('cents', 5), ('order_id', 7)]"]


def test_a_wait_without_a_match_ends_with_any(work):
    paid()
    run = waiting(None, event=PAID)
    work()
    emit(PAID, {"whatever": 1})
    work()
    assert status(run) == "completed"


@pytest.mark.parametrize(
    ("schema", "match", "payload", "ends"),
    [
        (None, {"order_id": 7}, {"order_id": 7}, True),
        (None, {"order_id": 7}, {"order_id": 7.0}, True),
        (None, {"order_id": 7}, {"order_id": "7"}, False),
        (None, {"order_id": "7"}, {"order_id": "7"}, True),
        (None, {"order_id": "a"}, {"order_id": "A"}, False),
        (None, {"order_id": 7}, {}, False),
        (None, {"paid": True}, {"paid": True}, True),
        (None, {"paid": True}, {"paid": 1}, False),
        (None, {"paid": None}, {"paid": None}, True),
        (None, {"name": 'Zoë "x"'}, {"name": 'Zoë "x"'}, True),
        (None, {"customer__number": 3}, {"customer": {"number": 3}}, True),
        (None, {"customer__number": 3}, {"customer": {"number": 4}}, False),
        (None, {"customer__number": 3}, {"customer": 3}, False),
        (None, {"at": datetime(2030, 1, 7, tzinfo=UTC)}, {"at": "2030-01-07T00:00:00+00:00"}, True),
        (None, {"cents__gte": 100}, {"cents": 100}, True),
        (None, {"cents__gte": 100}, {"cents": 99}, False),
        (None, {"cents__gte": 100}, {}, False),
        (None, {"cents__gte": 100, "order_id": 7}, {"cents": 100, "order_id": 7}, True),
        (None, {"cents__gte": 100, "order_id": 7}, {"cents": 99, "order_id": 7}, False),
        (None, {"kind__in": ["a", "b"]}, {"kind": "b"}, True),
        (None, {"kind__in": ["a", "b"]}, {"kind": "c"}, False),
        (None, {"tags": ["a", "b"]}, {"tags": ["a", "b"]}, True),
        (Payment, {"order_id": "7"}, {"order_id": 7}, True),
        (Payment, {"order_id": 7}, {"order_id": "7"}, True),
        (Payment, {"order_id": 8}, {"order_id": "7"}, False),
        (Payment, {"cents__gt": "99"}, {"order_id": 1, "cents": 100}, True),
    ],
)
@pytest.mark.parametrize("looks_back", [False, True])
def test_a_match_compares_fields_of_the_payload(work, schema, match, payload, ends, looks_back):
    paid(schema)
    run = waiting(match, event=PAID, before=(lambda: emit(PAID, payload)) if looks_back else None)
    work()
    if not looks_back:
        emit(PAID, payload)
    work()
    assert status(run) == ("completed" if ends else "suspended")


def test_values_of_the_context_are_compared_by_their_type(work):
    class Refund(BaseModel):
        token: uuid.UUID
        at: datetime
        least: Decimal

    FreeEvent("refunded", payload=Refund)
    match = {"token": "{{ ctx.token }}", "at": "{{ ctx.when }}", "least": "{{ ctx.least }}"}
    token, when = uuid.uuid4(), datetime(2030, 1, 7, 12, tzinfo=UTC)
    payload = {"token": str(token).upper(), "at": "2030-01-07T13:00:00+01:00", "least": "1.5"}
    later = waiting(match, event="refunded", token=token, when=when, least=Decimal("1.50"))
    earlier = waiting(
        match,
        event="refunded",
        token=token,
        when=when,
        least=Decimal("1.50"),
        before=lambda: emit("refunded", payload),
    )
    work()
    work()
    assert statuses(later, earlier) == ["completed", "completed"]


def test_a_field_that_the_schema_does_not_have_is_an_error(work):
    paid(Payment)
    run = waiting({"order": 7}, event=PAID)
    work()
    run.refresh_from_db()
    assert run.status == "failed"
    assert "Payment has no field 'order'. Did you mean 'order_id'?" in run.error
    assert DefinitionError.__name__ in run.error


def test_a_wait_for_a_namespace_and_for_a_name_of_a_family(work):
    FreeEvent("stripe:*")

    @workflow("listens")
    class Listens:
        Context = Values

        @step(start=True)
        def listen(self):
            if get_wake().reason == "event":
                return complete()
            return wait_for_event("stripe:{{ ctx.text }}", match={"order_id": 7}, namespace="north")

    run = engine.start("listens", text="charge")
    work()
    for name, number, namespace in (("charge", 7, None), ("charge", 8, "north"), ("refund", 7, "north")):
        emit(f"stripe:{name}", {"order_id": number}, namespace=namespace)
        work()
        assert status(run) == "suspended"
    emit("stripe:charge", {"order_id": 7}, namespace="north")
    work()
    assert status(run) == "completed"
    assert RoutingShape.objects.get().event_name == "stripe:*"


# -- looking back ------------------------------------------------------------------------------------------------------


def test_it_looks_back_at_the_first_that_fits(work, monkeypatch):
    monkeypatch.setattr(lookback, "ROWS_PER_QUERY", 2)
    paid()
    events = []

    def occur():
        for number in (1, 2, 7, 3, 7):
            events.append(emit(PAID, {"order_id": number}))

    run = waiting({"order_id": 7}, event=PAID, before=occur)
    work()
    work()
    assert status(run) == "completed"
    assert run.steps.order_by("pk").last().wake_ref == events[2].pk


def test_it_does_not_look_at_what_was_before_the_run(work):
    paid()
    emit(PAID, {"order_id": 7})
    run = waiting({"order_id": 7}, event=PAID)
    work()
    assert status(run) == "suspended"
    emit(PAID, {"order_id": 7})
    work()
    assert status(run) == "completed"


def test_it_hears_what_occurred_while_it_was_asleep_each_once(clock, work):
    paid()

    @workflow("listens")
    class Listens:
        class Context(BaseModel):
            seen: list[str] = []

        @step(start=True)
        def begin(self):
            return sleep(DAY, then=self.listen)

        @step()
        def listen(self):
            wake = get_wake()
            if wake.reason == "event":
                leave(wake.payload["n"])
            return wait_for_event(PAID, match={"order_id": 7})

    engine.start("listens")
    work()
    for number in range(3):
        emit(PAID, {"order_id": 7, "n": number})
    clock.tick(DAY)
    for _ in range(5):
        work()
    assert effects() == ["0", "1", "2"]


def test_a_run_does_not_wait_for_the_event_that_started_it(work):
    paid()

    @event_workflow(PAID, name="follows")
    class Follows:
        class Context(BaseModel):
            order_id: int

        @step(start=True)
        def listen(self):
            if get_wake().reason == "event":
                return complete()
            return wait_for_event(PAID, match={"order_id": "{{ ctx.order_id }}"})

    emit(PAID, {"order_id": 7})
    work()
    run = WorkflowRun.objects.get()
    assert run.status == "suspended"
    emit(PAID, {"order_id": 7})
    work()
    assert status(run) == "completed"


# -- signals that stand for an event -----------------------------------------------------------------------------------


def test_a_signal_on_its_channel_stands_for_the_event(work):
    paid(Payment)
    run = waiting({"order_id": 7, "cents__gte": 5}, event=PAID)
    work()
    for cents, wakes in ((4, False), (5, True)):
        engine.signal(f"event:{PAID}", {"order_id": "7", "cents": cents})
        work()
        assert run.steps.filter(wake_reason="signal").exists() is wakes


# -- emitting ----------------------------------------------------------------------------------------------------------


def test_what_a_step_emits_commits_with_it(work):
    hear(paid())

    @workflow("emits")
    class Emits:
        class Context(BaseModel):
            tries: int = 0

        @step(start=True, retry=Retry(max_attempts=3, base_delay=SECOND))
        def begin(self):
            self.context.tries += 1
            emit(PAID, {"try": self.context.tries})
            if self.context.tries < 3:
                raise RuntimeError
            return complete()

    run = engine.start("emits")
    work()
    for _ in range(2):
        run.refresh_from_db()
        work(run.wake_at)
    work()
    assert status(run) == "completed"
    assert effects() == ["heard {'try': 3}"]
    assert the_event().caused_by == f"workflow:{run.pk}:begin"


def test_two_runs_talk_to_each_other(work):
    """One emits what the other waits for, and waits for the answer."""
    FreeEvent("asked")
    FreeEvent("answered")

    @workflow("asks")
    class Asks:
        class Context(BaseModel):
            number: int
            answer: str = ""

        @step(start=True)
        def ask(self):
            emit("asked", {"number": self.context.number})
            return wait_for_event("answered", match={"number": "{{ ctx.number }}"}, then=self.end)

        @step()
        def end(self):
            leave(self.context.answer)
            return complete()

    @event_workflow("asked", name="answers")
    class Answers:
        class Context(BaseModel):
            number: int

        @step(start=True)
        def answer(self):
            emit("answered", {"number": self.context.number, "answer": f"answer {self.context.number}"})
            return complete()

    for number in range(3):
        engine.start("asks", number=number)
    for _ in range(4):
        work()
    assert sorted(effects()) == ["answer 0", "answer 1", "answer 2"]
    assert Event.objects.filter(status="processed").count() == 6
