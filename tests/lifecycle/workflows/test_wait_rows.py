"""The rows of waits: how they are written, and which one counts if a run has several."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation.events.matching import lookback
from django_ai.automation.workflows.core import complete, engine, get_wake, step, wait, wait_for_event, workflow
from django_ai.automation.workflows.models import Wait, WorkflowRun
from django_ai.automation.workflows.wait_keys import channel_key
from tests.apps.reservations.models import Document, Reservation
from tests.support.marks import only_on
from tests.support.rows import effects, leave, status
from tests.support.waiting_runs import begin

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


def waiter(outcome=lambda self: wait("bell"), again=False) -> None:
    """Declare a workflow that waits once (or always, with ``again``) and then completes."""

    @workflow("waiter")
    class Waiter:
        class Context(BaseModel):
            reservation_id: int = 0

        @step(start=True)
        def first(self):
            if get_wake().reason != "first":
                leave(get_wake().reason)
                if not again:
                    return complete()
            return outcome(self)

        @step()
        def other(self):
            leave("other")
            leave(get_wake().reason)
            return complete()


@only_on("postgresql", reason="only PostgreSQL writes several rows in one statement")
@pytest.mark.parametrize("again", [True, False])
def test_a_step_that_waits_is_committed_in_one_statement(work, again):
    waiter(again=again)
    run = begin(work)
    engine.signal("bell")
    with CaptureQueriesContext(connection) as queries:
        work()
    commits = [query["sql"] for query in queries if 'INSERT INTO "automation_workflows_stepexecution"' in query["sql"]]
    (commit,) = commits
    assert ('INSERT INTO "automation_workflows_wait"' in commit) == again
    assert 'UPDATE "automation_workflows_workflowrun"' in commit
    assert run.waits.count() == again


@pytest.mark.parametrize("first", ["bell", "gong"])
def test_a_run_may_have_several_waits_and_the_first_that_comes_withdraws_the_others(work, first):
    """The tables allow several waits for one run, independently of the outcomes that exist."""
    waiter()
    run = begin(work)
    Wait.objects.create(
        run=run, visit=run.visit, channel="gong", key=channel_key("gong"), then="other", on_timeout="first"
    )
    assert "'bell'" in run.waits_for(timezone.now())
    assert "'gong'" in run.waits_for(timezone.now())
    for name in (first, "gong" if first == "bell" else "bell"):
        engine.signal(name)
    work()
    assert status(run) == "completed"
    assert effects() == (["signal"] if first == "bell" else ["other", "signal"])
    assert not Wait.objects.exists()


def test_a_wait_of_an_earlier_visit_counts_for_nothing(work):
    waiter()
    run = begin(work)
    wait_row = run.waits.get()
    wait_row.pk, wait_row.visit, wait_row.channel, wait_row.key = None, run.visit - 1, "gong", channel_key("gong")
    wait_row.save(force_insert=True)
    engine.signal("gong")
    work()
    assert status(run) == "suspended"
    engine.signal("bell")
    work()
    assert status(run) == "completed"
    assert not Wait.objects.exists()


@pytest.mark.exact_times
def test_the_earliest_of_several_deadlines_counts(clock, work):
    waiter()
    run = begin(work)
    key = channel_key("gong")
    for hours, target in ((2, "first"), (1, "other")):
        Wait.objects.create(
            run=run, visit=run.visit, channel="gong", key=key, then="first", on_timeout=target,
            deadline=clock() + hours * HOUR,
        )  # fmt: skip
    WorkflowRun.objects.filter(pk=run.pk).update(wake_at=clock())  # as if its worker had died before ``settle``
    work()
    run.refresh_from_db()
    assert run.wake_at == clock() + HOUR
    clock.tick(HOUR)
    work()
    assert (status(run), effects()) == ("completed", ["other", "timeout"])
    assert not Wait.objects.exists()


def test_a_timeout_is_fixed_before_its_step_runs(clock, work):
    """A signal that arrives while the timeout's step is retried is too late for the wait."""
    tries = []

    @workflow("retried")
    class Retried:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return wait("bell", timeout=HOUR, on_timeout=self.late, then=self.late)

        @step()
        def late(self):
            tries.append(get_wake().reason)
            if len(tries) == 1:
                engine.signal("bell")  # rolled back with this attempt
                raise RuntimeError
            return complete()

    run = begin(work, "retried")
    clock.tick(HOUR)
    work()
    engine.signal("bell", run=run)
    clock.tick(HOUR)
    work()
    assert (status(run), tries) == ("completed", ["timeout", "timeout"])


def test_a_correlated_wait_looks_up_by_entity_and_not_through_all_that_has_occurred(work):
    match = {"reservation_id": "{{ ctx.reservation_id }}"}
    waiter(outcome=lambda self: wait_for_event("document_uploaded", match=match))
    mine = Reservation.objects.create()
    run = engine.start("waiter", reservation_id=mine.pk)
    for _ in range(30):
        Document.objects.create(reservation=Reservation.objects.create())
    read = []
    load = lookback.load_entities
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookback, "load_entities", lambda events: (read.extend(events), load(events)))
        work()
        assert (status(run), read) == ("suspended", [])
    Document.objects.create(reservation=mine)
    work()
    assert status(run) == "completed"
