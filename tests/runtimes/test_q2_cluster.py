"""A real cluster with two workers performs everything on time. Waits real seconds.

The tests check exactly that no timer fires early. ``bench/`` measures lateness; the limit here allows for a noisy
machine, and is far below the minute that polling once a minute would take.
"""

from __future__ import annotations

import statistics
import threading
import time
from datetime import timedelta

import pytest
from django.db import connection, connections
from django.utils import timezone

from django_ai.automation import engine
from django_ai.automation.queues.notifier import set_notifier
from django_ai.automation.queues.runtimes.q2 import Q2Notifier
from django_ai.automation.workflows.models import WorkflowRun, WorkflowStatus
from tests.apps.story.models import Mark, Probe
from tests.support.child_processes import qcluster
from tests.support.databases import REDIS_URL
from tests.support.polling import until
from tests.support.services import needs

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120), pytest.mark.alone]


MAX_LATENESS_SECONDS = 1.5


@pytest.fixture
def q2():
    """Send doorbells as a web process of the project would."""
    set_notifier(Q2Notifier())
    yield
    set_notifier(None)


def finished(run: WorkflowRun) -> bool:
    run.refresh_from_db()
    return run.status == WorkflowStatus.COMPLETED


def test_real_seconds_timers_keep_their_time(tmp_path, q2):
    log = tmp_path / "cluster.log"
    with qcluster(log):
        nap = engine.start("story:nap", seconds=5)
        stumble = engine.start("story:stumble")
        due_at = timezone.now() + timedelta(seconds=3)
        Probe.objects.create(name="timed", due_at=due_at)
        until(lambda: finished(stumble), 15, "The retry", log)
        until(lambda: finished(nap), 15, "The end of the nap", log)
        until(lambda: Mark.objects.filter(name="due:timed").exists(), 10, "The scheduled event", log)

    lateness = (Mark.objects.get(name="due:timed").at - due_at).total_seconds()
    assert 0 <= lateness <= MAX_LATENESS_SECONDS
    first, second = stumble.steps.order_by("pk")
    assert (first.outcome, second.outcome) == ("error", "complete")
    assert 2.0 <= (second.started - first.finished).total_seconds() <= 2.0 + MAX_LATENESS_SECONDS
    slept, woke = nap.steps.order_by("pk")
    assert 5.0 <= (woke.started - slept.finished).total_seconds() <= 5.0 + MAX_LATENESS_SECONDS


def test_real_seconds_first_step_follows_the_commit(tmp_path, q2):
    log = tmp_path / "cluster.log"
    delays = []
    with qcluster(log):
        Probe.objects.create(name="warm", ready=True)
        until(lambda: Mark.objects.filter(name="ready:warm").exists(), 20, "The first run", log)
        for number in range(15):
            name = f"fast {number}"
            time.sleep(0.25 + 0.013 * number)  # not in phase with the polling
            committed = timezone.now()
            Probe.objects.create(name=name, ready=True)
            until(lambda name=name: Mark.objects.filter(name=f"ready:{name}").exists(), 10, "The first step", log)
            delays.append((Mark.objects.get(name=f"ready:{name}").at - committed).total_seconds())
    # With NOTIFY the cluster does not wait for the next poll (0.2 s); without it the median is half an interval.
    limit = 0.15 if connection.vendor == "postgresql" else 0.35
    assert statistics.median(delays) <= limit, sorted(delays)


def test_a_web_process_and_two_workers_write_together(tmp_path, q2):
    """On SQLite the three share one write lock; none may fail because the database is locked."""
    log = tmp_path / "cluster.log"
    failures = []

    def save_many(label: str) -> None:
        try:
            for number in range(60):
                probe = Probe.objects.create(name=f"{label} {number}", ready=number % 2 == 0)
                probe.ready = True
                probe.save()
        except Exception as error:
            failures.append(error)
        finally:
            connections.close_all()

    with qcluster(log):
        runs = [engine.start("story:count", steps=5) for _ in range(20)]
        threads = [threading.Thread(target=save_many, args=(label,)) for label in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        until(lambda: Mark.objects.filter(name__startswith="ready:").count() >= 120, 40, "All greetings", log)
        until(lambda: all(finished(run) for run in runs), 40, "All counts", log)
        time.sleep(0.3)
    assert failures == []
    assert Mark.objects.filter(name__startswith="ready:").count() == 120
    assert Mark.objects.filter(name="story:count").count() == 100
    # The heartbeat waits for the lock for half a second, then logs a warning and retries at its next interval.
    locked = [line for line in log.read_text().splitlines() if "locked" in line]
    assert [line for line in locked if "retr" not in line and "again" not in line] == []


def test_a_signal_wakes_a_run_that_waits(tmp_path, q2):
    log = tmp_path / "cluster.log"
    with qcluster(log):
        run = engine.start("story:listen")
        until(lambda: WorkflowRun.objects.filter(pk=run.pk, status="suspended").exists(), 20, "The wait", log)
        engine.signal("story:word", {"word": "hello", "unknown": 1})
        until(lambda: finished(run), 10, "The wake-up", log)
    assert Mark.objects.filter(name="heard:hello").count() == 1


def test_timers_fire_by_schedule_with_a_broker_of_q2(tmp_path, q2, settings, monkeypatch):
    """Q2's own brokers do not poll for due rows: a commit queues a doorbell task, and the schedule fires timers."""
    from django.core.management import call_command
    from django_q.conf import Conf
    from django_q.models import Schedule
    from django_q.scheduler import scheduler

    call_command("migrate", verbosity=0)  # the flush between tests has deleted the schedules
    monkeypatch.setattr(Conf, "BROKER_CLASS", None)
    monkeypatch.setattr(Conf, "ORM", "default")
    log = tmp_path / "cluster.log"
    with qcluster(log, TEST_BROKER="stock"):
        nap = engine.start("story:nap", seconds=1)
        until(lambda: Mark.objects.filter(name="nap:asleep").exists(), 20, "The doorbell at commit", log)
        time.sleep(1.1)
        assert not finished(nap)
        # What Q2's sentinel does every half minute.
        Schedule.objects.update(next_run=timezone.now() - timedelta(seconds=1))
        scheduler()
        until(lambda: finished(nap), 20, "The scheduled wake-up", log)


def test_runs_complete_with_the_redis_broker_after_a_flush(tmp_path, q2, monkeypatch):
    """The queue is only a doorbell: its contents may be lost."""
    needs("redis")
    import redis
    from django_q.conf import Conf

    connection_to_redis = redis.from_url(REDIS_URL)
    connection_to_redis.flushdb()
    monkeypatch.setattr(Conf, "BROKER_CLASS", "django_ai.automation.queues.runtimes.q2_brokers.RedisBroker")
    monkeypatch.setattr(Conf, "REDIS", REDIS_URL)
    nap, stumble = engine.start("story:nap", seconds=1), engine.start("story:stumble")
    connection_to_redis.flushdb()
    log = tmp_path / "cluster.log"
    with qcluster(log, TEST_BROKER="django_ai.automation.queues.runtimes.q2_brokers.RedisBroker"):
        until(lambda: finished(nap) and finished(stumble), 25, "The nap and the retry", log)
        Probe.objects.create(name="redis", ready=True)
        until(lambda: Mark.objects.filter(name="ready:redis").exists(), 10, "The event", log)
    connection_to_redis.flushdb()
    connection_to_redis.close()
