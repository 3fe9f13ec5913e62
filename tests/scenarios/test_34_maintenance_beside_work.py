"""Scenario 34: maintenance tasks are rows that workers claim, like all other work.

Due work comes first, but a backlog does not stop maintenance. A task that raises an error or kills its worker does not
stop the other tasks. Maintenance also removes rows that raw SQL orphaned (see ``test_34_orphans.py``).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from itertools import pairwise

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection, connections
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import EventDefinition, complete, engine, sleep, step, workflow
from django_ai.automation.conf import conf
from django_ai.automation.events.models import Event
from django_ai.automation.queues import maintenance, periodic_tasks, pruning
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Maintenance, Worker
from django_ai.automation.queues.notifier import InlineNotifier
from django_ai.automation.queues.periodic_tasks import PRUNE, RECONCILE, PeriodicTask, SliceResult, TimeSlice
from django_ai.automation.queues.registry import due_times
from django_ai.automation.queues.runtimes.poller import Poller
from django_ai.automation.queues.runtimes.tasks import cleanup_old, drain_due, poll_due, prune_soon
from django_ai.automation.queues.runtimes.worker import WorkerLoop
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.child_processes import ROOT, environment
from tests.support.maintenance import maintain, old_runs
from tests.support.polling import until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]

DAY = timedelta(days=1)
Take = Callable[[TimeSlice], SliceResult]


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that replaces all periodic tasks: ``only(name=take)``."""

    def replace(**tasks: Take) -> None:
        found = {name: PeriodicTask(name, PRUNE, take, timedelta(minutes=1)) for name, take in tasks.items()}
        monkeypatch.setattr(periodic_tasks, "_tasks", found)

    return replace


# -- due work comes first ----------------------------------------------------------------------------------------------


def test_34_timers_go_on_while_a_big_prune_runs(only):
    """If a prune never ends, at most one of its time slices starts between a timer's due time and its firing."""
    begun: list[float] = []
    fired: dict[int, float] = {}

    def endless(time_slice: TimeSlice) -> SliceResult:
        begun.append(time.time())
        while not time_slice.is_over:
            time.sleep(0.005)
        return SliceResult(1, position=len(begun))

    only(endless=endless)

    @workflow("timer")
    class Timer:
        class Context(BaseModel):
            number: int

        @step(start=True)
        def ring(self):
            fired[self.context.number] = time.time()
            return complete()

    due = {}
    for number in range(8):
        run = engine.start("timer", number=number)
        at = timezone.now() + timedelta(seconds=0.25 * (number + 1))
        WorkflowRun.objects.filter(pk=run.pk).update(wake_at=at)
        due[number] = at.timestamp()
    drain(heartbeat=True, stop=lambda: len(fired) == len(due), budget=timedelta(seconds=30))
    assert len(begun) >= 4
    for number, at in due.items():
        assert fired[number] >= at
        assert sum(at < moment < fired[number] for moment in begun) <= 1
    row = Maintenance.objects.get()
    assert (row.position, row.done, row.lease) == (len(begun), len(begun), None)


def test_34_a_prune_goes_on_where_it_stopped(monkeypatch, clock):
    """Each time slice of a prune deletes a few rows and starts where the previous one stopped."""
    monkeypatch.setattr(pruning, "WINDOW_KEYS", 4)
    monkeypatch.setattr(pruning, "BATCH_ROWS", 3)
    monkeypatch.setattr(maintenance, "SLICE_SECONDS", 0.0)
    monkeypatch.setattr(pruning.random, "randint", lambda low, high: low + 5)
    old_runs(20)
    young = old_runs(3, ago=DAY)
    maintenance.ensure_rows(clock())
    mine = Maintenance.objects.filter(name="prune runs")
    Maintenance.objects.exclude(name="prune runs").update(wake_at=clock() + DAY)
    left, slices = [WorkflowRun.objects.count()], 0
    while mine.filter(wake_at__lte=clock()).exists():
        drain(models=[Maintenance], budget=timedelta(microseconds=1))
        left.append(WorkflowRun.objects.count())
        slices += 1
    assert left[-1] == len(young)
    assert all(before - after <= 3 for before, after in pairwise(left))
    row = mine.get()
    assert (row.position, row.done, row.completed_at) == (None, 20, clock())
    assert row.wake_at == clock() + timedelta(minutes=1)


