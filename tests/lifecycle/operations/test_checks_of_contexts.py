"""``manage.py check`` finds Contexts that nothing fills, expressions that read no field, and child runs that cannot
start."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from django_ai.automation.agents.checks import check_agents
from django_ai.automation.agents.core import agent, handler
from django_ai.automation.events.free_events import FreeEvent
from django_ai.automation.workflows.core import (
    complete,
    event_workflow,
    goto,
    run_subflow,
    step,
    wait_for_event,
    workflow,
)
from tests.support.checked_workflows import Titled, check_workflows, flow, only

pytestmark = pytest.mark.django_db


class Payment(BaseModel):
    order_id: int
    cents: int


class OfOrder(BaseModel):
    order_id: int
    note: str = ""


class FillsItself(BaseModel):
    order_id: int

    @model_validator(mode="before")
    @classmethod
    def fill(cls, values: Any) -> Any:
        return {"order_id": 0, **values}


class OfEntity(BaseModel):
    model_config = ConfigDict(extra="allow")
    number: int = Field(alias="entity_id")


def complete_at_once(self):
    return complete()


# -- Contexts of events ------------------------------------------------------------------------------------------------


def test_e210_a_required_field_that_an_event_does_not_give():
    flow(complete_at_once, event="reservation_confirmed", context=OfOrder)
    problem = only(check_workflows(None))
    assert problem.id == "automation.E210"
    assert problem.msg == (
        "The workflow checked: OfOrder requires 'order_id', and the event 'reservation_confirmed' gives only entity_id."
    )
    assert "create_context(cls, event)" in problem.hint


def test_e210_compares_with_the_schema_of_an_emitted_event():
    FreeEvent("paid", payload=Payment)
    flow(complete_at_once, event="paid", context=OfOrder)
    assert check_workflows(None) == []

    class OfCustomer(BaseModel):
        customer_id: int

    flow(complete_at_once, name="other", event="paid", context=OfCustomer)
    problem = only(check_workflows(None))
    assert problem.msg.endswith("requires 'customer_id', and the event 'paid' gives only order_id, cents.")


@pytest.mark.parametrize("context", [FillsItself, OfEntity, Titled])
def test_contexts_that_are_filled_are_no_problem(context):
    FreeEvent("any payload")
    flow(complete_at_once, event="reservation_confirmed", context=context)
    flow(complete_at_once, name="of any payload", event="any payload", context=OfOrder)
    flow(complete_at_once, name="started by code", context=OfOrder)

    @event_workflow("reservation_confirmed", name="made")
    class Made:
        Context = OfOrder

        @classmethod
        def create_context(cls, event):
            return OfOrder(order_id=event.entity.pk)

        first = step(start=True)(lambda self: complete())

    assert check_workflows(None) == []


def test_e308_an_agent_whose_spawning_event_does_not_fill_its_context():
    @agent("care", spawn_on=["reservation_confirmed", "document_uploaded"], match={}, singleton=True)
    class Care:
        Context = OfOrder

        @handler("reservation_confirmed")
        def count(self, ctx):
            pass

    found = check_agents(None)
    assert {each.id for each in found} == {"automation.E308"}
    assert [each.msg.partition("the event ")[2] for each in found] == [
        "'reservation_confirmed' gives only entity_id.",
        "'document_uploaded' gives only entity_id.",
    ]


# -- expressions of waits ----------------------------------------------------------------------------------------------


def by_wrong_field(self):
    return wait_for_event("document_uploaded", match={"kind": "{{ ctx.titel }}"})


def by_call(self):
    return wait_for_event("document_uploaded", match={"kind": "{{ ctx.title.upper() }}"})


def in_a_name(self):
    return wait_for_event("document_{{ ctx.titel }}", match={})


@pytest.mark.parametrize(
    ("first", "problem", "hint"),
    [
        (by_wrong_field, "'{{ ctx.titel }}': its Context has no field 'titel'.", "Did you mean 'title'?"),
        (by_call, "{{ ctx.title.upper() }} is not allowed; write {{ ctx.field }} (no calls", None),
        (in_a_name, "'document_{{ ctx.titel }}': its Context has no field 'titel'.", "Did you mean 'title'?"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_e205_an_expression_that_reads_no_field_of_the_context(first, problem, hint):
    before = first.__name__
    flow(first, context=Titled)
    first.__name__ = before
    found = only(check_workflows(None))
    assert (found.id, found.hint) == ("automation.E205", hint)
    assert "the step 'first' waits for the event" in found.msg
    assert problem in found.msg


def test_e205_reads_the_decorator_too():
    @workflow("checked")
    class Checked:
        Context = Titled

        @step(start=True)
        def first(self):
            return goto(self.second)

        @wait_for_event("document_uploaded", match={"kind": "{{ ctx.titel }}"})
        @step()
        def second(self):
            return complete()

    found = only(check_workflows(None))
    assert found.id == "automation.E205"
    assert "the step 'second'" in found.msg


# -- child runs --------------------------------------------------------------------------------------------------------


class ConvertPage:
    Context = OfOrder
    first = step(start=True)(complete_at_once)


class ConvertBook:
    Context = OfOrder

    @classmethod
    def create_context(cls, book, pages=0):
        return OfOrder(order_id=book)

    first = step(start=True)(complete_at_once)


def by_wrong_name(self):
    return run_subflow("convert_pages", order_id=1)


def by_class(self):
    return run_subflow(ConvertPage, ordr_id=1)


def without_a_field(self):
    return run_subflow("convert_page", note="x", then=self.finish)


def by_wrong_argument(self):
    return run_subflow("convert_book", page=1)


def in_order(self):
    run_subflow("convert_page", order_id=1, then=self.finish)
    run_subflow("convert_book", book=1)
    run_subflow(ConvertBook, book=1, pages=3)
    arguments = {"anything": 1}
    run_subflow("convert_page", **arguments)
    return run_subflow(self.context.title)


@pytest.fixture
def children():
    """Declare the child workflows."""
    workflow("convert_page")(ConvertPage)
    workflow("convert_book")(ConvertBook)


@pytest.mark.usefixtures("children")
@pytest.mark.parametrize(
    ("first", "problem", "hint"),
    [
        (by_wrong_name, "names the workflow 'convert_pages', which does not exist.", "Did you mean 'convert_page'?"),
        (by_class, "cannot start 'convert_page' with the arguments ordr_id.", "Did you mean 'order_id'?"),
        (without_a_field, "cannot start 'convert_page' with the arguments note.", "OfOrder requires 'order_id'."),
        (by_wrong_argument, "cannot start 'convert_book' with the arguments page.", "missing a required argument"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_e211_a_child_run_that_cannot_start(first, problem, hint):
    before = first.__name__
    flow(first, context=Titled)
    first.__name__ = before
    found = only(check_workflows(None))
    assert found.id == "automation.E211"
    assert found.msg == f"The workflow checked: run_subflow() in the step 'first' {problem}"
    assert hint in found.hint


@pytest.mark.usefixtures("children")
def test_child_runs_that_can_start_are_no_problem():
    flow(in_order, context=Titled)
    in_order.__name__ = "in_order"
    assert check_workflows(None) == []
