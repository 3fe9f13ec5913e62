"""Scenario 6: a step takes longer than Q2's ``retry``, so Q2 delivers its task to a second worker. The first worker
keeps its lease, so the step runs only once. A system check warns of such settings."""

from __future__ import annotations

import time

import pytest
from django_q.conf import Conf

from django_ai.automation import engine
from django_ai.automation.queues.checks import check_queue_times
from django_ai.automation.queues.notifier import set_notifier
from django_ai.automation.queues.runtimes.q2 import Q2Notifier
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Mark
from tests.support.child_processes import qcluster
from tests.support.polling import until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180), pytest.mark.alone]

LEASE = 2.0
OURS = "django_ai.automation.queues.runtimes.q2_brokers.OrmBroker"


def test_06_real_seconds_never_two_at_once(tmp_path, monkeypatch):
    """The worst case is Q2's own broker, which stores the doorbell and delivers it again."""
    monkeypatch.setattr(Conf, "BROKER_CLASS", None)
    monkeypatch.setattr(Conf, "ORM", "default")
    monkeypatch.setattr(Conf, "RETRY", 1)
    log = tmp_path / "cluster.log"
    set_notifier(Q2Notifier())
    try:
        with qcluster(log, TEST_BROKER="stock", TEST_Q2_TIMES="60,1", TEST_LEASE_SECONDS=str(LEASE)):
            run = engine.start("story:long", seconds=3 * LEASE)
            until(lambda: Mark.objects.filter(name="long:begin").exists(), 30, "The step", log)
            until(lambda: WorkflowRun.objects.filter(pk=run.pk, status="completed").exists(), 60, "Its end", log)
            time.sleep(1.5)  # time for Q2 to deliver the task again, without effect
    finally:
        set_notifier(None)
    assert Mark.objects.filter(name="long:begin").count() == 1
    assert Mark.objects.filter(name="long:end").count() == 1
    assert [(each.step, each.outcome) for each in run.steps.all()] == [("last", "complete")]


def ids(cluster, settings) -> list[str]:
    settings.Q_CLUSTER = cluster
    settings.AUTOMATION = {}
    return [found.id for found in check_queue_times(None)]


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ({"timeout": 60, "retry": 90, "broker_class": OURS}, []),
        ({"timeout": 60, "retry": 60, "broker_class": OURS}, ["automation.W010"]),
        ({"timeout": 90, "retry": 60, "broker_class": OURS}, ["automation.W010"]),
        ({"timeout": 90, "broker_class": OURS}, ["automation.W010"]),
        ({"retry": 90, "broker_class": OURS}, []),
        ({"timeout": 60, "retry": 90}, ["automation.W011"]),
        ({"timeout": 60, "retry": 100_000}, []),
        ({}, ["automation.W011"]),
    ],
)
def test_06_a_check_warns_of_the_times(cluster, expected, settings):
    assert ids(cluster, settings) == expected


def test_06_the_check_says_what_to_set(settings):
    settings.Q_CLUSTER = {"timeout": 90, "retry": 60, "broker_class": OURS}
    (found,) = check_queue_times(None)
    assert "Q_CLUSTER['retry'] (60 s)" in found.msg
    assert "more than 90" in found.hint
