"""Several processes start a workflow with one key at the same time: there is one run, whatever each of them does."""

from __future__ import annotations

import pytest
from django.db import transaction

from django_ai.automation import engine
from django_ai.automation.exceptions import RunExistsError
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.core import wait
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.race import OtherThread, row_locks, together, together_with_workers, until_someone_waits
from tests.support.workflows import flow

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def waiting():
    return flow(lambda self: wait("bell"), "order")


def test_starts_at_once_make_one_run():
    found: list[int] = []
    assert together(*[lambda: found.append(engine.start("order", key="12").pk)] * 8) == []
    assert len(found) == 8
    assert len(set(found)) == 1
    assert WorkflowRun.objects.count() == 1


def test_of_starts_that_raise_one_succeeds():
    raised = together(*[lambda: engine.start("order", key="12", if_exists="raise")] * 6)
    assert [type(each) for each in raised] == [RunExistsError] * 5
    assert WorkflowRun.objects.count() == 1


def test_restarts_at_once_leave_one_unfinished_run():
    assert together_with_workers(*[lambda: engine.start("order", key="12", if_exists="restart")] * 6) == []
    drain()
    assert WorkflowRun.objects.count() == 6
    (alive,) = WorkflowRun.objects.unfinished()
    assert alive.status == "suspended"
    assert engine.start("order", key="12") == alive
    assert WorkflowRun.objects.filter(status="cancelled").count() == 5


@row_locks
@pytest.mark.parametrize("if_exists", ["return", "restart"])
def test_a_start_waits_for_the_commit_of_the_first(if_exists):
    with transaction.atomic():
        first = engine.start("order", key="12")
        other = OtherThread(lambda: engine.start("order", key="12", if_exists=if_exists))
        until_someone_waits()
    second = other.join()
    assert (second.pk == first.pk) is (if_exists == "return")
    assert [run.pk for run in WorkflowRun.objects.unfinished()] == [second.pk]


@row_locks
@pytest.mark.parametrize("if_exists", ["return", "raise", "restart"])
def test_a_start_waits_for_the_rollback_of_the_first(if_exists):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        first = engine.start("order", key="12")
        other = OtherThread(lambda: engine.start("order", key="12", if_exists=if_exists))
        until_someone_waits()
        raise ZeroDivisionError
    assert other.join().pk != first.pk
    assert WorkflowRun.objects.count() == 1
