"""SIGKILL at the worst moments, on a real cluster: what was lost is found, and what was written is there once."""

from __future__ import annotations

import os
import random
import signal
import time
from datetime import timedelta

import pytest
from django.utils import timezone

from django_ai.automation import engine
from django_ai.automation.events.models import CallbackExecution, Event, EventStatus
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.executor import set_executor
from django_ai.automation.queues.q2 import Q2Executor
from django_ai.automation.workflows.models import WorkflowRun
from tests.runtimes.cluster import qcluster, run_script, start_worker, until
from tests.story.models import Mark, Probe

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120), pytest.mark.alone]

LEASE = 2.0


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
def test_real_seconds_a_worker_is_killed_in_the_middle_of_a_step(tmp_path, atomic):
    # Rolled back with its transaction, or kept because there was none.
    expected_first = 0 if atomic else 1
    log, flag = tmp_path / "cluster.log", tmp_path / "flag"
    set_executor(Q2Executor())
    try:
        with qcluster(log, TEST_LEASE_SECONDS=str(LEASE)):
            run = engine.start("story:victim", flag=str(flag), atomic=atomic)
            pid = int(until(lambda: flag.exists() and flag.read_text(), 20, "The step", log))
            # Longer than a lease: the heartbeat keeps the row, so nobody else begins it.
            time.sleep(LEASE * 1.5)
            assert not Mark.objects.filter(name="victim:done").exists()
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            until(lambda: WorkflowRun.objects.filter(pk=run.pk, status="completed").exists(), 20, "The rerun", log)
            assert time.monotonic() - killed < LEASE + 4
    finally:
        set_executor(None)
    assert Mark.objects.filter(name="victim:first").count() == expected_first
    assert Mark.objects.filter(name="victim:done").count() == 1
    run.refresh_from_db()
    assert [(each.step, each.outcome) for each in run.steps.all()][1:] == [
        ("in_transaction" if atomic else "outside", "lost"),
        ("in_transaction" if atomic else "outside", "complete"),
    ]
    assert len({mark.key for mark in Mark.objects.all()}) == 1


def test_the_web_process_is_killed_between_its_commit_and_its_hooks():
    done = run_script(
        """
import os, signal
from django.db import transaction
from tests.story.models import Probe
with transaction.atomic():
    transaction.on_commit(lambda: os.kill(os.getpid(), signal.SIGKILL))
    Probe.objects.create(name="orphan", ready=True)
"""
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    event = Event.objects.get(event_name="probe_ready")
    assert event.status == EventStatus.PENDING

    assert drain() == 0  # still leased to the dead process
    assert event.wake_at is not None
    drain(event.wake_at)
    drain(event.wake_at)
    event.refresh_from_db()
    assert event.status == EventStatus.PROCESSED
    assert Mark.objects.filter(name="ready:orphan").count() == 1


def test_real_seconds_workers_are_killed_again_and_again():
    """Three workers, one of them killed each third of a second: everything ends, and every effect is there once."""
    dice = random.Random(2)
    runs = [engine.start("story:count", steps=5) for _ in range(120)]
    for number in range(60):
        due_at = timezone.now() + timedelta(seconds=dice.random() * 4)
        Probe.objects.create(name=str(number), ready=True, due_at=due_at)
    workers = [start_worker(TEST_LEASE_SECONDS=str(LEASE)) for _ in range(3)]
    try:
        killing_ends = time.monotonic() + 5
        while time.monotonic() < killing_ends:
            time.sleep(0.3)
            victim = dice.randrange(3)
            workers[victim].kill()
            workers[victim].wait()
            workers[victim] = start_worker(TEST_LEASE_SECONDS=str(LEASE))
        until(lambda: Event.objects.exclude(wake_at=None).count() == 0, 40, "The last event")
        until(lambda: WorkflowRun.objects.unfinished().count() == 0, 40, "The last run")
        until(lambda: CallbackExecution.objects.filter(status="pending").count() == 0, 40, "The last call")
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert Mark.objects.filter(name="story:count").count() == 5 * len(runs)
    assert Mark.objects.filter(name__startswith="ready:").count() == 60
    assert Mark.objects.filter(name__startswith="due:").count() == 60
    assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"completed"}
