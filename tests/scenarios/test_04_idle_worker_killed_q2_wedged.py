"""Scenario 4: idle workers of a Q2 cluster are killed while they hold the lock of the cluster's task queue. The new
workers never get a task: the cluster looks alive and does nothing. The health check fails, another process does the
work, and the health check passes again."""

from __future__ import annotations

import os
import re
import signal

import pytest
from django.core.management import CommandError, call_command

from django_ai.automation import engine
from django_ai.automation.queues.models import Worker
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.child_processes import qcluster, start_worker
from tests.support.polling import until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120), pytest.mark.alone]

TOLERANCE = "2"


def exit_code() -> int:
    try:
        call_command("automation_health", "--overdue", TOLERANCE)
    except CommandError as error:
        return error.returncode
    return 0


def completed(run: WorkflowRun) -> bool:
    return WorkflowRun.objects.filter(pk=run.pk, status="completed").exists()


def test_04_real_seconds_health_is_red_and_another_process_drains(tmp_path):
    log = tmp_path / "cluster.log"
    with qcluster(log) as cluster:
        first = engine.start("story:count", steps=1)
        until(lambda: completed(first), 30, "The first run", log)
        assert exit_code() == 0
        told = Worker.objects.filter(runtime="q2", performed__gte=1, worked__workflows__gte=0)
        until(told.exists, 30, "The report of the worker that performed it", log)

        idle = [int(pid) for pid in re.findall(r"ready for work at (\d+)", log.read_text())]
        for pid in idle:
            os.kill(pid, signal.SIGKILL)
        until(lambda: log.read_text().count("ready for work at") >= 2 * len(idle), 30, "The cluster's new workers", log)
        stuck = engine.start("story:count", steps=1)
        until(lambda: exit_code() == 1, 30, "The red light", log)
        assert cluster.poll() is None, "the cluster has ended"
        assert not completed(stuck)

        other = start_worker()
        try:
            until(lambda: completed(stuck), 30, "The work of another process")
            assert exit_code() == 0
        finally:
            other.kill()
            other.wait()
