"""Named queues and priorities in the runtimes: doorbells, options of workers, health, the time machine."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command

from django_ai.automation import (
    complete,
    engine,
    step,
    wait,
    workflow,
)
from django_ai.automation.queues import lanes
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Worker
from django_ai.automation.queues.notifier import set_notifier
from django_ai.automation.queues.operations.health import check_health
from django_ai.automation.queues.runtimes.tasks import drain_due, process_scheduled
from django_ai.automation.testing import time_machine
from django_ai.automation.workflows.models import Signal
from tests.support.health import living, probe
from tests.support.lanes import Word, leaving, start
from tests.support.rows import effects, status

pytestmark = pytest.mark.django_db(transaction=True)

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def lane_of(row) -> tuple[str, int]:
    row.refresh_from_db()
    return row.queue, row.priority


class Bell:
    """A notifier that records what it is rung for."""

    def __init__(self) -> None:
        self.names: list[set[str]] = []

    def ring(self, alias, queues=()) -> None:
        self.names.append(set(queues))


@pytest.fixture
def bell():
    found = Bell()
    set_notifier(found)
    yield found
    set_notifier(None)


def test_a_doorbell_names_the_queue(bell):
    leaving(queue="reports")
    leaving("lanes:plain", priority=3)
    engine.start("lanes:leaves")
    engine.start("lanes:plain")
    assert bell.names == [{"workflows:reports"}, {"workflows"}]


def test_a_doorbell_for_rows_of_unknown_queues_names_them_all(bell, work):
    @workflow("lanes:waits", queue="reports")
    class Waits:
        Context = Word

        @step(start=True)
        def begin(self):
            return wait("lanes:go", then=self.end)

        @step()
        def end(self):
            return complete()

    engine.start("lanes:waits")
    work()
    engine.signal("lanes:go")
    bell.names.clear()
    drain(models=[Signal])
    assert {"workflows:*"} in bell.names


def test_a_doorbell_performs_the_queues_of_its_task_queue(settings):
    settings.AUTOMATION = {**settings.AUTOMATION, "QUEUES": {"reports": "heavy"}}
    leaving(queue="reports")
    leaving("lanes:plain")
    report, plain = engine.start("lanes:leaves"), engine.start("lanes:plain")
    assert drain_due("os.system") == 0
    assert drain_due("heavy") == 1
    assert (status(report), status(plain)) == ("completed", "running")
    engine.start("lanes:leaves")
    assert drain_due() == 1
    assert status(plain) == "completed"


def test_the_schedule_of_a_cluster_rings_for_the_other_clusters(settings, bell):
    settings.AUTOMATION = {**settings.AUTOMATION, "QUEUES": {"reports": "heavy"}}
    leaving(queue="reports")
    engine.start("lanes:leaves")
    bell.names.clear()
    process_scheduled()
    assert bell.names == [{"workflows:reports"}]


def test_health_tells_a_queue_that_no_worker_polls(clock):
    leaving(queue="reports")
    start("reports", 5)
    start("reports", -5)
    start()
    clock.tick(10 * MINUTE)
    living(queues="default,mail", workflows=1)
    health = check_health(clock.now)
    assert [(each.queue, each.count, each.workers, each.makes_progress) for each in health.overdue] == [
        ("default", 1, 1, True),
        ("reports", 2, 0, False),
    ]
    assert health.workers_by_queue == {"default": 1, "reports": 0}
    code, text = probe()
    assert code == 1
    assert "2 workflow run(s) in the queue 'reports' since 2030-01-07 13:00:00, and no live worker polls" in text
    assert "start a worker for workflows of the queue 'reports'" in text
    worker = living(queues="!default", **{"workflows:reports": 1})
    assert check_health(clock.now).is_healthy
    Worker.objects.filter(pk=worker.pk).update(worked={"workflows": 1})
    clock.tick(HOUR)
    assert not check_health(clock.now).is_healthy, "progress with another queue"


def test_what_a_row_waits_for_names_its_queue(clock):
    leaving(queue="reports")
    run = start("reports")
    assert run.__class__.objects.get().waits_for(clock.now) == (
        "a worker of the queue 'reports': due since 2030-01-07 13:00:00"
    )


def test_the_time_machine_performs_every_lane():
    leaving(queue="reports", priority=lambda context: len(context.word))
    with time_machine() as machine:
        for word in ("a", "aaa", "aa"):
            engine.start("lanes:leaves", word=word)
        assert machine.process() == 3
    assert effects() == ["aaa", "aa", "a"]


def test_a_worker_says_which_queues_it_polls(capsys):
    leaving(queue="reports")
    leaving("lanes:mail", queue="mail")
    report, mail = engine.start("lanes:leaves"), engine.start("lanes:mail")
    call_command("automation_worker", "--once", "--queues", "reports")
    assert (status(report), status(mail)) == ("completed", "running")
    call_command("automation_worker", "--once", "--except-queues", "reports", "--kinds", "workflows")
    assert status(mail) == "completed"
    found = Worker.objects.order_by("pk").values_list("kinds", "queues", "worked")
    assert list(found.values_list("kinds", "queues")) == [("", "reports"), ("limits,workflows,bulk", "!reports")]


def test_a_worker_may_be_started_for_a_queue_that_only_rows_name(capsys):
    leaving()
    run = start("legacy")
    lanes.reset()
    call_command("automation_worker", "--once", "--queues", "legacy")
    assert status(run) == "completed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--queues", "report"], "--queues: There is no queue 'report'. Did you mean 'reports'"),
        (["--queues", "workflows"], "It is a kind of row: write --kinds workflows"),
        (["--except-queues", "report"], "--except-queues: There is no queue 'report'"),
        (["--queues", "reports", "--except-queues", "mail"], "cannot be combined"),
    ],
)
def test_options_that_name_no_queue_are_refused(options, message):
    leaving(queue="reports")
    with pytest.raises(CommandError, match=message):
        call_command("automation_worker", *options)
