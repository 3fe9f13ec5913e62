"""``automation_health``: red when work is overdue and nobody makes progress; ``--explain`` names what each row waits
for, and says so when there is nothing."""

from __future__ import annotations

import io
import json
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
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
from django_ai.automation.queues import health as health_module
from django_ai.automation.queues import presence as presence_module
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.health import examine, explain
from django_ai.automation.queues.lease import claim
from django_ai.automation.queues.models import Worker
from django_ai.automation.queues.presence import Presence
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.app.models import Reservation

pytestmark = pytest.mark.django_db(transaction=True)

MINUTE = timedelta(minutes=1)


class Empty(BaseModel):
    pass


def reasons(now, kind: str) -> list[str]:
    return [each.waits_for for each in explain(now, [kind])]


def probe(*arguments: str) -> tuple[int, str]:
    """Run the command; return its exit code and what it printed."""
    out = io.StringIO()
    try:
        call_command("automation_health", *arguments, stdout=out)
    except CommandError as error:
        return error.returncode, out.getvalue() + str(error)
    return 0, out.getvalue()


# -- health


def test_nothing_to_do_is_healthy(clock):
    health = examine(clock.now)
    assert health.is_healthy
    assert str(health) == "Healthy: nothing is overdue. No worker has ever reported."
    assert probe()[0] == 0


def test_due_work_that_nobody_takes_is_an_illness_after_the_tolerance(clock):
    engine.start("story:count", steps=1)
    clock.tick(90 * timedelta(seconds=1) - timedelta(milliseconds=1))
    assert examine(clock.now).is_healthy
    clock.tick(timedelta(milliseconds=1))
    health = examine(clock.now)
    assert not health.is_healthy
    assert [(each.kind, each.count) for each in health.overdue] == [("workflow run", 1)]
    code, text = probe()
    assert code == 1
    assert "NOT HEALTHY, nobody makes progress. Overdue: 1 workflow run(s) since 2030-01-07 13:00:00" in text
    assert "restart the workers" in text
    assert probe("--overdue", "3600")[0] == 0


def test_a_worker_that_makes_progress_with_a_long_queue_is_healthy(clock):
    runs = [engine.start("story:count", steps=1) for _ in range(3)]
    clock.tick(10 * MINUTE)
    assert not examine(clock.now).is_healthy
    Presence().worked(1, clock.now - MINUTE)
    health = examine(clock.now)
    assert health.overdue[0].count == len(runs)
    assert health.is_healthy
    assert str(health).startswith("Healthy but behind. Overdue: 3 workflow run(s) since")
    clock.tick(MINUTE)
    assert not examine(clock.now).is_healthy, "that was progress of long ago"


def test_a_row_in_hand_is_progress_and_one_whose_lease_ran_out_is_not(clock):
    engine.start("story:count", steps=1)
    engine.start("story:count", steps=1)
    clock.tick(10 * MINUTE)
    (row,) = claim(WorkflowRun, clock.now, 1)
    health = examine(clock.now)
    assert (health.is_healthy, health.in_hand) == (True, 1)
    assert row.wake_at is not None
    clock.now = row.wake_at + 2 * MINUTE
    health = examine(clock.now)
    assert (health.is_healthy, health.in_hand) == (False, 0)
    assert health.overdue[0].count == 2


def test_a_timer_of_tomorrow_is_neither_overdue_nor_in_hand(clock, work):
    Reservation.objects.create(status="confirmed", checkin_at=clock.now + timedelta(days=1))
    work()
    health = examine(clock.now + 10 * MINUTE)
    assert (health.overdue, health.in_hand) == ((), 0)


@pytest.mark.exact_times
def test_json_is_one_line_that_a_machine_reads(clock):
    engine.start("story:count", steps=1)
    clock.tick(10 * MINUTE)
    code, text = probe("--json")
    found = json.loads(text.splitlines()[0])
    assert code == 1
    assert found == {
        "healthy": False,
        "checked_at": "2030-01-07T12:10:00+00:00",
        "tolerance_seconds": 90.0,
        "overdue": [{"kind": "workflow run", "count": 1, "since": "2030-01-07T12:00:00+00:00"}],
        "in_hand": 0,
        "last_worker": None,
        "last_worked_at": None,
        "maintenance": [],
    }


def test_a_database_that_does_not_answer_has_an_exit_code_of_its_own(clock, monkeypatch):
    def refuse(*arguments, **options):
        raise OperationalError("connection refused")

    monkeypatch.setattr(health_module, "_overdue", refuse)
    code, text = probe()
    assert code == 2
    assert "The database could not be asked: connection refused" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--overdue", "0"], "--overdue=0 must be more than zero seconds"),
        (["--explain", "--kind", "workflows"], "there is no 'workflows'; there are 'event', 'signal', 'workflow run'"),
    ],
)
def test_wrong_arguments_are_named(arguments, complaint):
    code, text = probe(*arguments)
    assert code == 1
    assert complaint in text


def test_the_probe_asks_a_few_questions_however_much_there_is(clock, django_assert_max_num_queries):
    for _ in range(20):
        engine.start("story:count", steps=1)
    clock.tick(10 * MINUTE)
    with django_assert_max_num_queries(16):
        examine(clock.now)


# -- who worked last


