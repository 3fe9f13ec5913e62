"""``engine.edit_context`` and ``engine.fork``: a Context with other values, validated by its model."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test import override_settings
from pydantic import BaseModel, model_validator

from django_ai.automation import AgentManager, agent, handler
from django_ai.automation.agents.models import AgentRoute, AgentRun
from django_ai.automation.exceptions import (
    DefinitionError,
    InvalidContextError,
    NoContextError,
    SingletonTakenError,
    StateError,
    UnknownStepError,
)
from django_ai.automation.queues.claim import claim
from django_ai.automation.workflows.core import (
    Retry,
    complete,
    engine,
    event_workflow,
    goto,
    on_fail,
    sleep,
    step,
    wait,
    workflow,
)
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.rows import change, effects, history, leave, status, the_run
from tests.support.workflows import flow, hook, run

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)
ONCE = Retry(max_attempts=1)


def test_a_failed_run_is_edited_and_resumed(work):
    def first(self):
        leave(100 // self.context.n)
        return complete()

    flow(first, retry=ONCE)
    found = run(work)
    assert found.status == "failed"
    edited = engine.edit_context(found, {"n": 4}, reason="It was zero.")
    assert (edited.status, edited.data["n"], edited.wake_at) == ("failed", 4, None)
    engine.resume(found)
    work()
    assert (status(found), effects()) == ("completed", ["25"])
    assert found.steps.get(outcome="edit_context").error == "Edited n: It was zero."


@pytest.mark.parametrize(
    "outcome", [lambda self: sleep(HOUR, then=self.after), lambda self: wait("word", then=self.after)]
)
def test_a_run_keeps_waiting_and_the_next_step_reads_the_new_values(work, clock, outcome):
    def after(self):
        leave(self.context.text)
        return complete()

    flow(lambda self: outcome(self), after=after)
    found = run(work)
    before = (found.status, found.wake_at, found.waits.count())
    engine.edit_context(found.pk, {"text": "new"})
    found.refresh_from_db()
    assert (found.status, found.wake_at, found.waits.count()) == before
    engine.signal("word")
    clock.tick(2 * HOUR)
    work()
    assert effects() == ["new"]


def test_each_field_has_its_error_and_nothing_changes(work):
    flow(lambda self: wait("word"))
    found = run(work)
    with pytest.raises(
        InvalidContextError, match=r"does not fit the Context:\n  n: .*\(value: 'many'\)\n  items: "
    ) as wrong:
        engine.edit_context(found, {"n": "many", "items": 3, "text": "fine"})
    assert list(wrong.value.errors) == ["n", "items"]
    with pytest.raises(InvalidContextError, match=r"textt: The Context has no such field\. Did you mean 'text'\?"):
        engine.edit_context(found, {"textt": "x"})
    for fields in ({}, "n", {1: 2}):
        with pytest.raises(DefinitionError, match="must be a dict of fields"):
            engine.edit_context(found, fields)  # type: ignore[arg-type]
    found.refresh_from_db()
    assert (found.data["n"], found.data["text"]) == (0, "")
    assert not found.steps.filter(outcome="edit_context").exists()


def test_a_rule_about_several_fields_is_reported_for_the_whole(work):
    class Span(BaseModel):
        n: int = 0
        end: int = 5

        @model_validator(mode="after")
        def in_order(self):
            if self.n > self.end:
                raise ValueError("n is after end")
            return self

    flow(lambda self: wait("word"), context=Span)
    with pytest.raises(InvalidContextError, match="the whole: Value error, n is after end") as wrong:
        engine.edit_context(run(work), {"n": 6})
    assert list(wrong.value.errors) == [""]


def test_data_that_no_longer_fits_is_repaired(work):
    def first(self):
        leave(self.context.n)
        return complete()

    flow(first)
    found = engine.start("flow")
    WorkflowRun.objects.filter(pk=found.pk).update(data={"n": "many", "text": "kept"})
    work()
    assert status(found) == "parked"
    with pytest.raises(InvalidContextError) as wrong:
        engine.edit_context(found, {"text": "still wrong"})
    assert list(wrong.value.errors) == ["n"]
    engine.edit_context(found, {"n": 3})
    engine.resume(found)
    work()
    found.refresh_from_db()
    assert (found.status, found.data["text"], effects()) == ("completed", "kept", ["3"])


def test_what_is_performed_has_ended_or_has_no_context_is_not_edited(work):
    flow(lambda self: complete())
    with pytest.raises(StateError, match=r"is completed, and nothing reads its Context.*engine\.fork\(\)"):
        engine.edit_context(run(work), {"n": 1})
    started = engine.start("flow")
    (leased,) = claim(WorkflowRun, started.wake_at, 1)
    with pytest.raises(StateError, match=r"is performed by .* at this moment\. Pause it"):
        engine.edit_context(leased, {"n": 1})

    @event_workflow("reservation_confirmed", name="by event")
    class ByEvent:
        class Context(BaseModel):
            entity_id: int

        @step(start=True)
        def first(self):
            return complete()

    Reservation.objects.create(status="confirmed")
    fresh = the_run(name="by event")
    for call in (lambda: engine.edit_context(fresh, {"entity_id": 1}), lambda: engine.fork(fresh)):
        with pytest.raises(NoContextError, match="has no Context yet"):
            call()


@override_settings(AUTOMATION={"CONTEXT_CODEC": "django_ai.automation.state.fernet.FernetCodec"})
def test_an_encrypted_context_stays_encrypted(work):
    flow(lambda self: wait("word"))
    found = engine.edit_context(run(work), {"text": "secret"})
    assert found.context.text == "secret"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT data FROM {WorkflowRun._meta.db_table}")
        assert "secret" not in str(cursor.fetchall())


# -- agents ------------------------------------------------------------------------------------------------------------


def test_the_routes_of_an_agent_follow_its_context(work):
    @agent("watcher", match={"pk": "{{ ctx.stay }}"}, singleton=True)
    class Watcher:
        class Context(BaseModel):
            stay: int

        @handler("reservation_confirmed")
        def confirmed(self, event):
            leave(f"confirmed {event.entity_id}")

    stays = [Reservation.objects.create() for _ in range(3)]
    found = AgentManager.spawn("watcher", stay=stays[0].pk)
    taken = AgentManager.spawn("watcher", stay=stays[1].pk)
    work()
    with pytest.raises(SingletonTakenError):
        engine.edit_context(found, {"stay": stays[1].pk})
    found.refresh_from_db()
    assert found.context.stay == stays[0].pk
    edited = engine.edit_context(found, {"stay": stays[2].pk})
    assert isinstance(edited, AgentRun)
    assert edited.context.stay == stays[2].pk
    for stay in (stays[0], stays[2]):
        change(stay, status="confirmed")
    work()
    assert effects() == [f"confirmed {stays[2].pk}"]
    AgentManager.complete(taken)
    taken.refresh_from_db()
    with pytest.raises(StateError, match=r"is completed.*Spawn another"):
        engine.edit_context(taken, {"stay": 1})
    assert AgentRoute.objects.filter(run=found).exists()


# -- fork --------------------------------------------------------------------------------------------------------------


def test_a_fork_begins_with_other_values_and_the_old_run_stays(work):
    def first(self):
        self.context.items.append("first")
        return goto(self.send)

    def send(self):
        leave(f"to {self.context.text} {len(self.context.items)}")
        return complete()

    flow(first, send=send)
    old = engine.start("flow", text="a@b.c", key="order:1")
    work()
    made = engine.fork(old, "send", {"text": "d@e.f"}, reason="Asked for.")
    assert (made.caused_by, made.origin_key, made.parent_id) == (f"workflow:{old.pk}", None, None)
    assert (made.current_step, made.status, made.visit) == ("send", "running", 1)
    again = engine.fork(old.pk)
    work()
    assert effects() == ["to a@b.c 1", "to d@e.f 1", "to a@b.c 2"]
    assert [status(each) for each in (old, made, again)] == ["completed"] * 3
    assert old.context.text == "a@b.c"
    assert old.steps.filter(outcome="fork").first().error == f"Forked as {made}, at 'send': Asked for."
    assert history(made) == [("send", 1, "complete")]


def test_a_fork_of_a_run_of_an_entity_is_about_that_entity(work):
    @event_workflow("reservation_confirmed", name="stay")
    class Stay:
        class Context(BaseModel):
            entity_id: int

        @step(start=True)
        def first(self):
            leave(f"stay {self.context.entity_id}")
            return complete()

    stay = Reservation.objects.create(status="confirmed")
    work()
    made = engine.fork(the_run(name="stay"))
    work()
    assert effects() == [f"stay {stay.pk}"] * 2
    assert set(engine.runs("stay", entity=stay)) >= {made}
    assert made.event_id is None


def test_a_fork_that_does_not_fit_starts_nothing(work):
    flow(lambda self: complete(), undo=hook(on_fail, lambda self, error: complete()))
    old = run(work)
    with pytest.raises(InvalidContextError):
        engine.fork(old, context={"n": "many"})
    with pytest.raises(UnknownStepError, match="Did you mean 'first'"):
        engine.fork(old, "firsst")
    with pytest.raises(UnknownStepError, match="is its @on_fail and no step"):
        engine.fork(old, "undo")
    assert WorkflowRun.objects.count() == 1


def test_a_fork_uses_the_code_of_today(work):
    @workflow("sums", version=1)
    class One:
        class Context(BaseModel):
            a: int

        @step(start=True)
        def first(self):
            return complete()

    old = run(work, "sums", a=2)
    from django_ai.automation.workflows import definitions

    definitions.unregister(definitions.find_workflow("sums", "1"))

    @workflow("sums", version=2)
    class Two:
        class Context(BaseModel):
            b: int

        @staticmethod
        def migrate_context(data, from_version):
            return {"b": data["a"] * 10}

        @step(start=True)
        def first(self):
            leave(self.context.b)
            return complete()

    made = engine.fork(old)
    work()
    assert (made.version, effects()) == ("2", ["20"])