def test_34_a_backlog_does_not_stop_maintenance(only, monkeypatch):
    """If work is always due, maintenance waits for ``MAX_WAIT``, gets one time slice, and waits again."""
    monkeypatch.setattr(maintenance, "MAX_WAIT", timedelta(seconds=0.2))
    monkeypatch.setattr("django_ai.automation.queues.drain.MAX_WAIT", timedelta(seconds=0.2))
    order: list[str] = []

    def time_slice(time_slice: TimeSlice) -> SliceResult:
        order.append("time_slice")
        return SliceResult(0, position=len(order))

    only(patient=time_slice)

    @workflow("endless")
    class Endless:
        class Context(BaseModel):
            pass

        @step(start=True)
        def again(self):
            order.append("work")
            return sleep(timedelta(microseconds=1))

    for _ in range(30):
        engine.start("endless")
    started = time.monotonic()
    for _ in range(200):  # like doorbells: the work alone would use up each budget
        drain(heartbeat=True, budget=timedelta(seconds=0.1), stop=lambda: order.count("time_slice") >= 2)
        if order.count("time_slice") >= 2:
            break
    assert order.count("time_slice") == 2
    assert time.monotonic() - started >= 0.4
    assert order.index("time_slice") > 0
    assert WorkflowRun.objects.filter(wake_at__lte=timezone.now()).exists()


def test_34_reconciliation_and_pruning_go_on_under_a_backlog(monkeypatch, declare):
    """The real tasks detect a date that an SQL update moved, and delete an old run, while work is always due."""
    monkeypatch.setattr("django_ai.automation.queues.drain.MAX_WAIT", timedelta(0))
    declare(Reservation, EventDefinition("soon", date_field="checkin_at"))

    @workflow("endless")
    class Endless:
        class Context(BaseModel):
            pass

        @step(start=True)
        def again(self):
            return sleep(timedelta(microseconds=1))

    stay = Reservation.objects.create(checkin_at=timezone.now() + 3 * DAY)
    Reservation.objects.filter(pk=stay.pk).update(checkin_at=timezone.now() + timedelta(minutes=5))
    (old,) = old_runs(1)
    engine.start("endless")

    def is_done() -> bool:
        moved = Event.objects.filter(at__lt=timezone.now() + DAY).exists()
        return moved and not WorkflowRun.objects.filter(pk=old.pk).exists()

    deadline = time.monotonic() + 30
    drain(heartbeat=True, stop=lambda: is_done() or time.monotonic() > deadline)
    assert is_done()


def test_34_one_worker_has_a_task_and_the_others_have_other_ones(only):
    only(one=lambda time_slice: SliceResult(), other=lambda time_slice: SliceResult())
    maintenance.ensure_rows(timezone.now())
    first, second = (claim(Maintenance, timezone.now(), 1) for _ in range(2))
    assert {first[0].name, second[0].name} == {"one", "other"}
    assert claim(Maintenance, timezone.now(), 1) == []


# -- errors and dead workers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("broken on purpose"), asyncio.CancelledError("broken on purpose")])
def test_34_a_task_that_raises_does_not_stop_the_others(only, clock, caplog, error):
    done: list[str] = []

    def sick(time_slice: TimeSlice) -> SliceResult:
        raise error

    def sound(time_slice: TimeSlice) -> SliceResult:
        done.append("sound")
        return SliceResult(2)

    only(a_sick=sick, b_sound=sound)
    maintain()
    assert done == ["sound"]
    row = Maintenance.objects.get(name="a_sick")
    assert "in sick" in row.error
    assert row.error.strip().endswith("broken on purpose")
    assert (row.failures, row.wake_at) == (1, clock() + timedelta(seconds=10))
    pauses = []
    for _ in range(12):
        clock.now = Maintenance.objects.get(name="a_sick").wake_at
        maintain()
        row.refresh_from_db()
        pauses.append((row.wake_at - clock.now).total_seconds())
    assert pauses[:3] == [20, 40, 80]
    assert pauses[-1] == 3600
    only(a_sick=sound)
    clock.now = row.wake_at
    maintain()
    row.refresh_from_db()
    assert (row.error, row.failures, row.done) == ("", 0, 2)


