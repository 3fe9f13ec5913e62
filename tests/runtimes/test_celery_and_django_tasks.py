"""Workers of Celery and of Django tasks: how they stop, how they are woken, and what a message can do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from django_ai.automation import engine
from django_ai.automation.exceptions import SettingsError
from django_ai.automation.queues.models import Worker
from django_ai.automation.queues.notifier import Notifier, get_notifier, set_notifier
from django_ai.automation.queues.registry import longest_timeout
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Mark, Probe
from tests.support.child_processes import ROOT, environment
from tests.support.databases import REDIS_URL
from tests.support.polling import until
from tests.support.runtimes import celery_rings, celery_worker
from tests.support.services import needs

celery_runtime = pytest.importorskip("django_ai.automation.queues.runtimes.celery")
tasks_runtime = pytest.importorskip("django_ai.automation.queues.runtimes.django_tasks")
pytest.importorskip("django_tasks_db")
from django_tasks_db.models import DBTaskResult  # noqa: E402

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def _silent_afterwards() -> Iterator[None]:
    yield
    set_notifier(None)


@contextmanager
def ringing(notifier: Notifier) -> Iterator[None]:
    set_notifier(notifier)
    yield
    set_notifier(None)


def completed(run: WorkflowRun) -> bool:
    return WorkflowRun.objects.filter(pk=run.pk, status="completed").exists()


def has_started(number: int = 1) -> bool:
    return Mark.objects.filter(name="long:begin").count() >= number


@pytest.mark.alone
def test_real_seconds_a_celery_worker_finishes_its_step_on_sigterm(tmp_path):
    needs("redis")
    log = tmp_path / "celery.log"
    with celery_worker(log, REDIS_URL) as worker:
        run = engine.start("story:long", seconds=2)
        until(has_started, 30, "The step", log)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(40) == 0
        assert completed(run), log.read_text()[-3000:]
    assert [step.outcome for step in run.steps.all()] == ["complete"]


@pytest.mark.alone
def test_real_seconds_step_interrupted_by_a_cold_shutdown_of_celery_runs_again(tmp_path):
    needs("redis")
    log, lease = tmp_path / "celery.log", {"TEST_LEASE_SECONDS": "2"}
    with celery_worker(log, REDIS_URL, **lease) as worker:
        run = engine.start("story:long", seconds=3)
        until(has_started, 30, "The step", log)
        worker.send_signal(signal.SIGQUIT)
        worker.wait(40)
        assert not completed(run)
    with celery_worker(tmp_path / "next.log", REDIS_URL, **lease):
        until(lambda: completed(run), 40, "The second start", tmp_path / "next.log")
    assert Mark.objects.filter(name="long:begin").count() == 2
    assert Mark.objects.filter(name="long:end").count() == 1
    # Released by the process that ended, or claimed again after its lease expired.
    assert [each.outcome for each in run.steps.all()] in (["complete"], ["lost", "complete"])


@pytest.mark.alone
def test_real_seconds_killed_pool_process_is_replaced_and_the_dispatcher_continues(tmp_path):
    """The new process is forked while the dispatcher runs: neither may use the other's connections."""
    needs("redis")
    log, lease = tmp_path / "celery.log", {"TEST_LEASE_SECONDS": "2"}
    flag = tmp_path / "flag"
    with celery_worker(log, REDIS_URL, **lease):
        run = engine.start("story:victim", flag=str(flag), atomic=False)
        os.kill(int(until(lambda: flag.exists() and flag.read_text(), 30, "The step", log)), signal.SIGKILL)
        until(lambda: completed(run), 40, "The rerun", log)
        nap = engine.start("story:nap", seconds=1)
        until(lambda: completed(nap), 30, "A timer after that", log)
    assert "could not read the database" not in log.read_text()


