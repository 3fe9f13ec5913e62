"""Scenario 3: the broker is down when a request commits, or is flushed afterwards. The request commits quickly and
without an error, and the work runs: a process that polls the database rings again for a lost doorbell."""

from __future__ import annotations

import socket
import time

import pytest
from django.db import transaction

from django_ai.automation import engine
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.notifier import set_notifier
from django_ai.automation.queues.runtimes.q2 import Q2Notifier
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Mark, Probe
from tests.support.child_processes import qcluster
from tests.support.polling import until
from tests.support.runtimes import celery_rings, celery_worker
from tests.support.services import free_port, needs, private_redis

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180), pytest.mark.alone]

REDIS_BROKER = "django_ai.automation.queues.runtimes.q2_brokers.RedisBroker"


@pytest.fixture(autouse=True)
def _silent_afterwards():
    yield
    set_notifier(None)


def request(name: str) -> float:
    """Save a row as a request does, and return the seconds until the commit and the doorbell were done."""
    started = time.monotonic()
    with transaction.atomic():
        Probe.objects.create(name=name, ready=True)
    return time.monotonic() - started


def ran(name: str) -> bool:
    return Mark.objects.filter(name=f"ready:{name}").count() == 1


def test_03_q2_with_its_orm_broker_and_the_queue_emptied(tmp_path, monkeypatch):
    """The queue of Q2's own broker loses the doorbell before a cluster starts; Q2's schedule finds the work."""
    from django.core.management import call_command
    from django.utils import timezone
    from django_q.conf import Conf
    from django_q.models import OrmQ, Schedule

    call_command("migrate", verbosity=0)  # the flush between tests has deleted the schedules
    monkeypatch.setattr(Conf, "BROKER_CLASS", None)
    monkeypatch.setattr(Conf, "ORM", "default")
    set_notifier(Q2Notifier())
    request("orm")
    assert OrmQ.objects.all().delete()[0] >= 1
    Schedule.objects.update(next_run=timezone.now())
    log = tmp_path / "cluster.log"
    with qcluster(log, TEST_BROKER="stock"):
        until(lambda: ran("orm"), 80, "The work", log)


def test_03_q2_with_redis_stopped_while_it_works(tmp_path, monkeypatch):
    needs("redis", "redis-server")
    from django_q.conf import Conf

    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    monkeypatch.setattr(Conf, "BROKER_CLASS", REDIS_BROKER)
    monkeypatch.setattr(Conf, "REDIS", url)
    set_notifier(Q2Notifier())
    log = tmp_path / "cluster.log"
    with private_redis(tmp_path, port) as server, qcluster(log, TEST_BROKER=REDIS_BROKER, TEST_REDIS_URL=url):
        request("before")
        until(lambda: ran("before"), 40, "The work with Redis", log)
        server.kill()
        server.wait()
        assert request("during") < 5
        until(lambda: ran("during"), 40, "The work without Redis", log)
        nap = engine.start("story:nap", seconds=1)
        until(lambda: WorkflowRun.objects.get(pk=nap.pk).status == "completed", 40, "A timer without Redis", log)


def test_03_celery_with_the_broker_down_at_the_commit(tmp_path):
    """After the commit the broker and a worker start: the worker's dispatcher rings for the due rows."""
    needs("celery", "redis", "redis-server")
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    with celery_rings(url, "automation-tests"):
        first, second = request("first"), request("second")
        # By default kombu tries for six seconds. After one failure a process sends no doorbell for a while.
        assert first < 4
        assert second < 2
    log = tmp_path / "worker.log"
    log.touch()
    with private_redis(tmp_path, port), celery_worker(log, url):
        until(lambda: ran("first") and ran("second"), 60, "The work", log)


def test_03_celery_with_the_queue_flushed(tmp_path):
    needs("celery", "redis", "redis-server")
    import redis

    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    log = tmp_path / "worker.log"
    log.touch()
    with private_redis(tmp_path, port):
        with celery_rings(url, "automation-tests"):
            request("flushed")
        client = redis.from_url(url)
        client.flushall()
        client.close()
        with celery_worker(log, url):
            until(lambda: ran("flushed"), 60, "The work", log)


@pytest.mark.parametrize("scheme", ["redis://{}/0", "amqp://guest:guest@{}//"], ids=["Redis", "AMQP"])
def test_03_celery_with_a_broker_that_accepts_and_says_nothing(scheme):
    """The broker accepts connections and never answers: the first request waits briefly, the next ones do not."""
    needs("celery", "redis")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = scheme.format(f"127.0.0.1:{silent.getsockname()[1]}")
        with celery_rings(url, "automation-tests"):
            assert request("first") < 5
            assert sum(request(f"later {number}") for number in range(5)) < 5
    set_notifier(None)
    drain()
    assert Mark.objects.filter(name__startswith="ready:").count() == 6
