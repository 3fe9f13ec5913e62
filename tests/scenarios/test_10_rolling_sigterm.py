"""Scenario 10: workers get SIGTERM repeatedly while new runs start, as in a rolling update. Each worker finishes its
step or releases it: nothing is lost, nothing is done twice, and no lease is left to expire."""

from __future__ import annotations

import signal
import time

import pytest
from django.utils import timezone

from django_ai.automation import engine
from django_ai.automation.queues.notifier import WorkerNotifier, set_notifier
from django_ai.automation.queues.runtimes.q2 import Q2Notifier
from django_ai.automation.workflows.models import StepExecution, WorkflowRun
from tests.apps.story.models import Mark
from tests.support.child_processes import automation_worker, qcluster
from tests.support.polling import until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(240), pytest.mark.alone]

ROUNDS = 4
RUNS, STEPS = 12, 5


@pytest.fixture(autouse=True)
def _silent_afterwards():
    yield
    set_notifier(None)


def stream() -> None:
    for _ in range(RUNS):
        engine.start("story:count", steps=STEPS)


def nothing_is_held() -> bool:
    return not WorkflowRun.objects.filter(lease__isnull=False, wake_at__gt=timezone.now()).exists()


def progress(runs_before: int) -> bool:
    return WorkflowRun.objects.filter(status="completed").count() > runs_before


def test_10_automation_worker_finishes_or_releases(tmp_path):
    set_notifier(WorkerNotifier())
    log = tmp_path / "worker.log"
    for _ in range(ROUNDS):
        before = WorkflowRun.objects.filter(status="completed").count()
        with automation_worker(log, "--processes", "2") as process:
            stream()
            until(lambda before=before: progress(before), 40, "Some work", log)
            stream_more = [engine.start("story:count", steps=STEPS) for _ in range(3)]
            process.send_signal(signal.SIGTERM)
            assert process.wait(40) == 0, log.read_text()[-3000:]
        assert nothing_is_held(), "rows that were claimed and not started must be released at once"
        assert len(stream_more) == 3
    with automation_worker(log, "--processes", "2"):
        until(lambda: not WorkflowRun.objects.unfinished().exists(), 60, "The end of all runs", log)
    assert Mark.objects.filter(name="story:count").count() == ROUNDS * (RUNS + 3) * STEPS
    assert set(StepExecution.objects.values_list("outcome", flat=True)) == {"goto", "complete"}


def test_10_real_seconds_the_running_step_finishes_within_the_grace(tmp_path):
    set_notifier(WorkerNotifier())
    log = tmp_path / "worker.log"
    run = engine.start("story:long", seconds=3)
    with automation_worker(log, "--grace", "30") as process:
        until(lambda: Mark.objects.filter(name="long:begin").exists(), 40, "The step", log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    run.refresh_from_db()
    assert (run.status, Mark.objects.filter(name="long:end").count()) == ("completed", 1)


@pytest.mark.parametrize("how", ["after the grace", "at the second signal"])
def test_10_real_seconds_after_the_grace_it_is_given_back_at_once(tmp_path, how):
    set_notifier(WorkerNotifier())
    log = tmp_path / "worker.log"
    run = engine.start("story:long", seconds=60)
    with automation_worker(log, "--grace", "1" if how == "after the grace" else "50") as process:
        until(lambda: Mark.objects.filter(name="long:begin").exists(), 40, "The step", log)
        process.send_signal(signal.SIGTERM)
        if how == "at the second signal":
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()[-3000:]
    run.refresh_from_db()
    assert (run.lease, run.losses, run.steps.count()) == (None, 0, 0)
    assert run.wake_at <= timezone.now()


def test_10_a_cluster_of_q2_finishes_or_releases(tmp_path):
    set_notifier(Q2Notifier())
    for number in range(2):
        log = tmp_path / f"cluster {number}.log"
        before = WorkflowRun.objects.filter(status="completed").count()
        with qcluster(log) as process:
            stream()
            until(lambda before=before: progress(before), 40, "Some work", log)
            process.send_signal(signal.SIGTERM)
            process.wait(40)
    log = tmp_path / "last.log"
    with qcluster(log):
        until(lambda: not WorkflowRun.objects.unfinished().exists(), 60, "The end of all runs", log)
    assert Mark.objects.filter(name="story:count").count() == 2 * RUNS * STEPS
    assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"completed"}
