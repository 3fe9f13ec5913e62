"""An ``EventDefinition`` stands for its name wherever an event is named."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from django_ai.automation.agents.core import agent, handler
from django_ai.automation.agents.definitions import find_agent
from django_ai.automation.events.callbacks import all_callbacks, on_event, on_event_cancelled, on_event_created
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.workflows.core import complete, event_workflow, step, wait, wait_for_event
from django_ai.automation.workflows.definitions import find_workflow

PAID = EventDefinition("ref_paid")
SENT = EventDefinition("ref_sent")
DONE = EventDefinition("ref_done:{{ instance.pk }}")


class Empty(BaseModel):
    pass


@pytest.mark.parametrize("decorator", [on_event, on_event_created, on_event_cancelled])
def test_a_callback_takes_a_definition(decorator):
    decorator(PAID, name="by reference")(lambda event: None)
    assert [each.event_name for each in all_callbacks() if each.name == "by reference"] == ["ref_paid"]


def test_a_template_stands_for_all_its_events():
    on_event(DONE, name="by reference")(lambda event: None)
    assert [each.event_name for each in all_callbacks() if each.name == "by reference"] == ["ref_done:*"]


def test_an_event_workflow_takes_a_definition():
    @event_workflow(PAID, name="by reference")
    class Flow:
        Context = Empty

        @step(start=True)
        def begin(self):
            return complete()

    assert find_workflow("by reference").event_name == "ref_paid"


@pytest.mark.parametrize(
    ("spawn_on", "expected"),
    [(PAID, ("ref_paid",)), ([PAID, "ref_sent"], ("ref_paid", "ref_sent")), ((PAID, SENT), ("ref_paid", "ref_sent"))],
)
def test_an_agent_and_its_handlers_take_definitions(spawn_on, expected):
    @agent("by reference", spawn_on=spawn_on)
    class Agent:
        Context = Empty

        @handler(SENT)
        def hear(self, ctx):
            pass

    definition = find_agent("by reference")
    assert definition.spawn_on == expected
    assert [each.event_name for each in definition.handlers] == ["ref_sent"]


@pytest.mark.parametrize("spawn_on", ["", [""], 5, [5]])
def test_an_agent_refuses_what_names_no_event(spawn_on):
    with pytest.raises((DefinitionError, TypeError)):
        agent("by reference", spawn_on=spawn_on)


@pytest.mark.parametrize("wait_for", [wait_for_event, wait.for_event])
def test_a_wait_takes_a_definition(wait_for):
    found = wait_for(PAID)
    assert (found.event, found.signal) == ("ref_paid", "event:ref_paid")


def test_a_wait_above_a_step_takes_a_definition():
    @wait_for_event(PAID)
    @step()
    def after(self):
        return complete()

    assert after.__step__.wait.event == "ref_paid"


@pytest.mark.parametrize("wait_for", [wait_for_event, wait.for_event])
def test_a_wait_for_a_template_says_how_to_name_one_event(wait_for):
    with pytest.raises(DefinitionError, match=r"each entity has an event of its own name.*ctx\.parcel_id"):
        wait_for(DONE)


@pytest.mark.parametrize("given", [[PAID], EventDefinition, None, 5])
def test_what_is_neither_a_name_nor_a_definition_is_refused(given):
    with pytest.raises(DefinitionError, match="or its EventDefinition; got"):
        on_event(given)


def test_a_definition_reads_as_its_name():
    assert f"{PAID}" == "ref_paid"
