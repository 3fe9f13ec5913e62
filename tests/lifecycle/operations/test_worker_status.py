"""Worker status: which process counts as a worker, and how it reports its progress."""

from __future__ import annotations

import io
import os
import socket
import time
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import OperationalError

from django_ai.automation import engine
from django_ai.automation.events.models import CallbackExecution
from django_ai.automation.queues import heartbeat
from django_ai.automation.queues import worker_status as presence_module
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.heartbeat import register_worker
from django_ai.automation.queues.held_leases import HeldLeases
from django_ai.automation.queues.models import Worker
from django_ai.automation.queues.notifier import InlineNotifier, set_notifier
from django_ai.automation.queues.runtimes import tasks
from django_ai.automation.queues.runtimes.django_tasks import automation_drain_due
from django_ai.automation.queues.runtimes.q2 import register_at_doorbell
from django_ai.automation.queues.worker_status import MAX_SILENCE, WorkerStatus, worker_status
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.health import living

pytestmark = pytest.mark.django_db(transaction=True)

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def seconds(monkeypatch):
    """Freeze the monotonic clock of this process. The test moves it."""
    found = [time.monotonic()]
    monkeypatch.setattr(presence_module.time, "monotonic", lambda: found[0])
    return found


@pytest.mark.exact_times
def test_a_worker_says_that_it_lives_and_what_it_performed(clock):
    register_worker("test")
    engine.start("story:count", steps=1)
    (worker,) = Worker.objects.all()
    assert (str(worker), worker.runtime) == (f"{socket.gethostname()[:60]}:{os.getpid()}", "test")
    assert (worker.performed, worker.worked, worker.worked_at, worker.kinds, worker.queues) == (0, {}, None, "", "")
    assert worker.seen_at - worker.started_at < MINUTE
    assert abs(worker.seen_at.timestamp() - time.time()) < 3600, "seen_at must be the time of the database"
    drain(heartbeat=True)
    worker_status.sign_off()
    worker.refresh_from_db()
    assert worker.performed == 1
    assert abs(worker.stopped_at - worker.seen_at) < SECOND  # PostgreSQL reads its clock for each column


def test_a_worker_of_some_kinds_says_which():
    register_worker("test", [WorkflowRun, CallbackExecution])
    assert Worker.objects.get().kinds == "workflows,callbacks"


def test_process_without_registration_is_no_worker():
    engine.start("story:count", steps=1)
    assert drain(heartbeat=True) == 1
    worker_status.report()
    assert not Worker.objects.exists()


def test_signs_of_life_are_few_and_add_up(seconds, django_assert_num_queries):
    mine = WorkerStatus()
    assert mine.register("test")
    assert not mine.register("other"), "a process has one runtime"
    mine.report()
    mine.record_performed("workflows", 5)
    with django_assert_num_queries(0):
        mine.report()
    seconds[0] += presence_module.BUSY_REPORT_SECONDS - 1
    mine.record_performed("callbacks", 7)
    with django_assert_num_queries(0):
        mine.report()
    seconds[0] += 1
    with django_assert_num_queries(1):
        mine.report()
    (worker,) = Worker.objects.all()
    assert (worker.performed, worker.runtime) == (12, "test")
    assert worker.worked == {"workflows": 5.0, "callbacks": 1.0}
    assert worker.worked_at == worker.seen_at - SECOND
    seconds[0] += presence_module.REPORT_SECONDS - 0.5
    with django_assert_num_queries(0):
        mine.report()
    seconds[0] += 0.5
    mine.report(busy_lanes=["agents"])
    (worker,) = Worker.objects.all()
    assert worker.performed == 12
    assert worker.worked == {"workflows": 25.0, "callbacks": 21.0, "agents": 0.0}


def test_a_leased_row_is_progress_until_its_timeout(seconds, clock):
    """The heartbeat reports progress for as long as it renews the lease."""
    engine.start("story:count", steps=1)
    (row,) = claim(WorkflowRun, clock.now, 1)
    register_worker("test")
    leases = HeldLeases()
    leases.hold([row])
    assert leases.start(row)
    leases.keep_for(MINUTE)
    seconds[0] += presence_module.REPORT_SECONDS
    heartbeat._beat([leases])
    assert Worker.objects.get().worked == {"workflows": 0.0}
    seconds[0] += 100
    heartbeat._beat([leases])
    assert Worker.objects.get().worked == {"workflows": 100.0}


def test_workers_of_long_ago_are_forgotten_when_a_new_one_begins():
    living(ago=timedelta(days=2))
    recent = living(ago=timedelta(hours=2))
    mine = WorkerStatus()
    mine.register("test")
    mine.report()
    assert Worker.objects.count() == 2
    assert Worker.objects.filter(pk=recent.pk).exists()


def test_a_worker_that_cannot_write_its_sign_of_life_works_on_and_tries_again(seconds, monkeypatch):
    written, tries = WorkerStatus._write, []

    def refuse(*arguments):
        tries.append(seconds[0])
        raise OperationalError("no")

    monkeypatch.setattr(WorkerStatus, "_write", refuse)
    register_worker("test")
    run = engine.start("story:count", steps=1)
    drain(heartbeat=True)
    run.refresh_from_db()
    assert run.status == "completed"
    worker_status.report()
    assert len(tries) == 1, "a failed report is not retried at once"
    seconds[0] += presence_module.RETRY_SECONDS
    worker_status.report()
    assert len(tries) == 2
    monkeypatch.setattr(WorkerStatus, "_write", written)
    seconds[0] += presence_module.RETRY_SECONDS
    worker_status.report()
    assert Worker.objects.get().performed == 1


def test_a_worker_that_was_cleaned_away_says_again_that_it_lives(seconds):
    register_worker("test")
    Worker.objects.all().delete()
    seconds[0] += presence_module.REPORT_SECONDS
    worker_status.report()
    assert Worker.objects.get().runtime == "test"


def test_who_could_not_write_lately_does_not_wait_for_the_database_at_its_end(seconds, django_assert_num_queries):
    register_worker("test")
    seconds[0] += MAX_SILENCE.total_seconds()
    with django_assert_num_queries(0):
        worker_status.sign_off()
    assert not worker_status.is_registered


def test_a_burst_is_a_worker_while_it_lasts():
    engine.start("story:count", steps=1)
    call_command("automation_worker", "--once", "--kinds", "workflows", stdout=io.StringIO())
    (worker,) = Worker.objects.all()
    assert (worker.runtime, worker.kinds, worker.performed) == ("worker", "limits,workflows,bulk", 1)
    assert worker.stopped_at is not None
    assert not worker_status.is_registered


def test_what_a_commit_performs_makes_no_worker(settings):
    """Neither the inline notifier nor a task queue that executes tasks immediately registers the process."""

    class Eager:
        def ring(self, alias, queues):
            register_at_doorbell(None, tasks.drain_due, {"sync": True})
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


def test_task_queue_process_registers_at_its_first_doorbell():
    register_at_doorbell(None, len, {})
    assert not worker_status.is_registered, "a task of the project does not register the process"
    register_at_doorbell(None, tasks.drain_due, {})
    assert Worker.objects.get().runtime == "q2"
    worker_status.sign_off()
    automation_drain_due.func()
    assert Worker.objects.get(stopped_at=None).runtime == "tasks"
