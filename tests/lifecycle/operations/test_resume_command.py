"""``manage.py automation_resume``: what it lists, what it resumes, what it refuses."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from pydantic import BaseModel

from django_ai.automation import Retry, agent, complete, engine, handler, on_cancel, on_event, step, wait, workflow
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues.operations.failed_and_parked import count_failed_and_parked
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.apps.reservations.models import Effect, Reservation
from tests.support.front_desk import book
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)


class Nothing(BaseModel):
    pass


def flow(name="flow"):
    @workflow(name, default_retry=Retry(max_attempts=1))
    class Flow:
        Context = Nothing

        @step(start=True)
        def begin(self):
            leave(name)
            return complete()

        @step()
        def other(self):
            leave(f"{name} other")
            return complete()

    return Flow


def parked(rows, error="a reason", **values):
    rows.update(status="parked", error=error, wake_at=None, **values)


def resume(*args, **options):
    out, err = StringIO(), StringIO()
    try:
        call_command("automation_resume", *args, stdout=out, stderr=err, **options)
    except CommandError as error:
        return out.getvalue() + err.getvalue() + f"EXIT 1: {error}"
    return out.getvalue() + err.getvalue()


def test_a_selection_of_nothing_says_what_is_near(work):
    flow("charge")
    flow("refund")
    for name in ("charge", "charge", "refund"):
        engine.start(name)
    assert resume("workflow", "--name", "charge") == "Resumed: 0.\n"
    parked(WorkflowRun.objects.filter(name="charge"))
    WorkflowRun.objects.filter(name="refund").update(status="failed", wake_at=None, error="a reason")
    near = "No row that could be resumed is called 'chrage'. Did you mean 'charge'?"
    assert resume("workflow", "--name", "chrage") == f"Resumed: 0.\n{near}\n"
    assert near in resume("--name", "chrage", "--failed", "--dry-run")
    hint = "1 failed: add --failed to try again what has failed."
    assert resume("workflow", "--name", "refund") == f"Resumed: 0.\n{hint}\n"
    assert resume("workflow", "--name", "refund", "--dry-run") == f"Nothing to resume.\n{hint}\n"
    assert resume("workflow", "--name", "refund", "--failed") == "Resumed: 1.\n"
    assert "Did you mean 'workflow'?" in resume("workflows")
    assert "Kinds: bulk, event, callback" in resume("x")


@pytest.fixture
def of_each_kind(clock, work):
    """Create a parked row of each kind, and a failed row of the kinds run, callback and handler."""
    flow()

    @agent("keeper", spawn_on="booking_created", default_retry=Retry(max_attempts=1))
    class Versioned:
        class Context(BaseModel):
            entity_id: str

        @handler("booking_created")
        def created(self, ctx):
            leave("handler")

    @on_event("reservation_confirmed", name="greet", retry=Retry(max_attempts=1))
    def greet(event):
        leave("callback")

    for _ in range(2):
        engine.start("flow")
        Reservation.objects.create(status="confirmed")
        book()
    work()
    Effect.objects.all().delete()
    for model in (WorkflowRun, CallbackExecution, HandlerExecution):
        first, second = model.objects.order_by("pk")
        again = {"attempt": 0, "finished_at": clock()}
        model.objects.filter(pk=first.pk).update(status="parked", error="a reason", **again)
        model.objects.filter(pk=second.pk).update(status="failed", error="Traceback:\nboom", **again)
    parked(AgentRun.objects.filter(pk=AgentRun.objects.earliest("pk").pk))
    parked(Event.objects.filter(pk=Event.objects.filter(event_name="reservation_confirmed").earliest("pk").pk))
    Signal.objects.create(name="go", error="a reason")


def test_without_a_filter_it_only_lists(of_each_kind):
    said = resume()
    for kind in ("event", "callback", "signal", "workflow", "agent", "handler"):
        assert f"\n{kind} " in f"\n{said}"
    assert "6 to resume." in said
    assert "Nothing was resumed" in said
    assert WorkflowRun.objects.filter(status="parked").count() == 1
    assert "Nothing was resumed" in resume("workflow")
    assert "Nothing was resumed" in resume(failed=True)
    assert "9 to resume." in resume(failed=True)


def test_a_dry_run_changes_nothing(of_each_kind):
    said = resume(all=True, dry_run=True)
    assert "6 to resume." in said
    assert "Nothing was resumed" not in said
    assert WorkflowRun.objects.filter(status="parked").count() == 1


def test_all(of_each_kind, work):
    assert resume(all=True) == "Resumed: 6.\n"
    work()
    assert sorted(effects()) == ["callback", "flow", "handler"]
    assert resume(all=True) == "Resumed: 0.\n3 failed: add --failed to try again what has failed.\n"
    assert "Nothing to resume." in resume()


def test_the_failed_too(of_each_kind, work):
    assert resume(all=True, failed=True) == "Resumed: 9.\n"
    work()
    assert sorted(effects()) == ["callback", "callback", "flow", "flow", "handler", "handler"]


@pytest.mark.parametrize(
    ("args", "options", "count"),
    [
        (["workflow"], {"all": True}, 1),
        (["workflow", "callback"], {"all": True, "failed": True}, 4),
        ([], {"name": "flow"}, 1),
        ([], {"name": "greet", "failed": True}, 2),
        ([], {"name": "reservation_confirmed"}, 1),
        ([], {"name": "nobody"}, 0),
        ([], {"reason": "BOOM", "failed": True}, 3),
        ([], {"reason": "boom"}, 0),
        ([], {"since": "2030-01-07T12:00+00:00", "failed": True}, 3),
        ([], {"since": "2030-01-08", "failed": True}, 0),
    ],
    ids=str,
)
def test_filters(of_each_kind, args, options, count):
    assert resume(*args, **options).splitlines()[0] == f"Resumed: {count}."


def test_since_counts_from_when_it_was_parked(clock, work):
    flow()
    for ago in (1, 5):
        run = engine.start("flow")
        parked(WorkflowRun.objects.filter(pk=run.pk), parked_at=clock() - timedelta(hours=ago))
    assert resume(since=(clock() - timedelta(hours=2)).isoformat()) == "Resumed: 1.\n"


def test_primary_keys(work):
    flow()
    runs = [engine.start("flow") for _ in range(3)]
    parked(WorkflowRun.objects.all())
    assert resume("workflow", pk=[runs[0].pk, runs[2].pk]) == "Resumed: 2.\n"
    said = resume("workflow", pk=[runs[1].pk, 999_999])
    assert "Resumed: 1." in said
    assert "EXIT 1: There is no workflow with the primary key 999999." in said
    assert "EXIT 1: --pk needs the kind" in resume(pk=[1])


def test_at_another_step(work):
    flow()
    run, strange = engine.start("flow"), engine.start("flow")
    WorkflowRun.objects.filter(pk=strange.pk).update(name="strange")
    parked(WorkflowRun.objects.all())
    assert "EXIT 1: --step is for workflow runs" in resume("agent", name="flow", step="other")
    assert "EXIT 1: --step needs --name or --pk" in resume("workflow", all=True, step="other")
    said = resume("workflow", pk=[run.pk], step="othr")
    assert "has no step 'othr'. Did you mean 'other'?" in said
    assert "EXIT 1: 1 row(s) could not be resumed" in said
    said = resume("workflow", pk=[run.pk, strange.pk], step="other")
    assert "Resumed: 1." in said
    assert f"not resumed: workflow {strange.pk}" in said
    work()
    assert effects() == ["flow other"]


def test_a_run_that_was_cancelled_and_could_not_be_undone_is_among_the_failed(work):
    broken = [True]

    @workflow("careful", default_retry=Retry(max_attempts=1))
    class Careful:
        Context = Nothing

        @step(start=True)
        def begin(self):
            return wait("bell")

        @on_cancel
        def undo(self):
            if broken:
                raise LookupError("no answer")
            leave("undone")

    run, other = engine.start("careful"), engine.start("careful")
    work()
    engine.cancel(run, "not today")
    work()
    engine.cancel(other, "nor tomorrow", at_once=True)
    assert count_failed_and_parked().failed == {"workflow run": 1}
    said = resume("workflow", failed=True)
    assert f"workflow {run.pk}: careful #{run.pk}, failed since " in said
    assert ": not today (then its @on_cancel failed: LookupError: no answer)\n" in said
    assert "1 to resume." in said
    said = resume("workflow", pk=[run.pk], failed=True, step="begin")
    assert "was cancelled, and only the path of its @on_cancel can be resumed; do so without a step." in said
    broken.clear()
    assert resume("workflow", name="careful", failed=True) == "Resumed: 1.\n"
    work()
    run.refresh_from_db()
    assert (run.status, run.error, effects()) == ("cancelled", "not today", ["undone"])
    assert count_failed_and_parked().failed == {}


def test_what_makes_no_sense():
    said = resume("runs")
    kinds = "bulk, event, callback, schedule, write, signal, workflow, agent, handler"
    assert f"EXIT 1: Unknown kind 'runs'. Kinds: {kinds}." in said
    assert "EXIT 1: --since 'yesterday' is not an ISO date" in resume(since="yesterday")


@pytest.mark.slow
def test_many_are_listed_in_part_and_resumed_in_batches(work):
    flow()
    for _ in range(120):
        engine.start("flow")
    parked(WorkflowRun.objects.all())
    said = resume("workflow")
    assert said.count("a reason") == 50
    assert "workflow: and 70 more (-v 2 shows all)" in said
    assert resume("workflow", verbosity=2).count("a reason") == 120
    assert resume(name="flow", verbosity=2).count("resumed workflow") == 120
    work()
    assert len(effects()) == 120
