"""Health checks.

The check of the system counts workers and fails if none is alive. The check of one process needs no database.
"""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from django_ai.automation import engine, on_event
from django_ai.automation.db.database_clock import DatabaseNow
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.heartbeat import register_worker
from django_ai.automation.queues.models import Worker
from django_ai.automation.queues.worker_status import MAX_SILENCE, worker_status
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Probe
from tests.support.child_processes import automation_worker, children_of
from tests.support.health import probe
from tests.support.polling import until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]


def test_42_work_of_web_processes_hides_no_stopped_worker(clock):
    """A callback that is three hours overdue fails the health check, even while web processes save and claim events."""

    @on_event("probe_ready")
    def invoice(event):
        pass

    Probe.objects.create(name="first", ready=True)
    CallbackExecution.objects.update(wake_at=clock.now)
    stopped = registered_worker()
    worker_status.sign_off()
    clock.tick(timedelta(hours=3))
    for number in range(20):
        Probe.objects.create(name=str(number), ready=True)
        Event.objects.update(wake_at=clock.now)
        assert claim(Event, clock.now, 1), "a web process claims the event"
        code, text = probe()
        assert code == 1
        assert "no live worker polls 'callbacks'" in text
        assert f"No worker is alive; {stopped} was seen last" in text
    assert Worker.objects.count() == 1, "a web process does not count as a worker"


def test_42_progress_with_one_kind_is_none_with_another(clock):
    engine.start("story:count", steps=1)
    clock.tick(timedelta(minutes=10))
    worker = registered_worker()
    for kinds, worked, expected in [
        ("events,callbacks", {"callbacks": 0.1}, 1),
        ("events,callbacks,workflows", {"callbacks": 0.1}, 1),
        ("events,callbacks,workflows", {"callbacks": 0.1, "workflows": 5}, 0),
    ]:
        Worker.objects.filter(pk=worker.pk).update(kinds=kinds, worked=worked, seen_at=DatabaseNow())
        assert probe()[0] == expected, (kinds, worked)


@pytest.mark.usefixtures("heartbeat_reports")
def test_42_real_seconds_an_idle_worker_gives_signs_of_life(settings, monkeypatch):
    settings.AUTOMATION = {**settings.AUTOMATION, "HEARTBEAT": timedelta(milliseconds=50)}
    monkeypatch.setattr("django_ai.automation.queues.worker_status.REPORT_SECONDS", 0.1)
    worker = registered_worker()
    until(lambda: Worker.objects.get().seen_at > worker.seen_at + timedelta(milliseconds=300), 20, "A sign of life")
    worker_status.sign_off()
    stopped = Worker.objects.get()
    assert stopped.stopped_at is not None
    time.sleep(0.3)
    assert Worker.objects.get().seen_at == stopped.seen_at


@pytest.mark.alone
def test_42_real_seconds_a_killed_worker_is_dead_and_an_orderly_one_says_goodbye(tmp_path):
    log = tmp_path / "worker.log"
    with automation_worker(log, "--kinds", "workflows") as process:
        worker = until(Worker.objects.first, 30, "The registration of an idle worker", log)
        (child,) = children_of(process.pid)
        assert (worker.pid, worker.runtime, worker.kinds) == (child, "worker", "limits,workflows,bulk")
        assert "1 worker is alive." in probe()[1]
        os.kill(child, signal.SIGKILL)
        successor = until(lambda: Worker.objects.exclude(pk=worker.pk).first(), 30, "The next worker", log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    worker.refresh_from_db()
    successor.refresh_from_db()
    assert (worker.stopped_at, successor.stopped_at is None) == (None, False)
    Worker.objects.filter(pk=worker.pk).update(seen_at=DatabaseNow() - MAX_SILENCE)
    assert "No worker is alive" in probe()[1]


@pytest.mark.alone
def test_42_real_seconds_an_outage_restarts_no_worker(server, tmp_path):
    """During a database outage the liveness check of each process succeeds, and the system check exits with code 2."""
    log, heartbeat = tmp_path / "worker.log", tmp_path / "heartbeat"
    with automation_worker(log, "--processes", "2", "--heartbeat-file", str(heartbeat)) as process:
        until(lambda: Worker.objects.count() == 2, 30, "The registration of both", log)
        children = children_of(process.pid)
        server.stop_at_once()
        stopped = time.time()
        until(
            lambda: touched(heartbeat) > stopped + 6 and touched(f"{heartbeat}.2") > stopped + 6,
            30,
            "Signs of life",
            log,
        )
        assert probe("--liveness", str(heartbeat), "--max-age", "8") == (0, "Alive.\n")
        connection.close()
        assert probe()[0] == 2
        server.start()
        connection.close()
        run = engine.start("story:count", steps=1)
        until(lambda: WorkflowRun.objects.filter(pk=run.pk, status="completed").exists(), 30, "The work", log)
        assert children_of(process.pid) == children, "no child process was restarted"
        assert probe()[0] == 0


@pytest.mark.alone
def test_42_real_seconds_a_process_that_hangs_is_not_alive(tmp_path):
    log, heartbeat = tmp_path / "worker.log", tmp_path / "heartbeat"
    with automation_worker(log, "--processes", "2", "--heartbeat-file", str(heartbeat)) as process:
        until(lambda: Worker.objects.count() == 2, 30, "The registration of both", log)
        second = int((tmp_path / "heartbeat.2").read_text())
        assert second in children_of(process.pid)
        assert probe("--liveness", str(heartbeat))[0] == 0
        os.kill(second, signal.SIGSTOP)
        try:
            until(lambda: probe("--liveness", str(heartbeat), "--max-age", "9")[0] == 1, 30, "The red light", log)
            found = json.loads(probe("--liveness", str(heartbeat), "--max-age", "9", "--json")[1].splitlines()[0])
            ages = found["seconds_since_touched"]
            assert ages[str(heartbeat)] < 9 < ages[f"{heartbeat}.2"]
        finally:
            os.kill(second, signal.SIGCONT)
        until(lambda: probe("--liveness", str(heartbeat), "--max-age", "9")[0] == 0, 30, "The green light", log)


def registered_worker() -> Worker:
    """Make this process a worker for this test."""
    register_worker("test")
    return Worker.objects.get()


def touched(path: object) -> float:
    return os.stat(str(path)).st_mtime


def test_42_a_clock_that_is_wrong_kills_no_worker(clock):
    """The clock of the database decides how long ago a worker was seen, not the clock of this machine."""
    registered_worker()
    for years in (-1, 1):
        clock.now = timezone.now() + timedelta(days=365 * years)
        assert "1 worker is alive." in probe()[1]
