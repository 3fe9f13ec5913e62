"""A bulk action cancels many runs with few statements, and leaves of each what ``engine.cancel`` leaves."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (
    Debounce,
    Singleton,
    acting_as,
    claims,
    complete,
    engine,
    event_workflow,
    on_cancel,
    run_subflow,
    step,
    wait,
    workflow,
)
from django_ai.automation.events.models import EventClaim
from django_ai.automation.exceptions import LeaseLostError
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Action, BulkAction, Slot
from django_ai.automation.workflows import bulk_ending
from django_ai.automation.workflows.models import Signal, Wait, WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


class Empty(BaseModel):
    pass


def waiting(name: str, body=None, **options) -> None:
    """Declare a workflow that waits for ever."""

    class Waiting:
        Context = Empty

        @step(start=True)
        def begin(self):
            return wait("bell", then=self.end) if body is None else body(self)

        @step()
        def end(self):
            leave("end")
            return complete()

    workflow(name, **options)(Waiting)


def plain() -> WorkflowRun:
    waiting("plain")
    return engine.start("plain")


def with_claim() -> WorkflowRun:
    def hold(self):
        claims.hold("checkout_due", {"status": "never"}, priority=EventClaim.objects.count())
        return wait("bell", then=self.end)

    waiting("claiming", hold)
    return engine.start("claiming")


def with_path() -> WorkflowRun:
    class Undoing:
        Context = Empty

        @step(start=True)
        def begin(self):
            return wait("bell", then=self.begin)

        @on_cancel
        def undo(self, error):
            leave("undo")

    workflow("undoing")(Undoing)
    return engine.start("undoing")


def with_limit() -> WorkflowRun:
    waiting("limited", singleton=Singleton())
    return engine.start("limited")


def with_children() -> WorkflowRun:
    waiting("child")
    waiting("parent", lambda self: run_subflow("child", then=self.end))
    return engine.start("parent")


def child() -> WorkflowRun:
    with_children()
    drain()
    return WorkflowRun.objects.filter(name="child").latest("pk")


def due_by_event(**options) -> WorkflowRun:
    class Coming:
        class Context(BaseModel):
            pass

        @classmethod
        def create_context(cls, event=None, events=()):
            return cls.Context()

        @step(start=True)
        def begin(self):
            return complete()

    event_workflow(name="coming", **options)(Coming)
    Reservation.objects.create(status="confirmed", checkin_at=timezone.now() + 24 * HOUR)
    drain()
    return WorkflowRun.objects.filter(name="coming").latest("pk")


def planned() -> WorkflowRun:
    return due_by_event(event_name="checkin_due", offset=-HOUR)


def with_window() -> WorkflowRun:
    return due_by_event(event_name="reservation_confirmed", debounce=Debounce(HOUR))


def story(run: WorkflowRun) -> dict[str, object]:
    """Return what the end of a run has left."""
    run.refresh_from_db()
    children = WorkflowRun.objects.filter(parent=run.pk)
    signals = Signal.objects.filter(run=run.parent_id) if run.parent_id else Signal.objects.none()
    return {
        "run": (
            run.status,
            run.error,
            run.lease,
            run.wake_at is None,
            run.path,
            run.current_step,
            run.origin_key is None,
        ),
        "finished": run.finished_at is not None,
        "waits": Wait.objects.filter(run=run.pk).count(),
        "claims": EventClaim.objects.filter(owner_id=run.pk).count(),
        "slots": list(Slot.objects.filter(row_pk=run.pk).values_list("state", flat=True)),
        "children": [(each.status, each.error.replace(str(run), "its parent")) for each in children],
        "told": [each.payload for each in signals],
        "actions": list(
            Action.objects.filter(key=str(run.pk), model="automation_workflows.workflowrun").values_list(
                "done", "reason", "actor_name"
            )
        ),
    }


@pytest.mark.parametrize("verb", ["cancel", "cancel_at_once"])
@pytest.mark.parametrize(
    "make",
    [plain, with_claim, with_path, with_limit, with_children, child, planned, with_window],
    ids=lambda each: each.__name__,
)
def test_it_leaves_what_a_cancellation_of_one_run_leaves(make, verb):
    found = []
    for is_bulk in (False, True):
        run = make()
        drain()
        before = WorkflowRun.objects.get(pk=run.pk).status
        with acting_as("ops"):
            if is_bulk:
                engine.bulk(verb, pks=[run.pk], reason="Snow.")
                drain(models=[BulkAction])
            else:
                engine.cancel(run, "Snow.", at_once=verb == "cancel_at_once")
        told = story(run)
        drain()
        found.append((before, told, effects()))
        WorkflowRun.objects.all().delete()
    (before, told, left), (before_bulk, told_bulk, left_bulk) = found
    assert (before_bulk, told_bulk) == (before, told)
    assert left_bulk == left * 2
    assert told_bulk["actions"] == [("Cancelled", "Snow.", "ops")]


def test_many_runs_need_no_more_statements_than_few():
    waiting("plain")
    statements = []
    for count in (3, 30):
        for _ in range(count):
            engine.start("plain")
        drain()
        with acting_as("ops"):
            bulk = engine.bulk("cancel", name="plain")
        with CaptureQueriesContext(connection) as queries:
            drain(models=[BulkAction])
        bulk.refresh_from_db()
        assert (bulk.status, bulk.done) == ("completed", count)
        statements.append(len(queries))
    assert statements[0] == statements[1]
    assert Action.objects.filter(done="Cancelled").count() == 33


def test_a_worker_that_has_leased_a_run_has_its_write_refused():

    def begin(self):
        leave("begin")
        return wait("bell", then=self.end)

    waiting("plain", begin)
    runs = [engine.start("plain"), engine.start("plain")]
    leased = claim(WorkflowRun, timezone.now(), 2)
    assert {run.pk for run in leased} == {run.pk for run in runs}
    engine.bulk("cancel", name="plain")
    drain(models=[BulkAction])
    for run in leased:
        with suppress(LeaseLostError):
            run.perform(timezone.now)
    assert {(run.status, run.lease) for run in WorkflowRun.objects.all()} == {("cancelled", None)}
    assert effects() == []
    assert not Wait.objects.exists()


def test_a_child_that_is_started_meanwhile_ends_too(monkeypatch):
    """Between the look for children and the write a worker may commit the step that starts one."""
    run = with_children()
    other = plain()
    WorkflowRun.objects.filter(pk=run.pk).update(status="suspended", wake_at=None)
    revoke = bulk_ending.revoke

    def late(rows, **changes):
        WorkflowRun.objects.create(name="child", version="1", parent=run, parent_channel="child:1", wake_at=None)
        return revoke(rows, **changes)

    monkeypatch.setattr(bulk_ending, "revoke", late)
    engine.bulk("cancel", pks=[run.pk, other.pk], reason="Snow.")
    drain(models=[BulkAction])
    (started,) = WorkflowRun.objects.filter(parent=run.pk)
    assert (started.status, started.error) == ("cancelled", f"Its parent {run} ended: Snow.")


def test_a_row_that_raises_alone_does_not_undo_the_others(monkeypatch):
    """The whole bite is repeated row by row."""
    runs = [plain(), plain(), plain()]
    drain()

    def broken(*args, **options):
        raise ZeroDivisionError

    monkeypatch.setattr(bulk_ending, "end_children", broken)
    monkeypatch.setattr(bulk_ending, "hooks_of", broken)
    bulk = engine.bulk("cancel", name="plain")
    drain(models=[BulkAction])
    bulk.refresh_from_db()
    assert (bulk.status, bulk.done, bulk.failed) == ("completed", len(runs), 0)
