"""Pauses: what is not performed meanwhile, and that everything is performed afterwards, once."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from pydantic import BaseModel

from django_ai.automation import (
    agent,
    complete,
    engine,
    event_workflow,
    get_run,
    get_wake,
    goto,
    handler,
    on_event,
    step,
    wait,
    workflow,
)
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues import due, holding, pauses
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import HeldRow, Pause
from django_ai.automation.queues.operations.explanations import explain
from django_ai.automation.queues.registry import due_times
from django_ai.automation.queues.runtimes.tasks import reconcile
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.marks import not_on
from tests.support.pauses import TARGETS, Word, pause_and_unpause
from tests.support.race import OtherThread
from tests.support.rows import effects, leave, status

pytestmark = pytest.mark.django_db(transaction=True)

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


# -- nothing runs meanwhile, and everything afterwards -----------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_a_paused_run_does_not_start_and_starts_afterwards(clock, work, naps, target):
    run = engine.start("pauses:naps", word="a")
    pause, unpause = pause_and_unpause(target, run, naps)
    assert pause() is True
    assert pause() is False, "it is paused already"
    for _ in range(3):
        work()
        assert effects() == []
        clock.tick(10 * MINUTE)
    assert unpause() is True
    assert unpause() is False
    work()
    assert effects() == ["begin a"]
    run.refresh_from_db()
    assert (run.status, run.losses, run.attempt) == ("waiting", 0, 0)
    assert not HeldRow.objects.exists()


@pytest.mark.parametrize("target", TARGETS)
def test_a_timer_that_falls_due_during_the_pause_fires_afterwards(clock, work, naps, target):
    run = engine.start("pauses:naps", word="a")
    work()
    pause, unpause = pause_and_unpause(target, run, naps)
    pause()
    work(clock.now + 2 * HOUR)
    assert effects() == ["begin a"]
    clock.tick(3 * HOUR)
    unpause()
    work()
    assert (status(run), effects()) == ("completed", ["begin a", "end a"])


@pytest.mark.parametrize("target", TARGETS)
def test_a_timer_after_the_pause_keeps_its_time(clock, work, naps, target):
    run = engine.start("pauses:naps", word="a")
    work()
    pause, unpause = pause_and_unpause(target, run, naps)
    pause()
    work(clock.now + 30 * MINUTE)
    unpause()
    work(clock.now + 40 * MINUTE)
    assert status(run) == "waiting"
    work(clock.now + HOUR)
    assert status(run) == "completed"


def test_only_the_target_is_paused(work, naps, other):
    first, second = engine.start("pauses:naps", word="a"), engine.start("pauses:naps", word="b")
    engine.start("pauses:other")
    engine.pause(first)
    work()
    assert effects() == ["begin b", "other "]
    engine.pause(queue="default")
    engine.start("pauses:other")
    engine.start("pauses:naps", word="c")
    work()
    assert effects() == ["begin b", "other ", "begin c"]
    engine.unpause(queue="default")
    engine.unpause(first)
    work()
    assert sorted(effects()[3:]) == ["begin a", "other "]
    assert second.pk


def test_each_pause_ends_by_itself(work, naps):
    run = engine.start("pauses:naps", word="a")
    engine.pause(run)
    engine.pause(workflow="pauses:naps")
    engine.pause(queue="reports")
    for unpause in (
        lambda: engine.unpause(workflow="pauses:naps"),
        lambda: engine.unpause(queue="reports"),
        lambda: engine.unpause(run),
    ):
        work()
        assert effects() == []
        unpause()
    work()
    assert effects() == ["begin a"]


def test_rows_are_performed_in_the_order_in_which_they_became_due(clock, work, naps):
    engine.pause(workflow="pauses:naps")
    for word in "abcdef":
        engine.start("pauses:naps", word=word)
        work()
        clock.tick(SECOND)
    engine.unpause(workflow="pauses:naps")
    for _ in range(6):
        assert drain(budget=timedelta(microseconds=1)) <= 6
    work()
    assert effects() == [f"begin {word}" for word in "abcdef"]


def test_a_pause_is_part_of_the_transaction_of_its_caller(work, naps):
    engine.start("pauses:naps", word="a")
    with pytest.raises(RuntimeError), transaction.atomic():
        engine.pause(workflow="pauses:naps")
        raise RuntimeError
    work()
    assert effects() == ["begin a"]
    engine.pause(workflow="pauses:naps")
    engine.start("pauses:naps", word="b")
    work()
    with pytest.raises(RuntimeError), transaction.atomic():
        engine.unpause(workflow="pauses:naps")
        raise RuntimeError
    work()
    assert effects() == ["begin a"]
    assert HeldRow.objects.count() == 1


def test_a_step_may_pause_its_own_run(work):
    @workflow("pauses:itself")
    class Itself:
        Context = Word

        @step(start=True)
        def begin(self):
            leave("begin")
            engine.pause(get_run())
            return goto(self.end)

        @step()
        def end(self):
            leave("end")
            return complete()

    run = engine.start("pauses:itself")
    work()
    assert (effects(), status(run)) == (["begin"], "running")
    engine.unpause(run)
    work()
    assert effects() == ["begin", "end"]


def test_a_leased_run_is_not_disturbed(clock, naps):
    """Its worker commits the step; the next one waits."""
    run = engine.start("pauses:naps", word="a")
    (row,) = claim(WorkflowRun, clock.now, 1, None, "reports")
    engine.pause(workflow="pauses:naps")
    row.perform(clock)
    assert (status(run), effects()) == ("waiting", ["begin a"])


# -- events, signals, callbacks and agents -----------------------------------------------------------------------------


def test_events_occur_and_what_follows_from_them_waits(work):
    @on_event("reservation_confirmed", name="pauses:heard")
    def heard(event):
        leave("heard")

    @event_workflow("reservation_confirmed", name="pauses:caused")
    class Caused:
        Context = Word

        @step(start=True)
        def begin(self):
            leave("caused")
            return complete()

    @agent("pauses:agent", spawn_on="reservation_confirmed")
    class Keeper:
        Context = Word

        @handler("reservation_confirmed")
        def answer(self):
            leave("answered")

    engine.pause(everything=True, reason="An incident.")
    Reservation.objects.create(status="confirmed")
    work()
    assert Event.objects.get(event_name="reservation_confirmed").status == "processed"
    assert (CallbackExecution.objects.count(), WorkflowRun.objects.count(), AgentRun.objects.count()) == (1, 1, 1)
    assert effects() == []
    engine.unpause(everything=True)
    work()
    assert sorted(effects()) == ["answered", "caused", "heard"]


def test_a_callback_is_paused_by_its_name(work):
    for name in ("pauses:one", "pauses:two"):
        on_event("reservation_confirmed", name=name)(lambda event, name=name: leave(name))
    engine.pause(callback="pauses:one")
    Reservation.objects.create(status="confirmed")
    work()
    assert effects() == ["pauses:two"]
    engine.unpause(callback="pauses:one")
    work()
    assert effects() == ["pauses:two", "pauses:one"]


@pytest.mark.parametrize("target", ["name", "class", "run"])
def test_a_paused_agent_collects_its_events(clock, work, target):
    @agent("pauses:agent", spawn_on="reservation_confirmed")
    class Keeper:
        class Context(BaseModel):
            heard: int = 0

        @handler("guest_docs_uploaded")
        def uploaded(self, ctx):
            ctx.heard += 1
            leave(f"uploaded {ctx.heard}")

    stay = Reservation.objects.create(status="confirmed")
    work()
    run = AgentRun.objects.get()
    given = {"name": ([], {"agent": "pauses:agent"}), "class": ([], {"agent": Keeper}), "run": ([run], {})}[target]
    engine.pause(*given[0], **given[1])
    stay.docs = True
    stay.save()
    for _ in range(2):
        work()
        assert effects() == []
    assert run.executions.get().status == "pending"
    (waits,) = [each.waits_for for each in explain(clock.now, ["handler execution"])]
    assert waits.startswith(f"its agent {run}, which waits for the end of the pause of ")
    engine.unpause(*given[0], **given[1])
    work()
    assert effects() == ["uploaded 1"]


def test_a_signal_wakes_a_paused_run_afterwards(clock, work):
    @workflow("pauses:waits")
    class Waits:
        Context = Word

        @step(start=True)
        def begin(self):
            return wait("pauses:go", timeout=HOUR, then=self.end, on_timeout=self.late)

        @step()
        def end(self):
            leave(get_wake().reason)
            return complete()

        @step()
        def late(self):
            leave("late")
            return complete()

    signalled, late = engine.start("pauses:waits"), engine.start("pauses:waits")
    work()
    engine.pause(workflow="pauses:waits")
    engine.signal("pauses:go", run=signalled)
    work()
    clock.tick(2 * HOUR)
    work()  # the timeout of the other falls due
    assert effects() == []
    engine.unpause(workflow="pauses:waits")
    work()
    assert sorted(effects()) == ["late", "signal"]
    assert {status(signalled), status(late)} == {"completed"}


def test_what_arrived_during_the_pause_wins_over_a_timeout_that_passed(clock, work):
    @workflow("pauses:waits")
    class Waits:
        Context = Word

        @step(start=True)
        def begin(self):
            if get_wake().reason != "first":
                leave(get_wake().reason)
                return complete()
            return wait("pauses:go", timeout=HOUR)

    run = engine.start("pauses:waits")
    work()
    engine.pause(run)
    work(clock.tick(2 * HOUR))
    engine.signal("pauses:go")
    work()
    assert effects() == []
    engine.unpause(run)
    work()
    assert effects() == ["signal"]


def test_a_planned_run_follows_its_date_while_it_is_paused(clock, work):
    @event_workflow("checkin_due", offset=-HOUR, name="pauses:planned")
    class Planned:
        Context = Word

        @step(start=True)
        def begin(self):
            leave(f"{clock.now:%H:%M}")
            return complete()

    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + 2 * HOUR)
    engine.pause(workflow="pauses:planned")
    work(clock.now + HOUR)
    stay.checkin_at = clock.now + 6 * HOUR
    stay.save()
    engine.unpause(workflow="pauses:planned")
    work(clock.tick(2 * HOUR))
    assert effects() == []
    work(clock.tick(3 * HOUR))
    assert effects() == ["17:00"]


# -- what changes a paused row from outside ----------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_a_paused_run_can_be_cancelled(work, naps, target):
    run = engine.start("pauses:naps")
    pause, unpause = pause_and_unpause(target, run, naps)
    pause()
    work()
    assert engine.cancel(run)
    unpause()
    work()
    assert (status(run), effects()) == ("cancelled", [])
    run.refresh_from_db()
    assert run.wake_at is None


def test_a_callback_that_was_finished_meanwhile_is_not_called_again(work):
    @on_event("reservation_confirmed", name="pauses:heard")
    def heard(event):
        leave("heard")

    engine.pause(callback="pauses:heard")
    Reservation.objects.create(status="confirmed")
    work()
    CallbackExecution.objects.update(status="completed")
    engine.unpause(callback="pauses:heard")
    work()
    assert effects() == []


def test_a_parked_run_stays_parked_and_a_resumed_one_paused(work, naps):
    run = engine.start("pauses:naps", word="a")
    WorkflowRun.objects.update(status="parked", wake_at=None, error="poison")
    engine.pause(run)
    work()
    engine.unpause(run)
    work()
    assert status(run) == "parked"
    engine.pause(run)
    engine.resume(run)
    work()
    assert effects() == []
    engine.unpause(run)
    work()
    assert effects() == ["begin a"]


def test_a_run_that_is_parked_for_code_is_not_checked_while_it_is_paused(clock, work, naps):
    run = engine.start("pauses:naps", word="a")
    WorkflowRun.objects.update(status="parked", parked_at=clock.now, wake_at=clock.now, error="UnknownStepError")
    engine.pause(workflow="pauses:naps")
    work()
    run.refresh_from_db()
    assert (run.status, run.wake_at > clock.now, HeldRow.objects.count()) == ("parked", True, 0)
    engine.unpause(workflow="pauses:naps")
    work(run.wake_at)
    assert effects() == ["begin a"]


def test_losses_are_kept_while_a_row_is_held(clock, work, naps):
    run = engine.start("pauses:naps", word="a")
    assert claim(WorkflowRun, clock.now, 1, None, "reports")
    engine.pause(run)
    work(clock.tick(11 * SECOND))
    run.refresh_from_db()
    assert (run.losses, run.wake_at) == (1, None)
    engine.unpause(run)
    work()
    assert run.steps.filter(outcome="lost").count() == 1
    assert effects() == ["begin a"]


# -- both sides commit first and look second ---------------------------------------------------------------------------


def test_a_row_that_is_held_after_its_pause_has_ended_is_released_by_its_worker(clock, work, naps):
    """The worker has claimed the row and knows the pause; it ends before the worker holds the row."""
    run = engine.start("pauses:naps", word="a")
    engine.pause(workflow="pauses:naps")
    due_times()  # the worker looks
    (row,) = claim(WorkflowRun, clock.now, 1, None, "reports")
    targets = holding.paused_among([row], pauses.current())
    assert targets == {run.pk: "workflow:pauses:naps"}
    engine.unpause(workflow="pauses:naps")
    holding.hold([row], targets, clock.now)
    assert not HeldRow.objects.exists()
    work()
    assert effects() == ["begin a"]


@not_on("sqlite", reason="SQLite has one writer at a time")
def test_a_row_that_is_held_in_the_middle_of_the_end_of_its_pause_is_released_after_the_commit(clock, work, naps):
    engine.start("pauses:naps", word="a")
    engine.pause(workflow="pauses:naps")
    due_times()
    (row,) = claim(WorkflowRun, clock.now, 1, None, "reports")
    targets = holding.paused_among([row], pauses.current())
    with transaction.atomic():
        engine.unpause(workflow="pauses:naps")
        OtherThread(lambda: holding.hold([row], targets, clock.now)).join()
        assert HeldRow.objects.count() == 1, "the worker still sees the pause"
    work()
    assert effects() == ["begin a"]
    assert not HeldRow.objects.exists()


def test_a_row_whose_lease_was_lost_is_not_held(clock, work, naps):
    run = engine.start("pauses:naps", word="a")
    engine.pause(workflow="pauses:naps")
    due_times()
    (row,) = claim(WorkflowRun, clock.now, 1, None, "reports")
    targets = holding.paused_among([row], pauses.current())
    engine.cancel(run)
    holding.hold([row], targets, clock.now)
    assert (status(run), HeldRow.objects.count()) == ("cancelled", 0)


def test_the_reconciliation_finds_what_a_process_that_died_has_left(work, naps):
    run = engine.start("pauses:naps", word="a")
    engine.pause(workflow="pauses:naps")
    work()
    Pause.objects.all().delete()  # and the process died before it had released the rows
    pauses.reset()  # this process has not seen the pause
    assert work() == 0
    assert run.__class__.objects.get().waits_for(run.created_at) == (
        "the next reconciliation: the pause that held it has ended"
    )
    assert reconcile() >= 1
    work()
    assert effects() == ["begin a"]


def test_a_worker_that_notices_the_end_of_a_pause_releases_what_is_left(work, naps):
    engine.start("pauses:naps", word="a")
    engine.pause(workflow="pauses:naps")
    work()
    Pause.objects.all().delete()
    work()
    assert effects() == ["begin a"]


def test_the_reconciliation_deletes_pauses_of_rows_that_have_ended(work, naps, other):
    ended, alive = engine.start("pauses:naps"), engine.start("pauses:naps")
    engine.pause(ended)
    engine.pause(alive)
    engine.pause(workflow="pauses:naps")
    engine.cancel(ended)
    WorkflowRun.objects.filter(pk=ended.pk).delete()
    reconcile()
    assert sorted(Pause.objects.values_list("target", flat=True)) == sorted([alive.own_target, "workflow:pauses:naps"])


# -- costs -------------------------------------------------------------------------------------------------------------


def test_pauses_cost_no_query_where_there_are_none(work, other):
    engine.start("pauses:other")
    with CaptureQueriesContext(connection) as queries:
        work()
    table = Pause._meta.db_table
    assert {sql.lstrip()[:6] for query in queries if table in (sql := query["sql"])} == {"SELECT"}
    looks = [query["sql"] for query in queries if table in query["sql"]]
    assert all(WorkflowRun._meta.db_table in sql for sql in looks), "it is a branch of the query for due rows"


def test_a_paused_queue_is_not_claimed_at_all(work, naps):
    for _ in range(3):
        engine.start("pauses:naps")
    engine.pause(queue="reports")
    with CaptureQueriesContext(connection) as queries:
        work()
    assert not [query for query in queries if query["sql"].lstrip().startswith(("WITH due", "UPDATE", "INSERT"))]
    assert not HeldRow.objects.exists()


@pytest.mark.slow
def test_many_rows_are_held_and_released_in_few_statements(monkeypatch, settings, work, other):
    settings.AUTOMATION = {**settings.AUTOMATION, "BATCH": 50}
    monkeypatch.setattr("django_ai.automation.queues.drain._batch_size", lambda model: 50)
    runs = [engine.start("pauses:other") for _ in range(120)]
    engine.pause(workflow="pauses:other")
    work()
    assert HeldRow.objects.count() == len(runs)
    with CaptureQueriesContext(connection) as queries:
        engine.unpause(workflow="pauses:other")
    assert len(queries) < 30
    work()
    assert len(effects()) == len(runs)


def test_after_a_pause_a_slow_scan_starts_at_the_beginning(clock, monkeypatch, naps):
    engine.start("pauses:naps")
    monkeypatch.setattr(due, "SLOW_SCAN_SECONDS", -1.0)
    due.reset()
    try:
        engine.pause(queue="reports")
        clock.tick(HOUR)
        for _ in range(3):
            assert not [lane for lane in due.next_due() if lane.model is WorkflowRun]
        engine.unpause(queue="reports")
        due.next_due()
        assert [lane.queue for lane in due.next_due() if lane.model is WorkflowRun] == ["reports"]
    finally:
        due.reset()
