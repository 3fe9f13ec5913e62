"""SIGKILL at the worst moments, on a real cluster: what was lost is found, and what was written is there once."""

from __future__ import annotations

import os
import signal
import time

import pytest
from django.db import connection

from django_ai.automation import engine
from django_ai.automation.events.models import Event, EventStatus
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.executor import set_executor
from django_ai.automation.queues.q2 import Q2Executor
from django_ai.automation.workflows.models import WorkflowRun
from tests.runtimes.cluster import qcluster, run_script, until
from tests.story.models import Mark

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]

LEASE = 2.0


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
def test_real_seconds_a_worker_is_killed_in_the_middle_of_a_step(tmp_path, atomic):
    if not atomic and connection.vendor == "sqlite":
        expected_first = 1
    else:
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
