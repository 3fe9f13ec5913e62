"""``automation_health``: red when work is overdue and nobody makes progress; ``--explain`` names what each row waits
for, and says so when there is nothing."""

from __future__ import annotations

import io
import json
import os
import socket
import time
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
from django_ai.automation.queues import heartbeat
from django_ai.automation.queues import worker_status as presence_module
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.heartbeat import HeldLeases, enlist
from django_ai.automation.queues.lease import claim
from django_ai.automation.queues.models import DatabaseNow, Worker
from django_ai.automation.queues.notifier import InlineNotifier, set_notifier
from django_ai.automation.queues.operations import health as health_module
from django_ai.automation.queues.operations.health import count_failed_and_parked, examine, explain
from django_ai.automation.queues.registry import longest_timeout
from django_ai.automation.queues.runtimes import tasks
from django_ai.automation.queues.runtimes.django_tasks import automation_drain_due
from django_ai.automation.queues.runtimes.q2 import enlist_at_doorbell
from django_ai.automation.queues.worker_status import DEAD_AFTER, WorkerStatus, worker_status
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.apps.reservations.models import Reservation

pytestmark = pytest.mark.django_db(transaction=True)

SECOND = timedelta(seconds=1)
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


def living(queues: str = "", ago: timedelta = timedelta(0), **worked: float) -> Worker:
    """Record a worker that was seen so long ago, and had worked in its queues so many seconds before."""
    return Worker.objects.create(
        name=f"host:7:{Worker.objects.count()}",
        runtime="test",
        host="host",
        pid=7,
        queues=queues,
        started_at=DatabaseNow() - ago,
        seen_at=DatabaseNow() - ago,
        worked=worked,
    )


def broken(now, *, failed: int, parked: int) -> None:
    """Make runs that have ended badly, and one that has ended well."""
    for _ in range(failed):
        WorkflowRun.objects.create(name="x", status="failed", error="E", finished_at=now)
    for _ in range(parked):
        WorkflowRun.objects.create(name="x", status="parked", error="E", parked_at=now)
    WorkflowRun.objects.create(name="x", status="completed", finished_at=now)


@pytest.fixture
def seconds(monkeypatch):
    """The monotonic clock of this process, which stands."""
    found = [time.monotonic()]
    monkeypatch.setattr(presence_module.time, "monotonic", lambda: found[0])
    return found


# -- health


def test_nothing_to_do_is_healthy(clock):
    health = examine(clock.now)
    assert health.is_healthy
    assert str(health) == "Healthy: nothing is overdue. No worker is alive, and none has ever reported."
    assert probe()[0] == 0


def test_due_work_that_nobody_takes_is_an_illness_after_the_tolerance(clock):
    engine.start("story:count", steps=1)
    clock.tick(90 * SECOND - timedelta(milliseconds=1))
    assert examine(clock.now).is_healthy
    clock.tick(timedelta(milliseconds=1))
    health = examine(clock.now)
    assert not health.is_healthy
    assert [(each.kind, each.count) for each in health.overdue] == [("workflow run", 1)]
    code, text = probe()
    assert code == 1
    assert "NOT HEALTHY. Overdue: 1 workflow run(s) since 2030-01-07 13:00:00, and no living worker looks at" in text
    assert "no worker is alive: start the workers" in text
    assert probe("--overdue", "3600")[0] == 0


def test_nobody_is_called_healthy_while_rows_wait_and_no_worker_is_alive(clock):
    living(ago=2 * MINUTE)
    assert str(examine(clock.now)).startswith("Healthy: nothing is overdue. No worker is alive; host:7 was seen last, ")
    engine.start("story:count", steps=1)
    text = str(examine(clock.now))
    assert text.startswith("No worker is alive; host:7 was seen last, ")
    assert text.endswith("Rows wait for one; nothing is overdue yet.")


