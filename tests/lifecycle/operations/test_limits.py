"""Limits that change: what maintenance and deployments do to them, and what operators see of them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User

from django_ai.automation import Concurrency
from django_ai.automation.queues.limits import admission
from django_ai.automation.queues.limits.reconcile import reconcile_limits
from django_ai.automation.queues.models import Limiter, Slot
from django_ai.automation.queues.operations.explanations import explain
from django_ai.automation.queues.periodic_tasks import TimeSlice
from django_ai.automation.workflows import definitions
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.limits import HOUR, MINUTE, SECOND, limited, perform, slots, start, statuses
from tests.support.rows import effects, status

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def queue(clock, settings):
    """Return the run that holds the only slot, and those that wait for it."""
    budget = settings.AUTOMATION
    settings.AUTOMATION = {**budget, "DRAIN_BUDGET": timedelta(microseconds=1)}
    limited(concurrency=Concurrency(1))
    runs = start(*"abcd")
    for run in runs:
        perform(run, clock)
    settings.AUTOMATION = budget
    assert slots() == {"held": 1, "queued": 3}
    return runs


def reconcile(clock) -> int:
    clock.tick(2 * MINUTE)
    return reconcile_limits(TimeSlice(clock.now)).done


def test_a_slot_whose_run_was_deleted_by_raw_sql_is_released(clock, work, queue):
    WorkflowRun.objects.filter(pk=queue[0].pk).delete()
    work()
    assert statuses() == ["waiting"] * 3
    assert reconcile(clock) == 1
    work()
    assert (statuses(), slots()) == (["completed"] * 3, {})


@pytest.mark.parametrize(
    "changes", [{"status": "completed", "wake_at": None}, {"status": "waiting", "wake_at": "2031-01-01T00:00Z"}]
)
def test_a_slot_whose_run_does_not_execute_is_released(clock, work, queue, changes):
    WorkflowRun.objects.filter(pk=queue[0].pk).update(**changes)
    assert reconcile(clock) == 1
    work()
    assert statuses()[1:] == ["completed"] * 3


def test_a_slot_that_is_in_use_is_left_alone(clock, work, queue):
    assert reconcile(clock) == 0
    assert slots() == {"held": 1, "queued": 3, "timer": 1}
    work()
    assert (statuses(), slots()) == (["completed"] * 4, {})


def test_a_queued_run_that_was_deleted_is_left_out(clock, work, queue):
    WorkflowRun.objects.filter(pk=queue[1].pk).delete()
    work()
    assert (statuses(), slots()) == (["completed"] * 3, {})


def test_a_limit_that_a_deployment_raises_takes_effect(clock, work, queue):
    WorkflowRun.objects.filter(pk=queue[0].pk).update(wake_at=clock.now + HOUR)
    limited(concurrency=Concurrency(3))
    reconcile_limits(TimeSlice(clock.now))
    work()
    assert [status(run) for run in queue[1:]] == ["completed"] * 3


def test_a_limit_that_a_deployment_removes_holds_nothing_back(clock, work, queue):
    limited()
    reconcile_limits(TimeSlice(clock.now))
    work()
    assert statuses() == ["completed"] * 4
    reconcile(clock)
    work()
    assert slots() == {}


def test_a_limit_of_a_workflow_that_this_code_does_not_have_waits_for_code(clock, work, queue):
    """Two releases side by side: the one that lacks the workflow must not admit its runs, nor lose their turn."""
    (known,) = [each for each in definitions.all_workflows() if each.name == "limited"]
    WorkflowRun.objects.filter(pk=queue[0].pk).delete()
    definitions.unregister(known)
    reconcile(clock)
    work()
    assert statuses() == ["waiting"] * 3
    assert "code that has the workflow 'limited', to be admitted by its limits" in [
        each.waits_for for each in explain(clock.now)
    ]
    definitions.register(known)
    clock.tick(MINUTE)
    work()
    assert (statuses(), slots()) == (["completed"] * 3, {})


def test_versions_of_a_workflow_share_its_limits(clock, work, queue):
    limited(concurrency=Concurrency(2), version=2)
    start("e")
    work()
    assert (statuses(), slots()) == (["completed"] * 5, {})


def test_many_are_admitted_in_several_transactions(clock, work, queue, monkeypatch):
    monkeypatch.setattr(admission, "MAX_ADMITTED", 2)
    limited()
    reconcile_limits(TimeSlice(clock.now))
    work()
    assert statuses() == ["completed"] * 4


def test_reconciliation_continues_where_its_time_was_over(clock, work, queue, monkeypatch):
    from django_ai.automation.queues.limits import reconcile as module

    monkeypatch.setattr(module, "SLOTS_PER_CHUNK", 1)
    WorkflowRun.objects.filter(pk=queue[0].pk).delete()
    clock.tick(2 * MINUTE)
    position, done, slices = None, 0, 0
    while slices == 0 or position is not None:
        result = reconcile_limits(TimeSlice(clock.now, position, until=0.0))
        position, done, slices = result.position, done + result.done, slices + 1
    assert (done, slices > 1) == (1, True)


def test_explain_needs_few_queries_for_many_queued_runs(clock, queue, django_assert_max_num_queries):
    start(*map(str, range(20)))
    for run in WorkflowRun.objects.filter(wake_at__isnull=False).order_by("pk")[1:]:
        perform(run, clock)
    with django_assert_max_num_queries(6):
        found = [each.waits_for for each in explain(clock.now, ["workflow run"])]
    assert found.count("a slot of the limit 'concurrency' of workflow limited") == 23


def test_a_slot_says_when_its_queue_is_looked_at(clock, queue):
    Slot.objects.filter(state="queued").update(wake_at=clock.now + SECOND)
    assert "the next look at the queue of its limit, 2030-01-07 13:00:01" in [
        each.waits_for for each in explain(clock.now, ["slot of a limit"])
    ]


def test_the_admin_shows_limits_with_their_counts(client, clock, queue, work):
    limited("keyed", concurrency=Concurrency(1, key="{{ ctx.group }}"))
    start("x", name="keyed", group="secret")
    perform(WorkflowRun.objects.get(name="keyed"), clock)
    Limiter.objects.filter(name="keyed").update(value="secret")
    viewer = User.objects.create(username="viewer", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_limiter"))
    client.force_login(viewer)
    page = client.get("/admin/automation_queues/limiter/").content.decode()
    assert '<td class="field-held">1</td><td class="field-queued">3</td>' in page
    assert "secret" not in page
    viewer.user_permissions.add(Permission.objects.get(codename="view_data_limiter"))
    assert "secret" in client.get("/admin/automation_queues/limiter/").content.decode()
    one = Limiter.objects.get(name="limited")
    assert client.get(f"/admin/automation_queues/limiter/{one.pk}/change/").status_code == 200


def test_effects_of_the_fixture(queue):
    assert effects() == ["begin a"]
