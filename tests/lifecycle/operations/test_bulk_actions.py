"""Bulk actions: an action over many rows is one row, which workers carry out in bites beside other work."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from pydantic import BaseModel

from django_ai.automation import (
    Retry,
    acting_as,
    agent,
    complete,
    engine,
    fail,
    handler,
    step,
    wait,
    workflow,
)
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.models import Event
from django_ai.automation.exceptions import DefinitionError, NotResumableError, StateError
from django_ai.automation.queues.bulk import creation, performing, verbs
from django_ai.automation.queues.bulk.verbs import BulkKind, find_kind, register_bulk_kind
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.history_pruning import prune_bulk_actions
from django_ai.automation.queues.models import Action, BulkAction
from django_ai.automation.queues.operations.explanations import explain
from django_ai.automation.queues.periodic_tasks import TimeSlice
from django_ai.automation.queues.wakeable import Wakeable
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation

pytestmark = pytest.mark.django_db(transaction=True)


class Guest(BaseModel):
    why: str = ""


@pytest.fixture
def remind():
    @workflow("remind")
    class Remind:
        Context = Guest

        @step(start=True, retry=Retry(max_attempts=1))
        def begin(self):
            if self.context.why:
                return fail(self.context.why)
            return wait("reply", then=self.end)

        @step()
        def end(self):
            return complete()

    return Remind


@pytest.fixture
def small_bites(monkeypatch):
    monkeypatch.setattr(performing, "ROWS_PER_BITE", 2)


def started(count: int, why: str = "") -> list[WorkflowRun]:
    runs = [engine.start("remind", why=why) for _ in range(count)]
    drain()
    return runs


def statuses() -> list[str]:
    return list(WorkflowRun.objects.order_by("pk").values_list("status", flat=True))


def counts(bulk: BulkAction) -> tuple[str, int, int, int, int]:
    bulk.refresh_from_db()
    return bulk.status, bulk.done, bulk.refused, bulk.failed, bulk.remaining


def test_rows_are_cancelled_in_the_background_and_say_who_and_why(remind, small_bites):
    ada = User.objects.create_user("ada")
    started(5)
    with acting_as(ada):
        bulk = engine.bulk("cancel", name="remind", reason="The season is over.")
    assert statuses() == ["suspended"] * 5, "nothing is done in the caller's transaction"
    assert (bulk.total, bulk.remaining, bulk.actor_name) == (5, 5, "ada")
    assert drain() >= 3
    assert counts(bulk) == ("completed", 5, 0, 0, 0)
    assert statuses() == ["cancelled"] * 5
    assert {run.error for run in WorkflowRun.objects.all()} == {"Cancelled by ada: The season is over."}
    noted = Action.objects.filter(done="Cancelled").values_list("actor", "actor_name", "reason")
    assert list(noted) == [(f"user:{ada.pk}", "ada", "The season is over.")] * 5
    added = Action.objects.get(done="Added")
    assert (added.key, added.reason) == (str(bulk.pk), "The season is over.")


def test_each_bite_is_one_transaction_and_other_work_comes_between(remind, small_bites, monkeypatch):
    started(5)
    bulk = engine.bulk("cancel", name="remind")
    (leased,) = performing_once(bulk)
    assert counts(leased) == ("running", 2, 0, 0, 3)
    assert statuses() == ["cancelled"] * 2 + ["suspended"] * 3
    assert leased.lease is None
    assert leased.position == WorkflowRun.objects.order_by("pk")[1].pk
    drain()
    assert counts(bulk) == ("completed", 5, 0, 0, 0)


def performing_once(bulk: BulkAction) -> list[BulkAction]:
    """Let a worker claim the bulk action and do one bite."""
    from django.utils import timezone

    from django_ai.automation.queues.claim import claim

    rows = claim(BulkAction, timezone.now(), 1)
    rows[0].perform(timezone.now)
    return rows


def test_a_bite_ends_after_its_time(remind, monkeypatch):
    monkeypatch.setattr(performing, "SECONDS_PER_BITE", 0)
    started(3)
    bulk = engine.bulk("pause", name="remind")
    performing_once(bulk)
    assert counts(bulk) == ("running", 1, 0, 0, 2)
    drain()
    assert counts(bulk) == ("completed", 3, 0, 0, 0)


def test_only_rows_that_match_and_existed_are_changed(remind):
    first, second, third = started(3)
    engine.cancel(second)
    bulk = engine.bulk("cancel", pks=[first.pk, second.pk])
    assert bulk.total == 1, "a run that has ended is not concerned"
    by_time = engine.bulk("pause", where={"created_at__gte": third.created_at, "pk__in": [third]})
    later = engine.start("remind")
    everything = engine.bulk("cancel", everything=True)
    latest = engine.start("remind")
    drain()
    assert counts(bulk) == ("completed", 1, 0, 0, 0)
    assert counts(by_time)[:2] == ("completed", 1)
    assert counts(everything)[0] == "completed"
    for run in (first, third, later, latest):
        run.refresh_from_db()
    assert (first.status, third.status, later.status) == ("cancelled", "cancelled", "cancelled")
    assert latest.status == "suspended", "it was created after the bulk action"


def test_rows_of_an_entity(remind):
    @agent("butler", spawn_on="reservation_confirmed")
    class Butler:
        class Context(BaseModel):
            entity_id: str

        @handler("checkin_due")
        def welcome(self, run):
            pass

    mine, other = (Reservation.objects.create(status="confirmed") for _ in range(2))
    drain()
    bulk = engine.bulk("complete", "agent", entity=mine, reason="They left.")
    drain()
    assert counts(bulk)[:2] == ("completed", 1)
    assert AgentRun.objects.get(entity_id=str(mine.pk)).status == "completed"
    assert AgentRun.objects.get(entity_id=str(other.pk)).status == "active"
    pending = Event.objects.filter(status="pending").count()
    events = engine.bulk("cancel", "event", everything=True)
    drain()
    assert counts(events)[:2] == ("completed", pending)
    with pytest.raises(DefinitionError, match="must be a model instance"):
        engine.bulk("cancel", entity="Ada")  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="'schedule' are about no entity"):
        engine.bulk("resume", "schedule", entity=mine)


def test_only_rows_with_the_same_problem_are_resumed(remind, monkeypatch):
    monkeypatch.setattr(performing, "ERRORS_PER_BITE", 2)
    first, *_ = started(3, "no bed 12 for guest-7")
    others = started(2, "no bed, status 503")
    more = started(2, "no bed 13 for guest-8")
    WorkflowRun.objects.update(data={"why": ""})
    bulk = engine.bulk("resume", same_problem_as=first)
    assert bulk.total == 5
    drain()
    assert counts(bulk) == ("completed", 5, 0, 0, 0)
    assert {run.status for run in WorkflowRun.objects.filter(pk__in=[each.pk for each in others])} == {"failed"}
    assert {run.status for run in WorkflowRun.objects.filter(pk__in=[each.pk for each in more])} == {"suspended"}
    first.refresh_from_db()
    with pytest.raises(StateError, match="only a row that failed or is parked"):
        engine.bulk("resume", same_problem_as=first)
    with pytest.raises(DefinitionError, match="give a row of the kind 'agent'"):
        engine.bulk("resume", "agent", same_problem_as=first)


def test_a_row_that_raises_does_not_stop_the_others(remind, monkeypatch, small_bites):
    """The bite is repeated with savepoints: what the row has written before its error is undone."""
    runs = started(5)

    def act(run: WorkflowRun, reason: str) -> bool:
        WorkflowRun.objects.filter(pk=run.pk).update(data={"why": "touched"})
        if run.pk == runs[1].pk:
            raise ZeroDivisionError("no luck")
        if run.pk == runs[3].pk:
            return False
        if run.pk == runs[4].pk:
            raise StateError(f"{run} is busy")
        return True

    kind = find_kind("workflow")
    broken = verbs.BulkVerb(act, "Touched", lambda: verbs.models.Q(), "It does not want to.")
    register_bulk_kind(BulkKind("workflow", WorkflowRun, "name", {**kind.verbs, "touch": broken}))
    try:
        bulk = engine.bulk("touch", everything=True)
        drain()
    finally:
        register_bulk_kind(kind)
    assert counts(bulk) == ("completed", 2, 2, 1, 0)
    touched = [run.data["why"] for run in WorkflowRun.objects.order_by("pk")]
    assert touched[:3] == ["touched", "", "touched"]
    assert [(each["key"], each["why"], each["failed"]) for each in bulk.examples] == [
        (runs[1].pk, "ZeroDivisionError: no luck", True),
        (runs[3].pk, "It does not want to.", False),
        (runs[4].pk, f"{runs[4]} is busy", False),
    ]


def test_a_cancelled_bulk_action_stops_and_its_worker_changes_nothing_more(remind, small_bites):
    started(5)
    bulk = engine.bulk("cancel", name="remind")
    performing_once(bulk)
    kept = performing.advance
    try:
        # Cancelled while a worker is in the middle of the second bite.
        performing.advance = lambda row, changes: (engine.cancel_bulk(bulk, "Stop."), kept(row, changes))  # type: ignore[assignment]
        drain()
    finally:
        performing.advance = kept  # type: ignore[assignment]
    # The cancellation was part of the transaction that was rolled back here; outside of it, it stays.
    assert counts(bulk)[1] == 2
    assert engine.cancel_bulk(bulk, "Stop.") is True
    assert engine.cancel_bulk(bulk.pk) is False
    drain()
    assert counts(bulk) == ("cancelled", 2, 0, 0, 3)
    assert bulk.error == "Stop."
    assert statuses() == ["cancelled"] * 2 + ["suspended"] * 3


def test_one_whose_code_is_missing_is_parked_and_resumed(remind, monkeypatch, clock):
    started(1)
    bulk = engine.bulk("cancel", name="remind")
    BulkAction.objects.update(verb="cancels")
    drain()
    bulk.refresh_from_db()
    assert bulk.status == "parked"
    assert "no bulk action 'cancels' for rows of the kind 'workflow'. Did you mean 'cancel'?" in bulk.error
    assert "missing code" in bulk.waits_for()
    BulkAction.objects.update(verb="cancel")
    with acting_as("system:night"):
        bulk.resume()
    assert Action.objects.get(done="Resumed").key == str(bulk.pk)
    drain()
    assert counts(bulk)[:2] == ("completed", 1)
    with pytest.raises(NotResumableError, match="only a parked one"):
        bulk.resume()


def test_what_is_missing_is_said(remind):
    for call, words in (
        (lambda: engine.bulk("cancels", name="remind"), "no bulk action 'cancels'.*Did you mean 'cancel'"),
        (lambda: engine.bulk("cancel", "workflows", name="x"), "no kind of row 'workflows'.*Did you mean 'workflow'"),
        (lambda: engine.bulk("cancel"), "has no condition.*everything=True"),
        (lambda: engine.bulk("cancel", where={"nam": "x"}), "Did you mean 'name'"),
        (lambda: engine.bulk("cancel", where={"wake_at__lt": "soon"}), "invalid format"),
        (lambda: engine.bulk("cancel", where={"name": object()}), "stores its filter"),
        (lambda: engine.bulk("cancel", pks=range(10_001)), "at most 10000 primary keys, not 10001"),
        (lambda: engine.cancel_bulk("all"), "give a BulkAction or its primary key"),
    ):
        with pytest.raises(DefinitionError, match=words):
            call()
    assert not BulkAction.objects.exists()


def test_many_rows_are_counted_up_to_a_limit(remind, monkeypatch):
    monkeypatch.setattr(creation, "MAX_COUNTED_ROWS", 2)
    started(4)
    bulk = engine.bulk("cancel", name="remind")
    assert bulk.total == 3
    assert creation.is_capped(bulk.total)
    drain()
    assert counts(bulk) == ("completed", 4, 0, 0, 0)


def test_what_awaited_its_code_is_counted(remind):
    (run,) = started(1)
    WorkflowRun.objects.filter(pk=run.pk).update(name="gone", status="running", wake_at=run.created_at)
    drain()
    bulk = engine.bulk("resume", name="gone")
    drain()
    bulk.refresh_from_db()
    assert (bulk.done, bulk.awaiting_code) == (1, 1)


def test_it_is_explained_and_pruned(remind, clock):
    started(1)
    bulk = engine.bulk("cancel", name="remind")
    (line,) = [each for each in explain(clock()) if each.kind == "bulk action"]
    assert line.waits_for.startswith("a worker: due since")
    drain()
    clock.tick(timedelta(days=300))
    assert prune_bulk_actions(TimeSlice(clock())).done == 0
    clock.tick(timedelta(days=70))
    assert prune_bulk_actions(TimeSlice(clock())).done == 1
    assert not BulkAction.objects.filter(pk=bulk.pk).exists()
    assert issubclass(BulkAction, Wakeable)