def test_34_health_and_admin_show_what_is_wrong_and_call_none_of_it_work(only, admin_client):
    def sick(time_slice: TimeSlice) -> SliceResult:
        raise ValueError("broken on purpose")

    only(sick=sick, late=lambda time_slice: SliceResult())
    maintenance.ensure_rows(timezone.now())
    Maintenance.objects.filter(name="sick").update(wake_at=timezone.now() - timedelta(hours=2))
    drain(models=[Maintenance], budget=timedelta(microseconds=1))
    Maintenance.objects.filter(name="late").update(wake_at=timezone.now() - timedelta(hours=1))
    out = StringIO()
    call_command("automation_health", stdout=out)
    assert "nothing is overdue" in out.getvalue()
    assert "'sick' failed 1 time(s)" in out.getvalue()
    assert "ValueError: broken on purpose" in out.getvalue()
    assert "'late' has been due since" in out.getvalue()
    out = StringIO()
    call_command("automation_health", "--json", stdout=out)
    found = {each["task"]: each for each in json.loads(out.getvalue())["maintenance"]}
    assert (found["sick"]["failures"], found["late"]["failures"]) == (1, 0)
    assert due_times() == {}
    assert not Worker.objects.exists()
    page = admin_client.get("/admin/automation_queues/maintenance/").content.decode()
    assert "ValueError: broken on purpose" in page
    row = Maintenance.objects.get(name="sick")
    assert admin_client.get(f"/admin/automation_queues/maintenance/{row.pk}/change/").status_code == 200
    assert admin_client.post(f"/admin/automation_queues/maintenance/{row.pk}/delete/").status_code == 403


def test_34_maintenance_is_no_progress_of_a_worker(only):
    only(idle=lambda time_slice: SliceResult(1))
    assert drain(heartbeat=True) == 0
    assert Maintenance.objects.get().done == 1
    assert not Worker.objects.exists()


def test_34_a_database_failure_is_no_failure_of_the_task(only, clock):
    tries: list[int] = []

    def broken(time_slice: TimeSlice) -> SliceResult:
        tries.append(1)
        if len(tries) == 1:
            raise refused()
        return SliceResult(1)

    only(broken=broken)
    maintain()
    row = Maintenance.objects.get()
    assert (row.failures, row.error, row.losses) == (0, "", 0)
    clock.tick(timedelta(seconds=1))
    maintain()
    row.refresh_from_db()
    assert (row.done, row.failures) == (1, 0)


def refused() -> OperationalError:
    """Return the error that Django raises when the database is locked or reports a deadlock."""
    error = OperationalError("once more, please")
    if connection.vendor == "sqlite":
        import sqlite3

        error.__cause__ = sqlite3.OperationalError("database is locked")
        error.__cause__.sqlite_errorcode = 5  # type: ignore[attr-defined]
    elif connection.vendor == "mysql":
        error.__cause__ = Exception(1213, "Deadlock found")
    else:
        from psycopg import errors

        error.__cause__ = errors.DeadlockDetected("deadlock detected")
    return error


DYING = """
import time
from django_ai.automation.queues import maintenance, periodic_tasks
from django_ai.automation.queues.drain import drain

def hang(time_slice):
    time.sleep(60)

periodic_tasks._tasks.clear()
periodic_tasks.register("hanging", periodic_tasks.PRUNE, hang, maintenance.MIN_BACKOFF)
print("ready", flush=True)
drain(heartbeat=True)
"""


def test_34_a_process_that_dies_in_a_time_slice_is_followed_by_another(only):
    if connection.vendor == "sqlite" and ":memory:" in str(connection.settings_dict["NAME"]):
        pytest.skip("another process cannot open a database in memory")
    only(hanging=lambda time_slice: SliceResult(1, None if time_slice.position else "restarted"))
    maintenance.ensure_rows(timezone.now())
    Maintenance.objects.update(position="half way")
    process = subprocess.Popen(
        [sys.executable, "-c", f"import django\ndjango.setup()\n{DYING}"],
        cwd=ROOT, env=environment(TEST_LEASE_SECONDS="1"),
    )  # fmt: skip
    try:
        until(lambda: Maintenance.objects.exclude(lease=None).exists(), 30, "The claim of another process")
        before = Maintenance.objects.get()
        time.sleep(1.2)  # longer than its lease, which the heartbeat extends
        assert Maintenance.objects.get().lease == before.lease
        drain(models=[Maintenance])
        assert Maintenance.objects.get().done == 0
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def is_done() -> bool:
        drain(models=[Maintenance])
        return Maintenance.objects.get().done == 1

    until(is_done, 30, "The time slice of this process")
    row = Maintenance.objects.get()
    assert (row.position, row.losses, row.lease) == (None, 0, None)
    assert row.completed_at is not None


