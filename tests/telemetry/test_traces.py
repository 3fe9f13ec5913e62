"""Traces: one trace from a request through an event to the last step of a child run; links after timers and waits."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pydantic import BaseModel

from django_ai.automation import (
    Retry,
    agent,
    complete,
    engine,
    event_workflow,
    goto,
    handler,
    on_event,
    run_subflow,
    sleep,
    step,
    wait,
    workflow,
)
from django_ai.automation.events.models import Event
from django_ai.automation.queues import tracing
from django_ai.automation.queues.tracing import linked
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.agents import Notes
from tests.support.front_desk import book
from tests.support.rows import event_of

pytest.importorskip("opentelemetry.sdk", reason="the packages opentelemetry-api and -sdk are not installed")

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from django_ai.automation.contrib.telemetry import traces

pytestmark = pytest.mark.django_db(transaction=True)

CONFIRMED = "reservation_confirmed"
EXPORTER = InMemorySpanExporter()
PROVIDER = TracerProvider()
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))
TRACER = PROVIDER.get_tracer("tests")


@pytest.fixture(autouse=True)
def connected(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(trace, "get_tracer", PROVIDER.get_tracer)
    EXPORTER.clear()
    traces.connect()
    yield
    traces.disconnect()


def spans() -> dict[str, Any]:
    """Return the spans that have ended, by name; one each."""
    found = EXPORTER.get_finished_spans()
    assert len({span.name for span in found}) == len(found), [span.name for span in found]
    return {span.name: span for span in found}


def request(name: str = "GET /") -> Any:
    """A span of a web request."""
    return TRACER.start_as_current_span(name)


class Empty(BaseModel):
    pass


def test_one_trace_from_a_request_to_the_last_step_of_a_child_run(work):
    @workflow("traces:child")
    class Child:
        Context = Empty

        @step(start=True)
        def first(self):
            return goto(self.last)

        @step()
        def last(self):
            with TRACER.start_as_current_span("of the project"):
                return complete()

    @event_workflow(CONFIRMED, name="traces:parent")
    class Parent:
        class Context(BaseModel):
            entity_id: int

        @step(start=True)
        def begin(self):
            return goto(self.call)

        @step()
        def call(self):
            return run_subflow(Child, then=self.end)

        @step()
        def end(self):
            return complete()

    with request():
        stay = Reservation.objects.create(status="confirmed")
    work()
    assert WorkflowRun.objects.filter(status="completed").count() == 2
    found = spans()
    assert {span.context.trace_id for span in found.values()} == {found["GET /"].context.trace_id}
    assert set(found) == {
        "GET /",
        f"send {CONFIRMED}",
        "process traces:parent begin",
        "process traces:parent call",
        "process traces:child first",
        "process traces:child last",
        "of the project",
        "process traces:parent end",
    }
    parents = {name: span.parent.span_id if span.parent else None for name, span in found.items()}
    ids = {name: span.context.span_id for name, span in found.items()}
    assert parents[f"send {CONFIRMED}"] == ids["GET /"]
    assert parents["process traces:parent begin"] == ids[f"send {CONFIRMED}"]
    assert found[f"send {CONFIRMED}"].kind is trace.SpanKind.PRODUCER
    assert found[f"send {CONFIRMED}"].attributes["automation.entity"].startswith("app.reservation:")
    assert parents["process traces:child first"] == ids["process traces:parent call"]
    assert parents["of the project"] == ids["process traces:child last"]
    run = WorkflowRun.objects.get(name="traces:parent")
    values = dict(found["process traces:parent begin"].attributes)
    assert values["messaging.system"] == "django_ai_automation"
    assert (values["messaging.operation.type"], values["messaging.operation.name"]) == ("process", "step")
    assert values["messaging.message.id"] == f"workflow:{run.pk}"
    assert values["automation.causes"] == (f"event:{event_of(stay, CONFIRMED).pk}",)
    assert found["process traces:parent begin"].kind is trace.SpanKind.CONSUMER


def test_callbacks_and_handlers_continue_the_trace_and_what_they_cause_too(work):
    @workflow("traces:started")
    class Started:
        Context = Empty

        @step(start=True)
        def go(self):
            return complete()

    @on_event("booking_created", name="starts")
    def starts(event):
        engine.start(Started)

    @agent("traces:agent", spawn_on="booking_created")
    class Answers:
        Context = Notes

        @handler("booking_created")
        def answer(self):
            pass

    with request():
        book()
    work()
    found = list(EXPORTER.get_finished_spans())
    assert {span.context.trace_id for span in found} == {found[0].context.trace_id}
    assert {"process starts", "process traces:started go", "process traces:agent answer"} <= {s.name for s in found}


def test_a_failed_attempt_is_an_error_and_its_retry_is_in_the_same_trace(work, clock):
    calls: list[int] = []

    @on_event(CONFIRMED, name="fails", retry=Retry(max_attempts=2, base_delay=timedelta(seconds=5)))
    def fails(event):
        calls.append(1)
        if len(calls) == 1:
            raise LookupError("not yet")

    with request():
        Reservation.objects.create(status="confirmed")
    work()
    clock.tick(timedelta(minutes=1))
    work()
    root, event, first, second = EXPORTER.get_finished_spans()
    assert {each.context.trace_id for each in (event, first, second)} == {root.context.trace_id}
    assert (first.status.status_code, second.status.status_code) == (trace.StatusCode.ERROR, trace.StatusCode.UNSET)
    assert (first.attributes["error.type"], first.attributes["automation.attempt"]) == ("LookupError", 1)
    assert second.attributes["automation.attempt"] == 2
    assert [event.name for event in first.events] == ["exception"]


def test_after_a_sleep_a_new_trace_starts_with_a_link_and_the_next_steps_are_in_it(work, clock):
    @workflow("traces:sleeps")
    class Sleeps:
        Context = Empty

        @step(start=True)
        def begin(self):
            return sleep(timedelta(days=3), then=self.awake)

        @step()
        def awake(self):
            return goto(self.end)

        @step()
        def end(self):
            return complete()

    with request():
        engine.start(Sleeps)
    work()
    clock.tick(timedelta(days=3))
    work()
    found = spans()
    root, awake = found["GET /"], found["process traces:sleeps awake"]
    assert found["process traces:sleeps begin"].context.trace_id == root.context.trace_id
    assert awake.context.trace_id != root.context.trace_id
    assert awake.parent is None
    assert [link.context.trace_id for link in awake.links] == [root.context.trace_id]
    assert found["process traces:sleeps end"].context.trace_id == awake.context.trace_id
    assert not found["process traces:sleeps end"].links


def test_after_a_wait_for_a_signal_a_new_trace_starts_with_a_link(work):
    @workflow("traces:waits")
    class Waits:
        Context = Empty

        @step(start=True)
        def begin(self):
            return wait("go on", then=self.woken)

        @step()
        def woken(self):
            return complete()

    with request():
        run = engine.start(Waits)
    work()
    engine.signal("go on", run=run)
    work()
    found = spans()
    (link,) = found["process traces:waits woken"].links
    assert link.context.trace_id == found["GET /"].context.trace_id
    assert found["process traces:waits woken"].context.trace_id != link.context.trace_id


def test_an_offset_starts_a_new_trace_with_a_link(work, clock):
    @on_event(CONFIRMED, name="later", offset=timedelta(hours=2))
    def later(event):
        pass

    with request():
        Reservation.objects.create(status="confirmed")
    clock.tick(timedelta(hours=2))
    work()
    found = spans()
    later_span, sent = found["process later"], found[f"send {CONFIRMED}"]
    assert later_span.parent is None
    assert [each.context.span_id for each in later_span.links] == [sent.context.span_id]
    assert sent.parent.span_id == found["GET /"].context.span_id


def test_a_date_that_lies_ahead_starts_one_trace_for_all_that_the_event_causes(work, clock):
    @on_event("checkin_due", name="one")
    def one(event):
        pass

    @on_event("checkin_due", name="two")
    def two(event):
        pass

    with request():
        Reservation.objects.create(status="confirmed", checkin_at=clock() + timedelta(days=2))
    clock.tick(timedelta(days=2))
    work()
    found = spans()
    sent = found["send checkin_due"]
    assert sent.parent is None
    assert [each.context.span_id for each in sent.links] == [found["GET /"].context.span_id]
    assert {found[name].parent.span_id for name in ("process one", "process two")} == {sent.context.span_id}


def test_the_state_of_the_trace_is_carried_where_it_fits():
    state = trace.TraceState([("vendor", "x" * 20)])
    parent = trace.SpanContext(1, 2, is_remote=True, trace_flags=trace.TraceFlags(1), trace_state=state)
    with trace.use_span(trace.NonRecordingSpan(parent)):
        carried = traces.carried_now()
    assert carried == f"00-{1:032x}-{2:016x}-01 vendor={'x' * 20}"
    found = trace.get_current_span(traces._extracted(linked(carried))).get_span_context()
    assert (found.trace_id, found.span_id, found.trace_state.get("vendor")) == (1, 2, "x" * 20)
    long = trace.TraceState([("vendor", "x" * 250)])
    with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(1, 2, True, trace.TraceFlags(1), long))):
        assert traces.carried_now() == f"00-{1:032x}-{2:016x}-01"


def test_what_fails_in_tracing_keeps_nothing_from_being_saved_or_performed(work, caplog):
    called: list[int] = []

    @on_event(CONFIRMED, name="called")
    def callback(event):
        called.append(event.pk)

    def broken(*args: object) -> None:
        raise ZeroDivisionError("tracing")

    tracing.provide_trace_contexts(broken)
    stay = Reservation.objects.create(status="confirmed")
    assert "could not be read" in caplog.text
    tracing.provide_trace_contexts(lambda: f"00-{1:032x}-{2:016x}-01", broken)
    other = Reservation.objects.create(status="confirmed")
    assert "could not be traced" in caplog.text
    work()
    assert called == [event_of(each, CONFIRMED).pk for each in (stay, other)]


def test_outside_a_trace_each_attempt_is_one_of_its_own(work):
    @on_event(CONFIRMED, name="alone")
    def alone(event):
        pass

    Reservation.objects.create(status="confirmed")
    work()
    span = spans()["process alone"]
    assert span.parent is None
    assert not span.links
    assert event_of(Reservation.objects.get(), CONFIRMED).trace_context is None


def test_nothing_is_carried_and_no_query_is_added_where_it_is_not_connected(work):
    @workflow("traces:signals")
    class Signals:
        Context = Empty

        @step(start=True)
        def begin(self):
            return wait("go on", then=self.woken)

        @step()
        def woken(self):
            return complete()

    def queries() -> int:
        with request(), CaptureQueriesContext(connection) as captured:
            run = engine.start(Signals)
            work()
            engine.signal("go on", run=run)
            work()
        return len(captured)

    queries()
    traced = queries()
    traces.disconnect()
    EXPORTER.clear()
    with request():
        Reservation.objects.create(status="confirmed")
    assert Event.objects.exclude(trace_context=None).count() == 0
    assert queries() <= traced
    assert {span.name for span in EXPORTER.get_finished_spans()} == {"GET /"}
