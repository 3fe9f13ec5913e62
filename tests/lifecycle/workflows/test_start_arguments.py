"""What starts a run names its arguments: a misspelt one, one that is missing, and a row that is no run, are refused.
The message has the names of the workflow, the field and the nearest one."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from django_ai.automation import AgentManager, FreeEvent, agent, emit, engine, event_workflow, handler
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.workflows.core import complete, run_subflow, step, wait
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.rows import the_run
from tests.support.workflows import flow, run

pytestmark = pytest.mark.django_db(transaction=True)


class Order(BaseModel):
    order: int
    receipt: str = ""


class AnyField(Order):
    model_config = ConfigDict(extra="allow")


class NoOtherField(Order):
    model_config = ConfigDict(extra="forbid")


class Ignoring(Order):
    model_config = ConfigDict(extra="ignore")


class Renaming(Order):
    number: int = Field(default=0, alias="no")

    @model_validator(mode="before")
    @classmethod
    def rename(cls, values):
        return {"order": values.pop("ordr", 0), **values}


def test_a_field_that_the_context_does_not_have_is_refused():
    flow(lambda self: complete(), "charge", context=Order)
    with pytest.raises(DefinitionError) as caught:
        engine.start("charge", order=1, receipts="x")
    assert str(caught.value) == "The workflow 'charge': Order has no field 'receipts'. Did you mean 'receipt'?"
    with pytest.raises(DefinitionError, match=r"no field 'x', 'y'\. It has: order, receipt\."):
        engine.start("charge", order=1, y=1, x=2)
    assert not WorkflowRun.objects.exists()


@pytest.mark.parametrize("context", [AnyField, Ignoring])
def test_a_context_may_say_that_other_fields_are_welcome(context):
    flow(lambda self: complete(), "charge", context=context)
    assert engine.start("charge", order=1, receipts="x").context.order == 1


def test_a_context_may_forbid_or_rename_fields_itself():
    flow(lambda self: complete(), "strict", context=NoOtherField)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        engine.start("strict", order=1, receipts="x")
    flow(lambda self: complete(), "renaming", context=Renaming, version=2)
    assert engine.start("renaming", ordr=7, no=5).data["order"] == 7


def test_a_missing_field_is_named_with_the_workflow():
    flow(lambda self: complete(), "charge", context=Order)
    with pytest.raises(ValidationError) as caught:
        engine.start("charge", receipt="x")
    (note,) = caught.value.__notes__
    assert note.startswith("The workflow 'charge': the values do not fit its Context: order: Field required")
    assert note.endswith("Its fields: order, receipt.")


def test_a_child_run_with_a_misspelt_argument_fails_its_parent_at_once(work):
    flow(lambda self: complete(), "child", context=Order)
    flow(lambda self: run_subflow("child", order=1, receipts="x"), "parent", version=2)
    parent = run(work, "parent")
    assert (parent.status, parent.attempt) == ("failed", 1)
    assert parent.error_summary.endswith("The workflow 'child': Order has no field 'receipts'. Did you mean 'receipt'?")


def test_a_run_whose_event_does_not_fill_its_context_says_so(clock, work):
    @event_workflow("reservation_confirmed", name="by event")
    class ByEvent:
        Context = Order
        first = step(start=True)(lambda self: complete())

    Reservation.objects.create(status="confirmed")
    for _ in range(3):
        work()
        clock.tick(timedelta(seconds=5))
    assert the_run().status == "failed"
    assert the_run().error_summary == (
        "The workflow 'by event': the values do not fit its Context: order: Field required (input: {}). Without "
        "create_context(cls, event) its fields come from the event, which gives: entity_id. Write one, or give the "
        "other fields a default."
    )


def test_a_payload_that_does_not_fit_names_the_event():
    paid = FreeEvent("paid", payload=Order)
    with pytest.raises(ValidationError) as caught:
        emit(paid, {"receipt": "x"})
    assert caught.value.__notes__ == [
        "emit('paid'): the payload does not fit Order: order: Field required (input: {'receipt': 'x'})."
    ]


def test_an_agent_is_not_spawned_with_a_field_that_it_does_not_have():
    @agent("care", match={"order": "{{ ctx.order }}"})
    class Care:
        Context = Order

        @handler("reservation_confirmed")
        def count(self, ctx):
            pass

    with pytest.raises(DefinitionError, match=r"The agent 'care': Order has no field 'ordr'\. Did you mean 'order'"):
        AgentManager.spawn("care", ordr=1)


# -- rows that are no run ----------------------------------------------------------------------------------------------


@pytest.fixture
def others(work):
    @agent("care", match={"order": "{{ ctx.order }}"})
    class Care:
        Context = Order

        @handler("reservation_confirmed")
        def count(self, ctx):
            pass

    flow(lambda self: wait("x", then=self.end), end=lambda self: complete())
    return {"agent": AgentManager.spawn("care", order=1), "entity": Reservation.objects.create(), "text": "first"}


@pytest.mark.parametrize("kind", ["agent", "entity", "text"])
def test_what_is_no_run_is_refused(others, kind):
    wrong = others[kind]
    calls = {
        "engine.cancel(run)": lambda: engine.cancel(wrong),
        "engine.resume(run)": lambda: engine.resume(wrong),
        "engine.try_now(run)": lambda: engine.try_now(wrong),
        "engine.skip_wait(run)": lambda: engine.skip_wait(wrong),
        "engine.fork(run)": lambda: engine.fork(wrong),
        "engine.signal('x', run=...)": lambda: engine.signal("x", run=wrong),
    }
    for what, call in calls.items():
        with pytest.raises(DefinitionError) as caught:
            call()
        assert str(caught.value).startswith(f"{what}: {wrong!r} is no WorkflowRun and not the primary key of one.")
        assert ("AgentManager takes agents" in str(caught.value)) == (kind == "agent")
    assert not Signal.objects.exists()


def test_a_run_is_no_agent(others):
    found = engine.start("flow")
    for method in (AgentManager.cancel, AgentManager.complete, AgentManager.resume):
        with pytest.raises(DefinitionError, match=rf"AgentManager.{method.__name__}\(run\): .* is no AgentRun"):
            method(found)
    with pytest.raises(DefinitionError, match="True is no WorkflowRun"):
        engine.cancel(True)


def test_a_primary_key_may_be_a_string_of_a_url(others):
    found = engine.start("flow")
    assert engine.cancel(str(found.pk)) is True
    found.refresh_from_db()
    assert found.status == "cancelled"
