"""``cleanup_old`` deletes rows in short transactions, within its time budget, by the retention of each kind.

It keeps the rows that prevent a second execution.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connection
from django.db.models.signals import post_delete
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from pydantic import BaseModel

from django_ai.automation import (
    AgentManager,
    EventDefinition,
    agent,
    complete,
    engine,
    event_workflow,
    get_wake,
    goto,
    handler,
    run_subflow,
    sleep,
    step,
    wait,
    wait_for_event,
    workflow,
)
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.conf import conf, problems
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues import periodic_tasks, pruning
from django_ai.automation.queues.runtimes import q2
from django_ai.automation.queues.runtimes.tasks import cleanup_old
from django_ai.automation.workflows.models import Signal, StepExecution, WorkflowRun, WorkflowStatus
from tests.apps.reservations.models import Reservation
from tests.support.front_desk import book
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

DAY = timedelta(days=1)


def ended_runs(number: int, ago: timedelta, now, **columns) -> list[WorkflowRun]:
    moment = now - ago
    rows = [
        WorkflowRun(name="old", status="completed", created_at=moment, finished_at=moment, **columns)
        for _ in range(number)
    ]
    return WorkflowRun.objects.bulk_create(rows)


def with_steps(runs: list[WorkflowRun], number: int) -> None:
    StepExecution.objects.bulk_create(
        StepExecution(run=run, step="s", visit=each, attempt=1, finished=run.finished_at, outcome="goto")
        for run in runs
        for each in range(number)
    )


def living_event() -> Event:
    (stay,) = Reservation.objects.bulk_create([Reservation(pk=1)])
    return Event.objects.create(
        entity_type="app.reservation", entity_id=str(stay.pk), event_name="x", declared_as="x", active_key="living"
    )


@contextmanager
def kept(**durations: timedelta):
    with override_settings(AUTOMATION={"RUNTIME": "silent", **durations}):
        yield


@pytest.fixture
def small(monkeypatch):
    """Windows and batches of a few rows."""
    monkeypatch.setattr(pruning, "WINDOW_KEYS", 4)
    monkeypatch.setattr(pruning, "BATCH_ROWS", 3)


# -- settings ----------------------------------------------------------------------------------------------------------


def test_each_kind_may_have_its_own_age():
    with kept(RETENTION=7 * DAY, RETENTION_RUNS=90 * DAY):
        assert conf().retention("RUNS") == 90 * DAY
        assert {conf().retention(kind) for kind in ("EVENTS", "EXECUTIONS", "AGENTS", "SIGNALS")} == {7 * DAY}
    assert "must be a timedelta, not int" in problems({"RETENTION_RUNS": 90})[0]
    assert "Did you mean 'RETENTION_AGENTS'" in problems({"RETENTION_AGENT": DAY})[0]
    assert "must be positive" in problems({"RETENTION_EVENTS": timedelta(0)})[0]


def test_q2_does_not_kill_it(monkeypatch):
    monkeypatch.setattr("django_q.conf.Conf.TIMEOUT", 60)
    assert q2.within_timeout(timedelta(minutes=5)) == timedelta(seconds=30)
    assert q2.within_timeout(timedelta(seconds=5)) == timedelta(seconds=5)
    monkeypatch.setattr("django_q.conf.Conf.TIMEOUT", None)
    assert q2.within_timeout(timedelta(minutes=5)) == timedelta(minutes=5)


# -- what is deleted, and when -----------------------------------------------------------------------------------------


@pytest.fixture
def of_all_kinds(clock, work):
    """Create a completed agent, an active agent, a run, a signal, executions, and events of a deleted entity."""

    @agent("ending", spawn_on="booking_created")
    class Ending:
        class Context(BaseModel):
            entity_id: str

        @handler("booking_created")
        def heard(self):
            pass

    gone, _ = book(), book()
    engine.start("story:count", steps=1)
    engine.signal("nobody")
    work()
    AgentManager.complete(AgentRun.objects.get(entity_id=str(gone.pk)))
    gone.delete()
    work()
    clock.tick(10 * DAY)


KINDS = {
    "RUNS": lambda: WorkflowRun.objects.count(),
    "SIGNALS": lambda: Signal.objects.count(),
    "AGENTS": lambda: AgentRun.objects.filter(status="completed").count(),
    "EXECUTIONS": lambda: HandlerExecution.objects.filter(run__status="active").count(),
    "EVENTS": lambda: Event.objects.filter(active_key=None).count(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_kind_that_is_old_enough_goes(of_all_kinds, kind):
    before = {name: count() for name, count in KINDS.items()}
    assert min(before.values()) > 0
    with kept(RETENTION=30 * DAY):
        assert cleanup_old() == 0
    with kept(RETENTION=30 * DAY, **{f"RETENTION_{kind}": 5 * DAY}):
        assert cleanup_old() > 0
    after = {name: count() for name, count in KINDS.items()}
    assert after[kind] == 0
    assert {name for name in KINDS if after[name] != before[name]} == {kind}


def test_an_event_stays_as_long_as_its_executions(clock, work, declare):
    declare(Reservation, EventDefinition("made"))
    stay = Reservation.objects.create()
    event = Event.objects.get()
    CallbackExecution.objects.create(
        event=event, callback="x", status="completed", unique_key="x", finished_at=clock(), created_at=clock()
    )
    stay.delete()
    clock.tick(10 * DAY)
    with kept(RETENTION_EVENTS=5 * DAY, RETENTION_EXECUTIONS=20 * DAY):
        cleanup_old()
    assert CallbackExecution.objects.count() == 1
    with kept(RETENTION_EVENTS=5 * DAY, RETENTION_EXECUTIONS=5 * DAY):
        cleanup_old()
    assert not Event.objects.exists()


def test_the_snapshot_that_history_needs_stays_with_it(clock, work, declare):
    """A deletion stores the snapshot once, on the latest event. Unfinished executions of earlier events need it too."""
    from django_ai.automation.events.definitions import EventTrigger

    declare(Reservation, EventDefinition("saved", trigger=[EventTrigger.CREATE, EventTrigger.UPDATE]))
    stay = Reservation.objects.create(status="new")
    work()
    stay.status = "old"
    stay.save()
    work()
    first, _ = Event.objects.order_by("pk")
    waits = CallbackExecution.objects.create(
        event=first, callback="x", status="parked", unique_key="x", created_at=clock()
    )
    stay.delete()
    clock.tick(40 * DAY)
    for _ in range(2):
        cleanup_old()
    assert Event.objects.get(pk=first.pk).entity.status == "old"
    CallbackExecution.objects.filter(pk=waits.pk).update(status="completed", finished_at=clock())
    clock.tick(40 * DAY)
    for _ in range(2):
        cleanup_old()
    assert not Event.objects.exists()


def test_a_run_of_a_living_event_stays_and_is_not_started_twice(clock, work, declare):
    declare(Reservation, EventDefinition("made", date_field="checkin_at"))

    @event_workflow("made", offset=timedelta(hours=-1), name="planned")
    class Planned:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            leave("ran")
            return complete()

    stay = Reservation.objects.create(checkin_at=clock() + DAY)
    clock.tick(DAY)
    work()
    assert effects() == ["ran"]
    clock.tick(100 * DAY)
    cleanup_old()
    stay.checkin_at = clock() + DAY
    stay.save()
    clock.tick(2 * DAY)
    work()
    assert effects() == ["ran"]


def test_the_history_of_a_run_that_stays_goes_unless_it_may_be_resumed(clock):
    living = living_event()
    over, failed = ended_runs(2, 40 * DAY, clock(), event=living)
    young, *_ = ended_runs(1, 5 * DAY, clock(), event=living)
    WorkflowRun.objects.filter(pk=failed.pk).update(status="failed")
    with_steps([over, failed, young], 3)
    assert cleanup_old() == 3
    assert WorkflowRun.objects.count() == 3
    assert {each.run_id for each in StepExecution.objects.all()} == {failed.pk, young.pk}
    assert cleanup_old() == 0


# -- how rows are deleted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["first", "middle", "last"])
def test_wherever_it_begins_a_sweep_gets_everywhere(clock, small, monkeypatch, start):
    """A scan that starts at any key deletes all old rows, among unfinished rows, young rows and gaps in the keys."""
    rows = []
    for _ in range(5):
        rows += ended_runs(3, 40 * DAY, clock())
        rows += ended_runs(2, 1 * DAY, clock())
        WorkflowRun.objects.create(name="sleeping", status="waiting", created_at=clock() - 40 * DAY)
    WorkflowRun.objects.filter(pk=rows[7].pk).delete()
    pks = sorted(WorkflowRun.objects.values_list("pk", flat=True))
    place = {"first": pks[0], "middle": pks[len(pks) // 2], "last": pks[-1]}[start]
    monkeypatch.setattr(pruning.random, "randint", lambda low, high: place)
    cleanup_old()
    left = WorkflowRun.objects.filter(finished_at__lt=clock() - 30 * DAY)
    assert not left.exists()
    assert WorkflowRun.objects.filter(finished_at__gte=clock() - 30 * DAY).count() == 10
    assert WorkflowRun.objects.filter(name="sleeping").count() == 5
    assert cleanup_old() == 0


def test_each_batch_is_a_transaction_of_its_own_and_bounded(clock, small):
    with_steps(ended_runs(10, 40 * DAY, clock()), 20)
    with CaptureQueriesContext(connection) as queries:
        assert cleanup_old() == 10
    assert not StepExecution.objects.exists()
    deletes = [each["sql"] for each in queries if each["sql"].startswith("DELETE") and "stepexecution" in each["sql"]]
    assert len(deletes) > 40  # 200 rows of history, 4 at a time
    assert max(sql.count(",") for sql in deletes) < 4
    # The history is never read into memory.
    assert not [each for each in queries if each["sql"].startswith("SELECT") and "outcome" in each["sql"]]


def test_it_stops_when_its_time_is_used_up_and_the_next_goes_on(clock, small, monkeypatch):
    ended_runs(12, 40 * DAY, clock())
    with kept(CLEANUP_BUDGET=timedelta(microseconds=1)):
        first = cleanup_old()
        assert 0 < first <= 4
        assert WorkflowRun.objects.count() == 12 - first
        for _ in range(100):
            if WorkflowRun.objects.exists():
                cleanup_old()
    assert not WorkflowRun.objects.exists()


def test_what_must_stay_is_passed_by_once(clock, small, work):
    """A scan reads the rows that must stay once, not again for each batch that it deletes."""
    living = living_event()
    for _ in range(20):
        ended_runs(4, 40 * DAY, clock(), event=living)
        ended_runs(4, 40 * DAY, clock())
    with CaptureQueriesContext(connection) as queries:
        assert cleanup_old() == 80
    assert WorkflowRun.objects.count() == 80
    windows = [each["sql"] for each in queries if "LIMIT 4" in each["sql"] and "workflowrun" in each["sql"]]
    assert len(windows) <= 45, len(windows)


def test_what_an_operator_resumes_at_this_moment_stays(clock, monkeypatch):
    """The row is checked again under its lock, in the transaction that deletes it."""
    (run,) = ended_runs(1, 40 * DAY, clock())
    WorkflowRun.objects.filter(pk=run.pk).update(status=WorkflowStatus.FAILED, current_step="s")
    genuine = pruning._remove_batch

    def late(rows):
        WorkflowRun.objects.get(pk=run.pk).resume()
        return genuine(rows)

    monkeypatch.setattr(pruning, "_remove_batch", late)
    assert cleanup_old() == 0
    assert WorkflowRun.objects.get().status == WorkflowStatus.RUNNING


def test_children_of_a_removed_run_forget_it_and_its_inbox_goes(clock):
    (parent,) = ended_runs(1, 40 * DAY, clock())
    (child,) = ended_runs(1, DAY, clock(), parent=parent)
    Signal.objects.create(name="x", run=parent, sent_at=clock() - 40 * DAY)
    assert cleanup_old() == 1
    child.refresh_from_db()
    assert child.parent_id is None
    assert not Signal.objects.exists()


def test_a_project_that_listens_to_deletions_hears_of_them(clock):
    ended_runs(2, 40 * DAY, clock())
    heard = []

    def listen(sender, instance, **kwargs):
        heard.append(instance.pk)

    post_delete.connect(listen, sender=WorkflowRun)
    try:
        pks = sorted(WorkflowRun.objects.values_list("pk", flat=True))
        assert cleanup_old() == 2
    finally:
        post_delete.disconnect(listen, sender=WorkflowRun)
    assert sorted(heard) == pks


def test_no_kind_uses_up_the_time_of_the_others(clock, monkeypatch):
    given = []

    def greedy(turn):
        given.append(turn.until - time.monotonic())
        return periodic_tasks.SliceResult()

    tasks = {str(each): periodic_tasks.PeriodicTask(str(each), periodic_tasks.PRUNE, greedy, DAY) for each in range(3)}
    monkeypatch.setattr(periodic_tasks, "_tasks", tasks)
    with kept(CLEANUP_BUDGET=timedelta(seconds=9)):
        cleanup_old()
    assert 2.5 < given[0] <= 3
    assert given[1] >= given[0]


# -- runs that never end -----------------------------------------------------------------------------------------------


class Days(BaseModel):
    days: int = 0
    heard: list[str] = []


def live(clock, work, days: int) -> None:
    for _ in range(days):
        clock.tick(DAY)
        work()


def test_a_run_that_never_ends_keeps_no_more_history_than_others(clock, work):
    @workflow("daily")
    class Daily:
        Context = Days

        @step(start=True)
        def again(self):
            self.context.days += 1
            return sleep(DAY, then=self.again)

    run = engine.start("daily")
    work()
    live(clock, work, 50)
    with kept(RETENTION_HISTORY=10 * DAY):
        cleanup_old(clock())
    run.refresh_from_db()
    assert (run.status, run.data["days"]) == ("waiting", 51)
    assert 10 <= run.steps.count() <= 11
    live(clock, work, 1)
    run.refresh_from_db()
    assert run.data["days"] == 52


def test_the_last_visits_stay_however_old(clock, work):
    @workflow("sleepy")
    class Sleepy:
        Context = Days

        @step(start=True)
        def first(self):
            return goto(self.second)

        @step()
        def second(self):
            return goto(self.third)

        @step()
        def third(self):
            return wait("bell", then=self.first)

    run = engine.start("sleepy")
    work()
    clock.tick(400 * DAY)
    cleanup_old(clock())
    assert [each.step for each in run.steps.order_by("pk")] == ["third"]
    engine.signal("bell", run=run)
    work()
    assert [each.step for each in run.steps.order_by("pk")] == ["third", "first", "second", "third"]


@pytest.mark.slow
@pytest.mark.parametrize("channel", ["event", "signal"])
def test_what_a_living_run_has_consumed_is_not_heard_again(clock, work, channel):
    """The history of a run is kept as long as the events and signals that it records as consumed."""

    @workflow("hears")
    class Hears:
        Context = Days

        @step(start=True)
        def listen(self):
            if get_wake().reason != "first":
                self.context.days += 1
            if channel == "signal":
                return wait("bell", then=self.listen)
            return wait_for_event("reservation_confirmed", match={"id__gt": 0}, then=self.listen)

    def send() -> None:
        if channel == "signal":
            engine.signal("bell")
        else:
            Reservation.objects.create(status="confirmed")
        live(clock, work, 1)

    run = engine.start("hears")
    work()
    for _ in range(4):
        send()
    with kept(RETENTION_HISTORY=DAY, RETENTION_SIGNALS=90 * DAY):
        clock.tick(60 * DAY)
        cleanup_old(clock())
        send()  # the run waits again and checks earlier events and signals
    run.refresh_from_db()
    assert (run.status, run.data["days"]) == ("suspended", 5)
    with kept(RETENTION=DAY):
        clock.tick(60 * DAY)
        cleanup_old(clock())
        cleanup_old(clock())
        assert run.steps.count() == (1 if channel == "signal" else 5)
        send()
    run.refresh_from_db()
    assert (run.status, run.data["days"]) == ("suspended", 6)


def test_a_step_whose_child_is_there_stays(clock, work):
    """The history row of a step is kept as long as its child run exists. It prevents a second child."""

    @workflow("parent")
    class Parent:
        Context = Days

        @step(start=True)
        def asks(self):
            return run_subflow("child", then=self.waits)

        @step()
        def waits(self):
            self.context.days += 1
            return goto(self.more) if self.context.days < 4 else wait("bell", then=self.waits)

        @step()
        def more(self):
            return goto(self.waits)

    @workflow("child")
    class Child:
        Context = Days

        @step(start=True)
        def only(self):
            return complete()

    run = engine.start("parent")
    work()
    with kept(RETENTION_HISTORY=DAY, RETENTION_RUNS=60 * DAY):
        clock.tick(10 * DAY)
        cleanup_old(clock())
        assert "asks" in run.steps.values_list("step", flat=True)
        clock.tick(60 * DAY)
        cleanup_old(clock())
        cleanup_old(clock())
    assert "asks" not in run.steps.values_list("step", flat=True)