def test_a_worker_that_makes_progress_with_a_long_queue_is_healthy(clock):
    runs = [engine.start("story:count", steps=1) for _ in range(3)]
    clock.tick(10 * MINUTE)
    assert not examine(clock.now).is_healthy
    worker = living(workflows=80)
    health = examine(clock.now)
    assert health.overdue[0].count == len(runs)
    assert health.is_healthy
    assert str(health).startswith("Healthy but behind. Overdue: 3 workflow run(s) since")
    assert "1 worker is alive." in str(health)
    Worker.objects.filter(pk=worker.pk).update(worked={"workflows": 100})
    health = examine(clock.now)
    assert not health.is_healthy, "that was progress of long ago"
    assert "and no progress by 1 living worker" in str(health)
    assert "nobody makes progress with it: restart the workers" in probe()[1]


@pytest.mark.parametrize("how", ["dead", "stopped"])
def test_who_is_dead_or_stopped_makes_no_progress(clock, how):
    engine.start("story:count", steps=1)
    clock.tick(10 * MINUTE)
    worker = living(workflows=1)
    assert examine(clock.now).is_healthy
    if how == "dead":
        Worker.objects.filter(pk=worker.pk).update(seen_at=DatabaseNow() - DEAD_AFTER)
    else:
        Worker.objects.filter(pk=worker.pk).update(stopped_at=DatabaseNow())
    health = examine(clock.now)
    assert (health.is_healthy, health.workers, health.overdue[0].workers) == (False, 0, 0)


def test_the_time_since_the_last_sign_of_life_counts(clock):
    engine.start("story:count", steps=1)
    clock.tick(10 * MINUTE)
    living(ago=30 * SECOND, workflows=55)
    assert examine(clock.now).is_healthy
    assert not examine(clock.now, 80 * SECOND).is_healthy


def test_progress_is_that_of_each_queue(clock):
    engine.start("story:count", steps=1)
    clock.tick(10 * MINUTE)
    living("events,callbacks", callbacks=1)
    health = examine(clock.now)
    assert (health.is_healthy, health.workers) == (False, 1)
    assert health.living == {"events": 1, "signals": 0, "workflows": 0, "agents": 0, "callbacks": 1}
    code, text = probe()
    assert code == 1
    assert "1 workflow run(s) since 2030-01-07 13:00:00, and no living worker looks at 'workflows'" in text
    assert "start one for workflows" in text
    living("workflows", workflows=1)
    assert examine(clock.now).is_healthy


def test_a_worker_may_be_busy_with_another_queue_for_as_long_as_a_step_takes(clock):
    engine.start("story:count", steps=1)
    living(callbacks=1)
    clock.tick(90 * SECOND + longest_timeout() - SECOND)
    assert examine(clock.now).is_healthy
    clock.tick(SECOND)
    health = examine(clock.now)
    assert not health.is_healthy, "it must have had its turn by now"
    assert health.overdue[0].workers == 1
    living(workflows=1)
    assert examine(clock.now).is_healthy


def test_rows_in_the_hands_of_web_processes_are_no_progress(clock):
    engine.start("story:count", steps=1)
    engine.start("story:count", steps=1)
    clock.tick(10 * MINUTE)
    assert claim(WorkflowRun, clock.now, 1)
    drain(heartbeat=True, models=[CallbackExecution])
    assert not Worker.objects.exists()
    assert not examine(clock.now).is_healthy


def test_a_timer_of_tomorrow_is_not_overdue(clock, work):
    Reservation.objects.create(status="confirmed", checkin_at=clock.now + timedelta(days=1))
    work()
    health = examine(clock.now + 10 * MINUTE)
    assert (health.overdue, health.is_idle) == ((), False)


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
        "overdue": [
            {
                "kind": "workflow run",
                "queue": "workflows",
                "count": 1,
                "since": "2030-01-07T12:00:00+00:00",
                "workers": 0,
                "makes_progress": False,
            }
        ],
        "workers": 0,
        "workers_by_queue": {"events": 0, "signals": 0, "workflows": 0, "agents": 0, "callbacks": 0},
        "last_worker": None,
        "last_seen_at": None,
        "last_worked_at": None,
        "maintenance": [],
        "failed": {},
        "parked": {},
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
        (["--max-failed", "-1"], "--max-failed=-1 must not be less than zero"),
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
    with django_assert_max_num_queries(10):
        examine(clock.now)


# -- who is a worker


