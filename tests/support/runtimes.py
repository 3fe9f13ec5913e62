"""All runtimes with the same interface: ``RUNTIMES["celery-redis"](log, ...)`` runs its workers until the block ends.

Each entry is a context manager that takes the log and the environment of its processes. It also sets the notifier that
a web process of such a project uses in the test's process.
"""

from __future__ import annotations

import contextlib
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from django_ai.automation.queues.notifier import InlineNotifier, WorkerNotifier, set_notifier
from tests.support.child_processes import automation_worker, qcluster, spawn, stop
from tests.support.databases import REDIS_URL
from tests.support.polling import until
from tests.support.services import RABBITMQ_URL, needs

Runtime = Callable[..., AbstractContextManager[None]]


@contextlib.contextmanager
def inline(log: Path, **extra: str) -> Iterator[None]:
    """Only the committing thread works. A separate process drains every 0.1 s, as a cron job does for timers."""
    import sys

    from tests.support.child_processes import ROOT, environment

    code = (
        "import django, time; django.setup()\n"
        "from django_ai.automation.queues.drain import drain\n"
        "while True: drain(); time.sleep(0.1)\n"
    )
    set_notifier(InlineNotifier())
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT, env=environment(**{"TEST_RUNTIME": "inline", **extra}), stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def q2_orm(log: Path, **extra: str) -> Iterator[None]:
    from django_ai.automation.queues.runtimes.q2 import Q2Notifier

    set_notifier(Q2Notifier())
    with qcluster(log, **extra):
        yield


@contextlib.contextmanager
def q2_redis(log: Path, **extra: str) -> Iterator[None]:
    needs("redis")
    from django_q.conf import Conf

    from django_ai.automation.queues.runtimes.q2 import Q2Notifier

    broker = "django_ai.automation.queues.runtimes.q2_brokers.RedisBroker"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conf, "BROKER_CLASS", broker)
        patch.setattr(Conf, "REDIS", REDIS_URL)
        set_notifier(Q2Notifier())
        with qcluster(log, **{"TEST_BROKER": broker, **extra}):
            yield


def workers(processes: int) -> Runtime:
    @contextlib.contextmanager
    def run(log: Path, **extra: str) -> Iterator[None]:
        set_notifier(WorkerNotifier())
        with automation_worker(log, "--processes", str(processes), **extra):
            yield

    return run


def celery(service: str) -> Runtime:
    @contextlib.contextmanager
    def run(log: Path, **extra: str) -> Iterator[None]:
        needs("celery", service)
        with celery_worker(log, REDIS_URL if service == "redis" else RABBITMQ_URL, **extra):
            yield

    return run


@contextlib.contextmanager
def celery_worker(log: Path, broker: str, **extra: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``celery -A tests.support.celery_app worker`` with two processes, on a queue of this test only."""
    queue = f"automation-tests-{uuid.uuid4().hex[:8]}"
    with celery_rings(broker, queue) as app:
        process = spawn(
            log, "-m", "celery", "-A", "tests.support.celery_app", "worker", "--concurrency", "2", "--loglevel", "info",
            "--without-mingle", "--without-gossip",
            **{"TEST_RUNTIME": "celery", "TEST_CELERY_BROKER": broker, "TEST_CELERY_QUEUE": queue, **extra},
        )  # fmt: skip
        try:
            until(lambda: " ready." in log.read_text(), 40, "The Celery worker's start", log)
            yield process
        finally:
            stop(process)
            with contextlib.suppress(Exception), app.connection_for_write(connect_timeout=1) as connection:
                connection.default_channel.queue_delete(queue)


@contextlib.contextmanager
def celery_rings(broker: str, queue: str) -> Iterator[object]:
    """Let this process notify workers through a broker, as a web process of a Celery project does."""
    from django_ai.automation.queues.runtimes.celery import CeleryNotifier
    from tests.support.celery_app import app

    app.conf.broker_url = broker
    app.conf.task_default_queue = queue
    app.amqp.queues = app.amqp.Queues({})
    app.amqp.__dict__.pop("router", None)
    app.set_default()
    set_notifier(CeleryNotifier())
    yield app


@contextlib.contextmanager
def django_tasks(log: Path, **extra: str) -> Iterator[None]:
    needs("tasks")
    from django_ai.automation.queues.runtimes.django_tasks import TasksNotifier

    set_notifier(TasksNotifier())
    extra = {"TEST_RUNTIME": "tasks", **extra}
    processes = [
        spawn(log, "manage.py", "db_worker", "--interval", "0.2", "--no-startup-delay", **extra),
        spawn(log, "manage.py", "automation_dispatcher", **extra),
    ]
    try:
        yield
    finally:
        for process in processes:
            stop(process)


RUNTIMES: dict[str, Runtime] = {
    "inline": inline,
    "q2-orm": q2_orm,
    "q2-redis": q2_redis,
    "worker-1": workers(1),
    "worker-2": workers(2),
    "celery-redis": celery("redis"),
    "celery-rabbitmq": celery("rabbitmq"),
    "django-tasks": django_tasks,
}


@contextlib.contextmanager
def runtime(name: str, log: Path, **extra: str) -> Iterator[None]:
    """Run one of ``RUNTIMES``, and reset the notifier afterwards."""
    log.touch()
    try:
        with RUNTIMES[name](log, **extra):
            yield
    finally:
        set_notifier(None)