class TestCelery:
    @pytest.mark.slow
    def test_task_is_registered_when_django_starts(self):
        code = "import django; django.setup(); from celery import current_app as app; app.finalize(); print(*app.tasks)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(TEST_RUNTIME="celery"), cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert "django_ai.automation.drain_due" in done.stdout

    def test_message_has_time_limits_and_expires(self):
        needs("redis")
        import redis

        broker = REDIS_URL
        with celery_rings(broker, "automation-tests-limits"):
            engine.start("story:count", steps=1)
        with redis.from_url(broker) as server:
            message = json.loads(server.lpop("automation-tests-limits"))
            server.delete("automation-tests-limits")
        headers = message["headers"]
        assert headers["task"] == "django_ai.automation.drain_due"
        assert min(headers["timelimit"]) > longest_timeout().total_seconds()
        assert timezone.now() < datetime.fromisoformat(headers["expires"]) < timezone.now() + timedelta(hours=2)
        assert (headers["ignore_result"], headers["argsrepr"], headers["kwargsrepr"]) == (True, "()", "{}")

    def test_task_accepts_no_arguments(self):
        run = engine.start("story:count", steps=1)
        assert celery_runtime.drain_due.apply(args=["os.system", "true"]).failed()
        assert not completed(run)
        for _ in range(3):  # any number of times
            assert celery_runtime.drain_due.apply().successful()
        assert completed(run)
        assert Mark.objects.count() == 1
        assert not Worker.objects.exists(), "a task that is applied locally must not register this process as a worker"

    def test_an_eager_app_performs_at_the_commit(self):
        from celery import current_app

        current_app.conf.task_always_eager = True
        try:
            with ringing(celery_runtime.CeleryNotifier()):
                run = engine.start("story:count", steps=1)
        finally:
            current_app.conf.task_always_eager = False
        assert completed(run)
        assert not Worker.objects.exists()

    def test_fork_waits_while_the_dispatcher_uses_a_connection(self):
        guard = celery_runtime.ForkGuard()
        may_leave, inside, forked = threading.Event(), threading.Event(), threading.Event()

        def look() -> None:
            with guard:
                inside.set()
                may_leave.wait(10)

        def fork() -> None:
            guard.before()
            forked.set()
            guard.after_in_parent()

        looker, forker = threading.Thread(target=look), threading.Thread(target=fork)
        looker.start()
        assert inside.wait(10)
        forker.start()
        assert not forked.wait(0.2)
        may_leave.set()
        assert forked.wait(10)
        looker.join()
        forker.join()
        guard.before()
        guard.after_in_child()  # the thread that would release it does not exist here
        with guard:
            pass


class TestDjangoTasks:
    def test_a_commit_rings_only_if_the_last_doorbell_was_answered(self):
        with ringing(tasks_runtime.TasksNotifier()):
            for number in range(5):
                Probe.objects.create(name=str(number), ready=True)
            assert DBTaskResult.objects.count() == 1
            (waiting,) = DBTaskResult.objects.ready()
            waiting.claim("a worker")
            waiting.set_successful(waiting.task.call())
            assert Mark.objects.filter(name__startswith="ready:").count() == 5
            Probe.objects.create(name="next", ready=True)
            assert DBTaskResult.objects.filter(status="READY").count() == 1
            DBTaskResult.objects.all().delete()  # the queue is emptied
            Probe.objects.create(name="last", ready=True)
            assert DBTaskResult.objects.count() == 1

    def test_backend_without_results_is_rung_at_intervals(self, monkeypatch):
        rung = []

        class Result:
            def refresh(self):
                raise NotImplementedError

        class Task:
            def enqueue(self):
                rung.append(1)
                return Result()

        notifier = tasks_runtime.TasksNotifier()
        notifier.doorbell = Task()
        for _ in range(5):
            notifier.ring("default")
        assert len(rung) == 1
        notifier._bells[""].rung_at -= tasks_runtime.MIN_DOORBELL_INTERVAL_SECONDS
        notifier.ring("default")
        assert len(rung) == 2

    def test_task_accepts_nothing_but_the_name_of_a_task_queue(self):
        run = engine.start("story:count", steps=1)
        tasks_runtime.automation_drain_due.call("os.system")
        with pytest.raises(TypeError):
            tasks_runtime.automation_drain_due.call("", "os.system")
        assert not completed(run)
        for _ in range(3):
            tasks_runtime.automation_drain_due.call()
        assert completed(run)
        assert Mark.objects.count() == 1


def test_runtime_that_cannot_be_used_is_named(settings):
    settings.AUTOMATION = {"RUNTIME": f"{__name__}.Unusable"}
    with pytest.raises(SettingsError, match=r"Unusable.*ValueError: no such queue"):
        get_notifier()


class Unusable:
    def __init__(self):
        raise ValueError("no such queue")
