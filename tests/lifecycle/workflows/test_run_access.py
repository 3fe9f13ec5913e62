"""``run.context``, ``run.result()``, ``engine.runs(...)``: what code outside a workflow reads of a run."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import override_settings
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import AgentManager, agent, handler
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.exceptions import (
    ContextError,
    DecryptionError,
    DefinitionError,
    NoContextError,
    RunCancelledError,
    RunError,
    RunFailedError,
    RunUnfinishedError,
    UnknownRunError,
    UnknownWorkflowError,
)
from django_ai.automation.workflows import definitions
from django_ai.automation.workflows.core import (
    Retry,
    complete,
    engine,
    event_workflow,
    fail,
    get_run,
    on_cancel,
    on_fail,
    run_subflow,
    sleep,
    step,
    wait,
    workflow,
)
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Document, LongStay, Reservation
from tests.support.rows import effects, leave, the_run
from tests.support.workflows import flow, hook, run

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


class Totals(BaseModel):
    n: int = 0
    text: str = ""


class Other(BaseModel):
    pass


# -- the Context -------------------------------------------------------------------------------------------------------


def test_the_context_is_an_object_of_the_declared_class():
    flow(lambda self: complete(), context=Totals)
    started = engine.start("flow", n=3)
    assert started.context == Totals(n=3)
    assert started.context_as(Totals).n == 3
    with pytest.raises(DefinitionError, match="its Context is a Totals, and not a Other"):
        started.context_as(Other)


def test_changes_of_the_context_that_was_read_are_not_kept(work):
    flow(lambda self: wait("x"), context=Totals)
    started = run(work, n=1)
    started.context.n = 5
    context = started.context
    context.n = 6
    assert (started.context.n, started.data["n"]) == (1, 1)
    started.refresh_from_db()
    assert started.context.n == 1


def test_in_a_step_the_runs_context_is_that_of_the_last_commit(work):
    def first(self):
        self.context.n += 1
        leave(f"{get_run().context.n} {self.context.n}")
        return complete()

    flow(first, context=Totals)
    run(work, n=1)
    assert effects() == ["1 2"]


def test_a_context_is_decrypted():
    with override_settings(AUTOMATION={"CONTEXT_CODEC": "django_ai.automation.state.fernet.FernetCodec"}):
        flow(lambda self: complete(), context=Totals)
        pk = engine.start("flow", text="secret").pk
        assert WorkflowRun.objects.get(pk=pk).context.text == "secret"
    with override_settings(SECRET_KEY="another key, and the old one is not known to anybody here"):
        found = WorkflowRun.objects.get(pk=pk)
        with pytest.raises(DecryptionError, match=r"flow #\d+: the stored value is encrypted"):
            _ = found.context


def test_a_context_of_an_older_version_is_migrated_and_nothing_is_written():
    old = flow(lambda self: complete(), context=Totals, version=1)
    started = engine.start("flow", n=3)
    definitions.unregister(old.__workflow__)

    class New(BaseModel):
        count: int

    @workflow("flow", version=2)
    class Newer:
        Context = New

        @staticmethod
        def migrate_context(data, from_version):
            return {"count": data["n"]}

        @step(start=True)
        def first(self):
            return complete()

    before = WorkflowRun.objects.values().get()
    assert the_run().context == New(count=3)
    assert WorkflowRun.objects.values().get() == before
    assert started.version == "1"


def test_what_the_code_cannot_load_says_why():
    declared = flow(lambda self: complete(), context=Totals)
    started = engine.start("flow")
    started.data = {"n": "many"}
    with pytest.raises(ContextError, match="no longer fits its Context"):
        _ = started.context
    definitions.unregister(declared.__workflow__)
    with pytest.raises(UnknownWorkflowError, match="no workflow is called 'flow'"):
        _ = started.context


def test_a_planned_run_has_no_context_yet(clock, work):
    @event_workflow("checkin_due", offset=-HOUR, name="prepare")
    class Prepare:
        class Context(BaseModel):
            entity_id: int

        @step(start=True)
        def first(self):
            return sleep(HOUR)

    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + 3 * HOUR)
    with pytest.raises(NoContextError, match=r"prepare #\d+ has no Context: .* this one is waiting") as error:
        _ = the_run().context
    assert error.value.run == the_run()
    work(clock.tick(2 * HOUR))
    assert the_run().context.entity_id == stay.pk


def test_agents_have_a_context_too(work):
    @agent("companion", match={"guest_id": "{{ ctx.n }}"})
    class Companion:
        Context = Totals

        @handler("message_received", match={"sender_id": "{{ ctx.n }}"})
        def heard(self, ctx):
            ctx.text = "heard"

    spawned = AgentManager.spawn("companion", n=7)
    assert spawned.context_as(Totals) == Totals(n=7)
    with pytest.raises(NoContextError, match="this one is pending"):
        _ = AgentRun(name="companion", status="pending").context


# -- the result --------------------------------------------------------------------------------------------------------


def test_the_result_is_the_final_context_read_again_where_need_be(work):
    def first(self):
        self.context.n += 1
        return complete(text="done")

    flow(first, context=Totals)
    started = engine.start("flow", n=1)
    with pytest.raises(RunUnfinishedError, match=r"flow #\d+ has not ended: it is running and waits for a worker: due"):
        started.result()
    work()
    assert started.result() == Totals(n=2, text="done")
    assert started.result(Totals).text == "done"
    assert started.status == "completed"
    with pytest.raises(DefinitionError, match="not a Other"):
        started.result(Other)


def test_a_failed_run_has_no_result_but_a_context(work):
    def first(self):
        self.context.n = 9
        return fail("too heavy")

    flow(first, context=Totals)
    started = engine.start("flow")
    work()
    with pytest.raises(RunFailedError, match="because it failed: too heavy") as error:
        started.result()
    assert error.value.run.context.n == 9
    assert isinstance(error.value, RunError)


def test_a_cancelled_and_a_withdrawn_run_have_no_result(clock, work):
    flow(lambda self: wait("x"), "waits")
    started = run(work, "waits")
    engine.cancel(started.pk, "not needed")
    with pytest.raises(RunCancelledError, match="because it was cancelled: not needed"):
        started.result()

    @event_workflow("checkin_due", offset=-HOUR, name="prepare")
    class Prepare:
        Context = Totals

        @step(start=True)
        def first(self):
            return complete()

    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + 3 * HOUR)
    planned = the_run(name="prepare")
    stay.delete()
    with pytest.raises(RunCancelledError, match="it was withdrawn: Withdrawn before it was to start"):
        planned.result()


@pytest.mark.parametrize("how", ["failed", "was cancelled"])
def test_a_run_whose_path_failed_names_its_own_reason_first(how, work):
    def undo(self, error):
        raise LookupError("not undone")

    def first(self):
        if how == "failed":
            raise ValueError("too heavy")
        return wait("x")

    once = Retry(max_attempts=1)
    flow(first, context=Totals, retry=once, one=hook(on_fail, undo), two=hook(on_cancel, undo))
    started = run(work)
    own, path = ("ValueError: too heavy", "@on_fail") if how == "failed" else ("not needed", "@on_cancel")
    if how == "was cancelled":
        engine.cancel(started, "not needed")
        work()
    with pytest.raises(RunFailedError) as error:
        started.result()
    both = f"{own} (then its {path} failed: LookupError: not undone)"
    assert str(error.value) == f"{started} has no result, because it {how}: {both}"


def test_an_error_that_only_looks_like_that_of_a_path_is_quoted_as_it_is(work):
    flow(lambda self: fail("its child: no\n\nThen its @on_fail failed:\n\nnot undone"), context=Totals)
    with pytest.raises(RunFailedError, match=r"because it failed: not undone$"):
        run(work).result()


def test_a_parked_run_has_not_ended(work):
    declared = flow(lambda self: wait("x"))
    started = engine.start("flow")
    definitions.unregister(declared.__workflow__)
    work()
    with pytest.raises(RunUnfinishedError, match="it is parked and waits for missing code"):
        started.result()


def test_the_result_of_a_run_that_was_removed():
    flow(lambda self: complete())
    started = engine.start("flow")
    WorkflowRun.objects.all().delete()
    with pytest.raises(UnknownRunError, match=r"There is no flow #\d+ any more"):
        started.result()


# -- finding runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def greeting():
    @event_workflow("reservation_confirmed", name="greet")
    class Greet:
        Context = Totals

        @step(start=True)
        def first(self):
            return run_subflow("ask", then=self.end)

        @step()
        def end(self):
            return complete()

    flow(lambda self: wait("answer"), "ask", context=Totals)
    return Greet


def test_runs_of_an_entity_with_their_children(greeting, work):
    mine, other = (Reservation.objects.create(status="confirmed") for _ in range(2))
    Document.objects.create(pk=mine.pk, reservation=other)
    work()
    assert [(each.name, each.entity_id) for each in engine.runs(entity=mine)] == [
        ("greet", str(mine.pk)),
        ("ask", str(mine.pk)),
    ]
    assert list(engine.runs(greeting, entity=mine)) == list(
        engine.runs("greet", entity=LongStay.objects.get(pk=mine.pk))
    )
    assert engine.runs("greet").count() == 2
    assert engine.runs().count() == 4
    assert engine.runs(entity=Document.objects.get()).count() == 0


def test_runs_by_status_and_unfinished(greeting, work):
    Reservation.objects.create(status="confirmed")
    work()
    asked = engine.runs("ask", status="suspended").get()
    engine.cancel(asked, "no answer")
    assert engine.runs(status=["cancelled", "failed"]).get() == asked
    work()
    assert engine.runs("greet", status="completed").unfinished().count() == 0


def test_the_run_of_a_key():
    flow(lambda self: wait("x"), "order")
    engine.start("order")
    started = engine.start("order", key="order:12")
    assert engine.runs("order", key="order:12").get() == started
    assert not engine.runs("order", key="order:13").exists()
    with pytest.raises(DefinitionError, match="needs the workflow"):
        engine.runs(key="order:12")
    with pytest.raises(DefinitionError, match="must be a string"):
        engine.runs("order", key=12)


def test_names_that_do_not_exist_are_named():
    flow(lambda self: complete(), "order")
    with pytest.raises(UnknownWorkflowError, match="Did you mean 'order'"):
        engine.runs("oder")
    with pytest.raises(DefinitionError, match=r"'finished'.*Known: 'running'"):
        engine.runs(status="finished")
    with pytest.raises(DefinitionError, match="Did you mean 'failed'"):
        engine.runs(status=["completed", "faild"])
    with pytest.raises(DefinitionError, match="has no primary key"):
        engine.runs(entity=Reservation())
    with pytest.raises(DefinitionError, match="must be a model instance"):
        engine.runs(entity="order")


def test_what_a_row_waits_for_is_asked_without_the_time(work):
    flow(lambda self: wait("packed", then=self.end), end=lambda self: complete())
    found = engine.start("flow")
    assert found.waits_for().startswith("a worker: due since")
    work()
    found.refresh_from_db()
    assert found.waits_for() == found.waits_for(timezone.now()) == "the signal 'packed'"
    engine.pause(found)
    assert found.waits_for() == "the signal 'packed'; and the end of the pause of this row"