def test_34_what_kills_its_workers_is_tried_again_and_never_parked(only, clock):
    only(deadly=lambda time_slice: SliceResult(1))
    maintenance.ensure_rows(clock())
    for _ in range(conf().MAX_LOSSES):
        assert claim(Maintenance, clock(), 1)
        clock.tick(conf().LEASE)
    drain(models=[Maintenance])
    row = Maintenance.objects.get()
    assert "workers in a row died" in row.error
    assert (row.failures, row.done, row.parked_at) == (1, 0, None)
    clock.now = row.wake_at
    drain(models=[Maintenance])
    row.refresh_from_db()
    assert (row.error, row.done) == ("", 1)


# -- rows and runtimes -------------------------------------------------------------------------------------------------


def test_34_rows_follow_the_code(only, clock):
    only(old=lambda time_slice: SliceResult())
    maintain()
    only(new=lambda time_slice: SliceResult())
    maintain()
    assert set(Maintenance.objects.values_list("name", flat=True)) == {"old"}, "the rows are checked once a minute"
    maintenance._next_row_check.clear()
    maintain()
    assert set(Maintenance.objects.values_list("name", flat=True)) == {"old", "new"}
    clock.tick(timedelta(hours=1))
    maintain()
    assert set(Maintenance.objects.values_list("name", flat=True)) == {"new"}


def test_34_a_fresh_process_looks_for_what_its_code_wants(clock):
    maintain()
    clock.tick(timedelta(seconds=1))
    assert Poller(1.0).seconds_until_due() == 0.0
    due = Maintenance.objects.filter(wake_at__lte=clock())
    wanted = {task.name for task in periodic_tasks.tasks_for(RECONCILE)}
    assert set(due.values_list("name", flat=True)) == wanted
    drain(models=[Maintenance])
    assert Poller(1.0, models={WorkflowRun}).seconds_until_due() > 0
    assert not due.exists()


def test_34_a_schedule_makes_it_due(clock):
    maintain()
    old_runs(2)
    drain_due()
    assert WorkflowRun.objects.count() == 2
    prune_soon()
    assert WorkflowRun.objects.count() == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"maintenance": False}, False),
        ({"models": [WorkflowRun]}, True),
        ({"models": [WorkflowRun], "maintenance": False}, False),
        ({"models": [Maintenance]}, True),
    ],
)
def test_34_who_of_the_workers_maintains(options, expected):
    models = WorkerLoop(**options).models
    assert (models is None or Maintenance in models) is expected


def test_34_inline_does_its_part_and_none_inside_a_transaction(only):
    only(mine=lambda time_slice: SliceResult(1))
    dispatcher = InlineNotifier()
    from django.db import transaction

    with transaction.atomic():
        dispatcher.ring(connection.alias)
        assert not Maintenance.objects.exists()
    dispatcher.ring(connection.alias)
    dispatcher.ring(connection.alias)
    assert Maintenance.objects.get().done == 1


def test_34_at_once_in_the_foreground_an_error_does_not_stop_the_rest(only):
    done: list[str] = []

    def sick(time_slice: TimeSlice) -> SliceResult:
        raise ValueError("broken on purpose")

    only(a_sick=sick, b_sound=lambda time_slice: done.append("sound") or SliceResult(1))
    with pytest.raises(ValueError, match="on purpose"):
        cleanup_old()
    assert done == ["sound"]
    assert poll_due() == 0


def test_34_two_threads_never_have_one_task_at_once(only):
    if connection.vendor == "sqlite" and connection.is_in_memory_db():
        pytest.skip("threads share one database in memory")
    running, most, slices, lock = 0, 0, 0, threading.Lock()

    def alone(time_slice: TimeSlice) -> SliceResult:
        nonlocal running, most, slices
        with lock:
            running, slices = running + 1, slices + 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return SliceResult(1, position="more")

    only(alone=alone)
    maintenance.ensure_rows(timezone.now())

    def worker() -> None:
        try:
            drain(models=[Maintenance], budget=timedelta(seconds=30), stop=lambda: slices >= 6)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=worker) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert Maintenance.objects.get().done >= 2