@pytest.mark.exact_times
def test_a_worker_says_that_it_lives_and_what_it_performed(clock):
    enlist("test")
    engine.start("story:count", steps=1)
    (worker,) = Worker.objects.all()
    assert (str(worker), worker.runtime) == (f"{socket.gethostname()[:60]}:{os.getpid()}", "test")
    assert (worker.performed, worker.worked, worker.worked_at, worker.queues) == (0, {}, None, "")
    assert worker.seen_at - worker.started_at < MINUTE
    assert abs(worker.seen_at.timestamp() - time.time()) < 3600, "by the database's clock, not by that of this process"
    drain(heartbeat=True)
    worker_status.dismiss()
    worker.refresh_from_db()
    assert (worker.performed, worker.stopped_at) == (1, worker.seen_at)


def test_a_worker_of_some_queues_says_which():
    enlist("test", [WorkflowRun, CallbackExecution])
    assert Worker.objects.get().queues == "workflows,callbacks"


def test_who_has_not_enlisted_is_no_worker():
    engine.start("story:count", steps=1)
    assert drain(heartbeat=True) == 1
    worker_status.sign()
    assert not Worker.objects.exists()


def test_signs_of_life_are_few_and_add_up(seconds, django_assert_num_queries):
    mine = WorkerStatus()
    assert mine.enlist("test")
    assert not mine.enlist("other"), "one process, one runtime"
    mine.sign()
    mine.worked("workflows", 5)
    with django_assert_num_queries(0):
        mine.sign()
    seconds[0] += presence_module.BUSY - 1
    mine.worked("callbacks", 7)
    with django_assert_num_queries(0):
        mine.sign()
    seconds[0] += 1
    with django_assert_num_queries(1):
        mine.sign()
    (worker,) = Worker.objects.all()
    assert (worker.performed, worker.runtime) == (12, "test")
    assert worker.worked == {"workflows": 5.0, "callbacks": 1.0}
    assert worker.worked_at == worker.seen_at - SECOND
    seconds[0] += presence_module.EVERY - 0.5
    with django_assert_num_queries(0):
        mine.sign()
    seconds[0] += 0.5
    mine.sign(is_busy=["agents"])
    (worker,) = Worker.objects.all()
    assert worker.performed == 12
    assert worker.worked == {"workflows": 25.0, "callbacks": 21.0, "agents": 0.0}


def test_a_row_in_hand_is_progress_until_its_timeout(seconds, clock):
    """The heartbeat says so; it would renew the lease just as long."""
    engine.start("story:count", steps=1)
    (row,) = claim(WorkflowRun, clock.now, 1)
    enlist("test")
    hands = HeldLeases()
    hands.hold([row])
    assert hands.start(row)
    hands.keep_for(MINUTE)
    seconds[0] += presence_module.EVERY
    heartbeat._beat_all([hands])
    assert Worker.objects.get().worked == {"workflows": 0.0}
    seconds[0] += 100
    heartbeat._beat_all([hands])
    assert Worker.objects.get().worked == {"workflows": 100.0}


def test_workers_of_long_ago_are_forgotten_when_a_new_one_begins():
    living(ago=timedelta(days=2))
    recent = living(ago=timedelta(hours=2))
    mine = WorkerStatus()
    mine.enlist("test")
    mine.sign()
    assert Worker.objects.count() == 2
    assert Worker.objects.filter(pk=recent.pk).exists()


def test_a_worker_that_cannot_write_its_sign_of_life_works_on_and_tries_again(seconds, monkeypatch):
    written, tries = WorkerStatus._write, []

    def refuse(*arguments):
        tries.append(seconds[0])
        raise OperationalError("no")

    monkeypatch.setattr(WorkerStatus, "_write", refuse)
    enlist("test")
    run = engine.start("story:count", steps=1)
    drain(heartbeat=True)
    run.refresh_from_db()
    assert run.status == "completed"
    worker_status.sign()
    assert len(tries) == 1, "not at once"
    seconds[0] += presence_module.AGAIN
    worker_status.sign()
    assert len(tries) == 2
    monkeypatch.setattr(WorkerStatus, "_write", written)
    seconds[0] += presence_module.AGAIN
    worker_status.sign()
    assert Worker.objects.get().performed == 1


