"""``automation_health --explain``: what each unfinished row waits for."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.db import connection
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
    wait_for_event,
    workflow,
)
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.operations import explanations
from django_ai.automation.queues.operations.explanations import explain
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.health import probe

pytestmark = pytest.mark.django_db(transaction=True)

MINUTE = timedelta(minutes=1)


class Empty(BaseModel):
    pass


def reasons(now, kind: str) -> list[str]:
    return [each.waits_for for each in explain(now, [kind])]


def test_events_say_what_they_wait_for(clock, work):
    Reservation.objects.create(checkin_at=clock.now + timedelta(days=1))
    by_name = {Event.objects.get(pk=each.pk).event_name: each.waits_for for each in explain(clock.now, ["event"])}
    assert by_name == {
        "reservation_confirmed": "a save that makes its condition true",
        "checkin_due": "the next evaluation of its condition, 2030-01-08 13:00:00",
        "checkout_due": "a date: 'checkout_at' is NULL",
        "guest_docs_uploaded": "a save that makes its condition true",
    }
    Reservation.objects.update(status="confirmed")
    Reservation.objects.get().save()
    assert "its date, 2030-01-08 13:00:00" in reasons(clock.now, "event")
    work()
    assert len(reasons(clock.now, "event")) == 3, "an event that has occurred is finished"


def test_an_event_whose_declaration_is_gone_says_so(clock, declare):
    Reservation.objects.create()
    declare(Reservation)
    assert "code that declares 'checkout_due' on app.reservation" in reasons(clock.now, "event")


def test_a_parked_event_waits_for_an_operator(clock):
    Reservation.objects.create()
    Event.objects.filter(event_name="checkin_due").update(
        status="parked", error="Traceback\nValueError: no", wake_at=None
    )
    assert "an operator, to resume it: ValueError: no" in reasons(clock.now, "event")


def test_callbacks_say_what_they_wait_for(clock, work):
    @on_event("reservation_confirmed", name="health:fails", retry=Retry(max_attempts=2, base_delay=MINUTE))
    def fails(event):
        raise RuntimeError("no")

    Reservation.objects.create(status="confirmed")
    assert reasons(clock.now, "callback execution") == ["a worker: due since 2030-01-07 13:00:00"]
    work()
    assert reasons(clock.now, "callback execution") == ["attempt 2, 2030-01-07 13:01:00"]
    CallbackExecution.objects.update(status="parked", wake_at=None, error="poison")
    assert reasons(clock.now, "callback execution") == ["an operator, to resume it: poison"]
    CallbackExecution.objects.update(status="completed")
    assert reasons(clock.now, "callback execution") == []


def test_runs_say_what_they_wait_for(clock, work):
    @workflow("health:child")
    class Child:
        Context = Empty

        @step(start=True)
        def listen(self):
            return wait("health:word", timeout=MINUTE)

    @workflow("health:flow")
    class Flow:
        class Context(BaseModel):
            do: str

        @step(start=True, retry=Retry(max_attempts=2, base_delay=MINUTE))
        def begin(self):
            match self.context.do:
                case "sleep":
                    return sleep(MINUTE, then=self.end)
                case "event":
                    return wait_for_event("checkin_due", match={"pk": 7}, then=self.end)
                case "child":
                    return run_subflow("health:child", then=self.end)
                case "fail":
                    raise RuntimeError("no")
            return goto(self.end)

        @step()
        def end(self):
            return complete()

    for what in ("sleep", "event", "child", "fail", "end"):
        engine.start("health:flow", do=what)
    assert set(reasons(clock.now, "workflow run")) == {"a worker: due since 2030-01-07 13:00:00"}
    work()
    child = WorkflowRun.objects.get(name="health:child")
    assert reasons(clock.now, "workflow run") == [
        "its timer, 2030-01-07 13:01:00",
        "the event 'checkin_due' with {'pk': 7}",
        f"its child {child}",
        "attempt 2, 2030-01-07 13:01:00",
        "the signal 'health:word', until 2030-01-07 13:01:00",
    ]
    engine.cancel(child)
    assert f"its child {child}" in reasons(clock.now, "workflow run"), "the parent has not yet been notified"
    WorkflowRun.objects.filter(name="health:flow").update(status="parked", wake_at=None, lease=None, error="a\nb")
    assert set(reasons(clock.now, "workflow run")) == {"an operator, to resume it: b"}


def test_a_planned_run_waits_for_its_date(clock):
    @event_workflow("checkin_due", offset=-timedelta(hours=1), name="health:planned")
    class Planned:
        Context = Empty

        @step(start=True)
        def begin(self):
            return complete()

    Reservation.objects.create(status="confirmed", checkin_at=clock.now + timedelta(days=1))
    assert reasons(clock.now, "workflow run") == ["its date, 2030-01-08 12:00:00"]


def test_signals_say_what_they_wait_for(clock, work):
    run = engine.start("story:listen")
    engine.signal("health:later", run=run)
    assert reasons(clock.now, "signal") == ["a worker: due since 2030-01-07 13:00:00"]
    work()
    assert reasons(clock.now, "signal") == [f"run {run.pk}, to wait for 'health:later'"]
    engine.cancel(run)
    assert reasons(clock.now, "signal") == []
    Signal.objects.update(delivered_at=None, error="bad", wake_at=None)
    assert reasons(clock.now, "signal") == ["an operator, to resume it: bad"]


def test_agents_and_their_mailboxes_say_what_they_wait_for(clock, work):
    @agent("health:agent", spawn_on="reservation_confirmed")
    class Watcher:
        Context = Empty

        @handler("checkin_due", retry=Retry(max_attempts=2, base_delay=MINUTE))
        def arrive(self):
            raise RuntimeError("no")

    Reservation.objects.create(status="confirmed", checkin_at=clock.now + MINUTE)
    assert reasons(clock.now, "agent run") == ["a worker: due since 2030-01-07 13:00:00"]
    work()
    assert reasons(clock.now, "agent run") == ["its events"]
    clock.tick(MINUTE)
    work()
    run = AgentRun.objects.get()
    assert reasons(clock.now, "agent run") == ["what is due in its mailbox, 2030-01-07 13:02:00"]
    assert reasons(clock.now, "handler execution") == [f"its agent {run}, 2030-01-07 13:02:00"]
    claim(AgentRun, clock.now + MINUTE, 1)
    assert reasons(clock.now, "handler execution") == [f"its agent {run}"]
    AgentRun.objects.update(lease=None, wake_at=None)
    assert reasons(clock.now, "handler execution") == [f"the next reconciliation: its agent {run} is not due for it"]
    HandlerExecution.objects.update(status="parked", error="x\ngone")
    assert reasons(clock.now, "handler execution") == ["an operator, to resume it: gone"]


def test_a_leased_row_and_one_whose_lease_ran_out_name_the_process(clock):
    engine.start("story:count", steps=1)
    (row,) = claim(WorkflowRun, clock.now, 1)
    assert reasons(clock.now, "workflow run") == [f"{row.holder}, which has leased it"]
    clock.tick(MINUTE)
    (reason,) = reasons(clock.now, "workflow run")
    assert reason == f"a worker: the lease of {row.holder} ran out at 2030-01-07 13:00:10"


@pytest.mark.parametrize(
    ("model", "broken"),
    [
        (WorkflowRun, {"wake_at": None}),
        (WorkflowRun, {"wake_at": None, "lease": "host:1:abc"}),
        (WorkflowRun, {"wake_at": None, "status": "suspended"}),
        (WorkflowRun, {"wake_at": None, "status": "waiting"}),
        (Event, {"armed": True, "wake_at": None}),
        (Event, {"wake_at": None, "at": "2030-01-01T00:00Z"}),
        (CallbackExecution, {"wake_at": None}),
        (Signal, {"wake_at": None}),
        (AgentRun, {"wake_at": None, "status": "active"}),
        (AgentRun, {"wake_at": None, "status": "pending"}),
    ],
)
def test_a_row_that_would_hang_is_found(clock, model, broken):
    """A row in a state that the engine must never commit is reported as stuck."""

    @on_event("reservation_confirmed", name="health:call")
    def call(event):
        pass

    Reservation.objects.create(status="confirmed", checkin_at=clock.now + MINUTE)
    engine.start("story:count", steps=1)
    engine.signal("health:word")
    AgentRun.objects.create(name="x", wake_at=clock.now)
    pending = model.unfinished()
    if "at" in broken:
        pending = pending.filter(event_name="checkin_due")
    elif model is Event:
        pending = pending.filter(event_name="guest_docs_uploaded")
    assert all(each.waits_for for each in explain(clock.now))
    row = pending.first()
    model.objects.filter(pk=row.pk).update(**broken)
    code, text = probe("--explain")
    assert code == 1
    assert text.count("waits for NOTHING (stuck: report a bug)") == 1
    assert "1 row(s) wait for nothing" in text
    lines = [json.loads(line) for line in probe("--explain", "--json")[1].splitlines()[1:-1]]
    assert [line["pk"] for line in lines if line["waits_for"] is None] == [row.pk]


def test_explain_reads_in_chunks_and_one_kind_alone(clock, monkeypatch):
    monkeypatch.setattr(explanations, "BATCH_SIZE", 2)
    for _ in range(5):
        engine.start("story:count", steps=1)
    assert len(list(explain(clock.now, ["workflow run"]))) == 5
    code, text = probe("--explain", "--kind", "workflow run")
    assert code == 0
    assert text.count("waits for a worker") == 5
    assert connection.in_atomic_block is False
