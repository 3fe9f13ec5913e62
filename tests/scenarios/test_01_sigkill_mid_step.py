"""01, SIGKILL in a step: the step runs again when the lease expires. The late write of a hung worker is refused."""

from __future__ import annotations

import os
import signal
import time

import pytest
from django.db import connection

from django_ai.automation import engine
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.notifier import set_notifier
from django_ai.automation.queues.runtimes.q2 import Q2Notifier
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Mark
from tests.support.child_processes import qcluster, start_worker
from tests.support.polling import until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120), pytest.mark.alone]

LEASE = 2.0


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
def test_01_real_seconds_a_worker_is_killed_in_the_middle_of_a_step(tmp_path, atomic):
    # The first write is rolled back with its transaction, or kept if the step has none.
    expected_first = 0 if atomic else 1
    log, flag = tmp_path / "cluster.log", tmp_path / "flag"
    set_notifier(Q2Notifier())
    try:
        with qcluster(log, TEST_LEASE_SECONDS=str(LEASE)):
            run = engine.start("story:victim", flag=str(flag), atomic=atomic)
            pid = int(until(lambda: flag.exists() and flag.read_text(), 20, "The step", log))
            # Longer than a lease: the heartbeat renews the lease, so no other worker starts the step.
            time.sleep(LEASE * 1.5)
            assert not Mark.objects.filter(name="victim:done").exists()
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            until(lambda: WorkflowRun.objects.filter(pk=run.pk, status="completed").exists(), 20, "The rerun", log)
            assert time.monotonic() - killed < LEASE + 4
    finally:
        set_notifier(None)
    assert Mark.objects.filter(name="victim:first").count() == expected_first
    assert Mark.objects.filter(name="victim:done").count() == 1
    run.refresh_from_db()
    assert [(each.step, each.outcome) for each in run.steps.all()][1:] == [
        ("in_transaction" if atomic else "outside", "lost"),
        ("in_transaction" if atomic else "outside", "complete"),
    ]
    assert len({mark.key for mark in Mark.objects.all()}) == 1


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
def test_01_real_seconds_a_worker_hangs_and_comes_back(tmp_path, atomic):
    """After SIGSTOP the lease expires and another worker runs the step; after SIGCONT the late write is refused."""
    if atomic and connection.vendor == "sqlite":
        pytest.skip("An atomic step holds SQLite's only write lock: no worker can take over while another hangs in it")
    flag, go, late = tmp_path / "flag", tmp_path / "flag.go", tmp_path / "flag.late"
    hung = start_worker(TEST_LEASE_SECONDS=str(LEASE))
    try:
        run = engine.start("story:hung", flag=str(flag), atomic=atomic)
        until(lambda: flag.exists() and flag.read_text(), 40, "The step")
        hung.send_signal(signal.SIGSTOP)

        def done() -> bool:
            drain()
            return WorkflowRun.objects.filter(pk=run.pk, status="completed").exists()

        until(done, 40, "The other worker's try")
        before = WorkflowRun.objects.values().get(pk=run.pk)
        history = list(run.steps.values())
        go.touch()
        hung.send_signal(signal.SIGCONT)
        until(late.exists, 40, "The end of the first try")
        # The worker still runs, and performs other work only after it has ended this attempt.
        other = engine.start("story:count", steps=1)
        until(lambda: WorkflowRun.objects.filter(pk=other.pk, status="completed").exists(), 40, "Other work of it")
    finally:
        hung.kill()
        hung.wait()
    assert WorkflowRun.objects.values().get(pk=run.pk) == before
    assert list(run.steps.values()) == history
    assert [each["outcome"] for each in history] == ["goto", "lost", "complete"]
    kept = list(Mark.objects.filter(name__startswith="hung").order_by("pk").values_list("name", flat=True))
    # Writes of the first attempt are rolled back with its transaction; without a transaction they stay.
    assert kept == (["hung:second"] if atomic else ["hung:first", "hung:second"])