def test_a_worker_that_was_cleaned_away_says_again_that_it_lives(seconds):
    enlist("test")
    Worker.objects.all().delete()
    seconds[0] += presence_module.EVERY
    worker_status.sign()
    assert Worker.objects.get().runtime == "test"


def test_who_could_not_write_lately_does_not_wait_for_the_database_at_its_end(seconds, django_assert_num_queries):
    enlist("test")
    seconds[0] += DEAD_AFTER.total_seconds()
    with django_assert_num_queries(0):
        worker_status.dismiss()
    assert not worker_status.is_enlisted


def test_a_burst_is_a_worker_while_it_lasts():
    engine.start("story:count", steps=1)
    call_command("automation_worker", "--once", "--queues", "workflows", stdout=io.StringIO())
    (worker,) = Worker.objects.all()
    assert (worker.runtime, worker.queues, worker.performed) == ("worker", "workflows", 1)
    assert worker.stopped_at is not None
    assert not worker_status.is_enlisted


def test_what_a_commit_performs_makes_no_worker(settings):
    """Neither inline nor by a queue that performs at once what it is given, in the process that gives it."""

    class Eager:
        def ring(self, alias, queues):
            enlist_at_doorbell(None, tasks.drain_due, {"sync": True})
            automation_drain_due.func()

    for notifier in (InlineNotifier(), Eager()):
        set_notifier(notifier)
        try:
            run = engine.start("story:count", steps=1)
        finally:
            set_notifier(None)
        run.refresh_from_db()
        assert run.status == "completed"
    assert not Worker.objects.exists()


def test_processes_of_queues_enlist_at_their_first_doorbell():
    enlist_at_doorbell(None, len, {})
    assert not worker_status.is_enlisted, "a task of the project's own"
    enlist_at_doorbell(None, tasks.drain_due, {})
    assert Worker.objects.get().runtime == "q2"
    worker_status.dismiss()
    automation_drain_due.func()
    assert Worker.objects.get(stopped_at=None).runtime == "tasks"


# -- what has failed, and what is parked


def test_failed_and_parked_rows_are_counted_by_kind(clock):
    assert count_failed_and_parked().as_dict() == {"failed": {}, "parked": {}}
    broken(clock.now, failed=3, parked=2)
    Reservation.objects.create(checkin_at=clock.now + timedelta(days=1))
    event = Event.objects.latest("pk")
    CallbackExecution.objects.create(event=event, callback="f", status="failed", unique_key="c")
    Signal.objects.create(name="x", error="E", parked_at=clock.now)
    assert count_failed_and_parked().as_dict() == {
        "failed": {"workflow run": 3, "callback execution": 1},
        "parked": {"workflow run": 2, "signal": 1},
    }
    code, text = probe()
    assert code == 0
    assert "Failed: 1 callback execution(s), 3 workflow run(s). Parked: 1 signal(s), 2 workflow run(s)." in text
    assert json.loads(probe("--json")[1])["failed"] == {"workflow run": 3, "callback execution": 1}


@pytest.mark.parametrize(
    ("limits", "expected", "complaint"),
    [
        (["--max-failed", "3", "--max-parked", "2"], 0, ""),
        (["--max-failed", "2"], 3, "3 rows have failed, and --max-failed=2"),
        (["--max-parked", "0"], 3, "2 rows are parked, and --max-parked=0"),
        (["--max-failed", "0", "--max-parked", "0"], 3, "--max-failed=0; 2 rows are parked"),
    ],
)
def test_limits_of_failed_and_parked_rows_have_an_exit_code_of_their_own(clock, limits, expected, complaint):
    broken(clock.now, failed=3, parked=2)
    code, text = probe(*limits)
    assert code == expected
    assert complaint in text


def test_overdue_work_goes_before_the_limits(clock):
    broken(clock.now, failed=1, parked=0)
    engine.start("story:count", steps=1)
    clock.tick(10 * MINUTE)
    assert probe("--max-failed", "0")[0] == 1


def test_counting_stops_above_its_limit(clock):
    broken(clock.now, failed=4, parked=3)
    found = count_failed_and_parked(limit=3)
    assert (found.failed, found.parked) == ({"workflow run": 4}, {"workflow run": 3})
    assert str(found) == "Failed: more than 3 workflow run(s). Parked: 3 workflow run(s)."


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
