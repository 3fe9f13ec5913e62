"""Two workers and a web process on the same rows, in threads with their own connections."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from django_ai.automation import engine
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues.advance import advance
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.lease import release, revoke
from django_ai.automation.workflows.models import StepExecution, WorkflowRun, WorkflowStatus
from tests.apps.reservations.models import Reservation
from tests.apps.story.models import Mark, Probe
from tests.support.marks import not_on
from tests.support.race import together

pytestmark = pytest.mark.django_db(transaction=True)


def test_each_due_row_is_claimed_by_one():
    for _ in range(40):
        engine.start("story:count", steps=1)
    claimed: list[int] = []

    def take() -> None:
        while rows := claim(WorkflowRun, timezone.now(), 3):
            claimed.extend(row.pk for row in rows)

    assert together(take, take, take) == []
    assert sorted(claimed) == sorted(WorkflowRun.objects.values_list("pk", flat=True))


@not_on("sqlite", reason="SQLite has one writer and locks no rows")
def test_a_claim_locks_what_it_takes_and_no_more():
    now = timezone.now()
    due = [WorkflowRun(name="story:count", created_at=now, wake_at=now - timedelta(seconds=n)) for n in range(3000)]
    WorkflowRun.objects.bulk_create(due)
    with connection.cursor() as cursor:  # the planner then knows that all rows are due and a table scan is cheaper
        cursor.execute(f"ANALYZE {'TABLE' if connection.vendor == 'mysql' else ''} {WorkflowRun._meta.db_table}")
    others: list[WorkflowRun] = []
    with transaction.atomic():
        mine = claim(WorkflowRun, now, 10)
        assert together(lambda: others.extend(claim(WorkflowRun, now, 10))) == []
    assert len(mine) == 10
    assert {row.wake_at for row in others} == {others[0].wake_at}  # the end of their lease
    assert sorted(row.pk for row in [*mine, *others]) == sorted(row.pk for row in due[-20:])


@pytest.mark.slow
def test_steps_are_kept_once_however_many_workers_there_are():
    for number in range(20):
        engine.start("story:count", steps=3)
        Probe.objects.create(name=str(number), ready=True)
    assert together(drain, drain, drain) == []
    drain()
    assert Mark.objects.filter(name="story:count").count() == 60
    assert Mark.objects.filter(name__startswith="ready:").count() == 20
    assert StepExecution.objects.exclude(outcome__in=["goto", "complete"]).count() == 0
    assert WorkflowRun.objects.unfinished().count() == 0


def test_one_entity_saved_by_many_has_one_event_of_a_kind():
    reservation = Reservation.objects.create()
    Event.objects.all().delete()  # as if the definitions were deployed after the entity was saved

    def confirm() -> None:
        mine = Reservation.objects.get(pk=reservation.pk)
        mine.status = "confirmed"
        mine.save()

    assert together(confirm, confirm, confirm, confirm) == []
    drain()
    assert Event.objects.filter(event_name="reservation_confirmed").count() == 1
    assert Event.objects.filter(event_name="reservation_confirmed", status="processed").count() == 1
    assert CallbackExecution.objects.count() == 0


def test_a_late_write_is_refused():
    run = engine.start("story:count", steps=1)
    (mine,) = claim(WorkflowRun, timezone.now(), 1)
    later = timezone.now() + timedelta(seconds=60)
    (thief,) = claim(WorkflowRun, later, 1)
    assert thief.losses == 1
    from django_ai.automation.exceptions import LeaseLostError

    with pytest.raises(LeaseLostError):
        advance(mine, {"status": WorkflowStatus.COMPLETED}, None)
    assert release(mine, timezone.now()) is False
    revoke(WorkflowRun.objects.filter(pk=run.pk), status=WorkflowStatus.CANCELLED, wake_at=None)
    with pytest.raises(LeaseLostError):
        advance(thief, {"status": WorkflowStatus.COMPLETED})
    run.refresh_from_db()
    assert run.status == WorkflowStatus.CANCELLED


def test_a_row_with_losses_is_claimed_alone_and_parked_after_three():
    bad, *good = (engine.start("story:count", steps=1) for _ in range(4))
    moment = timezone.now()
    assert len(claim(WorkflowRun, moment, 1)) == 1  # a worker claims one row and dies
    moment += timedelta(seconds=11)
    first = claim(WorkflowRun, moment, 10)
    assert {row.pk for row in first} == {row.pk for row in good}  # rows without losses are claimed together
    for row in first:
        release(row, moment + timedelta(hours=1))
    second = claim(WorkflowRun, moment, 10)
    assert [(row.pk, row.losses) for row in second] == [(bad.pk, 1)]
    moment += timedelta(seconds=11)
    assert [(row.pk, row.losses) for row in claim(WorkflowRun, moment, 10)] == [(bad.pk, 2)]
    moment += timedelta(seconds=11)
    drain(moment)
    bad.refresh_from_db()
    assert bad.status == WorkflowStatus.PARKED
    assert "3 workers" in bad.error
    assert bad.steps.filter(outcome="lost").count() >= 1
    bad.resume()
    drain()
    bad.refresh_from_db()
    assert bad.status == WorkflowStatus.COMPLETED
