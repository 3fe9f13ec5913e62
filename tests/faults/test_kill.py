"""Real workers are killed with SIGKILL at any moment: lost rows are recovered, and each effect occurs once."""

from __future__ import annotations

import random
import time
from datetime import timedelta

import pytest
from django.utils import timezone

from django_ai.automation import engine
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Mark, Probe
from tests.support.child_processes import start_worker
from tests.support.polling import until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120), pytest.mark.alone]

LEASE = 2.0


def test_real_seconds_workers_are_killed_again_and_again():
    """While one of three workers is killed every 0.3 seconds, everything ends, and every effect occurs once."""
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
