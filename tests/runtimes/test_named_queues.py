"""Named queues in each runtime: a task queue wakes the workers of its queues, and they perform only those.

The workers of these tests are started with ``TEST_QUEUES``: the workflow ``story:report`` has the queue "reports", and
the task queue "heavy" serves it.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from pydantic import BaseModel

from django_ai.automation import engine, step, workflow
from django_ai.automation.queues import lanes
from django_ai.automation.queues.models import Worker
from django_ai.automation.queues.notifier import set_notifier
from django_ai.automation.queues.runtimes.dispatcher import Dispatcher
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Mark
from tests.support.child_processes import automation_worker, qcluster, spawn, stop
from tests.support.databases import REDIS_URL
from tests.support.polling import until
from tests.support.services import needs

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]

HEAVY = {"TEST_QUEUES": "1"}


@pytest.fixture(autouse=True)
def _silent_afterwards():
    yield
    set_notifier(None)


@pytest.fixture
def served(settings):
    """Let "heavy" serve the queue "reports", and declare that queue."""
    settings.AUTOMATION = {**settings.AUTOMATION, "QUEUES": {"reports": "heavy"}}
    lanes.declare("workflows", "reports", 0)


def report() -> WorkflowRun:
    """Start a run in the queue "reports"."""
    run = engine.start("story:report")
    WorkflowRun.objects.filter(pk=run.pk).update(queue="reports")
    return run


def completed(run: WorkflowRun) -> bool:
    return WorkflowRun.objects.filter(pk=run.pk, status="completed").exists()


def check_that_only_reports_are_performed(log) -> None:
    """There is a worker of "heavy" and none of the default task queue."""
    plain, wanted = engine.start("story:count", steps=1), report()
    until(lambda: completed(wanted), 40, "The report", log)
    assert not completed(plain), log.read_text()[-3000:]
    until(lambda: Worker.objects.filter(stopped_at=None).exclude(performed=0).exists(), 20, "The worker's report", log)
    assert {worker.queues for worker in Worker.objects.all()} == {"reports"}
    assert Mark.objects.count() == 1


# -- real workers ------------------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_real_seconds_a_worker_of_one_queue_performs_no_other(tmp_path):
    log = tmp_path / "worker.log"
    with automation_worker(log, "--queues", "reports", **HEAVY):
        check_that_only_reports_are_performed(log)


@pytest.mark.alone
def test_real_seconds_a_cluster_of_django_q_performs_its_queues(tmp_path):
    log = tmp_path / "cluster.log"
    with qcluster(log, Q_CLUSTER_NAME="heavy", **HEAVY):
        check_that_only_reports_are_performed(log)


@pytest.mark.alone
def test_real_seconds_a_worker_of_a_celery_queue_performs_its_queues(tmp_path):
    needs("celery", "redis")
    log = tmp_path / "celery.log"
    process = spawn(
        log, "-m", "celery", "-A", "tests.support.celery_app", "worker", "--concurrency", "1", "--loglevel", "info",
        "--without-mingle", "--without-gossip", "-Q", "heavy",
        **{"TEST_RUNTIME": "celery", "TEST_CELERY_BROKER": REDIS_URL, "TEST_CELERY_QUEUE": "automation-other", **HEAVY},
    )  # fmt: skip
    try:
        check_that_only_reports_are_performed(log)  # rung by the dispatcher of the worker
    finally:
        stop(process)
        import redis

        with redis.from_url(REDIS_URL) as server:
            server.delete("heavy", "automation-other")


@pytest.mark.alone
def test_real_seconds_a_worker_of_django_tasks_performs_its_queues(tmp_path):
    needs("tasks")
    log, extra = tmp_path / "tasks.log", {"TEST_RUNTIME": "tasks", **HEAVY}
    options = ("--interval", "0.2", "--no-startup-delay", "--queue-name", "heavy")
    processes = [
        spawn(log, "manage.py", "db_worker", *options, **extra),
        spawn(log, "manage.py", "automation_dispatcher", **extra),
    ]
    try:
        check_that_only_reports_are_performed(log)
    finally:
        for process in processes:
            stop(process)


# -- what is rung ------------------------------------------------------------------------------------------------------


def test_celery_rings_the_queue_that_serves_the_rows(served, monkeypatch):
    celery_runtime = pytest.importorskip("django_ai.automation.queues.runtimes.celery")
    sent = []
    monkeypatch.setattr(celery_runtime, "send", lambda task, task_queue="": sent.append(task_queue))
    set_notifier(celery_runtime.CeleryNotifier())
    engine.start("story:count", steps=1)
    assert sent == [""]

    @workflow("queues:report", queue="reports")
    class Report:
        class Context(BaseModel):
            pass

        @step(start=True)
        def write(self):
            raise NotImplementedError

    engine.start("queues:report")
    assert sent == ["", "heavy"]


def test_a_celery_message_goes_to_the_queue_and_names_it(served):
    needs("celery", "redis")
    import redis

    from django_ai.automation.queues.runtimes.celery import drain_due, send
    from tests.support.runtimes import celery_rings

    with celery_rings(REDIS_URL, "automation-tests-default"):
        send(drain_due, "automation-tests-heavy")
    with redis.from_url(REDIS_URL) as server:
        message = server.lpop("automation-tests-heavy")
        server.delete("automation-tests-default", "automation-tests-heavy")
    assert b"automation-tests-heavy" in message


def test_celery_tasks_perform_the_queues_that_they_name(served):
    celery_runtime = pytest.importorskip("django_ai.automation.queues.runtimes.celery")
    plain, wanted = engine.start("story:count", steps=1), report()
    assert celery_runtime.drain_due.apply(args=["heavy"]).successful()
    assert (completed(plain), completed(wanted)) == (False, True)
    assert celery_runtime.drain_due.apply().successful()
    assert completed(plain)


def test_django_tasks_are_enqueued_in_the_queue_that_serves_the_rows(served, settings):
    tasks_runtime = pytest.importorskip("django_ai.automation.queues.runtimes.django_tasks")
    pytest.importorskip("django_tasks_db")
    from django_tasks_db.models import DBTaskResult

    backend = {**settings.TASKS["default"], "QUEUES": ["default", "heavy"]}
    settings.TASKS = {"default": backend}
    notifier = tasks_runtime.TasksNotifier()
    for _ in range(2):  # one doorbell in each queue is enough
        notifier.ring("default", ["workflows:reports", "workflows"])
    found = DBTaskResult.objects.order_by("queue_name").values_list("queue_name", "args_kwargs")
    assert [(name, called["args"]) for name, called in found] == [("default", []), ("heavy", ["heavy"])]


def test_django_tasks_refuse_a_queue_that_the_backend_does_not_have(served):
    tasks_runtime = pytest.importorskip("django_ai.automation.queues.runtimes.django_tasks")
    with pytest.raises(Exception, match="heavy"):
        tasks_runtime.TasksNotifier()


def test_a_stock_broker_of_django_q_gets_a_task_for_the_cluster(served, monkeypatch):
    from django_q.conf import Conf
    from django_q.models import OrmQ
    from django_q.signing import SignedPackage

    from django_ai.automation.queues.runtimes.q2 import Q2Notifier

    monkeypatch.setattr(Conf, "BROKER_CLASS", None)
    monkeypatch.setattr(Conf, "ORM", "default")
    Q2Notifier().ring("default", ["agents:reports", "workflows"])
    found = {task.key: SignedPackage.loads(task.payload)["args"] for task in OrmQ.objects.all()}
    assert found == {Conf.CLUSTER_NAME: (), "heavy": ("heavy",)}


@contextmanager
def brokers():
    from django_ai.automation.queues.runtimes.q2_brokers import OrmBroker

    found = [OrmBroker(list_key="automation-tests"), OrmBroker(list_key="heavy")]
    yield found
    for each in found:
        each.poller.close()


def test_a_broker_of_ours_polls_for_the_queues_of_its_cluster(served, monkeypatch):
    from django_q.conf import Conf
    from django_q.signing import SignedPackage

    monkeypatch.setattr(Conf, "POLL", 0.01)
    with brokers() as (default, heavy):
        assert default.dequeue(), "a new process: maintenance is due"
        assert heavy.dequeue() is None
        report()
        ((_, package),) = heavy.dequeue()
        assert SignedPackage.loads(package)["args"] == ("heavy",)
        from django_ai.automation.queues.drain import drain
        from django_ai.automation.queues.models import Maintenance

        drain(models=[Maintenance])
        assert default.dequeue() is None


def test_a_dispatcher_rings_each_task_queue_by_its_own_intervals(served, monkeypatch):
    """A long backlog of reports does not delay the doorbells of other queues."""
    rung: list[str] = []
    dispatcher = Dispatcher(rung.append, poll=0.01)
    dispatcher._poll_and_ring()  # maintenance
    rung.clear()
    dispatcher._pollers[""]._work_interval = 3600.0  # longer than this test takes on a busy machine
    report()
    dispatcher._poll_and_ring()
    assert rung == ["heavy"]
    dispatcher._pollers["heavy"]._work_interval = 3600.0
    for _ in range(3):
        dispatcher._poll_and_ring()
    assert rung == ["heavy"], "it was rung just now"
    dispatcher._pollers[""]._work_interval = 0.0
    engine.start("story:count", steps=1)
    dispatcher._poll_and_ring()
    assert rung == ["heavy", ""]