@pytest.mark.exact_times
def test_a_worker_says_that_it_worked_and_how_much(clock, monkeypatch):
    monkeypatch.setattr("django_ai.automation.queues.drain.presence", Presence())
    for _ in range(3):
        engine.start("story:count", steps=1)
    drain(heartbeat=True)
    (worker,) = Worker.objects.all()
    assert worker.name.startswith(str(worker))
    assert (worker.started_at, worker.worked_at) == (clock.now, clock.now)
    assert worker.performed >= 1


def test_a_drain_without_a_heartbeat_is_no_worker(clock):
    engine.start("story:count", steps=1)
    assert drain() == 1
    assert not Worker.objects.exists()


def test_signs_of_life_are_few_and_add_up(clock, monkeypatch, django_assert_num_queries):
    seconds = [100.0]
    monkeypatch.setattr(presence_module.time, "monotonic", lambda: seconds[0])
    mine = Presence()
    mine.worked(5, clock.now)
    with django_assert_num_queries(0):
        mine.worked(7, clock.now + MINUTE)
    seconds[0] += presence_module.EVERY
    mine.worked(1, clock.now + 2 * MINUTE)
    (worker,) = Worker.objects.all()
    assert (worker.performed, worker.worked_at) == (13, clock.now + 2 * MINUTE)


def test_workers_of_long_ago_are_forgotten_when_a_new_one_begins(clock):
    Presence().worked(1, clock.now - timedelta(days=2))
    Presence().worked(1, clock.now)
    assert [each.worked_at for each in Worker.objects.all()] == [clock.now]


def test_a_worker_that_cannot_write_its_sign_of_life_works_on(clock, monkeypatch):
    def refuse(self, now):
        raise OperationalError("no")

    monkeypatch.setattr(Presence, "_write", refuse)
    monkeypatch.setattr("django_ai.automation.queues.drain.presence", Presence())
    run = engine.start("story:count", steps=1)
    drain(heartbeat=True)
    run.refresh_from_db()
    assert run.status == "completed"
    assert not Worker.objects.exists()


# -- what each row waits for


def test_events_say_what_they_wait_for(clock, work):
    Reservation.objects.create(checkin_at=clock.now + timedelta(days=1))
    by_name = {Event.objects.get(pk=each.pk).event_name: each.waits_for for each in explain(clock.now, ["event"])}
    assert by_name == {
        "reservation_confirmed": "a save that makes its condition true",
        "checkin_due": "its condition, next looked at, 2030-01-08 13:00:00",
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


def test_a_parked_event_waits_for_a_person(clock):
    Reservation.objects.create()
    Event.objects.filter(event_name="checkin_due").update(
        status="parked", error="Traceback\nValueError: no", wake_at=None
    )
    assert "a person, to resume it: ValueError: no" in reasons(clock.now, "event")


def test_callbacks_say_what_they_wait_for(clock, work):
    @on_event("reservation_confirmed", name="health:fails", retry=Retry(max_attempts=2, base_delay=MINUTE))
    def fails(event):
        raise RuntimeError("no")

    Reservation.objects.create(status="confirmed")
    assert reasons(clock.now, "callback execution") == ["a worker: due since 2030-01-07 13:00:00"]
    work()
    assert reasons(clock.now, "callback execution") == ["its try number 2, 2030-01-07 13:01:00"]
    CallbackExecution.objects.update(status="parked", wake_at=None, error="poison")
    assert reasons(clock.now, "callback execution") == ["a person, to resume it: poison"]
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
        "its try number 2, 2030-01-07 13:01:00",
        "the signal 'health:word', until 2030-01-07 13:01:00",
    ]
    engine.cancel(child)
    assert f"its child {child}" in reasons(clock.now, "workflow run"), "the news of its end is on its way"
    WorkflowRun.objects.filter(name="health:flow").update(status="parked", wake_at=None, lease=None, error="a\nb")
    assert set(reasons(clock.now, "workflow run")) == {"a person, to resume it: b"}


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
    assert reasons(clock.now, "signal") == ["a person, to resume it: bad"]


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
    assert reasons(clock.now, "handler execution") == [f"the next reconciliation: its agent {run} does not know of it"]
    HandlerExecution.objects.update(status="parked", error="x\ngone")
    assert reasons(clock.now, "handler execution") == ["a person, to resume it: gone"]


def test_a_row_in_hand_and_one_whose_lease_ran_out_name_the_process(clock):
    engine.start("story:count", steps=1)
    (row,) = claim(WorkflowRun, clock.now, 1)
    assert reasons(clock.now, "workflow run") == [f"{row.holder}, which has it in hand"]
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
    """Each state that the engine must never leave behind, made by hand."""

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
    assert text.count("waits for NOTHING: it hangs") == 1
    assert "1 rows wait for nothing" in text
    lines = [json.loads(line) for line in probe("--explain", "--json")[1].splitlines()[1:-1]]
    assert [line["pk"] for line in lines if line["waits_for"] is None] == [row.pk]


def test_explain_reads_in_chunks_and_one_kind_alone(clock, monkeypatch):
    monkeypatch.setattr(health_module, "CHUNK", 2)
    for _ in range(5):
        engine.start("story:count", steps=1)
    assert len(list(explain(clock.now, ["workflow run"]))) == 5
    code, text = probe("--explain", "--kind", "workflow run")
    assert code == 0
    assert text.count("waits for a worker") == 5
    assert connection.in_atomic_block is False
